// SPDX-License-Identifier: Apache-2.0

/// A moment on a monotonic clock, in nanoseconds since an arbitrary start. Machines get it as an argument; only a
/// shell or a simulator makes one.
@frozen
public struct Instant: Hashable, Comparable, Sendable {
    /// Nanoseconds since the clock's start.
    public var nanoseconds: UInt64

    /// A moment `nanoseconds` after the clock's start.
    @inlinable public init(nanoseconds: UInt64) { self.nanoseconds = nanoseconds }

    /// Later than any moment that occurs.
    @inlinable public static var never: Instant { Instant(nanoseconds: .max) }

    @inlinable public static func < (a: Instant, b: Instant) -> Bool { a.nanoseconds < b.nanoseconds }

    /// `interval` later; saturates at `never`.
    @inlinable public static func + (moment: Instant, interval: Interval) -> Instant {
        let (sum, overflow) = moment.nanoseconds.addingReportingOverflow(interval.nanoseconds)
        return overflow ? .never : Instant(nanoseconds: sum)
    }

    /// Time since `earlier`; zero when `earlier` is not earlier (clocks of tests may jump).
    @inlinable public func since(_ earlier: Instant) -> Interval {
        Interval(nanoseconds: nanoseconds > earlier.nanoseconds ? nanoseconds - earlier.nanoseconds : 0)
    }
}

/// A length of time in whole nanoseconds, never negative. `Duration` would be 16 bytes with slower arithmetic.
@frozen
public struct Interval: Hashable, Comparable, Sendable {
    /// Length in nanoseconds.
    public var nanoseconds: UInt64

    @inlinable public init(nanoseconds: UInt64) { self.nanoseconds = nanoseconds }
    @inlinable public static func microseconds(_ n: UInt64) -> Interval { Interval(nanoseconds: n * 1_000) }
    @inlinable public static func milliseconds(_ n: UInt64) -> Interval {
        Interval(nanoseconds: n * 1_000_000)
    }
    @inlinable public static func seconds(_ n: UInt64) -> Interval {
        Interval(nanoseconds: n * 1_000_000_000)
    }
    @inlinable public static var zero: Interval { Interval(nanoseconds: 0) }

    @inlinable public static func < (a: Interval, b: Interval) -> Bool { a.nanoseconds < b.nanoseconds }
    @inlinable public static func + (a: Interval, b: Interval) -> Interval {
        let (sum, overflow) = a.nanoseconds.addingReportingOverflow(b.nanoseconds)
        return Interval(nanoseconds: overflow ? .max : sum)
    }
    @inlinable public static func * (a: Interval, factor: UInt64) -> Interval {
        let (product, overflow) = a.nanoseconds.multipliedReportingOverflow(by: factor)
        return Interval(nanoseconds: overflow ? .max : product)
    }

    /// Length in seconds, for people and for wire formats that use them.
    @inlinable public var inSeconds: Double { Double(nanoseconds) / 1e9 }
}

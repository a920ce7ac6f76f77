// SPDX-License-Identifier: Apache-2.0

internal import Glibc

/// The clocks of the machine, read by shells only: pure machines are told the time.
public enum Clock {
    /// `CLOCK_BOOTTIME` in nanoseconds: monotonic, and goes on while the machine sleeps, so that timers of a
    /// laptop that was closed for an hour fire at once.
    public static func monotonicNanoseconds() -> UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_BOOTTIME, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }

    /// How long `poll(2)` may wait for `deadline` on the monotonic clock: milliseconds, -1 without one.
    public static func pollTimeout(until deadline: UInt64?) -> Int32 {
        guard let deadline, deadline != .max else { return -1 }
        let now = monotonicNanoseconds()
        // Rounded up: waking a little early would spin until it is really due.
        return deadline <= now ? 0 : Int32(clamping: (deadline - now) / 1_000_000 + 1)
    }

    /// Unix time: seconds and nanoseconds since 1970-01-01 UTC.
    public static func wallTime() -> (seconds: Int64, nanoseconds: UInt32) {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        return (Int64(time.tv_sec), UInt32(time.tv_nsec))
    }
}

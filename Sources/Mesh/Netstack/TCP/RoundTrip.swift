// SPDX-License-Identifier: Apache-2.0

/// Round-trip estimate and retransmission time-out (RFC 6298), in nanoseconds.
struct RoundTrip {
    /// RFC 6298 §2.1.
    static let initialTimeout = Interval.seconds(1)
    /// RFC 6298 §2.4 says one second; every modern stack uses Linux' 200 ms, above its delayed ACKs.
    static let variationFloor: UInt64 = 200_000_000
    /// RFC 6298 §2.5: at least 60 s.
    static let longestTimeout: UInt64 = 120_000_000_000

    /// Zero until the first sample.
    private(set) var smoothed: UInt64 = 0
    private var variation: UInt64 = 0
    /// Smallest sample of the connection so far (RACK.min_RTT).
    private(set) var minimum: UInt64 = .max
    private(set) var backoff: UInt32 = 0

    var hasSample: Bool { smoothed > 0 }

    mutating func sample(_ interval: Interval) {
        // A clock jump (sleep) must not poison the estimate for minutes.
        let value = min(max(interval.nanoseconds, 1_000), 60_000_000_000)
        minimum = min(minimum, value)
        guard hasSample else {
            smoothed = value
            variation = value / 2
            return
        }
        let difference = value > smoothed ? value - smoothed : smoothed - value
        variation = (variation * 3 + difference) / 4
        smoothed = (smoothed * 7 + value) / 8
    }

    /// No path takes longer; what does was a pause of the machine, and must not slow the timer for minutes.
    private static let longestAdapted: UInt64 = 3_000_000_000

    /// RFC 4015 §3.3: the timer ran out too early, and this is how long it takes now.
    mutating func adapt(_ interval: Interval) {
        guard interval.nanoseconds <= Self.longestAdapted else { return }
        smoothed = max(smoothed, interval.nanoseconds)
        variation = max(variation, interval.nanoseconds / 2)
    }

    /// RFC 6298 §5.5, bounded so that the shift cannot overflow.
    mutating func backOff() { backoff = min(backoff + 1, 20) }
    mutating func clearBackOff() { backoff = 0 }

    /// Time-out without back-off.
    var base: Interval {
        guard hasSample else { return Self.initialTimeout }
        return Interval(nanoseconds: smoothed + max(variation * 4, Self.variationFloor))
    }

    /// Time-out with back-off.
    var timeout: Interval {
        Interval(nanoseconds: min((base * (UInt64(1) << UInt64(backoff))).nanoseconds, Self.longestTimeout))
    }
}

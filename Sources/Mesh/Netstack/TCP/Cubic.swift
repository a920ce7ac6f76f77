// SPDX-License-Identifier: Apache-2.0

/// CUBIC congestion control (RFC 9438) with slow start after RFC 9406 (HyStart++), in bytes.
struct Cubic {
    private static let beta = 0.7
    private static let scale = 0.4
    /// RFC 6928: ten segments.
    private static let initialSegments = 10
    /// Never grow beyond this: the buffers hold less.
    private static let ceiling = 64 << 20
    /// Two round trips at 10 Gbit/s, in bytes per nanosecond, and what the turns of busy threads need on top. No path
    /// carries more; what is sent beyond it only waits in a socket of one of the two hosts, before everybody's
    /// keystrokes.
    private static let usefulPerNanosecond = 2.5
    private static let usefulAtLeast = 1 << 20

    private(set) var window: Int
    private(set) var threshold = Int.max
    /// Window in segments before the last reduction.
    private var wMax = 0.0
    private var k = 0.0
    private var epoch: Instant?
    private var wEstimate = 0.0
    /// HyStart++: smallest RTT of this round and of the round before, samples, and the sequence ending the round.
    private var roundMinimum: UInt64 = .max
    private var lastRoundMinimum: UInt64 = .max
    private var roundSamples = 0
    private var roundEnd = SequenceNumber(0)
    private var conservativeRounds = 0
    private var conservativeBaseline: UInt64 = .max

    init(maximumSegment: Int) { window = Self.initialSegments * maximumSegment }

    var isSlowStart: Bool { window < threshold }

    /// `bytes` were newly acknowledged while the window was in use.
    mutating func acknowledged(_ bytes: Int, _ segment: Int, _ trip: borrowing RoundTrip, _ now: Instant) {
        let useful =
            trip.minimum > UInt64(Self.ceiling)
            ? Self.ceiling
            : min(Self.usefulAtLeast + Int(Double(trip.minimum) * Self.usefulPerNanosecond), Self.ceiling)
        guard window < useful else {
            window = useful
            return
        }
        guard !isSlowStart else {
            // RFC 9406 §4.2: growth divisor 4 in conservative slow start.
            window += conservativeRounds > 0 ? max(bytes / 4, 1) : bytes
            window = min(window, max(threshold, 0), useful)
            return
        }
        let size = Double(segment)
        let current = Double(window) / size
        if epoch == nil {
            epoch = now
            wEstimate = current
            if current < wMax {
                k = Self.cubeRoot((wMax - current) / Self.scale)
            } else {
                k = 0
                wMax = current
            }
        }
        let elapsed = now.since(epoch ?? now).inSeconds + Double(trip.smoothed) / 1e9
        let offset = elapsed - k
        let target = min(max(wMax + Self.scale * offset * offset * offset, current), 1.5 * current)
        let acked = Double(bytes) / size
        // Reno-friendly region, RFC 9438 §4.3.
        let alpha = wEstimate < wMax ? 3 * (1 - Self.beta) / (1 + Self.beta) : 1
        wEstimate += alpha * acked / current
        let next = max(current + (target - current) / current * acked, min(wEstimate, current + acked))
        window = min(Int(next * size), useful)
    }

    /// A round-trip sample during slow start; `acknowledged` and `sent` delimit rounds.
    mutating func roundTrip(_ sample: UInt64, acknowledged: SequenceNumber, sent: SequenceNumber) {
        guard isSlowStart else { return }
        if acknowledged > roundEnd || roundSamples == 0 && roundMinimum == .max {
            lastRoundMinimum = roundMinimum
            roundMinimum = .max
            roundSamples = 0
            roundEnd = sent
            if conservativeRounds > 0 {
                conservativeRounds += 1
                // RFC 9406 §4.2: five rounds, then congestion avoidance.
                if conservativeRounds > 5 {
                    threshold = window
                    conservativeRounds = 0
                    return
                }
            }
        }
        roundMinimum = min(roundMinimum, sample)
        roundSamples += 1
        guard roundSamples >= 8 else { return }
        if conservativeRounds > 0 {
            if roundMinimum < conservativeBaseline { conservativeRounds = 0 }  // it was jitter
        } else if lastRoundMinimum != .max {
            // Eighth of the RTT, within 4 ... 16 ms.
            let tolerance = min(max(lastRoundMinimum / 8, 4_000_000), 16_000_000)
            if roundMinimum >= lastRoundMinimum + tolerance {
                conservativeBaseline = roundMinimum
                conservativeRounds = 1
            }
        }
    }

    /// Loss was found with `inFlight` bytes out: lowers the threshold. The window follows by PRR or restart.
    mutating func reduce(_ segment: Int) {
        let current = Double(window) / Double(segment)
        // Fast convergence, RFC 9438 §4.7.
        wMax = current < wMax ? current * (1 + Self.beta) / 2 : current
        threshold = max(Int(Double(window) * Self.beta), 2 * segment)
        epoch = nil
        conservativeRounds = 0
        beginRounds()
    }

    /// The next sample begins a new round; one of long ago would never end.
    private mutating func beginRounds() {
        roundMinimum = .max
        roundSamples = 0
    }

    /// Sets the window: PRR during recovery, one segment after a time-out, the threshold at the end.
    mutating func setWindow(_ bytes: Int, _ segment: Int) { window = min(max(bytes, segment), Self.ceiling) }

    /// RFC 5681 §4.1: halves the window per time-out spent idle, down to the initial window.
    mutating func restart(idle: Interval, timeout: Interval, _ segment: Int) {
        guard timeout.nanoseconds > 0 else { return }
        restart(window >> Int(min(idle.nanoseconds / timeout.nanoseconds, 30)), segment)
    }

    /// The path is another one, of which nothing is known: the initial window, and slow start up to where it was good
    /// before.
    mutating func startOver(_ segment: Int) { restart(0, segment) }

    private mutating func restart(_ bytes: Int, _ segment: Int) {
        let initial = Self.initialSegments * segment
        guard window > initial else { return }
        threshold = max(threshold == .max ? 0 : threshold, window / 4 * 3)
        window = max(bytes, initial)
        epoch = nil
        beginRounds()
    }

    private static func cubeRoot(_ value: Double) -> Double {
        guard value > 0 else { return 0 }
        // Newton's method from above; values stay below 10^8, so this converges well within the bound.
        var root = max(value, 1)
        for _ in 0..<64 {
            let next = (2 * root + value / (root * root)) / 3
            if abs(next - root) < 1e-9 * root { return next }
            root = next
        }
        return root
    }
}

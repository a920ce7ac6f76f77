// SPDX-License-Identifier: Apache-2.0

/// Chooses the home region from measured latencies, with inertia. Pure. `stun-netcheck.md` §2.6.
package struct HomeRegion: Sendable {
    /// Measurements older than this no longer count.
    private static let memory = Interval.seconds(300)
    /// A difference smaller than this is no reason to move.
    private static let inertia = Interval.milliseconds(10)

    /// Latencies of the last five minutes, oldest first, at most `historyLimit` per region.
    private var history: [Int: [(at: Instant, latency: Interval)]] = [:]
    private let historyLimit = 64
    /// The region chosen without any measurement, the same for the life of the process.
    private var fallback: Int?
    private var random: SecureGenerator
    /// The home region; 0 before the first choice.
    package private(set) var current = 0

    package init(random: SecureGenerator) { self.random = random }

    /// Takes the latencies of one report (regions that answered) and says which region is home now; 0 when no
    /// region can relay. `relays` are the regions that can, ascending; `scores` multiply latencies.
    package mutating func choose(
        latencies: [Int: Interval], relays: [Int], avoided: Set<Int> = [], scores: [Int: Double] = [:],
        now: Instant
    ) -> Int {
        for region in latencies.keys.sorted() {
            guard let latency = latencies[region] else { continue }
            history[region, default: []].append((now, latency))
            if history[region]?.count ?? 0 > historyLimit { history[region]?.removeFirst() }
        }
        for region in history.keys.sorted() {
            history[region]?.removeAll { now.since($0.at) > Self.memory }
            if history[region]?.isEmpty ?? true { history[region] = nil }
        }
        let answered = relays.filter { latencies[$0] != nil }
        let wanted = answered.filter { !avoided.contains($0) }
        let candidates = wanted.isEmpty ? answered : wanted
        guard let best = candidates.min(by: { score($0, scores) < score($1, scores) }) else {
            current = unmeasured(relays)
            return current
        }
        if current != best, relays.contains(current), latencies[current] != nil {
            let old = score(current, scores)
            let new = score(best, scores)
            // Kept for less than 10 ms, or while the best needs more than two thirds of its time.
            if old - new < Double(Self.inertia.nanoseconds) || new > old * 2 / 3 { return current }
        }
        current = best
        return best
    }

    /// Best recent latency times the region's factor, nanoseconds.
    private func score(_ region: Int, _ scores: [Int: Double]) -> Double {
        let best = history[region]?.map(\.latency).min() ?? Interval(nanoseconds: .max)
        let factor = scores[region].flatMap { $0 > 0 ? $0 : nil } ?? 1
        return Double(best.nanoseconds) * factor
    }

    private mutating func unmeasured(_ relays: [Int]) -> Int {
        if current != 0, relays.contains(current) { return current }
        if let fallback, relays.contains(fallback) { return fallback }
        fallback = relays.isEmpty ? nil : relays[Int(random.next() % UInt64(relays.count))]
        return fallback ?? 0
    }
}

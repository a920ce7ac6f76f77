// SPDX-License-Identifier: Apache-2.0

import Mesh

/// Two devices over a simulated link. A run is a function of its seed.
final class WireGuardLink {
    struct Conditions {
        var latency: ClosedRange<Double> = 0.005...0.005
        var loss = 0.0
        var duplication = 0.0
        var damage = 0.0
        /// How often an old datagram is sent again by somebody who listens.
        var replay = 0.0
    }

    let pair: WireGuardPair
    var conditions: Conditions
    private(set) var now = Instant.start
    private var generator: SeededGenerator
    private var underWay: [(at: Instant, order: Int, toB: Bool, datagram: [UInt8])] = []
    private var order = 0
    private(set) var sent = 0
    /// What somebody who listens has kept, at most 256.
    private var kept: [(toB: Bool, datagram: [UInt8])] = []

    init(seed: UInt64, _ conditions: Conditions, limits: WireGuard.Limits = .init()) throws {
        pair = try WireGuardPair(seed: seed, limits: limits)
        self.conditions = conditions
        generator = SeededGenerator(seed: seed ^ 0x5eed)
    }

    func random(_ range: ClosedRange<Double>) -> Double { Double.random(in: range, using: &generator) }

    func carry(_ datagram: [UInt8], toB: Bool) {
        sent += 1
        if conditions.replay > 0 { listen(datagram, toB: toB) }
        let copies = random(0...1) < conditions.duplication ? 2 : 1
        for _ in 0..<copies where random(0...1) >= conditions.loss {
            var copy = datagram
            if random(0...1) < conditions.damage {
                copy[Int.random(in: 0..<copy.count, using: &generator)] ^= UInt8.random(
                    in: 1...255, using: &generator)
            }
            let delay = UInt64(random(conditions.latency) * 1e9)
            underWay.append((now + Interval(nanoseconds: delay), order, toB, copy))
            order += 1
        }
    }

    private func listen(_ datagram: [UInt8], toB: Bool) {
        if kept.count < 256 {
            kept.append((toB, datagram))
        } else {
            kept[Int.random(in: 0..<256, using: &generator)] = (toB, datagram)
        }
        guard random(0...1) < conditions.replay, let old = kept.randomElement(using: &generator) else {
            return
        }
        underWay.append(
            (now + Interval(nanoseconds: UInt64(random(0...2) * 1e9)), order, old.toB, old.datagram))
        order += 1
    }

    /// Both machines sleep: nothing is sent, received or timed, and time goes on.
    func sleep(seconds: Double) {
        now = now + Interval(nanoseconds: UInt64(seconds * 1e9))
        underWay.removeAll()
    }

    func send(_ packet: [UInt8], fromA: Bool) {
        let node = fromA ? pair.a : pair.b
        if let datagram = node.send(packet, to: fromA ? pair.aToB : pair.bToA, now: now) {
            carry(datagram, toB: fromA)
        }
        flush()
    }

    func flush() {
        for datagram in pair.a.output(now) { carry(datagram, toB: true) }
        for datagram in pair.b.output(now) { carry(datagram, toB: false) }
    }

    /// Runs everything that happens up to a moment, in order.
    func run(until end: Instant) {
        flush()
        while true {
            let arrival = underWay.enumerated().min {
                ($0.element.at, $0.element.order) < ($1.element.at, $1.element.order)
            }
            let next = min(
                arrival?.element.at ?? .never, pair.a.nextDeadline, pair.b.nextDeadline)
            guard next <= end else { break }
            now = max(now, next)
            if let arrival, arrival.element.at <= now {
                underWay.remove(at: arrival.offset)
                let node = arrival.element.toB ? pair.b : pair.a
                if let reply = node.receive(arrival.element.datagram, now: now).reply {
                    carry(reply, toB: !arrival.element.toB)
                }
            }
            pair.a.device.handleTimeout(now: now)
            pair.b.device.handleTimeout(now: now)
            flush()
        }
        now = max(now, end)
    }
}

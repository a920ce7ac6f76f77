// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

@Suite struct WireGuardLinkTests {
    /// W6: both begin within one another's flight time, over links that may reorder. Both must be through in
    /// one round trip of the one that began first plus the other's head start, and stay so.
    @Test func crossingInitiations() throws {
        for seed in UInt64(0)..<1_000 {
            let link = try WireGuardLink(seed: seed, .init(latency: 0.040...0.050))
            let pair = link.pair
            let lag = link.random(0...0.039)
            link.send(pair.a.packet(to: pair.b, number: 1), fromA: true)
            link.run(until: .at(lag))
            link.send(pair.b.packet(to: pair.a, number: 2), fromA: false)
            // Initiation, response, then the waiting packet: one and a half round trips of at most 100 ms.
            link.run(until: .at(lag + 0.150))
            #expect(pair.a.packets.count == 1 && pair.b.packets.count == 1, "seed \(seed)")
            #expect(pair.a.counters.initiationsSent == 1, "seed \(seed)")
            #expect(pair.b.counters.initiationsSent == 1, "seed \(seed)")
            // No flap: packets go to and fro at once, and no further handshake comes.
            for step in 0..<20 {
                link.send(pair.a.packet(to: pair.b, number: step), fromA: true)
                link.send(pair.b.packet(to: pair.a, number: step), fromA: false)
                link.run(until: .at(1 + Double(step)))
            }
            #expect(pair.a.packets.count == 21 && pair.b.packets.count == 21, "seed \(seed)")
            #expect(pair.a.counters.initiationsSent == 1, "seed \(seed)")
            #expect(pair.b.counters.initiationsSent == 1, "seed \(seed)")
            #expect(pair.a.counters.dropped + pair.b.counters.dropped == 0, "seed \(seed)")
        }
    }

    /// After sessions that began at once, the renewal is a single handshake, and nothing is lost.
    @Test func glareDoesNotRepeatItself() throws {
        let link = try WireGuardLink(seed: 4711, .init())
        let pair = link.pair
        link.send(pair.a.packet(to: pair.b), fromA: true)
        link.send(pair.b.packet(to: pair.a), fromA: false)
        link.run(until: .at(1))
        #expect(pair.a.counters.glares == 1 && pair.b.counters.glares == 1)
        for step in 1...2_000 {
            link.send(pair.a.packet(to: pair.b, number: step), fromA: true)
            link.send(pair.b.packet(to: pair.a, number: step), fromA: false)
            link.run(until: .at(1 + Double(step) / 4))
        }
        link.run(until: .at(510))
        #expect(pair.a.packets.count == 2_001 && pair.b.packets.count == 2_001)
        #expect(pair.a.counters.glares == 1 && pair.b.counters.glares == 1)
        // 2 at the start, then one at 120, 240, 360, 480 s.
        #expect(pair.a.counters.initiationsSent + pair.b.counters.initiationsSent == 6)
    }

    /// No packet is lost over renewals when the link loses none, however it reorders within its flight time.
    @Test(arguments: [UInt64(1), 2, 3, 4]) func nothingIsLostWhenSessionsChange(seed: UInt64) throws {
        var limits = WireGuard.Limits()
        limits.rekeyAfterTime = .seconds(6)
        limits.glareDelay = .seconds(2)
        let link = try WireGuardLink(seed: seed, .init(latency: 0.010...0.200), limits: limits)
        let pair = link.pair
        for step in 0..<3_000 {
            if step % 2 == 0 || seed > 2 { link.send(pair.a.packet(to: pair.b, number: step), fromA: true) }
            if step % 2 == 1 || seed > 2 { link.send(pair.b.packet(to: pair.a, number: step), fromA: false) }
            link.run(until: .at(Double(step) * 0.02))
        }
        link.run(until: .at(70))
        let expected = seed > 2 ? 3_000 : 1_500
        #expect(Set(pair.b.packets.map(number(of:))).count == expected)
        #expect(Set(pair.a.packets.map(number(of:))).count == expected)
        #expect(pair.a.packets.count == expected && pair.b.packets.count == expected, "and none twice")
        #expect(pair.a.counters.initiationsSent + pair.b.counters.initiationsSent >= 9)
    }

    /// Loss, duplication, reordering and damage: nothing false or twice gets through, and the session
    /// recovers.
    @Test(arguments: UInt64(100)..<110) func badLink(seed: UInt64) throws {
        var limits = WireGuard.Limits()
        limits.rekeyAfterTime = .seconds(20)
        limits.rejectAfterTime = .seconds(40)
        let link = try WireGuardLink(
            seed: seed, .init(latency: 0.001...0.300, loss: 0.2, duplication: 0.1, damage: 0.05),
            limits: limits)
        let pair = link.pair
        for step in 0..<1_500 {
            link.send(pair.a.packet(to: pair.b, number: step, length: 40 + step % 1200), fromA: true)
            link.send(pair.b.packet(to: pair.a, number: step, length: 40 + step % 900), fromA: false)
            link.run(until: .at(Double(step) * 0.1))
        }
        for (node, other, modulus) in [(pair.b, pair.a, 1200), (pair.a, pair.b, 900)] {
            #expect(node.packets.count > 900, "seed \(seed)")
            let numbers = node.packets.map(number(of:))
            #expect(Set(numbers).count == numbers.count, "seed \(seed): none twice")
            for packet in node.packets {
                let step = number(of: packet)
                #expect(
                    packet == other.packet(to: node, number: step, length: 40 + step % modulus),
                    "seed \(seed)")
            }
            #expect(node.counters[.badTag] > 0 && node.counters[.replay] > 0)
        }
        // The link heals: everything arrives again, within one retransmission.
        link.conditions = .init()
        link.send(pair.a.packet(to: pair.b, number: 90_000), fromA: true)
        link.run(until: .at(160))
        let before = pair.b.packets.count
        for step in 0..<50 {
            link.send(pair.a.packet(to: pair.b, number: 100_000 + step), fromA: true)
            link.run(until: .at(160 + Double(step) / 10))
        }
        link.run(until: .at(170))
        #expect(pair.b.packets.count == before + 50, "seed \(seed)")
    }
}

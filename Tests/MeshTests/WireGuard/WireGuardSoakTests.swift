// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

/// Long virtual times over links that behave badly in turns. `SIM_SEEDS` makes days of the hours, and more of
/// them; `SIM_SEED` replays one run.
@Suite struct WireGuardSoakTests {
    /// What a run adds up.
    private struct Tally {
        var sent = 0
        var probes = 0
        var numbers: (toA: Set<Int>, toB: Set<Int>) = ([], [])
    }

    /// 30 days in a campaign (by day, so that a seed names a day), else three hours: traffic both ways, one way
    /// or none, in bursts and trickles; loss, reordering, duplicates, damage, replays, partitions, sleep. After
    /// each phase the link heals, and then every packet arrives at once or after one retransmission.
    @Test(arguments: Seeds.some(3)) func soak(seed: UInt64) throws {
        var limits = WireGuard.Limits()
        // Some runs change sessions by count as well.
        if seed % 3 == 1 {
            limits.rekeyAfterMessages = 200
            limits.rejectAfterMessages = 400
        }
        let link = try WireGuardLink(seed: seed, .init(), limits: limits)
        var generator = SeededGenerator(seed: seed ^ 0x50a4)
        var tally = Tally()
        let end = Instant.at(Seeds.isCampaign ? 86_400 : 10_800)
        while link.now < end {
            link.conditions = Self.conditions(&generator)
            try phase(link, &generator, &tally, seed: seed)
            link.conditions = .init(latency: 0.001...0.040)
            try heal(link, &tally, seed: seed)
        }
        let (a, b) = (link.pair.a, link.pair.b)
        #expect(tally.probes >= 8, "seed \(seed): \(tally.probes) phases")
        #expect(a.counters[.wrongSource] == 0 && b.counters[.wrongSource] == 0, "seed \(seed)")
        #expect(a.counters[.stagedOverflow] == 0 || tally.sent > 1_000, "seed \(seed)")
        #expect(a.counters.responsesAccepted + b.counters.responsesAccepted > 20, "seed \(seed)")
    }

    private static func conditions(_ generator: inout SeededGenerator) -> WireGuardLink.Conditions {
        switch Int.random(in: 0..<6, using: &generator) {
        case 0: return .init(latency: 0.001...0.010)
        case 1: return .init(latency: 0.050...0.500, loss: 0.05)
        case 2: return .init(latency: 0.010...0.050, loss: 0.5, duplication: 0.2, damage: 0.1)
        case 3: return .init(latency: 0.001...2.0, loss: 0.1, duplication: 0.3, replay: 0.5)
        case 4: return .init(latency: 0.020...0.030, loss: 1)
        default: return .init(latency: 0.001...0.200, replay: 1)
        }
    }

    /// Up to ten minutes of some kind of traffic.
    private func phase(
        _ link: WireGuardLink, _ generator: inout SeededGenerator, _ tally: inout Tally, seed: UInt64
    ) throws {
        let (a, b) = (link.pair.a, link.pair.b)
        let kind = Int.random(in: 0..<5, using: &generator)
        let until = link.now + .seconds(UInt64.random(in: 10...600, using: &generator))
        if kind == 4 { link.sleep(seconds: Double.random(in: 1...2_000, using: &generator)) }
        while link.now < until {
            let burst = Int.random(in: 0..<8, using: &generator) == 0 ? 40 : 1
            for _ in 0..<burst {
                tally.sent += 1
                let toB = kind == 1 || (kind != 2 && tally.sent % 2 == 0)
                if kind == 3 { break }  // silence
                let (node, other) = toB ? (a, b) : (b, a)
                link.send(node.packet(to: other, number: tally.sent), fromA: toB)
            }
            let pause = Double.random(in: 0...1, using: &generator)
            link.run(until: link.now + Interval(nanoseconds: UInt64(pause * pause * pause * 40e9)))
        }
        collect(link, &tally, seed: seed)
    }

    /// None twice, none false, and no more indices than six per peer.
    private func collect(_ link: WireGuardLink, _ tally: inout Tally, seed: UInt64) {
        let (a, b) = (link.pair.a, link.pair.b)
        for packet in a.packets {
            let number = number(of: packet)
            #expect(tally.numbers.toA.insert(number).inserted, "seed \(seed): \(number) came twice")
            #expect(packet == b.packet(to: a, number: number), "seed \(seed)")
        }
        for packet in b.packets {
            let number = number(of: packet)
            #expect(tally.numbers.toB.insert(number).inserted, "seed \(seed): \(number) came twice")
            #expect(packet == a.packet(to: b, number: number), "seed \(seed)")
        }
        a.packets = []
        b.packets = []
        #expect(a.indexCount <= 6 && b.indexCount <= 6, "seed \(seed)")
    }

    /// The link is good: within 21 s (the worst case: a dead session is noticed after 15 s, then one lost
    /// initiation's 5 s) packets get through both ways, and from then on all of them.
    private func heal(_ link: WireGuardLink, _ tally: inout Tally, seed: UInt64) throws {
        let (a, b) = (link.pair.a, link.pair.b)
        let begin = link.now
        var hasA = false
        var hasB = false
        while !(hasA && hasB), link.now.since(begin) < .seconds(60) {
            tally.sent += 2
            link.send(a.packet(to: b, number: tally.sent), fromA: true)
            link.send(b.packet(to: a, number: tally.sent - 1), fromA: false)
            link.run(until: link.now + .milliseconds(250))
            hasA = hasA || !a.packets.isEmpty
            hasB = hasB || !b.packets.isEmpty
            collect(link, &tally, seed: seed)
        }
        let waited = Double(link.now.since(begin).nanoseconds) / 1e9
        #expect(hasA && hasB && waited < 21, "seed \(seed): \(waited) s at \(link.now.seconds)")
        link.run(until: link.now + .seconds(6))
        collect(link, &tally, seed: seed)
        let first = tally.sent + 1
        for _ in 0..<20 {
            tally.sent += 1
            link.send(a.packet(to: b, number: tally.sent), fromA: true)
            link.send(b.packet(to: a, number: tally.sent), fromA: false)
            link.run(until: link.now + .milliseconds(100))
        }
        link.run(until: link.now + .seconds(1))
        collect(link, &tally, seed: seed)
        for number in first...tally.sent {
            #expect(tally.numbers.toA.contains(number), "seed \(seed): stall at \(link.now.seconds)")
            #expect(tally.numbers.toB.contains(number), "seed \(seed): stall at \(link.now.seconds)")
        }
        tally.probes += 1
    }

    /// Wall clocks that jump back and forth: timestamps still rise, so every handshake is accepted.
    @Test(arguments: Seeds.some(10)) func wallClockJumps(seed: UInt64) throws {
        let pair = try WireGuardPair(seed: seed)
        var generator = SeededGenerator(seed: seed ^ 0xc10c)
        var now = Instant.start
        for round in 1...50 {
            now = now + .seconds(UInt64.random(in: 6...20, using: &generator))
            let jump = Int64.random(in: -1_000_000_000...1_000_000_000, using: &generator)
            pair.a.wallOffset = jump
            pair.a.device.initiateHandshake(pair.aToB, now: now)
            pair.settle(now)
            #expect(pair.b.counters.initiationsAccepted == UInt64(round), "seed \(seed)")
            #expect(pair.b.counters[.oldTimestamp] == 0, "seed \(seed)")
        }
    }

    /// Sessions end by their count of packets, on a link that loses and reorders: renewed in time, never reused.
    @Test(arguments: Seeds.some(10)) func rotationByCount(seed: UInt64) throws {
        var limits = WireGuard.Limits()
        limits.rekeyAfterMessages = 60
        limits.rejectAfterMessages = 90
        limits.rekeyTimeout = .milliseconds(300)
        limits.jitter = .milliseconds(20)
        let link = try WireGuardLink(
            seed: seed, .init(latency: 0.005...0.060, loss: 0.05, duplication: 0.05), limits: limits)
        let (a, b) = (link.pair.a, link.pair.b)
        for step in 0..<3_000 {
            link.send(a.packet(to: b, number: step), fromA: true)
            if step % 3 == 0 { link.send(b.packet(to: a, number: step), fromA: false) }
            link.run(until: .at(Double(step) * 0.02))
        }
        link.run(until: .at(70))
        let toB = b.packets.map(number(of:))
        #expect(Set(toB).count == toB.count, "seed \(seed): none twice")
        #expect(toB.count > 2_600, "seed \(seed): \(toB.count)")
        #expect(a.counters.responsesAccepted + b.counters.responsesAccepted >= 30, "seed \(seed)")
        #expect(a.indexCount <= 6 && b.indexCount <= 6)
    }

    /// An index that is in use is not given out again, however the generator falls.
    @Test func indicesDoNotCollide() throws {
        var generator = SeededGenerator(seed: 77)
        let key = PrivateKey(using: &generator)
        let peers = (0..<2).map { _ in PrivateKey(using: &generator).nodePublicKey }
        let ephemeral: [UInt64] = [11, 12, 13, 14]
        let script: [UInt64] = [1] + ephemeral + [5] + ephemeral + [5, 0x1_0000_0005, 6]
        var device = WireGuard.Device(privateKey: key, randomness: .scripted(script))
        var indices: [UInt8] = []
        for peer in peers {
            let index = try device.addPeer(.init(publicKey: peer), now: .start)
            device.initiateHandshake(index, now: .start)
            var buffer = [UInt8](repeating: 0, count: 2_048)
            _ = buffer.withUnsafeMutableBytes {
                device.nextOutput(into: $0, now: .start, wallTime: Instant.start.wall)
            }
            indices.append(buffer[4])
        }
        #expect(indices == [5, 6])
    }
}

// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

/// Each parser of messages under messages that are nearly right: with a right MAC1 where there is one, since
/// everything else is dropped before it is looked at. A run is a function of its seed; `SIM_SEEDS` makes more.
@Suite struct WireGuardFuzzTests {
    /// Two nodes, one of which is attacked by somebody who knows its public key.
    private struct Attack {
        var generator: SeededGenerator
        let pair: WireGuardPair
        var now = Instant.start

        init(seed: UInt64) throws {
            generator = SeededGenerator(seed: seed ^ 0xf022)
            pair = try WireGuardPair(seed: seed)
        }

        mutating func pick(_ count: Int) -> Int { generator.pick(count) }

        mutating func damaged(_ message: [UInt8], keeps: Int = 0) -> [UInt8] {
            generator.damaged(message, keeps: keeps)
        }

        /// A fresh session, and proof that it works.
        mutating func isAlive() -> Bool {
            now = now + .seconds(6)
            pair.a.device.initiateHandshake(pair.aToB, now: now)
            pair.settle(now)
            pair.b.packets = []
            guard let datagram = pair.a.send(pair.a.packet(to: pair.b), to: pair.aToB, now: now) else {
                return false
            }
            pair.b.receive(datagram, now: now)
            return pair.b.packets.count == 1
        }
    }

    private static let rounds = 300

    @Test(arguments: Seeds.some(8)) func initiations(seed: UInt64) throws {
        var attack = try Attack(seed: seed)
        for _ in 0..<Self.rounds {
            attack.now = attack.now + .seconds(6)
            attack.pair.a.device.initiateHandshake(attack.pair.aToB, now: attack.now)
            let good = attack.pair.a.output(attack.now)[0]
            let bad = signed(attack.damaged(good, keeps: 4), for: attack.pair.b.key)
            let result = attack.pair.b.receive(bad, now: attack.now).result
            // Sender index and MAC2 are not covered by the handshake's own tags.
            let isSame = bad[8..<116].elementsEqual(good[8..<116])
            if !isSame, case .handshake = result { Issue.record("seed \(seed): accepted") }
            _ = attack.pair.b.output(attack.now)
        }
        let isAlive = attack.isAlive()
        #expect(isAlive, "seed \(seed)")
        Executions.add(Self.rounds, to: "initiation")
    }

    @Test(arguments: Seeds.some(8)) func responses(seed: UInt64) throws {
        var attack = try Attack(seed: seed)
        for _ in 0..<Self.rounds {
            attack.now = attack.now + .seconds(6)
            attack.pair.a.device.initiateHandshake(attack.pair.aToB, now: attack.now)
            attack.pair.b.receive(attack.pair.a.output(attack.now)[0], now: attack.now)
            let good = attack.pair.b.output(attack.now)[0]
            let bad = signed(attack.damaged(good, keeps: 4), for: attack.pair.a.key)
            let result = attack.pair.a.receive(bad, now: attack.now).result
            let isSame = bad[8..<60].elementsEqual(good[8..<60])
            if !isSame, case .handshake = result { Issue.record("seed \(seed): accepted") }
            _ = attack.pair.a.output(attack.now)
        }
        let isAlive = attack.isAlive()
        #expect(isAlive, "seed \(seed)")
        Executions.add(Self.rounds, to: "response")
    }

    @Test(arguments: Seeds.some(8)) func cookieReplies(seed: UInt64) throws {
        var attack = try Attack(seed: seed)
        var limits = WireGuard.Limits()
        limits.handshakeBurst = 0  // always under load
        let busy = WireGuardNode(seed: seed ^ 0xb1, address: "10.0.0.3", limits: limits)
        let aToBusy = try attack.pair.a.add(busy)
        _ = try busy.add(attack.pair.a)
        for _ in 0..<Self.rounds {
            attack.now = attack.now + .seconds(6)
            attack.pair.a.device.initiateHandshake(aToBusy, now: attack.now)
            let initiation = attack.pair.a.output(attack.now)[0]
            guard let good = busy.receive(initiation, now: attack.now).reply else { continue }
            let bad = attack.damaged(good, keeps: 4)
            let result = attack.pair.a.receive(bad, now: attack.now).result
            if bad != good, case .cookie = result { Issue.record("seed \(seed): accepted") }
            // With the cookie the next one gets through.
            #expect(attack.pair.a.receive(good, now: attack.now).result == .cookie(aToBusy), "seed \(seed)")
        }
        let isAlive = attack.isAlive()
        #expect(isAlive, "seed \(seed)")
        Executions.add(Self.rounds, to: "cookie reply")
    }

    @Test(arguments: Seeds.some(8)) func dataMessages(seed: UInt64) throws {
        var attack = try Attack(seed: seed)
        attack.pair.connect(attack.now)
        for round in 0..<Self.rounds {
            attack.now = attack.now + .milliseconds(50)
            let packet = attack.pair.a.packet(to: attack.pair.b, number: round, length: 40 + attack.pick(200))
            let good = try #require(attack.pair.a.send(packet, to: attack.pair.aToB, now: attack.now))
            var bad = attack.damaged(good, keeps: attack.pick(3) == 0 ? 0 : 4)
            if attack.pick(4) == 0 { bad.removeLast(attack.pick(bad.count)) }
            let result = attack.pair.b.receive(bad, now: attack.now).result
            if bad != good, case .packet = result { Issue.record("seed \(seed): accepted") }
            attack.pair.b.receive(good, now: attack.now)
        }
        #expect(attack.pair.b.packets.count == Self.rounds, "seed \(seed): the good ones got through")
        Executions.add(Self.rounds, to: "data")
    }

    /// Inner packets of a peer that is no friend: what comes out is a whole IP packet from that peer's address.
    @Test(arguments: Seeds.some(8)) func innerPackets(seed: UInt64) throws {
        var attack = try Attack(seed: seed)
        attack.pair.connect(attack.now)
        for round in 0..<Self.rounds {
            attack.now = attack.now + .milliseconds(50)
            var packet =
                attack.pick(4) == 0
                ? (0..<(1 + attack.pick(100))).map { _ in UInt8(attack.pick(256)) }
                : attack.pair.a.packet(to: attack.pair.b, number: round, length: 40 + attack.pick(100))
            packet = attack.damaged(packet)
            if attack.pick(3) == 0 { packet.removeLast(attack.pick(packet.count)) }
            let datagram = try #require(attack.pair.a.send(packet, to: attack.pair.aToB, now: attack.now))
            if case .packet(_, let range) = attack.pair.b.receive(datagram, now: attack.now).result {
                #expect(range.count <= (packet.count + 15) & ~15 && range.count >= 20, "seed \(seed)")
                let inner = try #require(attack.pair.b.packets.last)
                #expect(inner[0] >> 4 == 4 && Array(inner[12..<16]) == [10, 0, 0, 1], "seed \(seed)")
                #expect(Int(inner[2]) << 8 | Int(inner[3]) == inner.count, "seed \(seed)")
            }
        }
        Executions.add(Self.rounds, to: "inner packet")
    }
}

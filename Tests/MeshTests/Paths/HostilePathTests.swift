// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

/// What strangers and hostile peers try.
@Suite struct HostilePathTests {
    private let stranger = SocketAddress("203.0.113.66:6666")!

    private func pair() -> PathSimulator {
        let network = PathSimulator([.none, .none])
        network.introduce()
        return network
    }

    private func ping(_ low: UInt32 = 1, node: NodePublicKey?) -> DiscoMessage {
        .ping(TransactionID(high: 1, low: low), nodeKey: node)
    }

    // S6
    @Test func samePingTwiceOnePong() {
        let network = pair()
        let (a, b) = (network.hosts[0], network.hosts[1])
        let bytes = seal(ping(node: b.nodeKey), from: b, to: a)
        #expect(a.receive(bytes, from: .udp(b.inside), now: network.now) == nil)
        #expect(a.receive(bytes, from: .udp(b.inside), now: network.now) == .duplicate)
        network.pump()
        #expect(a.sent.count == 1)
        let relayed = Paths.Source.relay(region: 1, node: b.nodeKey)
        #expect(a.receive(bytes, from: relayed, now: network.now) == nil)
        #expect(a.receive(bytes, from: relayed, now: network.now) == .duplicate)
        network.pump()
        #expect(a.sent.count == 2)
    }

    // S8
    @Test func callMeMaybeOnlyThroughTheRelayFromTheNodeItself() {
        let network = PathSimulator([.none, .none, .none])
        network.introduce()
        let (a, b, c) = (network.hosts[0], network.hosts[1], network.hosts[2])
        let bytes = seal(.callMeMaybe([stranger]), from: b, to: a)
        #expect(a.receive(bytes, from: .udp(b.inside), now: network.now) == .wrongWay)
        let other = Paths.Source.relay(region: 1, node: c.nodeKey)
        #expect(a.receive(bytes, from: other, now: network.now) == .wrongWay)
        network.pump()
        #expect(a.sent.isEmpty)
    }

    // S9
    @Test func unknownSendersLeaveNoTrace() {
        let network = pair()
        let a = network.hosts[0]
        let foreign = PathSimulator([.none], seed: 99).hosts[0]
        let bytes = seal(ping(node: foreign.nodeKey), from: foreign, to: a)
        for _ in 0..<10_000 {
            #expect(
                a.receive(bytes, from: .udp(stranger), now: network.now) == .unknownSender)
        }
        network.pump()
        #expect(a.sent.isEmpty && a.counters.unknownSenders == 10_000)
        #expect(a.peer(forUDP: stranger) == nil)
    }

    // S10: after some hundred bad boxes no more cryptography for strangers, while the peer itself is heard.
    @Test func garbageBoxesAreRateBound() {
        let network = pair()
        let (a, b) = (network.hosts[0], network.hosts[1])
        var bytes = seal(ping(node: b.nodeKey), from: b, to: a)
        bytes[100] ^= 1
        network.run(.seconds(1), traffic: true)
        let opened = a.counters.failedOpens
        for _ in 0..<10_000 { _ = a.receive(bytes, from: .udp(stranger), now: network.now) }
        #expect(a.counters.failedOpens - opened <= 200)
        #expect(a.counters.rateLimited >= 9_000)
        let good = seal(ping(node: b.nodeKey), from: b, to: a)
        #expect(a.receive(good, from: .udp(b.inside), now: network.now) == nil)
        #expect(a.receive(good, from: .udp(stranger), now: network.now) == .rateLimited)
    }

    // S11
    @Test func pongsThatWereNotAskedFor() {
        let network = PathSimulator([.none, .none, .none])
        network.introduce()
        let (a, b, c) = (network.hosts[0], network.hosts[1], network.hosts[2])
        let random = DiscoMessage.pong(TransactionID(high: 9, low: 9), source: a.inside)
        let bytes = seal(random, from: b, to: a)
        #expect(
            a.receive(bytes, from: .udp(stranger), now: network.now) == .unknownTransaction)
        // c cannot answer what b was asked: it never saw the transaction; nor may b answer through the relay what
        // was asked directly.
        _ = a.paths.route(to: b.id, now: network.now)
        var buffer = [UInt8](repeating: 0, count: Disco.maximumSealedBytes)
        let output = buffer.withUnsafeMutableBytes { a.paths.nextOutput(into: $0) }
        guard case .udp(_, let length)? = output,
            let key = BoxKey(ours: b.discoKey, theirs: a.discoKey.discoPublicKey),
            case .ping(let id, _)? = try? Disco.open(buffer[..<length], with: key)
        else {
            Issue.record("no ping")
            return
        }
        let stolen = seal(.pong(id, source: a.inside), from: c, to: a)
        #expect(
            a.receive(stolen, from: .udp(c.inside), now: network.now) == .unknownTransaction)
        let around = seal(.pong(id, source: a.inside), from: b, to: a)
        let relayed = Paths.Source.relay(region: 1, node: b.nodeKey)
        #expect(a.receive(around, from: relayed, now: network.now) == .unknownTransaction)
        #expect(a.status(of: b.id, now: network.now)?.direct == nil)
    }

    // S12
    @Test func aPingCannotClaimAnotherPeersAddress() {
        let network = PathSimulator([.none, .none, .none])
        network.introduce()
        let (a, b, c) = (network.hosts[0], network.hosts[1], network.hosts[2])
        let bytes = seal(ping(node: c.nodeKey), from: b, to: a)
        _ = a.receive(bytes, from: .udp(stranger), now: network.now)
        #expect(a.peer(forUDP: stranger) != c.id)
        #expect(
            a.status(of: c.id, now: network.now)?.candidates.map(\.address).contains(stranger) == false)
    }

    // S13, P12
    @Test func hostileAddressesAreRefused() {
        let network = pair()
        let (a, b) = (network.hosts[0], network.hosts[1])
        let bad = [
            "0.0.0.0:1", "[::]:1", "224.0.0.1:1", "[ff02::1]:1", "255.255.255.255:1", "[fe80::1]:1",
            "[fd60:627a:a42b::1]:1", "[fd7a:115c:a1e0::1]:1", "127.0.0.1:22", "[::1]:22", "192.0.2.1:0",
        ].map { SocketAddress($0)! }
        let bytes = seal(.callMeMaybe(bad), from: b, to: a)
        _ = a.receive(bytes, from: .relay(region: 1, node: b.nodeKey), now: network.now)
        network.pump()
        let refusals = network.events(0) { if case .candidateRefused = $0 { true } else { false } }
        #expect(refusals.count == bad.count)
        for sent in a.sent { if case .udp(let to, _) = sent.output { #expect(!bad.contains(to)) } }
    }

    // P12: whatever a peer names, at most a hundred pings in five seconds leave for it.
    @Test func callMeMaybesDoNotMakeUsAWeapon() {
        let network = pair()
        let (a, b) = (network.hosts[0], network.hosts[1])
        network.isUDPDown = true
        for round in 0..<200 {
            let addresses = (0..<100).map {
                SocketAddress(IPAddress(v4: 0xc000_0200 + UInt32(round * 100 + $0)), port: 9)
            }
            let bytes = seal(.callMeMaybe(addresses), from: b, to: a)
            _ = a.receive(bytes, from: .relay(region: 1, node: b.nodeKey), now: network.now)
            network.run(.milliseconds(50), traffic: true)
            #expect(a.status(of: b.id, now: network.now)!.candidates.count <= 100)
        }
        let times = a.sent.compactMap { sent -> Instant? in
            if case .udp = sent.output { sent.at } else { nil }
        }
        for (index, start) in times.enumerated() {
            let window = times[index...].prefix { $0.since(start) < .seconds(5) }
            #expect(window.count <= 101)
        }
        #expect(a.counters.pingsWithheld > 0)
    }

    @Test func pingFloodsFromManyAddressesAreBounded() {
        let network = pair()
        let (a, b) = (network.hosts[0], network.hosts[1])
        for number in 0..<5_000 {
            let bytes = seal(ping(UInt32(number), node: b.nodeKey), from: b, to: a)
            let source = SocketAddress(IPAddress(v4: 0xc000_0200 + UInt32(number)), port: 9)
            _ = a.receive(bytes, from: .udp(source), now: network.now)
        }
        network.pump()
        #expect(a.status(of: b.id, now: network.now)!.candidates.count <= 100)
        #expect(a.sent.count <= 300)
    }

    // S14, P14
    @Test func replayedPingDoesNotMoveThePath() {
        let network = pair()
        let (a, b) = (network.hosts[0], network.hosts[1])
        network.run(.seconds(1), traffic: true)
        let best = network.route(0, 1)
        #expect(best.relay == nil)
        a.sent = []
        let captured = seal(ping(node: b.nodeKey), from: b, to: a)
        _ = a.receive(captured, from: .udp(stranger), now: network.now)
        network.pump()
        #expect(a.sent.count == 1)
        if case .udp(let to, _)? = a.sent.first?.output { #expect(to == stranger) }
        #expect(network.route(0, 1) == best)
        network.run(.seconds(20), traffic: true)
        #expect(network.route(0, 1) == best)
    }

    @Test func aRefusedChangeChangesNothing() {
        let network = pair()
        let (a, b) = (network.hosts[0], network.hosts[1])
        let other = PathVectors.privateKey(4_711).nodePublicKey
        let weak = Paths.PeerConfiguration(nodeKey: other, discoKey: .zero, home: 1, endpoints: [])
        #expect(a.setPeer(b.id, weak, now: network.now) == nil)
        #expect(a.peer(forNode: b.nodeKey) == b.id && a.peer(forNode: other) == nil)
        network.run(.seconds(1), traffic: true)
        #expect(network.route(0, 1).udp == b.inside)
    }

    @Test func tablesShrinkAgain() {
        let network = pair()
        let (a, b) = (network.hosts[0], network.hosts[1])
        network.run(.seconds(1), traffic: true)
        #expect(a.peer(forUDP: b.inside) == b.id)
        a.paths.removePeer(b.id, now: network.now)
        #expect(a.peer(forUDP: b.inside) == nil && a.peer(forNode: b.nodeKey) == nil)
        #expect(network.route(0, 1) == Paths.Route())
        a.paths.handleTimeout(now: network.now + .seconds(60))
        #expect(a.nextDeadline == .never)
        let weak = Paths.PeerConfiguration(nodeKey: b.nodeKey, discoKey: .zero, home: 1, endpoints: [])
        #expect(a.setPeer(b.id, weak, now: network.now) == nil)
    }
}

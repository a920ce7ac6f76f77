// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

@Suite struct PathTests {
    @Test func packetsFlowThroughTheRelayAtOnceAndDirectSoon() {
        let network = PathSimulator([.none, .none])
        network.introduce()
        #expect(network.route(0, 1) == Paths.Route(udp: nil, relay: 1))
        network.run(.milliseconds(60), traffic: true)
        #expect(network.route(0, 1) == Paths.Route(udp: network.hosts[1].inside, relay: nil))
        #expect(network.hosts[1].peer(forUDP: network.hosts[0].inside) == network.hosts[0].id)
        #expect(network.hosts[0].peer(forUDP: SocketAddress("203.0.113.9:1")!) == nil)  // P13
    }

    /// NAT, NAT, expected direct. baselines.md §5.
    @Test(arguments: [
        (PathSimulator.NAT.easy, PathSimulator.NAT.easy, true), (.none, .hard, true), (.hard, .none, true),
        (.none, .easy, true), (.easy, .none, true), (.easy, .hard, false), (.hard, .hard, false),
        (.easy, .noUDP, false),
    ])
    func topologies(_ a: PathSimulator.NAT, _ b: PathSimulator.NAT, _ isDirect: Bool) {
        for seed in 1...20 {
            let network = PathSimulator([a, b], seed: UInt64(seed))
            network.introduce(withEndpoints: seed % 2 == 0)
            #expect(network.route(0, 1).relay == 1)
            network.run(.milliseconds(300), traffic: true)
            let routes = (network.route(0, 1), network.route(1, 0))
            if isDirect {
                #expect(routes.0.udp != nil && routes.0.relay == nil, "seed \(seed)")
                #expect(routes.1.udp != nil && routes.1.relay == nil, "seed \(seed)")
            } else {
                #expect(routes.0 == Paths.Route(udp: nil, relay: 1), "seed \(seed)")
                #expect(routes.1 == Paths.Route(udp: nil, relay: 1), "seed \(seed)")
            }
        }
    }

    @Test func lostProbesAreRepeatedWithinTheFirstSecond() {
        var late = 0
        for seed in 1...100 {
            let network = PathSimulator([.easy, .easy], seed: UInt64(seed))
            network.loss = 0.3
            network.introduce()
            _ = network.route(0, 1)
            network.run(.milliseconds(1200), traffic: true)
            if network.route(0, 1).udp == nil { late += 1 }
        }
        #expect(late <= 2, "\(late) of 100 without a path after 1.2 s at 30 % loss")
    }

    // P6 and the goal of leaving a dead path within 5 s.
    @Test func deadPathIsLeftForTheRelay() {
        for seed in 1...20 {
            let network = PathSimulator([.easy, .easy], seed: UInt64(seed))
            network.introduce()
            network.run(.milliseconds(1_000 + UInt64(seed) * 333), traffic: true)
            #expect(network.route(0, 1).relay == nil)
            network.isUDPDown = true
            let broken = network.now
            while network.route(0, 1).relay == nil, network.now.since(broken) < .seconds(10) {
                network.run(.milliseconds(50), traffic: true)
            }
            #expect(network.now.since(broken) < .milliseconds(5_000), "seed \(seed)")
            network.run(.seconds(5), traffic: true)
            #expect(network.route(0, 1) == Paths.Route(udp: nil, relay: 1))
            #expect(!network.events(0) { if case .lost(_, .unanswered) = $0 { true } else { false } }.isEmpty)
            network.isUDPDown = false
            network.run(.seconds(9), traffic: true)
            #expect(network.route(0, 1).relay == nil, "direct again, seed \(seed)")
        }
    }

    @Test func aFewLostHeartbeatsDoNotCostThePath() {
        let network = PathSimulator([.none, .none], seed: 4)
        network.introduce()
        network.run(.seconds(1), traffic: true)
        network.loss = 0.1
        network.run(.seconds(120), traffic: true)
        #expect(network.events(0) { if case .lost = $0 { true } else { false } }.isEmpty)
    }

    // P2: trust ends 6.5 s after the last pong; the next packet goes both ways and starts a round.
    @Test func trustEnds() {
        let network = PathSimulator([.none, .none])
        network.introduce()
        _ = network.route(0, 1)
        network.run(.milliseconds(100))
        #expect(network.route(0, 1).relay == nil)
        network.run(.seconds(60))
        let count = network.events(0) { if case .callMeMaybeSent = $0 { true } else { false } }.count
        network.hosts[0].paths.setOwnEndpoints([network.hosts[0].inside], now: network.now)
        #expect(network.route(0, 1) == Paths.Route(udp: network.hosts[1].inside, relay: 1))
        #expect(network.events(0) { if case .doubted(_, .expired) = $0 { true } else { false } }.count == 1)
        #expect(
            network.events(0) { if case .callMeMaybeSent = $0 { true } else { false } }.count == count + 1)
        network.run(.milliseconds(100))
        #expect(network.route(0, 1) == Paths.Route(udp: network.hosts[1].inside, relay: nil))
    }

    // P2 in the letter: at 6.501 s without any pong packets still go both ways.
    @Test func bothWaysAfterTrust() {
        let network = PathSimulator([.none, .none])
        network.introduce()
        _ = network.route(0, 1)
        network.run(.milliseconds(30))
        network.isUDPDown = true
        let broken = network.now
        while network.now.since(broken) < .milliseconds(6_501) {
            network.run(.milliseconds(100), traffic: true)
        }
        #expect(network.route(0, 1).relay == 1)
    }

    // P3
    @Test func idleSessionsStopHeartbeats() {
        let network = PathSimulator([.none, .none])
        network.introduce()
        _ = network.route(0, 1)
        network.run(.seconds(46))
        let sent = network.hosts[0].sent.count
        #expect(sent > 12)
        network.run(.seconds(300))
        #expect(network.hosts[0].sent.count == sent)
        #expect(network.hosts[0].nextDeadline == .never)
        _ = network.route(0, 1)
        network.run(.seconds(4))
        #expect(network.hosts[0].sent.count > sent)
    }

    // P4, S5
    @Test func callMeMaybeAddsRemovesAndForcesPings() {
        let network = PathSimulator([.none, .easy])
        network.introduce(withEndpoints: false)
        let (a, b) = (network.hosts[0], network.hosts[1])
        let first = SocketAddress("198.51.100.77:7")!
        let second = SocketAddress("198.51.100.78:8")!
        func callMeMaybe(_ addresses: [SocketAddress]) {
            b.paths.setOwnEndpoints(addresses, now: network.now)
            let bytes = seal(.callMeMaybe(addresses), from: b, to: a)
            _ = a.receive(bytes, from: .relay(region: 1, node: b.nodeKey), now: network.now)
            network.pump()
        }
        func pings(_ address: SocketAddress) -> Int {
            a.sent.filter { if case .udp(address, _) = $0.output { true } else { false } }.count
        }
        callMeMaybe([first, second])
        #expect(pings(first) == 1 && pings(second) == 1)
        // Not at the same moment: a swarm is one wish.
        callMeMaybe([first, second])
        #expect(pings(first) == 1 && pings(second) == 1)
        network.run(.milliseconds(20))
        callMeMaybe([second])
        #expect(pings(second) == 2)
        let addresses = a.status(of: b.id, now: network.now)?.candidates.map(\.address)
        #expect(addresses == [second])
        callMeMaybe([])
        #expect(a.status(of: b.id, now: network.now)?.candidates.isEmpty == true)
    }

    // P9, §6
    @Test func directPathsCanBeSwitchedOffAndOn() {
        let network = PathSimulator([.none, .none])
        network.introduce()
        network.run(.seconds(1), traffic: true)
        #expect(network.route(0, 1).relay == nil)
        network.hosts[0].paths.setDirectBlocked(true, now: network.now)
        #expect(network.route(0, 1) == Paths.Route(udp: nil, relay: 1))
        let mark = network.now
        network.run(.seconds(20), traffic: true)
        let direct = network.hosts[0].sent.filter { sent in
            if sent.at > mark, case .udp = sent.output { true } else { false }
        }
        #expect(direct.isEmpty)
        #expect(network.route(1, 0) == Paths.Route(udp: nil, relay: 1))
        network.hosts[0].paths.setDirectBlocked(false, now: network.now)
        network.introduce()
        network.run(.seconds(6), traffic: true)
        #expect(network.route(0, 1).relay == nil)
    }

    // P10
    @Test func restartedPeerIsFoundAtOnce() {
        let network = PathSimulator([.none, .none])
        network.introduce()
        network.run(.seconds(1), traffic: true)
        let (a, b) = (network.hosts[0], network.hosts[1])
        b.discoKey = PathVectors.privateKey(999)
        b.paths = Paths(nodeKey: b.nodeKey, discoKey: b.discoKey, random: PathVectors.generator(77))
        b.paths.relayConnected(1)
        b.paths.setOwnEndpoints([b.inside], now: network.now)
        var configuration = b.configuration
        configuration.endpoints = [b.inside]
        #expect(a.setPeer(b.id, configuration, now: network.now) == .restarted)
        var back = a.configuration
        back.endpoints = [a.inside]
        #expect(b.setPeer(a.id, back, now: network.now) == .added)
        #expect(network.route(0, 1) == Paths.Route(udp: nil, relay: 1))
        network.run(.milliseconds(100), traffic: true)
        #expect(network.route(0, 1).relay == nil)
        #expect(network.route(1, 0).relay == nil)
    }

    /// A peer restarts behind the NAT that keeps its address: its first packet from there counts again.
    @Test func aRestartedPeerIsFoundByItsPackets() {
        let network = PathSimulator([.none, .none])
        network.introduce()
        let (a, b) = (network.hosts[0], network.hosts[1])
        let place = SocketAddress(IPAddress(v4: 0xc633_6463), port: 4_000)
        let isKnown = {
            a.status(of: b.id, now: network.now)?.candidates.contains { $0.address == place } == true
        }
        a.paths.noteReceived(b.id, from: place, now: network.now)
        #expect(isKnown())
        b.discoKey = PathVectors.privateKey(999)
        #expect(a.setPeer(b.id, b.configuration, now: network.now) == .restarted)
        #expect(!isKnown())
        a.paths.noteReceived(b.id, from: place, now: network.now)
        #expect(isKnown())
    }

    // P7: a path too small for full datagrams is never taken.
    @Test func smallPathsStayOnTheRelay() {
        let network = PathSimulator([.none, .none])
        network.mtu = 1300
        network.introduce()
        network.run(.seconds(10), traffic: true)
        #expect(network.route(0, 1) == Paths.Route(udp: nil, relay: 1))
    }

    @Test func userPingsAreAnsweredDirectAndRelayed() throws {
        let network = PathSimulator([.none, .noUDP])
        network.introduce()
        let token = try #require(network.hosts[0].ping(network.hosts[1].id, now: network.now))
        network.run(.milliseconds(200))
        let pong = PathEvent.Kind.pong(token: token, .relay(region: 1), latency: .milliseconds(30))
        #expect(network.events(0) { $0 == pong }.count == 1)
        let direct = PathSimulator([.none, .none])
        direct.introduce()
        direct.run(.seconds(1), traffic: true)
        let second = try #require(direct.hosts[0].ping(direct.hosts[1].id, now: direct.now))
        direct.run(.milliseconds(200))
        let via = PathVia.udp(direct.hosts[1].inside)
        #expect(direct.events(0) { $0 == .pong(token: second, via, latency: .milliseconds(20)) }.count == 1)
        direct.isUDPDown = true
        let third = try #require(direct.hosts[0].ping(direct.hosts[1].id, now: direct.now))
        direct.run(.seconds(6))
        #expect(direct.events(0) { $0 == .pingTimedOut(token: third) }.count == 1)
    }

    @Test func linkChangeDoubtsEverything() {
        let network = PathSimulator([.none, .none])
        network.introduce()
        network.run(.seconds(1), traffic: true)
        network.hosts[0].paths.linkChanged(now: network.now)
        #expect(network.hosts[0].needsFreshEndpoints)
        #expect(network.route(0, 1) == Paths.Route(udp: network.hosts[1].inside, relay: 1))
        network.run(.milliseconds(100), traffic: true)
        #expect(network.route(0, 1).relay == nil)
    }

    @Test func relayChoice() {
        let network = PathSimulator([.none, .none])
        network.introduce()
        let (a, b) = (network.hosts[0], network.hosts[1])
        a.paths.relayDisconnected(1, now: network.now)
        a.paths.relayConnected(7)
        #expect(network.route(0, 1).relay == 1)
        #expect(a.peer(forNode: b.nodeKey, throughRelay: 7) == b.id)
        #expect(network.route(0, 1).relay == 7)
        a.paths.relayPeerGone(7, node: b.nodeKey, now: network.now)
        #expect(network.route(0, 1).relay == 1)
        a.paths.relayConnected(1)
        _ = a.peer(forNode: b.nodeKey, throughRelay: 7)
        #expect(network.route(0, 1).relay == 1)
    }

    @Test func sameSeedSameRun() {
        func trace() -> [PathEvent] {
            let network = PathSimulator([.easy, .easy], seed: 42)
            network.loss = 0.2
            network.introduce()
            network.run(.seconds(30), traffic: true)
            return network.hosts[0].events + network.hosts[1].events
        }
        #expect(trace() == trace())
    }
}

/// A message sealed by one host for another.
func seal(_ message: DiscoMessage, from: PathSimulator.Host, to: PathSimulator.Host) -> [UInt8] {
    var random = PathVectors.generator(4711)
    var buffer = [UInt8](repeating: 0, count: Disco.maximumSealedBytes)
    let key = BoxKey(ours: from.discoKey, theirs: to.discoKey.discoPublicKey)!
    let nonce = BoxNonce(using: &random)
    let length = buffer.withUnsafeMutableBytes {
        Disco.seal(message, from: from.discoKey.discoPublicKey, with: key, nonce: nonce, into: $0)
    }
    return Array(buffer[..<length])
}

// SPDX-License-Identifier: Apache-2.0

import LinuxIO
import Mesh
import Testing

/// Paths on which pings live and data dies, and those that were only suspected of it.
@Suite struct PathDataTests {
    private func network() throws -> (PathSimulator, SocketAddress) {
        let network = PathSimulator([.easy, .easy], seed: 5)
        network.introduce()
        network.run(.seconds(2), traffic: true)
        let route = network.route(0, 1)
        try #require(route.relay == nil)
        return (network, try #require(route.udp))
    }

    private func losses(_ network: PathSimulator) -> Int {
        network.events(0) { if case .lost(_, .dataDead) = $0 { true } else { false } }.count
    }

    @Test func pongsDoNotSaveAPathWithoutData() throws {
        let (network, address) = try network()
        let (host, peer) = (network.hosts[0], network.hosts[1].id)
        host.paths.noteDataDead(peer, isCertain: false, now: network.now)
        let begin = network.now
        #expect(network.route(0, 1) == Paths.Route(udp: address, relay: 1))
        while network.route(0, 1).udp != nil, network.now.since(begin) < .seconds(10) {
            network.run(.milliseconds(50), traffic: true)
        }
        #expect(network.now.since(begin) < .seconds(3))
        #expect(losses(network) == 1)
        network.run(.seconds(5), traffic: true)
        #expect(network.route(0, 1) == Paths.Route(udp: nil, relay: 1), "pongs come all the time")

        // Later the address is tried again, beside the relay, and taken when data comes.
        let isTried = { network.route(0, 1).udp != nil }
        let again = network.now
        while !isTried(), network.now.since(again) < .seconds(30) {
            network.run(.milliseconds(50), traffic: true)
        }
        let route = network.route(0, 1)
        #expect(route.udp != nil && route.relay == 1)
        host.paths.noteDirectData(peer, from: try #require(route.udp), now: network.now)
        #expect(network.route(0, 1).relay == nil)
        network.run(.seconds(20), traffic: true)
        #expect(network.route(0, 1).relay == nil)
    }

    @Test func oneAccidentIsForgottenWhenDataComes() throws {
        let (network, address) = try network()
        let (host, peer) = (network.hosts[0], network.hosts[1].id)
        for _ in 0..<3 {
            host.paths.noteDataDead(peer, isCertain: false, now: network.now)
            network.run(.milliseconds(100), traffic: true)
            #expect(network.route(0, 1) == Paths.Route(udp: address, relay: 1))
            host.paths.noteDirectData(peer, from: address, now: network.now)
            #expect(network.route(0, 1) == Paths.Route(udp: address))
            network.run(.seconds(1), traffic: true)
        }
        #expect(losses(network) == 0)
    }

    @Test func twoCertainStallsAreEnough() throws {
        let (network, address) = try network()
        let (host, peer) = (network.hosts[0], network.hosts[1].id)
        host.paths.noteDataDead(peer, isCertain: true, now: network.now)
        // Data dies in one direction only: what the peer sends looks like a proof.
        network.run(.milliseconds(200), traffic: true)
        host.paths.noteDirectData(peer, from: address, now: network.now)
        network.run(.milliseconds(900), traffic: true)
        host.paths.noteDataDead(peer, isCertain: true, now: network.now)
        #expect(network.route(0, 1) == Paths.Route(udp: nil, relay: 1))
        #expect(losses(network) == 1)
    }

    /// When all of UDP dies TCP may stall before a ping is missed. When it comes back pongs are first: the time for
    /// data begins then, and not when TCP stalled.
    @Test(arguments: [1_600, 2_500] as [UInt64])
    func aPathThatWasDeadAltogetherIsNotShunned(milliseconds: UInt64) throws {
        let (network, address) = try network()
        let (host, peer) = (network.hosts[0], network.hosts[1].id)
        network.isUDPDown = true
        host.paths.noteDataDead(peer, isCertain: false, now: network.now)
        network.run(.milliseconds(milliseconds), traffic: true)
        network.isUDPDown = false
        let answers = { network.events(0) { if case .answered = $0 { true } else { false } }.count }
        let before = answers()
        for _ in 0..<100 where answers() == before { network.run(.milliseconds(20), traffic: true) }
        #expect(answers() > before)
        network.run(.milliseconds(100), traffic: true)
        #expect(losses(network) == 0)
        host.paths.noteDirectData(peer, from: address, now: network.now)
        #expect(network.route(0, 1) == Paths.Route(udp: address))
    }

    /// The other side noticed first: its packets come through the relay, and so must ours.
    @Test func aPeerThatIsHeardThroughTheRelayAgainIsAnsweredThere() throws {
        let (network, address) = try network()
        let (host, peer) = (network.hosts[0], network.hosts[1].id)
        host.paths.noteReceived(peer, from: address, now: network.now)
        host.paths.noteReceived(peer, now: network.now)
        #expect(network.route(0, 1).relay == nil, "it may have been sent before")
        network.run(.milliseconds(600))
        network.isUDPDown = true
        host.paths.noteReceived(peer, now: network.now)
        #expect(network.route(0, 1) == Paths.Route(udp: address, relay: 1))
        let doubts = network.events(0) { if case .doubted(_, .relayed) = $0 { true } else { false } }
        #expect(doubts.count == 1)
    }

    /// A peer that only receives has no other sign of it: pings are answered, its acknowledgements are lost.
    @Test(arguments: [true, false]) func dataThatComesByRelayOnlyMeansThatTheDirectPathLosesIt(
        isHeard: Bool
    ) throws {
        let (network, address) = try network()
        let (host, peer) = (network.hosts[0], network.hosts[1].id)
        if isHeard { host.paths.noteReceived(peer, from: address, now: network.now) }
        let begin = network.now
        while network.route(0, 1) != Paths.Route(relay: 1), network.now.since(begin) < .seconds(10) {
            network.run(.milliseconds(50), traffic: true)
            host.paths.noteReceived(peer, now: network.now)
        }
        #expect(network.now.since(begin) < .seconds(4))
        #expect(losses(network) == 1)
    }

    @Test func aRelayedStragglerIsNoSign() throws {
        let (network, address) = try network()
        let (host, peer) = (network.hosts[0], network.hosts[1].id)
        for _ in 0..<100 {
            host.paths.noteReceived(peer, now: network.now)
            host.paths.noteReceived(peer, from: address, now: network.now)
            network.run(.milliseconds(30), traffic: true)
        }
        #expect(network.events(0) { if case .doubted = $0 { true } else { false } }.isEmpty)
    }

    @Test func silenceProvesNothing() throws {
        let (network, _) = try network()
        network.hosts[0].paths.noteDataDead(network.hosts[1].id, isCertain: false, now: network.now)
        network.run(.seconds(3))
        #expect(losses(network) == 0)
        #expect(network.route(0, 1).udp != nil)
    }

    @Test func refusedSendsMakeBothWays() throws {
        let (network, address) = try network()
        network.hosts[0].paths.noteSendFailure(to: address, now: network.now)
        #expect(network.route(0, 1) == Paths.Route(udp: address, relay: 1))
        network.run(.seconds(1), traffic: true)
        #expect(network.route(0, 1).relay == nil, "a pong came")
    }
}

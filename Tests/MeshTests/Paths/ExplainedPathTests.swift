// SPDX-License-Identifier: Apache-2.0

import FoundationEssentials
import Mesh
import Testing

/// Data-path liveness, narrow paths, reasons, and the flight recorder.
@Suite struct ExplainedPathTests {
    private func explain(
        _ simulator: PathSimulator, _ change: (inout PathSurroundings) -> Void = { _ in }
    ) -> PathExplanation? {
        var surroundings = PathSurroundings()
        surroundings.stunServers = 2
        surroundings.stunHosts = 2
        surroundings.hasUDP = true
        surroundings.mappingVaries = false
        change(&surroundings)
        return simulator.hosts[0].paths.explain(simulator.hosts[1].id, surroundings, now: simulator.now)
    }

    /// A pair with traffic; the relay is asked once, so that its answer is known.
    private func pair(_ nats: [PathSimulator.NAT], seed: UInt64 = 7) -> PathSimulator {
        let simulator = PathSimulator(nats, seed: seed)
        simulator.introduce()
        _ = simulator.hosts[0].ping(simulator.hosts[1].id, now: simulator.now)
        return simulator
    }

    @Test func directBehindEasyNATsWithinThreeTenths() {
        for seed in 0..<100 as Range<UInt64> {
            let simulator = PathSimulator([.easy, .easy], seed: seed)
            // One in five datagrams is lost as well.
            simulator.loss = seed % 2 == 0 ? 0 : 0.2
            simulator.introduce()
            _ = simulator.route(0, 1)
            let start = simulator.now
            simulator.run(.milliseconds(simulator.loss > 0 ? 1_500 : 300), traffic: true)
            let chosen = simulator.events(0) { if case .chosen = $0 { true } else { false } }.first
            #expect(chosen != nil, "seed \(seed): no direct path after \(simulator.now.since(start))")
        }
    }

    @Test func dataDeathMovesToTheRelayAtOnceAndStays() throws {
        let simulator = pair([.easy, .easy])
        simulator.run(.seconds(5), traffic: true)
        let address = try #require(
            simulator.hosts[0].status(of: simulator.hosts[1].id, now: simulator.now)?.direct)
        simulator.hosts[0].paths.noteDataDead(simulator.hosts[1].id, isCertain: true, now: simulator.now)
        // Both ways at once, and only the relay when no data comes directly.
        #expect(simulator.route(0, 1) == Paths.Route(udp: address, relay: 1))
        simulator.run(.milliseconds(1_600), traffic: true)
        #expect(simulator.route(0, 1) == Paths.Route(relay: 1))
        // Pings are answered all the time, and yet the address is not taken again before its time.
        simulator.run(.seconds(8), traffic: true)
        #expect(simulator.route(0, 1) == Paths.Route(relay: 1))
        let explanation = try #require(explain(simulator))
        #expect(explanation.reason == .dataDead)
        #expect(explanation.candidates.first { $0.address == address }?.reason == .dataDead)
        // Then it has to prove itself by data, with the relay beside it.
        for _ in 0..<80 where simulator.route(0, 1).udp == nil {
            simulator.run(.milliseconds(100), traffic: true)
        }
        #expect(simulator.route(0, 1) == Paths.Route(udp: address, relay: 1))
        simulator.hosts[0].paths.noteDirectData(simulator.hosts[1].id, from: address, now: simulator.now)
        #expect(simulator.route(0, 1) == Paths.Route(udp: address))
    }

    @Test func withoutRelayDeadDataIsNoReasonToGiveUp() {
        let simulator = pair([.none, .none])
        simulator.run(.seconds(2), traffic: true)
        simulator.hosts[0].paths.relayDisconnected(1, now: simulator.now)
        simulator.hosts[0].paths.noteDataDead(
            simulator.hosts[1].id, isCertain: true, now: simulator.now)
        #expect(simulator.route(0, 1).udp != nil)
    }

    @Test func silenceIsFoundOutAtOnce() throws {
        let simulator = pair([.none, .none])
        simulator.run(.seconds(2), traffic: true)
        let peer = simulator.hosts[1].id
        simulator.hosts[0].paths.noteReceived(peer, now: simulator.now)
        simulator.isUDPDown = true
        let start = simulator.now
        _ = simulator.route(0, 1)
        while simulator.route(0, 1).relay == nil, simulator.now.since(start) < .seconds(5) {
            simulator.run(.milliseconds(10))
        }
        #expect(simulator.now.since(start) <= .milliseconds(200), "\(simulator.now.since(start))")
    }

    @Test func oneWayTrafficCostsOnePingPerSecond() {
        let simulator = pair([.none, .none])
        simulator.run(.seconds(2), traffic: true)
        let peer = simulator.hosts[1].id
        simulator.hosts[0].paths.noteReceived(peer, now: simulator.now)
        let before = simulator.hosts[0].sent.count
        for _ in 0..<1_000 {
            _ = simulator.route(0, 1)
            simulator.run(.milliseconds(10))
        }
        #expect(simulator.route(0, 1).relay == nil)
        #expect(simulator.hosts[0].sent.count - before < 30)
    }

    @Test func narrowPathsAreNamedWithTheSizeThatPassed() throws {
        let simulator = pair([.none, .none])
        simulator.mtu = 1_300
        simulator.run(.seconds(4), traffic: true)
        #expect(simulator.route(0, 1) == Paths.Route(relay: 1))
        let explanation = try #require(explain(simulator))
        #expect(explanation.outcome == .relayed)
        #expect(explanation.reason == .mtu)
        #expect(explanation.candidates.contains { $0.passedBytes == 1_200 && $0.reason == .mtu })
    }

    @Test func reasons() throws {
        let blocked = pair([.noUDP, .easy])
        blocked.run(.seconds(4), traffic: true)
        #expect(
            explain(blocked) {
                $0.hasUDP = false; $0.mappingVaries = nil
            }?.reason == .udpBlocked)
        #expect(
            explain(blocked) {
                $0.stunServers = 0; $0.hasUDP = nil
            }?.reason == .stunMissing)
        let hard = pair([.hard, .hard])
        hard.run(.seconds(4), traffic: true)
        #expect(explain(hard) { $0.mappingVaries = true }?.reason == .hardNATBoth)
        #expect(explain(hard)?.reason == .timeout)
        hard.hosts[0].paths.setDirectBlocked(true, now: hard.now)
        hard.run(.seconds(1), traffic: true)
        #expect(explain(hard)?.reason == .policy)
        #expect(explain(hard)?.outcome == .relayed)
        let direct = pair([.easy, .easy])
        direct.run(.seconds(2), traffic: true)
        let explanation = try #require(explain(direct))
        #expect(explanation.outcome == .direct)
        #expect(explanation.reason == nil)
        #expect(explanation.candidates.first?.isChosen == true)
        #expect(explanation.candidates.first?.passedBytes == Disco.paddedBytes)
    }

    @Test func aSilentServerIsNotABlockedNetwork() throws {
        let silent = pair([.noUDP, .easy])
        silent.run(.seconds(4), traffic: true)
        #expect(
            explain(silent) {
                $0.stunHosts = 1; $0.hasUDP = false; $0.mappingVaries = nil
            }?.reason == .stunSilent)
        // The peer's pings come in by UDP: so UDP is not blocked here, whatever the servers do.
        let heard = pair([.easy, .easy])
        heard.run(.seconds(2), traffic: true)
        heard.hosts[0].paths.noteDataDead(heard.hosts[1].id, isCertain: true, now: heard.now)
        heard.hosts[0].paths.noteDataDead(heard.hosts[1].id, isCertain: true, now: heard.now)
        let reason = explain(heard) { $0.hasUDP = false }?.reason
        #expect(reason != .udpBlocked)
    }

    /// The tunnel was tried and nothing came back, whatever discovery says.
    @Test func aSilentTunnelIsNeverDirect() throws {
        let direct = pair([.easy, .easy])
        direct.run(.seconds(2), traffic: true)
        var explanation = try #require(explain(direct))
        explanation.noteSilentTunnel()
        #expect(explanation.outcome == .unreachable && explanation.reason == .dataDead)
        let relayed = pair([.hard, .hard])
        relayed.run(.seconds(4), traffic: true)
        explanation = try #require(explain(relayed) { $0.mappingVaries = true })
        explanation.noteSilentTunnel()
        #expect(explanation.outcome == .unreachable && explanation.reason == .peerSilent)
    }

    @Test(
        arguments: [
            (
                PathExplanation.PeerNetwork(hasUDP: true, mappingVaries: true, blocksDirect: false),
                .hardNATBoth
            ),
            (
                PathExplanation.PeerNetwork(hasUDP: false, mappingVaries: nil, blocksDirect: false),
                .udpBlockedPeer
            ),
            (
                PathExplanation.PeerNetwork(hasUDP: true, mappingVaries: false, blocksDirect: true),
                .policyPeer
            ),
            (PathExplanation.PeerNetwork(hasUDP: true, mappingVaries: false, blocksDirect: false), .timeout),
        ] as [(PathExplanation.PeerNetwork, PathReason)])
    func whatThePeerKnowsReplacesGuesses(_ peer: PathExplanation.PeerNetwork, _ reason: PathReason) throws {
        // Seen from the easy side of an easy-hard pair nothing tells why.
        let simulator = pair([.easy, .hard])
        simulator.run(.seconds(4), traffic: true)
        var explanation = try #require(explain(simulator))
        #expect(explanation.reason == .timeout)
        explanation.refine(peer)
        #expect(explanation.reason == reason)
    }

    // MARK: Flight recorder

    private func line(_ event: PathEvent) -> String { "\(event.at.nanoseconds) \(event.kind)" }

    @Test(arguments: 0..<20 as Range<UInt64>) func recordsReplayToTheSameDecisions(seed: UInt64) throws {
        let nats: [PathSimulator.NAT] = [.none, .easy, .hard, .noUDP]
        let simulator = pair([nats[Int(seed % 4)], nats[Int(seed / 4 % 4)]], seed: seed)
        simulator.loss = seed % 3 == 0 ? 0.3 : 0
        for minute in 0..<12 {
            simulator.isUDPDown = minute % 5 == 3
            if minute == 4 { simulator.hosts[0].paths.linkChanged(now: simulator.now) }
            if minute == 6 {
                simulator.hosts[0].paths.noteDataDead(
                    simulator.hosts[1].id, isCertain: true, now: simulator.now)
            }
            if minute == 7 { simulator.hosts[0].paths.relayDisconnected(1, now: simulator.now) }
            if minute == 8 { simulator.hosts[0].paths.relayConnected(1, now: simulator.now) }
            if minute == 9 { simulator.hosts[0].paths.setDirectBlocked(true, now: simulator.now) }
            if minute == 10 { simulator.hosts[0].paths.setDirectBlocked(false, now: simulator.now) }
            simulator.hosts[0].paths.setOwnEndpoints([simulator.hosts[0].inside], now: simulator.now)
            simulator.run(.seconds(55), traffic: minute % 3 != 2)
        }
        let recording = try #require(simulator.hosts[0].recording(of: simulator.hosts[1].id))
        #expect(recording.length > .seconds(500))
        // Through JSON and back, as `coder netcheck --record` and the replay tool do it.
        let data = try JSONEncoder().encode(recording)
        let replay = try JSONDecoder().decode(PathRecording.self, from: data).replay()
        #expect(replay.isFaithful)
        // Old parts may have gone; from the first that is left nothing is missing.
        let live = simulator.events(0).filter { event in
            switch event.kind {
            case .refused, .pong, .pingTimedOut: false
            default: event.peer != nil
            }
        }
        let played = replay.decisions.map(line)
        let happened = live.filter { $0.at >= recording.began }.suffix(played.count).map(line)
        let count = min(played.count, happened.count)
        if let first = (0..<count).first(where: { played[$0] != happened[$0] }) {
            let context = happened[max(0, first - 3)..<first].joined(separator: "\n")
            Issue.record("after\n\(context)\nplayed \(played[first])\nhappened \(happened[first])")
        }
        #expect(played.count == happened.count)
        let text = String(decoding: data, as: UTF8.self)
        #expect(!text.contains(simulator.hosts[1].nodeKey.hex))
        #expect(!text.contains(simulator.hosts[1].discoKey.discoPublicKey.hex))
    }

    @Test func recordsAreBounded() throws {
        let simulator = pair([.easy, .easy])
        for _ in 0..<40 { simulator.run(.seconds(60), traffic: true) }
        let recording = try #require(simulator.hosts[0].recording(of: simulator.hosts[1].id))
        #expect(recording.inputCount <= RecorderLimits().peerEntries)
        #expect(recording.length > .seconds(1_700), "half an hour, but for a part that is just beginning")
        #expect(recording.length < .seconds(2_200))
        #expect(recording.replay().isFaithful)
    }

    @Test func floodsOfBogusMessagesCostLittle() throws {
        let simulator = pair([.none, .none])
        simulator.run(.seconds(1), traffic: true)
        var bytes = [UInt8](repeating: 7, count: Disco.paddedBytes)
        bytes.replaceSubrange(0..<6, with: Disco.magic)
        let known = Array(simulator.hosts[1].discoKey.discoPublicKey.bytes)
        let candidates = simulator.hosts[0].status(of: simulator.hosts[1].id, now: simulator.now)?.candidates
        let entries = simulator.hosts[0].recordedEntries
        let before = simulator.hosts[0].counters
        for number in 0..<100_000 {
            // Half from nobody, half in the peer's name from many addresses.
            if number % 2 == 0 { bytes.replaceSubrange(6..<38, with: known) } else { bytes[6] = 9 }
            let source = SocketAddress(IPAddress(v4: 0x2000_0000 + UInt32(number)), port: 9)
            _ = simulator.hosts[0].receive(bytes, from: .udp(source), now: simulator.now)
        }
        let counters = simulator.hosts[0].counters
        #expect(counters.unknownSenders - before.unknownSenders == 50_000)
        #expect(counters.failedOpens - before.failedOpens <= 200)
        #expect(counters.refusalsUnreported > 100)
        #expect(simulator.hosts[0].recordedEntries == entries)
        let after = simulator.hosts[0].status(of: simulator.hosts[1].id, now: simulator.now)?.candidates
        #expect(after == candidates)
    }
}

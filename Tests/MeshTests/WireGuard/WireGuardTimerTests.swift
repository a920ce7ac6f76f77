// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

/// Conformance case W5: all timers with a virtual clock.
@Suite struct WireGuardTimerTests {
    /// Advances to each deadline up to `end`; `body` gets what a sends and when.
    private func run(
        _ node: WireGuardNode, until end: Instant, _ body: (_ datagram: [UInt8], _ now: Instant) -> Void
    ) {
        while node.nextDeadline <= end {
            let now = node.nextDeadline
            node.device.handleTimeout(now: now)
            for datagram in node.output(now) { body(datagram, now) }
        }
    }

    @Test func twentyInitiationsThenStop() throws {
        let pair = try WireGuardPair(seed: 1)
        #expect(pair.a.send(pair.a.packet(to: pair.b), to: pair.aToB, now: .start) == nil)
        var times = [0.0]
        var ephemerals: Set<[UInt8]> = []
        let first = pair.a.output(.start)
        #expect(first.count == 1 && first[0].count == WireGuard.initiationSize)
        ephemerals.insert(Array(first[0][8..<40]))
        run(pair.a, until: .at(400)) { datagram, now in
            #expect(datagram.count == WireGuard.initiationSize)
            times.append(now.seconds)
            ephemerals.insert(Array(datagram[8..<40]))
        }
        #expect(times.count == 20)
        #expect(ephemerals.count == 20, "each retransmission has a new ephemeral key")
        for (earlier, later) in zip(times, times.dropFirst()) {
            #expect(later - earlier >= 5 && later - earlier <= 5.334)
        }
        #expect(pair.a.silences == 19, "the way is doubted from the second one on")
        #expect(pair.a.counters.handshakesAbandoned == 1)
        #expect(pair.a.counters[.handshakeAbandoned] == 1, "the staged packet was dropped")
        // A new packet begins anew.
        #expect(pair.a.send(pair.a.packet(to: pair.b), to: pair.aToB, now: .at(401)) == nil)
        pair.settle(.at(401))
        #expect(pair.b.packets.count == 1)
    }

    @Test func onlyTheInitiatorRenewsAfterTwoMinutes() throws {
        let pair = try WireGuardPair(seed: 2)
        pair.connect()
        #expect(pair.a.send(pair.a.packet(to: pair.b), to: pair.aToB, now: .at(119.9)) != nil)
        #expect(pair.b.send(pair.b.packet(to: pair.a), to: pair.bToA, now: .at(119.9)) != nil)
        #expect(!pair.a.hasOutput && !pair.b.hasOutput)
        #expect(pair.b.send(pair.b.packet(to: pair.a), to: pair.bToA, now: .at(120)) != nil)
        #expect(!pair.b.hasOutput, "the responder does not renew")
        #expect(pair.a.send(pair.a.packet(to: pair.b), to: pair.aToB, now: .at(120)) != nil)
        let output = pair.a.output(.at(120))
        #expect(output.map(\.count) == [WireGuard.initiationSize])
        // Not twice: the next packet is within the 5 s.
        #expect(pair.a.send(pair.a.packet(to: pair.b), to: pair.aToB, now: .at(121)) != nil)
        #expect(!pair.a.hasOutput)
        pair.b.receive(output[0], now: .at(120.1))
        pair.settle(.at(120.2))
        #expect(pair.a.counters.responsesAccepted == 2)
        #expect(pair.b.send(pair.b.packet(to: pair.a), to: pair.bToA, now: .at(250)) != nil, "renewed")
    }

    @Test func noSessionLivesLongerThanThreeMinutes() throws {
        let pair = try WireGuardPair(seed: 3)
        pair.connect()
        let late = try #require(pair.b.send(pair.b.packet(to: pair.a), to: pair.bToA, now: .at(179.9)))
        #expect(pair.a.receive(late, now: .at(180)).result == .dropped(.expiredSession))
        #expect(pair.b.send(pair.b.packet(to: pair.a), to: pair.bToA, now: .at(180)) == nil)
        pair.settle(.at(180))
        #expect(pair.a.packets.count == 1, "the staged packet went through a new session")
        #expect(pair.b.counters.initiationsSent == 1)
    }

    @Test func receivedDataIsAcknowledgedAfterTenSeconds() throws {
        let pair = try WireGuardPair(seed: 4)
        pair.connect()
        let datagram = try #require(pair.a.send(pair.a.packet(to: pair.b), to: pair.aToB, now: .at(1)))
        pair.b.receive(datagram, now: .at(1))
        #expect(pair.b.nextDeadline == .at(11))
        pair.b.device.handleTimeout(now: .at(10.9))
        #expect(!pair.b.hasOutput)
        pair.b.device.handleTimeout(now: .at(11))
        let output = pair.b.output(.at(11))
        #expect(output.map(\.count) == [WireGuard.overhead])
        pair.a.receive(output[0], now: .at(11.1))
        #expect(pair.a.keepalives == 1)
        // The keepalive answered a's packet: no new handshake at 16 s.
        run(pair.a, until: .at(60)) { _, _ in Issue.record("a has nothing to say") }
    }

    @Test func aSecondPacketMeansASecondKeepalive() throws {
        let pair = try WireGuardPair(seed: 5)
        pair.connect()
        for second in [1.0, 2.0] {
            let datagram = try #require(
                pair.a.send(pair.a.packet(to: pair.b), to: pair.aToB, now: .at(second)))
            pair.b.receive(datagram, now: .at(second))
        }
        var times: [Double] = []
        run(pair.b, until: .at(100)) { datagram, now in
            #expect(datagram.count == WireGuard.overhead)
            times.append(now.seconds)
        }
        #expect(times == [11, 21])
    }

    @Test func sendingClearsThePassiveKeepalive() throws {
        let pair = try WireGuardPair(seed: 6)
        pair.connect()
        let datagram = try #require(pair.a.send(pair.a.packet(to: pair.b), to: pair.aToB, now: .at(1)))
        pair.b.receive(datagram, now: .at(1))
        let answer = try #require(pair.b.send(pair.b.packet(to: pair.a), to: pair.bToA, now: .at(5)))
        pair.a.receive(answer, now: .at(5))
        run(pair.b, until: .at(14.9)) { _, _ in Issue.record("b has answered") }
    }

    @Test func silenceAfterDataBeginsAHandshake() throws {
        let pair = try WireGuardPair(seed: 7)
        pair.connect()
        #expect(pair.a.send(pair.a.packet(to: pair.b), to: pair.aToB, now: .at(20)) != nil)
        #expect(pair.a.send(pair.a.packet(to: pair.b), to: pair.aToB, now: .at(30)) != nil)
        var times: [Double] = []
        run(pair.a, until: .at(36)) { datagram, now in
            #expect(datagram.count == WireGuard.initiationSize)
            times.append(now.seconds)
        }
        #expect(times.count == 1 && times[0] >= 35 && times[0] <= 35.334)
        #expect(pair.a.silences == 1)
    }

    @Test func oldSessionOfOursIsRenewedWhenDataComes() throws {
        let pair = try WireGuardPair(seed: 8)
        pair.connect()
        for (second, initiations) in [(164.0, 0), (165.5, 1), (166.0, 1), (172.0, 1)] {
            let now = Instant.at(second)
            let datagram = try #require(pair.b.send(pair.b.packet(to: pair.a), to: pair.bToA, now: now))
            #expect(!pair.b.hasOutput)
            pair.a.receive(datagram, now: now)
            _ = pair.a.output(now)
            #expect(pair.a.counters.initiationsSent == 1 + UInt64(initiations), "at \(second) s")
        }
    }

    @Test func keysAreWipedAfterNineMinutes() throws {
        let pair = try WireGuardPair(seed: 9)
        pair.connect()
        var copy = try #require(pair.b.send(pair.b.packet(to: pair.a), to: pair.bToA, now: .at(1)))
        #expect(pair.a.receive(copy, now: .at(539)).result == .dropped(.expiredSession))
        run(pair.a, until: .at(540)) { _, _ in }
        copy[8] += 1
        #expect(pair.a.receive(copy, now: .at(541)).result == .dropped(.unknownIndex))
        #expect(pair.a.nextDeadline == .never, "an idle peer costs nothing")
    }

    @Test func persistentKeepalive() throws {
        let pair = try WireGuardPair(seed: 10, keepalive: 25)
        pair.settle(.start)
        #expect(pair.a.counters.responsesAccepted == 1, "turning it on begins a handshake")
        var times: [Double] = []
        while pair.a.nextDeadline <= .at(110) {
            let now = pair.a.nextDeadline
            pair.a.device.handleTimeout(now: now)
            for datagram in pair.a.output(now) {
                times.append(now.seconds)
                pair.b.receive(datagram, now: now)
            }
        }
        #expect(times == [25, 50, 75, 100])
        // Any packet puts it off.
        #expect(pair.a.send(pair.a.packet(to: pair.b), to: pair.aToB, now: .at(110)) != nil)
        #expect(pair.b.counters.initiationsSent == 0)
        pair.a.device.setPersistentKeepalive(0, of: pair.aToB, now: .at(111))
        pair.a.device.setPersistentKeepalive(7, of: pair.aToB, now: .at(112))
        #expect(pair.a.output(.at(112)).map(\.count) == [WireGuard.overhead])
        #expect(pair.a.nextDeadline <= .at(119))
    }

    /// W5: keepalives are transport messages (whitepaper §6.2), so they renew the session as data does.
    @Test func anIdlePeerWithKeepaliveIsNeverWithoutSession() throws {
        let pair = try WireGuardPair(seed: 16, keepalive: 25)
        pair.settle(.start)
        var renewals: [Double] = []
        while pair.a.nextDeadline <= .at(600) {
            let now = pair.a.nextDeadline
            #expect(pair.a.statistics(of: pair.aToB, now: now)?.hasSession == true, "at \(now.seconds) s")
            let before = pair.a.counters.initiationsSent
            pair.a.device.handleTimeout(now: now)
            pair.settle(now)
            if pair.a.counters.initiationsSent > before { renewals.append(now.seconds) }
        }
        #expect(renewals.count == 4)
        for (earlier, later) in zip([0] + renewals, renewals) {
            #expect(later - earlier >= 120 && later - earlier <= 150)
        }
    }

    /// What was made while the link was down, or shortly before, does not put off the first handshake.
    @Test func aLinkThatComesUpWaitsForNothing() throws {
        let pair = try WireGuardPair(seed: 17)
        pair.a.device.setPersistentKeepalive(25, of: pair.aToB, now: .start)
        #expect(pair.a.output(.start).map(\.count) == [WireGuard.initiationSize], "lost with the link")
        pair.a.wakePeers(now: .at(1))
        pair.settle(.at(1))
        #expect(pair.a.statistics(of: pair.aToB, now: .at(1))?.hasSession == true)
        // The same for a peer without keepalive that a packet waits for.
        let other = try WireGuardPair(seed: 18)
        #expect(other.a.send(other.a.packet(to: other.b), to: other.aToB, now: .start) == nil)
        _ = other.a.output(.start)
        other.a.wakePeers(now: .at(1))
        other.settle(.at(1))
        #expect(other.b.packets.count == 1)
    }

    /// The responder's confirmation got lost: it must not wait for the peer for ever.
    @Test func aResponderWithDataTriesItself() throws {
        let pair = try WireGuardPair(seed: 11)
        pair.a.device.initiateHandshake(pair.aToB, now: .start)
        pair.b.receive(pair.a.output(.start)[0], now: .start)
        #expect(pair.b.output(.start).count == 1, "the response, which gets lost")
        #expect(pair.b.send(pair.b.packet(to: pair.a), to: pair.bToA, now: .at(1)) == nil)
        #expect(pair.b.output(.at(1)).isEmpty, "not within 5 s of the response")
        #expect(pair.b.nextDeadline <= .at(5.334))
        pair.b.device.handleTimeout(now: .at(5.334))
        let output = pair.b.output(.at(5.334))
        #expect(output.map(\.count) == [WireGuard.initiationSize])
        pair.a.receive(output[0], now: .at(5.4))
        pair.settle(.at(5.4))
        #expect(pair.a.packets.count == 1)
    }

    /// Limits are injectable: renewal and end by message count.
    @Test func sessionsEndByMessageCount() throws {
        var limits = WireGuard.Limits()
        limits.rekeyAfterMessages = 50
        limits.rejectAfterMessages = 100
        let pair = try WireGuardPair(seed: 12, limits: limits)
        pair.connect()
        var sent = 0
        for step in 0..<1_000 {
            let now = Instant.at(Double(step) * 0.2)
            let packet = pair.a.packet(to: pair.b, number: step)
            if let datagram = pair.a.send(packet, to: pair.aToB, now: now) {
                sent += 1
                pair.b.receive(datagram, now: now)
            }
            pair.settle(now)
        }
        #expect(pair.b.packets.map(number(of:)) == Array(0..<1_000))
        #expect(pair.a.counters.responsesAccepted >= 1_000 / 60)
        #expect(sent == 1_000, "renewed before the end, nothing had to wait")
    }

    @Test func atTheMessageLimitPacketsWait() throws {
        var limits = WireGuard.Limits()
        limits.rejectAfterMessages = 10
        let pair = try WireGuardPair(seed: 13, limits: limits)
        pair.connect()
        var outcomes: [Bool] = []
        for step in 0..<12 {
            outcomes.append(
                pair.a.send(pair.a.packet(to: pair.b), to: pair.aToB, now: .at(6 + Double(step) / 10)) != nil)
        }
        #expect(outcomes == Array(repeating: true, count: 9) + [false, false, false])
        pair.settle(.at(8))
        #expect(pair.b.packets.count == 3)
    }

    /// 10,000 peers: the next deadline is right, and peers without traffic have none.
    @Test func manyPeers() throws {
        let node = WireGuardNode(seed: 14, address: "10.0.0.1")
        var generator = SeededGenerator(seed: 99)
        var peers: [WireGuard.PeerIndex] = []
        for number in 0..<10_000 {
            let key = PrivateKey(using: &generator).nodePublicKey
            let prefix = IPPrefix(host: IPAddress(v4: 0x0b00_0000 + UInt32(number)))
            peers.append(try node.device.addPeer(.init(publicKey: key, allowedIPs: [prefix]), now: .start))
        }
        #expect(node.nextDeadline == .never && !node.hasOutput)
        for (step, peer) in peers.shuffled(using: &generator).prefix(100).enumerated() {
            node.device.initiateHandshake(peer, now: .at(Double(step) / 100))
            #expect(node.output(.at(Double(step) / 100)).count == 1)
        }
        #expect(node.nextDeadline >= .at(5) && node.nextDeadline <= .at(5.334))
        for (number, peer) in peers.enumerated() {
            #expect(node.peer(for: IPAddress(v4: 0x0b00_0000 + UInt32(number))) == peer)
        }
    }

    /// The heap beside the obvious: a dictionary and its minimum.
    @Test func timerHeapAgainstAModel() {
        var generator = SeededGenerator(seed: 15)
        var heap = WireGuard.TimerHeap()
        var model: [UInt32: Instant] = [:]
        for _ in 0..<20_000 {
            let slot = UInt32.random(in: 0..<64, using: &generator)
            if Bool.random(using: &generator) || model[slot] == nil {
                let at = Instant(nanoseconds: UInt64.random(in: 0..<1_000, using: &generator))
                heap.set(slot, to: at)
                model[slot] = at
            } else {
                heap.set(slot, to: .never)
                model[slot] = nil
            }
            #expect(heap.first?.at == model.values.min())
            #expect(heap.first.map { model[$0.slot] } == heap.first.map { $0.at })
            #expect(heap.deadline(of: slot) == model[slot] ?? .never)
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

/// Conformance cases W10 to W14 and whatever else a stranger or a peer may try.
@Suite struct WireGuardHostileTests {
    @Test func everyTruncationAndExtensionIsDropped() throws {
        let pair = try WireGuardPair(seed: 1)
        pair.a.device.initiateHandshake(pair.aToB, now: .start)
        let initiation = pair.a.output(.start)[0]
        for length in 0..<initiation.count {
            #expect(pair.b.receive(Array(initiation[..<length]), now: .start).result == .dropped(.wrongSize))
        }
        #expect(pair.b.receive(initiation + [0], now: .start).result == .dropped(.wrongSize))
        pair.b.receive(initiation, now: .start)
        let response = pair.b.output(.start)[0]
        for length in 0..<response.count {
            #expect(pair.a.receive(Array(response[..<length]), now: .start).result == .dropped(.wrongSize))
        }
        pair.a.receive(response, now: .start)
        pair.settle(.start)
        let data = try #require(pair.a.send(pair.a.packet(to: pair.b), to: pair.aToB, now: .start))
        for length in 0..<data.count {
            let result = pair.b.receive(Array(data[..<length]), now: .start).result
            #expect(result == .dropped(length < 32 ? .wrongSize : .badTag))
        }
        #expect(pair.b.receive(data + [0], now: .start).result == .dropped(.badTag))
        pair.b.receive(data, now: .start)
        #expect(pair.b.packets.count == 1)
    }

    @Test func everyFlippedBitIsDropped() throws {
        let pair = try WireGuardPair(seed: 2)
        pair.a.device.initiateHandshake(pair.aToB, now: .start)
        let initiation = pair.a.output(.start)[0]
        // MAC2 is checked only under load.
        flip(initiation, bits: 0..<(132 * 8)) { pair.b.receive($0, now: .start) }
        pair.b.receive(initiation, now: .start)
        let response = pair.b.output(.start)[0]
        flip(response, bits: 0..<(76 * 8)) { pair.a.receive($0, now: .start) }
        pair.a.receive(response, now: .start)
        pair.settle(.start)
        let data = try #require(pair.a.send(pair.a.packet(to: pair.b), to: pair.aToB, now: .start))
        flip(data, bits: 0..<(data.count * 8)) { pair.b.receive($0, now: .start) }
        pair.b.receive(data, now: .start)
        #expect(pair.b.packets.count == 1)
        #expect(pair.b.receive(data, now: .start).result == .dropped(.replay))
    }

    private func flip(
        _ datagram: [UInt8], bits: Range<Int>,
        _ receive: ([UInt8]) -> (result: WireGuard.Received, reply: [UInt8]?)
    ) {
        for bit in bits {
            var bad = datagram
            bad[bit / 8] ^= 1 << UInt8(bit % 8)
            guard case .dropped = receive(bad).result else {
                Issue.record("bit \(bit) made a difference that nobody saw")
                return
            }
        }
    }

    /// Anything at all: no crash, no session, no growth.
    @Test func noise() throws {
        let pair = try WireGuardPair(seed: 3)
        pair.connect()
        var generator = SeededGenerator(seed: 3)
        for round in 0..<20_000 {
            let size = [0, 1, 3, 4, 16, 31, 32, 33, 64, 92, 148, 1400].randomElement(using: &generator) ?? 0
            var bytes = (0..<size).map { _ in UInt8.random(in: 0...255, using: &generator) }
            if size >= 4, round % 2 == 0 {
                bytes.replaceSubrange(0..<4, with: [UInt8(round / 2 % 6), 0, 0, 0])
            }
            guard case .dropped = pair.b.receive(bytes, now: .at(1)).result else {
                Issue.record("round \(round) was taken")
                return
            }
        }
        #expect(!pair.b.hasOutput)
        #expect(pair.a.send(pair.a.packet(to: pair.b), to: pair.aToB, now: .at(2)) != nil)
    }

    /// W11.
    @Test func replayedAndOldInitiations() throws {
        let pair = try WireGuardPair(seed: 4)
        func initiation(_ now: Instant) -> [UInt8] {
            pair.a.device.initiateHandshake(pair.aToB, now: now)
            return pair.a.output(now)[0]
        }
        let first = initiation(.start)
        let second = initiation(.at(6))
        let third = initiation(.at(12))
        #expect(pair.b.receive(second, now: .at(6)).result == .handshake(pair.bToA))
        #expect(pair.b.receive(second, now: .at(7)).result == .dropped(.oldTimestamp))
        #expect(pair.b.receive(first, now: .at(8)).result == .dropped(.oldTimestamp))
        // Less than 20 ms after the last accepted one.
        #expect(pair.b.receive(third, now: .at(6.019)).result == .dropped(.initiationRate))
        #expect(pair.b.receive(third, now: .at(6.020)).result == .handshake(pair.bToA))
        // Survives the sessions: also nine minutes later.
        _ = pair.b.output(.at(12))
        while pair.b.nextDeadline < .at(1_000) { pair.b.device.handleTimeout(now: pair.b.nextDeadline) }
        _ = pair.b.output(.at(1_000))
        #expect(pair.b.receive(third, now: .at(1_000)).result == .dropped(.oldTimestamp))
    }

    /// The wall clock stands still or goes back: timestamps still rise.
    @Test func timestampsRiseWithoutAClock() throws {
        let pair = try WireGuardPair(seed: 5)
        var buffer = [UInt8](repeating: 0, count: 2048)
        for (step, wall) in [1_000, 1_000, 900, 1_000].enumerated() {
            let now = Instant.at(Double(step) * 6)
            pair.a.device.initiateHandshake(pair.aToB, now: now)
            let output = buffer.withUnsafeMutableBytes {
                pair.a.device.nextOutput(into: $0, now: now, wallTime: .init(seconds: UInt64(wall)))
            }
            let length = try #require(output).length
            #expect(pair.b.receive(Array(buffer[..<length]), now: now).result == .handshake(pair.bToA))
            _ = pair.b.output(now)
        }
    }

    @Test func strangersAreNotAnswered() throws {
        let pair = try WireGuardPair(seed: 6)
        let stranger = WireGuardNode(seed: 666, address: "10.0.0.3")
        let toB = try stranger.add(pair.b)
        stranger.device.initiateHandshake(toB, now: .start)
        #expect(pair.b.receive(stranger.output(.start)[0], now: .start).result == .dropped(.unknownPeer))
        #expect(!pair.b.hasOutput)
        // An initiation for somebody else has the wrong MAC1.
        let other = WireGuardNode(seed: 667, address: "10.0.0.4")
        let toOther = try pair.a.add(other)
        pair.a.device.initiateHandshake(toOther, now: .start)
        #expect(pair.b.receive(pair.a.output(.start)[0], now: .start).result == .dropped(.wrongMAC1))
    }

    @Test func presharedKeysMustMatch() throws {
        let pair = try WireGuardPair(seed: 7)
        let key = try WireGuard.PresharedKey(bytes: Array(repeating: 7, count: 32))
        pair.a.device.setPresharedKey(key, of: pair.aToB)
        pair.connect()
        #expect(pair.a.drops == [.badResponse])
        pair.b.device.setPresharedKey(key, of: pair.bToA)
        pair.connect(.at(6))
        #expect(pair.a.send(pair.a.packet(to: pair.b), to: pair.aToB, now: .at(6)) != nil)
    }

    /// W13: each peer speaks only for its own addresses, and only on its own sessions.
    @Test func sourceAddressesBelongToPeers() throws {
        let pair = try WireGuardPair(seed: 8)
        let third = WireGuardNode(seed: 88, address: "10.0.0.3")
        let bToThird = try pair.b.add(third)
        let thirdToB = try third.add(pair.b)
        pair.connect()
        third.device.initiateHandshake(thirdToB, now: .start)
        pair.b.receive(third.output(.start)[0], now: .start)
        third.receive(pair.b.output(.start)[0], now: .start)
        for datagram in third.output(.start) { pair.b.receive(datagram, now: .start) }

        let forged = innerPacket(from: pair.a.address, to: pair.b.address)
        let datagram = try #require(third.send(forged, to: thirdToB, now: .start))
        #expect(pair.b.receive(datagram, now: .start).result == .refused(bToThird, .wrongSource))
        // Another peer's index on a valid packet.
        let mine = try #require(third.send(third.packet(to: pair.b), to: thirdToB, now: .start))
        let other = try #require(pair.a.send(pair.a.packet(to: pair.b), to: pair.aToB, now: .start))
        #expect(
            pair.b.receive(Array(mine[..<4] + other[4..<8] + mine[8...]), now: .start).result
                == .dropped(.badTag))
        let result = pair.b.receive(mine, now: .start).result
        #expect(result == .packet(bToThird, 16..<56))
        // The address moves to another peer: from then on it is false, also where it was right before.
        try pair.b.device.setAllowedIPs([IPPrefix(host: third.address)], of: pair.bToA)
        let late = try #require(third.send(third.packet(to: pair.b), to: thirdToB, now: .start))
        #expect(pair.b.receive(late, now: .start).result == .refused(bToThird, .wrongSource))
    }

    /// W14: broken inner packets are dropped, the session lives.
    @Test func malformedInnerPackets() throws {
        let pair = try WireGuardPair(seed: 9)
        let six = IPAddress("fd7a::1")!
        try pair.b.device.setAllowedIPs([IPPrefix(host: pair.a.address), IPPrefix(host: six)], of: pair.bToA)
        pair.connect()
        let good = pair.a.packet(to: pair.b, length: 64)
        let goodSix = innerPacket(from: six, to: six, length: 64)
        var bad: [[UInt8]] = [[0x45], Array(good[..<19]), Array(goodSix[..<39])]
        for version in [0, 1, 3, 5, 7, 15] { bad.append([UInt8(version << 4 | 5)] + good[1...]) }
        bad.append([0x45, 0, 0, 65] + good[4...])  // one byte more than there is
        bad.append([0x45, 0, 0xff, 0xff] + good[4...])
        bad.append([0x45, 0, 0, 19] + good[4...])  // shorter than its header
        bad.append([0x45, 0, 0, 0] + good[4...])
        bad.append(Array(goodSix[..<4]) + [0, 25] + goodSix[6...])
        bad.append(Array(goodSix[..<4]) + [0xff, 0xff] + goodSix[6...])
        for packet in bad {
            let datagram = try #require(pair.a.send(packet, to: pair.aToB, now: .start))
            #expect(pair.b.receive(datagram, now: .start).result == .refused(pair.bToA, .malformedPacket))
        }
        for packet in [good, goodSix, Array(goodSix[..<4]) + [0, 0] + goodSix[6...]] {
            let datagram = try #require(pair.a.send(packet, to: pair.aToB, now: .start))
            guard case .packet = pair.b.receive(datagram, now: .start).result else {
                Issue.record("a good packet was dropped")
                return
            }
        }
        #expect(pair.b.packets.map(\.count) == [64, 64, 40], "padding and excess are cut")
    }

    /// W12: a flood with right MAC1 from many sources. Cookies go out, few DHs are done, live sessions go on,
    /// and a peer that shows its cookie gets through.
    @Test func flood() throws {
        let pair = try WireGuardPair(seed: 10)
        let honest = WireGuardNode(seed: 1_010, address: "10.0.0.9")
        let honestToB = try honest.add(pair.b)
        _ = try pair.b.add(honest)
        pair.connect()
        let stranger = WireGuardNode(seed: 1_011, address: "10.0.0.10")
        let strangerToB = try stranger.add(pair.b)
        stranger.device.initiateHandshake(strangerToB, now: .start)
        let attack = stranger.output(.start)[0]  // with MAC1 right and MAC2 zero
        var replies = 0
        var source = 0
        func flood(_ now: Instant, count: Int) {
            for _ in 0..<count {
                source += 1
                let address = "198.51.\(source >> 8 & 255).\(source & 255):\(1024 + source % 50_000)"
                if pair.b.receive(attack, from: address, now: now).reply?.count == 64 { replies += 1 }
            }
        }
        for step in 0..<100 {  // 50,000 per second for 100 ms
            let now = Instant.at(1 + Double(step) / 1_000)
            flood(now, count: 50)
            let data = try #require(
                pair.a.send(pair.a.packet(to: pair.b, number: step), to: pair.aToB, now: now))
            pair.b.receive(data, now: now)
        }
        #expect(pair.b.packets.count == 100, "the live session does not notice")
        #expect(pair.b.counters[.unknownPeer] < 300, "few were examined")
        #expect(replies > 4_700)

        // The honest peer: refused once, with a cookie; then its retransmission gets through.
        honest.device.initiateHandshake(honestToB, now: .at(1.1))
        let first = honest.output(.at(1.1))[0]
        #expect(Array(first[132...]) == Array(repeating: 0, count: 16))
        let reply = try #require(pair.b.receive(first, from: "203.0.113.5:41641", now: .at(1.1)).reply)
        #expect(honest.receive(reply, now: .at(1.2)).result == .cookie(honestToB))
        #expect(!honest.hasOutput, "not at once")
        let retry = honest.nextDeadline
        honest.device.handleTimeout(now: retry)
        let second = honest.output(retry)[0]
        #expect(Array(second[132...]) != Array(repeating: 0, count: 16))
        flood(retry, count: 200)
        // From another address the cookie is worth nothing.
        #expect(pair.b.receive(second, from: "203.0.113.5:41642", now: retry).reply != nil)
        let result = pair.b.receive(second, from: "203.0.113.5:41641", now: retry).result
        #expect(result == .handshake(try #require(pair.b.peer(for: honest.key))))
        let response = pair.b.output(retry)[0]
        #expect(honest.receive(response, now: retry).result == .handshake(honestToB))
    }

    /// Cookies get a source into the queue, but not more than 20 times per second with five at once.
    @Test func sourcesWithCookiesAreLimited() throws {
        var limits = WireGuard.Limits()
        limits.handshakeBurst = 0  // always under load
        limits.rekeyTimeout = .milliseconds(25)
        limits.jitter = .zero
        let pair = try WireGuardPair(seed: 11, limits: limits)
        pair.a.device.initiateHandshake(pair.aToB, now: .start)
        let reply = try #require(pair.b.receive(pair.a.output(.start)[0], now: .start).reply)
        pair.a.receive(reply, now: .start)
        var accepted = 0
        for step in 1...80 {
            let now = Instant.at(Double(step) * 0.025)
            pair.a.device.initiateHandshake(pair.aToB, now: now)
            for datagram in pair.a.output(now) {
                if pair.b.receive(datagram, now: now).result == .handshake(pair.bToA) { accepted += 1 }
            }
            _ = pair.b.output(now)
        }
        #expect(accepted >= 40 && accepted <= 46, "two seconds: 5 and 2 × 20; \(accepted)")
        #expect(pair.b.counters[.sourceRate] >= 30)
    }

    @Test func cookieRepliesOfOthersAreRefused() throws {
        let pair = try WireGuardPair(seed: 12)
        pair.a.device.initiateHandshake(pair.aToB, now: .start)
        let initiation = pair.a.output(.start)[0]
        var reply = [UInt8](repeating: 0, count: 64)
        reply[0] = 3
        reply.replaceSubrange(4..<8, with: initiation[4..<8])
        #expect(pair.a.receive(reply, now: .start).result == .dropped(.badCookie))
        reply[4] ^= 1
        #expect(pair.a.receive(reply, now: .start).result == .dropped(.noHandshake))
    }
}

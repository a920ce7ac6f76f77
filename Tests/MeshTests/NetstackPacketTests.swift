// SPDX-License-Identifier: Apache-2.0

import FoundationEssentials
import Mesh
import Testing

/// ICMP, UDP, TSMP, headers, and what must not crash.
@Suite struct NetstackPacketTests {
    static let us = IPAddress("fd7a::1")!
    static let us4 = IPAddress("100.64.0.1")!
    static let peer = IPAddress("fd7a::9")!
    static let peer4 = IPAddress("100.64.0.9")!
    static let now = Instant(nanoseconds: 1_000_000_000)

    static func makeStack(limits: StackLimits = StackLimits()) -> Stack {
        Stack(addresses: [us, us4], limits: limits, seed: 7)
    }

    static func feed(_ stack: inout Stack, _ packet: [UInt8], at moment: Instant = now) {
        packet.withUnsafeBytes { stack.receive($0, now: moment) }
    }

    static func output(_ stack: inout Stack, at moment: Instant = now) -> [[UInt8]] {
        var result: [[UInt8]] = []
        var memory = [UInt8](repeating: 0, count: 2_048)
        while let packet = memory.withUnsafeMutableBytes({ stack.nextPacket(into: $0, now: moment) }) {
            result.append(Array(memory[..<packet.length]))
        }
        return result
    }

    // MARK: - Echo

    @Test(arguments: [0, 1, 56, 1_200]) func answersEcho(size: Int) {
        var stack = Self.makeStack()
        let data = (0..<size).map { UInt8($0 & 255) }
        Self.feed(
            &stack,
            WirePacket.ip6(
                source: Self.peer, destination: Self.us, kind: 58, [128, 0, 0, 0, 1, 2, 3, 4] + data,
                checksumAt: 2))
        Self.feed(
            &stack,
            WirePacket.ip4(
                source: Self.peer4, destination: Self.us4, kind: 1, [8, 0, 0, 0, 1, 2, 3, 4] + data,
                checksumAt: 2))
        let six = WirePacket.ip6(
            source: Self.us, destination: Self.peer, kind: 58, [129, 0, 0, 0, 1, 2, 3, 4] + data,
            checksumAt: 2)
        var four = WirePacket.ip4(
            source: Self.us4, destination: Self.peer4, kind: 1, [0, 0, 0, 0, 1, 2, 3, 4] + data, checksumAt: 2
        )
        four[6] = 0x40  // do not fragment
        four[10] -= 0x40
        #expect(Self.output(&stack) == [six, four])
        #expect(stack.counters.echoReplies == 2)
    }

    @Test(arguments: [us, us4]) func pingsEachOther(source: IPAddress) throws {
        var stack = Self.makeStack()
        let peerAddress = source.isV4 ? Self.peer4 : Self.peer
        var other = Stack(addresses: [Self.peer, Self.peer4], seed: 8)
        let echoToken = stack.pingEcho(peerAddress)
        let tsmpToken = stack.pingTSMP(peerAddress)
        let echo = try #require(echoToken)
        let tsmp = try #require(tsmpToken)
        for packet in Self.output(&stack) { Self.feed(&other, packet) }
        for packet in Self.output(&other) { Self.feed(&stack, packet) }
        #expect(stack.nextEvent() == .echoReply(from: peerAddress, token: echo))
        #expect(stack.nextEvent() == .pong(from: peerAddress, token: tsmp))
        #expect(stack.nextEvent() == nil)
    }

    // MARK: - TSMP

    static let vectors: [String: String] = {
        let file = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .appending(path: "Vectors/tsmp.json")
        guard let data = try? Data(contentsOf: file) else { return [:] }
        var result: [String: String] = [:]
        for line in String(decoding: data, as: UTF8.self).split(separator: "\n") {
            let parts = line.split(separator: "\"")
            if parts.count >= 4 { result[String(parts[1])] = String(parts[3]) }
        }
        return result
    }()

    static func bytes(_ name: String) throws -> [UInt8] {
        let text = Array(try #require(vectors[name]).utf8)
        return stride(from: 0, to: text.count, by: 2).map {
            UInt8(String(decoding: text[$0..<$0 + 2], as: UTF8.self), radix: 16)!
        }
    }

    @Test func answersTSMPVector() throws {
        // The vector's destination is not even ours: pings are answered below everything else.
        var stack = Self.makeStack()
        Self.feed(&stack, try Self.bytes("ping"))
        #expect(Self.output(&stack) == [try Self.bytes("pong")])
        Self.feed(&stack, try Self.bytes("ping_too_short"))
        #expect(Self.output(&stack).isEmpty)
    }

    @Test(arguments: ["pong", "pong_short_accepted"]) func takesTSMPPong(name: String) throws {
        var stack = Self.makeStack()
        Self.feed(&stack, try Self.bytes(name))
        #expect(
            stack.nextEvent()
                == .pong(
                    from: IPAddress("fd60:627a:a42b:4a6a:9d3c:8f1e:2d3c:4b5b")!, token: 0x1122_3344_5566_7788)
        )
    }

    @Test func reportsTSMPReject() throws {
        var stack = Self.makeStack()
        Self.feed(&stack, try Self.bytes("reject_acl_tcp"))
        let event = stack.nextEvent()
        guard case .rejected(let kind, let reason, let local, let remote) = event else {
            Issue.record("\(String(describing: event))")
            return
        }
        #expect(kind == 6 && reason == 0x41 && local.port == 0x9c40 && remote.port == 22)
    }

    // MARK: - UDP

    @Test(arguments: [us, us4]) func datagramsArriveWhole(source: IPAddress) throws {
        var a = Self.makeStack()
        var b = Stack(addresses: [Self.peer, Self.peer4], seed: 8)
        b.bindUDP(53)
        let target = SocketAddress(source.isV4 ? Self.peer4 : Self.peer, port: 53)
        let local = SocketAddress(source, port: 4_000)
        for size in [0, 1, 2, 511, a.datagramLimit(to: target.ip)] {
            let data = (0..<size).map { UInt8($0 % 251) }
            let sent = data.withUnsafeBytes { a.sendUDP(from: local, to: target, $0) }
            #expect(sent)
            for packet in Self.output(&a) { Self.feed(&b, packet) }
            #expect(b.nextEvent() == .datagrams)
            #expect(b.nextEvent() == nil)
            var memory = [UInt8](repeating: 0, count: 2_000)
            let header = memory.withUnsafeMutableBytes { b.readDatagram(into: $0) }
            #expect(header == DatagramHeader(local: target, remote: local, length: size))
            #expect(Array(memory[..<size]) == data)
            #expect(memory.withUnsafeMutableBytes { b.readDatagram(into: $0) } == nil)
        }
        let tooLong = [UInt8](repeating: 0, count: a.datagramLimit(to: target.ip) + 1)
        let sent = tooLong.withUnsafeBytes { a.sendUDP(from: local, to: target, $0) }
        #expect(!sent)
    }

    @Test func closedUDPPortIsUnreachable() {
        var stack = Self.makeStack()
        let datagram: [UInt8] = [0, 9, 0, 7, 0, 9, 0, 0, 1]
        let packet = WirePacket.ip6(
            source: Self.peer, destination: Self.us, kind: 17, datagram, checksumAt: 6)
        Self.feed(&stack, packet)
        let expected = WirePacket.ip6(
            source: Self.us, destination: Self.peer, kind: 58, [1, 4, 0, 0, 0, 0, 0, 0] + packet,
            checksumAt: 2)
        #expect(Self.output(&stack) == [expected])
    }

    @Test func unsolicitedRepliesAreLimited() {
        var limits = StackLimits()
        limits.unsolicitedRepliesPerSecond = 3
        var stack = Self.makeStack(limits: limits)
        let datagram: [UInt8] = [0, 9, 0, 7, 0, 9, 0, 0, 1]
        let packet = WirePacket.ip6(
            source: Self.peer, destination: Self.us, kind: 17, datagram, checksumAt: 6)
        for _ in 0..<10 { Self.feed(&stack, packet) }
        #expect(Self.output(&stack).count == 3)
        #expect(stack.counters.unsolicitedRepliesSuppressed == 7)
    }

    @Test func datagramQueueIsBounded() {
        var limits = StackLimits()
        limits.datagramQueue = 10_000
        var stack = Self.makeStack(limits: limits)
        stack.bindAnyUDP()
        let payload: [UInt8] = [0, 9, 0, 7, 4, 8, 0, 0] + Array(repeating: 0, count: 1_024)
        let packet = WirePacket.ip6(source: Self.peer, destination: Self.us, kind: 17, payload, checksumAt: 6)
        for _ in 0..<100 { Self.feed(&stack, packet) }
        #expect(stack.counters.datagramsDropped == 91)
        let empty = WirePacket.ip6(
            source: Self.peer, destination: Self.us, kind: 17, [0, 9, 0, 7, 0, 8, 0, 0], checksumAt: 6)
        for _ in 0..<100 { Self.feed(&stack, empty) }
        var count = 0
        var memory = [UInt8](repeating: 0, count: 2_000)
        while memory.withUnsafeMutableBytes({ stack.readDatagram(into: $0) }) != nil { count += 1 }
        #expect(count < 20)
        #expect(stack.bufferBytes == 0)
    }

    // MARK: - IP headers

    /// An echo request behind these extension headers: (kind, bytes).
    static func withExtensions(_ headers: [(UInt8, [UInt8])]) -> [UInt8] {
        let echo = WirePacket.ip6(
            source: peer, destination: us, kind: 58, [128, 0, 0, 0, 0, 0, 0, 0], checksumAt: 2)
        var payload = Array(echo[40...])
        var next: UInt8 = 58
        for (kind, bytes) in headers.reversed() {
            payload = [next] + bytes + payload
            next = kind
        }
        return WirePacket.ip6(source: peer, destination: us, kind: next, payload, checksumAt: nil)
    }

    @Test func skipsHarmlessExtensionHeaders() {
        let padding: [UInt8] = [0, 1, 4, 0, 0, 0, 0]
        let good: [[(UInt8, [UInt8])]] = [
            [(0, padding)], [(60, padding)], [(0, padding), (60, padding)],
            [(43, [0, 0, 0, 0, 0, 0, 0])], [(44, [0, 0, 0, 1, 2, 3, 4])],
            [(60, [0, 0x1e, 4, 9, 9, 9, 9])],
        ]
        for headers in good {
            var stack = Self.makeStack()
            Self.feed(&stack, Self.withExtensions(headers))
            #expect(Self.output(&stack).count == 1, "\(headers)")
        }
        let bad: [[(UInt8, [UInt8])]] = [
            [(43, [0, 0, 1, 0, 0, 0, 0])],  // something left to visit
            [(60, padding), (0, padding)],  // hop-by-hop not first
            [(60, [0, 0x80, 4, 0, 0, 0, 0])],  // an option that must not be skipped
            [(60, [0, 1, 5, 0, 0, 0, 0])],  // option beyond its header
            [(60, [9, 1, 4, 0, 0, 0, 0])],  // header beyond the packet
            [(51, padding)], Array(repeating: (60, padding), count: 9),
        ]
        for headers in bad {
            var stack = Self.makeStack()
            Self.feed(&stack, Self.withExtensions(headers))
            #expect(Self.output(&stack).isEmpty, "\(headers)")
            #expect(stack.counters.badExtensionHeader == 1, "\(headers)")
        }
    }

    @Test func fragmentsAreRefusedAndCounted() {
        var stack = Self.makeStack()
        Self.feed(&stack, Self.withExtensions([(44, [0, 0, 1, 1, 2, 3, 4])]))  // more to come
        Self.feed(&stack, Self.withExtensions([(44, [0, 0, 8, 1, 2, 3, 4])]))  // not the first
        for flags in [UInt8(0x20), 0x01] {
            var packet = WirePacket.ip4(
                source: Self.peer4, destination: Self.us4, kind: 1, [8, 0, 0, 0, 0, 0, 0, 0], checksumAt: 2)
            packet[6] = flags
            packet[10] = 0
            packet[11] = 0
            let check = ~WirePacket.sum(Array(packet[..<20]))
            packet[10] = UInt8(check >> 8)
            packet[11] = UInt8(check & 255)
            Self.feed(&stack, packet)
        }
        #expect(Self.output(&stack).isEmpty)
        #expect(stack.counters.fragments == 4)
    }

    @Test func strangersAreNotAnswered() {
        var stack = Self.makeStack()
        let other = IPAddress("fd7a::77")!
        Self.feed(
            &stack,
            WirePacket.ip6(
                source: Self.peer, destination: other, kind: 58, [128, 0, 0, 0, 0, 0, 0, 0], checksumAt: 2))
        Self.feed(
            &stack,
            WirePacket.ip6(
                source: IPAddress("ff02::1")!, destination: Self.us, kind: 58, [128, 0, 0, 0, 0, 0, 0, 0],
                checksumAt: 2))
        #expect(Self.output(&stack).isEmpty)
        #expect(stack.counters.notForUs == 2)
    }

    // MARK: - Bad input

    static func samples() -> [[UInt8]] {
        let syn: [UInt8] = [
            0, 9, 0, 22, 0, 0, 0, 1, 0, 0, 0, 0, 0x80, 2, 255, 255, 0, 0, 0, 0, 2, 4, 4, 196, 1, 3, 3, 7, 4,
            2, 0, 0,
        ]
        let ack: [UInt8] =
            [0, 9, 0, 22, 0, 0, 0, 2, 0, 0, 0, 0, 0xa0, 16, 255, 255, 0, 0, 0, 0, 1, 1, 5, 18]
            + Array(repeating: 7, count: 16) + [1, 2, 3]
        let datagram: [UInt8] = [0, 9, 0, 7, 0, 12, 0, 0, 1, 2, 3, 4]
        var result = [withExtensions([(0, [0, 1, 4, 0, 0, 0, 0]), (60, [0, 1, 4, 0, 0, 0, 0])])]
        for (kind, body, at) in [(UInt8(6), syn, 16), (6, ack, 16), (17, datagram, 6)] {
            result.append(WirePacket.ip6(source: peer, destination: us, kind: kind, body, checksumAt: at))
            result.append(WirePacket.ip4(source: peer4, destination: us4, kind: kind, body, checksumAt: at))
        }
        let inner = WirePacket.ip6(source: us, destination: peer, kind: 6, syn, checksumAt: 16)
        result.append(
            WirePacket.ip6(
                source: peer, destination: us, kind: 58, [2, 0, 0, 0, 0, 0, 5, 0] + inner, checksumAt: 2))
        result.append(
            WirePacket.ip6(
                source: peer, destination: us, kind: 58, [128, 0, 0, 0, 1, 2, 3, 4], checksumAt: 2))
        result.append(
            WirePacket.ip6(
                source: peer, destination: us, kind: 99, [0x70, 1, 2, 3, 4, 5, 6, 7, 8], checksumAt: nil))
        result.append(WirePacket.ip6(source: peer, destination: us, kind: 250, [1, 2, 3], checksumAt: nil))
        return result
    }

    @Test func truncationsAndBitFlipsNeverCrash() {
        var stack = Self.makeStack()
        stack.listenAny()
        stack.bindAnyUDP()
        var count: UInt64 = 0
        for sample in Self.samples() {
            for length in 0...sample.count {
                Self.feed(&stack, Array(sample[..<length]))
                count += 1
            }
            for bit in 0..<sample.count * 8 {
                var copy = sample
                copy[bit / 8] ^= 1 << UInt8(bit % 8)
                Self.feed(&stack, copy)
                count += 1
            }
            _ = Self.output(&stack)
            while stack.nextEvent() != nil {}
        }
        #expect(stack.counters.packetsReceived == count)
        #expect(stack.counters.malformed > 0 && stack.counters.badChecksum > 0)
    }
}

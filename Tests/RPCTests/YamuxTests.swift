// SPDX-License-Identifier: Apache-2.0

import RPC
import Testing

@Suite struct YamuxTests {
    @Test func `opening, acknowledging and pinging give the documented bytes`() throws {
        let client = YamuxEnd(role: .client, now: .zero)
        let server = YamuxEnd(role: .server, now: .zero)
        let id = try client.open(now: .zero)
        #expect(id == 1)
        let open = client.takeOutput()
        #expect(hex(open) == "000100010000000100000000")
        try server.receive(open[...], now: .zero)
        #expect(server.takeEvents() == [.incoming])
        #expect(server.accept() == 1)
        #expect(hex(server.takeOutput()) == "000100020000000100000000")
        #expect(client.ping() == 0)
        let ping = client.takeOutput()
        #expect(hex(ping) == "000200010000000000000000")
        try server.receive(ping[...], now: .zero)
        let pong = server.takeOutput()
        #expect(hex(pong) == "000200020000000000000000")
        try client.receive(pong[...], now: .zero)
        #expect(client.takeEvents() == [.pong(0)])
        try client.receive(pong[...], now: .zero)
        #expect(client.takeEvents().isEmpty, "an unsolicited pong is ignored")
    }

    @Test(arguments: [1, 3, 7, 64, 100_000])
    func `data and FIN flow both ways over any split`(piece: Int) throws {
        let client = YamuxEnd(role: .client, now: .zero)
        let server = YamuxEnd(role: .server, now: .zero)
        let id = try client.open(now: .zero)
        let text = Array("hello, stream".utf8)
        #expect(client.write(id, text[...]) == text.count)
        client.closeWrite(id, now: .zero)
        #expect(client.write(id, text[...]) == 0, "nothing after FIN")
        try feed(client.takeOutput(), into: server, piece: piece)
        let accepted = try #require(server.accept())
        #expect(server.read(accepted) == text)
        #expect(server.isAtEnd(accepted))
        #expect(server.write(accepted, text[...]) == text.count)
        server.closeWrite(accepted, now: .zero)
        #expect(server.streamCount == 0)
        try feed(server.takeOutput(), into: client, piece: piece)
        #expect(client.read(id) == text)
        #expect(client.streamCount == 0)
        #expect(client.takeEvents().contains(.remoteClosed(id)))
    }

    @Test func `a reset kills the stream in the middle of a body`() throws {
        let client = YamuxEnd(role: .client, now: .zero)
        let server = YamuxEnd(role: .server, now: .zero)
        let id = try client.open(now: .zero)
        _ = client.write(id, Array(repeating: 1, count: 100)[...])
        let bytes = client.takeOutput()
        try server.receive(bytes[..<50], now: .zero)
        server.reset(id)
        #expect(hex(server.takeOutput()).hasSuffix("000100080000000100000000"))
        try server.receive(bytes[50...], now: .zero)
        #expect(server.bufferedCount == 0)
        try client.receive(frame(.windowUpdate, .rst, id)[...], now: .zero)
        #expect(client.takeEvents() == [.reset(id)])
        #expect(client.streamCount == 0)
    }

    @Test func `the 257th stream that nobody accepted is refused`() throws {
        let server = YamuxEnd(role: .server, now: .zero)
        for index in 0..<256 {
            try server.receive(frame(.windowUpdate, .syn, UInt32(index) * 2 + 1)[...], now: .zero)
        }
        #expect(!server.hasOutput)
        try server.receive(frame(.data, .syn, 513, length: 3)[...], now: .zero)
        #expect(hex(server.takeOutput()) == "000100080000020100000000")
        try server.receive([1, 2, 3], now: .zero)
        #expect(server.bufferedCount == 0)
        #expect(server.streamCount == 256)
        #expect(server.accept() == 1)
        try server.receive(frame(.windowUpdate, .syn, 515)[...], now: .zero)
        #expect(server.streamCount == 257)
    }

    @Test func `the opener respects 256 unacknowledged streams`() throws {
        let client = YamuxEnd(role: .client, now: .zero)
        for _ in 0..<256 { _ = try client.open(now: .zero) }
        #expect(throws: YamuxError.tooManyUnacknowledged) { _ = try client.open(now: .zero) }
        #expect(!client.canTryOpen)
        try client.receive(frame(.windowUpdate, .ack, 1)[...], now: .zero)
        #expect(client.takeEvents() == [.established(1)])
        #expect(try client.open(now: .zero) == 513)
    }

    @Test(arguments: [
        Violation(
            "duplicate SYN", frame(.windowUpdate, .syn, 1) + frame(.windowUpdate, .syn, 1),
            .duplicateStream(1)),
        Violation("own parity", frame(.windowUpdate, .syn, 2), .wrongStreamID(2)),
        Violation("stream 0", frame(.windowUpdate, .syn, 0), .wrongStreamID(0)),
        Violation(
            "FIN twice",
            frame(.windowUpdate, .syn, 1) + frame(.windowUpdate, .fin, 1) + frame(.data, .fin, 1),
            .repeatedFIN(1)),
        Violation("window overrun", frame(.data, .syn, 1, length: 262_145), .windowExceeded(1)),
    ])
    func `a violation is answered by GoAway 1`(violation: Violation) throws {
        let server = YamuxEnd(role: .server, now: .zero)
        #expect(throws: violation.error) { try server.receive(violation.bytes[...], now: .zero) }
        #expect(hex(server.takeOutput()).hasSuffix("000300000000000000000001"))
        #expect(server.error == violation.error)
        #expect(throws: violation.error) { try server.receive([0], now: .zero) }
    }

    @Test func `unknown versions and kinds kill the session`() throws {
        let one = YamuxEnd(role: .server, now: .zero)
        #expect(throws: YamuxError.unknownVersion(1)) {
            try one.receive([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], now: .zero)
        }
        let two = YamuxEnd(role: .server, now: .zero)
        #expect(throws: YamuxError.unknownKind(4)) {
            try two.receive([0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], now: .zero)
        }
    }

    @Test func `data of an unknown stream is drained`() throws {
        let server = YamuxEnd(role: .server, now: .zero)
        try server.receive((frame(.data, [], 9, length: 5) + [1, 2, 3, 4, 5])[...], now: .zero)
        try server.receive(frame(.windowUpdate, .syn, 1)[...], now: .zero)
        #expect(server.takeEvents() == [.incoming])
        #expect(server.bufferedCount == 0)
    }

    @Test func `credit comes back when half the window is free`() throws {
        let client = YamuxEnd(role: .client, now: .zero)
        let server = YamuxEnd(role: .server, now: .zero)
        let id = try client.open(now: .zero)
        let block = [UInt8](repeating: 7, count: 131_071)
        #expect(client.write(id, block[...]) == block.count)
        try server.receive(client.takeOutput()[...], now: .zero)
        #expect(server.accept() == id)
        _ = server.takeOutput()
        #expect(server.read(id).count == block.count)
        #expect(!server.hasOutput, "one byte short of half")
        #expect(client.write(id, [1]) == 1)
        try server.receive(client.takeOutput()[...], now: .zero)
        #expect(server.read(id).count == 1)
        #expect(hex(server.takeOutput()) == "000100000000000100020000")
    }

    @Test func `10 MiB to a slow reader never exceed the window`() throws {
        let client = YamuxEnd(role: .client, now: .zero)
        let server = YamuxEnd(role: .server, now: .zero)
        let id = try client.open(now: .zero)
        let total = 10 << 20
        var (sent, received, rounds) = (0, 0, 0)
        let block = [UInt8](repeating: 3, count: 100_000)
        while received < total {
            sent += client.write(id, block[..<min(block.count, total - sent)])
            try server.receive(client.takeOutput()[...], now: .zero)
            _ = server.accept()
            #expect(server.bufferedCount <= YamuxSession.initialWindow)
            rounds += 1
            if rounds % 5 == 0 { received += server.read(id).count }
            try client.receive(server.takeOutput()[...], now: .zero)
        }
        #expect(sent == total && received == total)
    }

    @Test func `a larger window is granted with the ACK and used`() throws {
        var limits = YamuxSession.Limits()
        limits.receiveWindow = 1 << 20
        let client = YamuxEnd(role: .client, now: .zero)
        let server = YamuxEnd(role: .server, limits: limits, now: .zero)
        let id = try client.open(now: .zero)
        try server.receive(client.takeOutput()[...], now: .zero)
        #expect(server.accept() == id)
        #expect(hex(server.takeOutput()) == "0001000200000001000c0000")
        try client.receive(frame(.windowUpdate, .ack, id, length: 0xc0000)[...], now: .zero)
        let block = [UInt8](repeating: 1, count: 1 << 20)
        var sent = 0
        while sent < block.count {
            let count = client.write(id, block[sent...])
            guard count > 0 else { break }
            sent += count
            try server.receive(client.takeOutput(maximum: .max)[...], now: .zero)
        }
        #expect(sent == block.count)
    }

    @Test func `keep-alive pings, and a missing pong closes the session`() throws {
        let client = YamuxEnd(role: .client, now: .zero)
        #expect(client.nextDeadline == .seconds(30))
        try client.handleTimeout(now: .seconds(30))
        #expect(hex(client.takeOutput()) == "000200010000000000000000")
        try client.receive(frame(.ping, .ack, 0)[...], now: .seconds(31))
        try client.handleTimeout(now: .seconds(60))
        #expect(client.nextDeadline == .seconds(70))
        try client.handleTimeout(now: .milliseconds(69_999))
        #expect(throws: YamuxError.keepAliveTimeout) { try client.handleTimeout(now: .seconds(70)) }
    }

    @Test func `an open without ACK kills the session, a close without FIN the stream`() throws {
        var limits = YamuxSession.Limits()
        limits.keepAliveInterval = nil
        let client = YamuxEnd(role: .client, limits: limits, now: .zero)
        let id = try client.open(now: .zero)
        try client.receive(frame(.windowUpdate, .ack, id)[...], now: .seconds(1))
        client.release(id, now: .seconds(2))
        #expect(client.streamCount == 1)
        try client.handleTimeout(now: .seconds(302))
        #expect(client.streamCount == 0)
        #expect(hex(client.takeOutput()).hasSuffix("000100080000000100000000"))
        let late = try client.open(now: .seconds(400))
        #expect(throws: YamuxError.openTimeout(late)) { try client.handleTimeout(now: .seconds(475)) }
    }

    @Test func `GoAway 0 stops new streams only`() throws {
        let client = YamuxEnd(role: .client, now: .zero)
        let id = try client.open(now: .zero)
        try client.receive(frame(.goAway, [], 0)[...], now: .zero)
        #expect(client.takeEvents() == [.goAway])
        #expect(throws: YamuxError.goneAway) { _ = try client.open(now: .zero) }
        #expect(client.write(id, [1, 2]) == 2)
        #expect(throws: YamuxError.remoteGoAway(2)) {
            try client.receive(frame(.goAway, [], 0, length: 2)[...], now: .zero)
        }
    }

    @Test func `a flood of pings that is never read ends the session`() throws {
        var limits = YamuxSession.Limits()
        limits.outputBytes = 1_000
        let server = YamuxEnd(role: .server, limits: limits, now: .zero)
        let ping = frame(.ping, .syn, 0, length: 5)
        #expect(throws: YamuxError.outputOverflow) {
            for _ in 0..<1_000 { try server.receive(ping[...], now: .zero) }
        }
    }

    @Test func `random input never crashes`() {
        var generator = Numbers(state: 42)
        for _ in 0..<300 {
            let server = YamuxEnd(role: .server, now: .zero)
            for _ in 0..<40 {
                let kind = YamuxHeader.Kind(rawValue: UInt8(generator.next() % 4)) ?? .data
                let flags = YamuxHeader.Flags(rawValue: UInt16(generator.next() % 16))
                var bytes = frame(
                    kind, flags, UInt32(generator.next() % 6), length: UInt32(generator.next() % 40))
                if generator.next() % 9 == 0 {
                    bytes[Int(generator.next() % 12)] ^= UInt8(generator.next() % 256)
                }
                bytes += (0..<(generator.next() % 40)).map { _ in UInt8(generator.next() % 256) }
                guard (try? server.receive(bytes[...], now: .zero)) != nil else { break }
                if generator.next() % 2 == 0, let id = server.accept() { _ = server.read(id) }
                if generator.next() % 7 == 0 { server.release(UInt32(generator.next() % 6), now: .zero) }
                #expect(server.bufferedCount >= 0)
            }
        }
    }
}

struct Violation: CustomTestStringConvertible, Sendable {
    let name: String
    let bytes: [UInt8]
    let error: YamuxError
    init(_ name: String, _ bytes: [UInt8], _ error: YamuxError) {
        (self.name, self.bytes, self.error) = (name, bytes, error)
    }
    var testDescription: String { name }
}

func frame(
    _ kind: YamuxHeader.Kind, _ flags: YamuxHeader.Flags, _ stream: UInt32, length: UInt32 = 0
) -> [UInt8] {
    var bytes: [UInt8] = []
    YamuxHeader(kind, flags, stream: stream, length: length).write(into: &bytes)
    return bytes
}

func feed(_ bytes: [UInt8], into session: YamuxEnd, piece: Int) throws {
    var rest = bytes[...]
    while !rest.isEmpty {
        try session.receive(rest.prefix(piece), now: .zero)
        rest = rest.dropFirst(piece)
    }
}

func hex(_ bytes: [UInt8]) -> String {
    bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
}

func bytes(_ hex: String) -> [UInt8] {
    let digits = Array(hex.utf8)
    return stride(from: 0, to: digits.count, by: 2).compactMap {
        UInt8(String(decoding: digits[$0..<$0 + 2], as: UTF8.self), radix: 16)
    }
}

/// SplitMix64: reproducible numbers.
struct Numbers {
    var state: UInt64
    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ z >> 30) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ z >> 27) &* 0x94d0_49bb_1331_11eb
        return z ^ z >> 31
    }
}

/// A session behind a reference, so that expectations can call what changes it.
final class YamuxEnd {
    private var session: YamuxSession
    init(role: YamuxSession.Role, limits: YamuxSession.Limits = .init(), now: Duration) {
        session = YamuxSession(role: role, limits: limits, now: now)
    }
    var error: YamuxError? { session.error }
    var streamCount: Int { session.streamCount }
    var bufferedCount: Int { session.bufferedCount }
    var hasOutput: Bool { session.hasOutput }
    var canTryOpen: Bool { session.canTryOpen }
    var nextDeadline: Duration? { session.nextDeadline }
    func takeOutput(maximum: Int = 256 << 10) -> [UInt8] { session.takeOutput(maximum: maximum) }
    func takeEvents() -> [YamuxSession.Event] { session.takeEvents() }
    func open(now: Duration) throws(YamuxError) -> YamuxStreamID { try session.open(now: now) }
    func accept() -> YamuxStreamID? { session.accept() }
    func write(_ id: YamuxStreamID, _ bytes: ArraySlice<UInt8>) -> Int { session.write(id, bytes) }
    func read(_ id: YamuxStreamID) -> [UInt8] { session.read(id) }
    func isAtEnd(_ id: YamuxStreamID) -> Bool { session.isAtEnd(id) }
    func closeWrite(_ id: YamuxStreamID, now: Duration) { session.closeWrite(id, now: now) }
    func release(_ id: YamuxStreamID, now: Duration) { session.release(id, now: now) }
    func reset(_ id: YamuxStreamID) { session.reset(id) }
    func ping() -> UInt32 { session.ping() }
    func handleTimeout(now: Duration) throws(YamuxError) { try session.handleTimeout(now: now) }
    func receive(_ bytes: ArraySlice<UInt8>, now: Duration) throws(YamuxError) {
        try session.receive(bytes, now: now)
    }
}

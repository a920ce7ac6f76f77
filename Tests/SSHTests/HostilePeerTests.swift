// SPDX-License-Identifier: Apache-2.0

import SSH
import Testing

/// Bad input ends the connection with a typed error, or is refused; it never traps and never grows anything.
@Suite struct HostilePeerTests {
    static func string(_ text: String) -> [UInt8] { number(UInt32(text.utf8.count)) + Array(text.utf8) }
    static func number(_ value: UInt32) -> [UInt8] {
        [24, 16, 8, 0].map { UInt8(truncatingIfNeeded: value >> $0) }
    }

    /// One valid payload of each message that a client may send; channel 0 is open.
    static let payloads: [[UInt8]] = {
        let session = [90] + string("session") + number(9) + number(1000) + number(1000)
        let direct =
            [90] + string("direct-tcpip") + number(9) + number(1000) + number(1000)
            + string("h") + number(1) + string("o") + number(2)
        let local =
            [90] + string("direct-streamlocal@openssh.com") + number(9) + number(1000) + number(1000)
            + string("/s") + string("") + number(0)
        let pty =
            [98] + number(0) + string("pty-req") + [1] + string("xterm")
            + number(80) + number(24) + number(0) + number(0) + number(6) + [53] + number(1) + [0]
        let exec: [UInt8] = [98] + number(0) + string("exec") + [1] + string("ls")
        let environment: [UInt8] = [98] + number(0) + string("env") + [0] + string("A") + string("B")
        let x11: [UInt8] =
            [98] + number(0) + string("x11-req") + [1, 0] + string("M") + string("c") + number(0)
        let forward: [UInt8] = [80] + string("tcpip-forward") + [1] + string("localhost") + number(80)
        let data: [UInt8] = [94] + number(0) + string("hello")
        let error: [UInt8] = [95] + number(0) + number(1) + string("hello")
        let adjust: [UInt8] = [93] + number(0) + number(5)
        let disconnect: [UInt8] = [1] + number(2) + string("x") + string("")
        let extensions: [UInt8] = [7] + number(1) + string("a") + string("b")
        let login: [UInt8] = [50] + string("u") + string("ssh-connection") + string("none")
        let ping: [UInt8] = [192] + string("ping")
        return [
            session, direct, local, pty, exec, environment, x11, forward, data, error, adjust, disconnect,
            extensions,
            login, ping, [96] + number(0), [97] + number(0), [99] + number(0), [100] + number(0), [81], [82],
            [2] + string("x"), [4, 1] + string("x") + string(""), [3] + number(1),
            [5] + string("ssh-userauth"),
            [20] + [UInt8](repeating: 0, count: 40), [21], [30] + string("x"), [31], [127], [255],
        ]
    }()

    /// Sends one payload to a server with one open session; true when it ended the connection.
    private func offer(_ payload: [UInt8]) throws -> Bool {
        var pair = Pair()
        _ = try pair.openSession()
        pair.client.sendPayload(payload)
        do {
            _ = Pair.move(&pair.client, &pair.server, .max)
            try pair.drainServer()
            return false
        } catch is SSHError {
            expect(pair.server.outgoingCount > 0 || payload.first == 1)
            return true
        }
    }

    @Test(arguments: payloads) func everyTruncationIsHandled(payload: [UInt8]) throws {
        for length in 1..<payload.count { _ = try offer(Array(payload[..<length])) }
    }

    @Test func randomChangesAreHandled() throws {
        var generator = TestGenerator(42)
        var ended = 0
        for round in 0..<3000 {
            var payload = Self.payloads[round % Self.payloads.count]
            for _ in 0...Int.random(in: 0...3, using: &generator) {
                let at = Int.random(in: 0..<payload.count, using: &generator)
                payload[at] =
                    [0, 1, 0x7f, 0x80, 0xff, UInt8.random(in: 0...255, using: &generator)]
                    .randomElement(using: &generator) ?? 0
            }
            if try offer(payload) { ended += 1 }
        }
        expect(ended > 100 && ended < 2900)
    }

    @Test func flippedBitsOnTheWireEndTheConnection() throws {
        for cipher in CipherName.allCases {
            for bit in stride(from: 0, to: 8 * 60, by: 7) {
                var pair = Pair(clientCiphers: [cipher])
                let (id, _) = try pair.openSession()
                _ = pair.client.write(id, [UInt8](repeating: 1, count: 40))
                var bytes = Array(pair.client.outgoing)
                guard bit / 8 < bytes.count else { continue }
                bytes[bit / 8] ^= 1 << (bit % 8)
                bytes.withUnsafeBytes { pair.server.receive($0) }
                pair.serverEvents = []
                do {
                    try pair.drainServer()
                    // A longer length: the rest of the packet is awaited, and nothing is handed out.
                    expect(pair.serverEvents.isEmpty)
                } catch let error {
                    let isExpected =
                        switch error as? SSHError {
                        case .badAuthenticationTag, .badPacketLength: true
                        default: false
                        }
                    expect(isExpected, "\(error)")
                }
            }
        }
    }

    @Test(arguments: [
        "GET / HTTP/1.1\r\n\r\n", "SSH-1.5-old\r\n", "\u{16}\u{3}\u{1}\u{2}\u{0}\n", "SSH-2.0\r\n",
        String(repeating: "x", count: 5000),
    ])
    func garbageInsteadOfAVersion(text: String) throws {
        var pair = Pair()
        Array(text.utf8).withUnsafeBytes { pair.server.receive($0) }
        do {
            try pair.drainServer()
            Issue.record("accepted")
        } catch SSHError.badVersion {}
    }

    @Test func garbageAfterTheVersion() throws {
        var generator = TestGenerator(3)
        for _ in 0..<300 {
            var pair = Pair()
            let bytes = Array("SSH-2.0-x\r\n".utf8) + generator.bytes(400)
            bytes.withUnsafeBytes { pair.server.receive($0) }
            #expect(throws: SSHError.self) { try pair.drainServer() }
        }
    }

    /// Versions, proposals and public values travel in the clear: change some bytes of the first flight
    /// either way.
    @Test func changedHandshakesEndOrAreHarmless() throws {
        var generator = TestGenerator(77)
        var ended = 0
        for round in 0..<400 {
            var pair = Pair(seed: UInt64(round + 1))
            let fromClient = round % 2 == 0
            var bytes = fromClient ? Array(pair.client.outgoing) : Array(pair.server.outgoing)
            for _ in 0...Int.random(in: 0...2, using: &generator) {
                bytes[Int.random(in: 0..<bytes.count, using: &generator)] =
                    [0, 1, 0x2c, 0x7f, 0xff, UInt8.random(in: 0...255, using: &generator)]
                    .randomElement(using: &generator) ?? 0
            }
            if fromClient {
                pair.client.consumeOutgoing(pair.client.outgoingCount)
                bytes.withUnsafeBytes { pair.server.receive($0) }
            } else {
                pair.server.consumeOutgoing(pair.server.outgoingCount)
                bytes.withUnsafeBytes { pair.client.receive($0) }
            }
            do {
                try pair.pump()
                // Nothing was changed, or a length grew and more is awaited: never an altered, working
                // connection.
                expect(!pair.client.isAuthenticated || pair.client.sessionID == pair.server.sessionID)
            } catch is SSHError {
                ended += 1
            }
        }
        expect(ended > 250)
    }

    @Test func clientSkipsLinesBeforeTheVersionButNotForEver() throws {
        var pair = Pair()
        Array("hello\r\nworld\n".utf8).withUnsafeBytes { pair.client.receive($0) }
        try pair.pump()
        expect(pair.client.isAuthenticated)
        var other = Pair()
        Array(String(repeating: "hello\n", count: 3000).utf8).withUnsafeBytes { other.client.receive($0) }
        #expect(throws: SSHError.badVersion("too much text before it")) { try other.drainClient() }
    }

    /// OpenSSH PROTOCOL §1.10: a message slipped in before the keys ends the connection.
    @Test(arguments: [[UInt8]([2, 0, 0, 0, 0]), [4, 1, 0, 0, 0, 0, 0, 0, 0, 0]])
    func strictKeyExchangeRefusesInsertedMessages(payload: [UInt8]) throws {
        let padding = 8 - (5 + payload.count) % 8 + 8
        let packet =
            Self.number(UInt32(1 + payload.count + padding)) + [UInt8(padding)] + payload
            + [UInt8](repeating: 0, count: padding)
        for direction in 0..<2 {
            var pair = Pair()
            // Both versions go through, then one end sees the foreign packet first.
            let bytes = direction == 0 ? Array(pair.client.outgoing) : Array(pair.server.outgoing)
            let line = (bytes.firstIndex(of: 10) ?? 0) + 1
            let altered = Array(bytes[..<line]) + packet + Array(bytes[line...])
            if direction == 0 {
                pair.client.consumeOutgoing(bytes.count)
                altered.withUnsafeBytes { pair.server.receive($0) }
            } else {
                pair.server.consumeOutgoing(bytes.count)
                altered.withUnsafeBytes { pair.client.receive($0) }
            }
            #expect(throws: SSHError.strictKeyExchangeViolated(message: 20)) { try pair.pump() }
        }
    }

    @Test func connectionMessagesBeforeAuthenticationAreRefused() throws {
        var pair = Pair(policy: .ask)
        try pair.pump()
        pair.client.sendPayload(Self.payloads[0])
        #expect(throws: SSHError.unexpectedMessage(90)) { try pair.pump() }
    }

    @Test func dataBeyondTheWindowEndsTheConnection() throws {
        var limits = SSHLimits()
        limits.channelWindowBytes = 10
        var pair = Pair(limits: limits)
        pair.consumesAtOnce = false
        _ = try pair.openSession()
        pair.client.sendPayload([94] + Self.number(0) + Self.string("12345678901"))
        #expect(throws: SSHError.windowExceeded) { try pair.pump() }
        var other = Pair()
        _ = try other.openSession()
        other.client.sendPayload([93] + Self.number(0) + Self.number(.max))
        #expect(throws: SSHError.windowOverflow) { try other.pump() }
    }

    @Test func aPeerThatNeverReadsStopsTheServer() throws {
        var pair = Pair()
        _ = try pair.openSession()
        let before = pair.server.counters.packetsReceived
        for _ in 0..<200_000 { pair.client.sendPayload([80] + Self.string("keepalive@openssh.com") + [1]) }
        // Nobody takes the server's answers: it stops handling, then stops wanting.
        var rounds = 0
        while Pair.move(&pair.client, &pair.server, 65536), rounds < 10_000 {
            rounds += 1
            try pair.drainServer()
        }
        expect(!pair.server.wantsInput)
        expect(pair.server.outgoingCount < 5 * 1024 * 1024)
        expect(pair.server.counters.packetsReceived > before + 10_000)
        // Once somebody does, it goes on.
        while pair.server.outgoingCount > 0 {
            pair.server.consumeOutgoing(pair.server.outgoingCount)
            try pair.drainServer()
            _ = Pair.move(&pair.client, &pair.server, 65536)
            try pair.drainServer()
        }
        expect(pair.server.counters.packetsReceived >= before + 200_000)
    }
}

// SPDX-License-Identifier: Apache-2.0

import Crypto
import Glibc
import HTTPTransport
import LinuxIO
import Testing

/// The 101 that belongs to a request head.
func accepting(_ head: String, extra: String = "") -> String {
    let key = head.split(separator: "\r\n").first { $0.hasPrefix("Sec-WebSocket-Key: ") }?.dropFirst(19) ?? ""
    let digest = Insecure.SHA1.hash(data: Array("\(key)258EAFA5-E914-47DA-95CA-C5AB0DC85B11".utf8))
    return "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        + "Sec-WebSocket-Accept: \(base64Text(Array(digest)))\r\n\(extra)\r\n"
}

/// An obvious second encoder, so that the library's is not tested with itself.
private func base64Text(_ bytes: [UInt8]) -> String {
    let bits = bytes.flatMap { byte in (0..<8).map { byte >> (7 - $0) & 1 } }
    let letters = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
    var text = ""
    for start in stride(from: 0, to: bits.count, by: 6) {
        text.append(
            letters[(0..<6).reduce(0) { $0 << 1 | ($1 + start < bits.count ? Int(bits[$1 + start]) : 0) }])
    }
    while text.count % 4 != 0 { text.append("=") }
    return text
}

@Suite(.timeLimit(.minutes(1))) struct WebSocketTests {
    @Test(arguments: [false, true])
    func anySplitGivesTheSameBytes(_ isTrickled: Bool) async throws {
        let server = try ScriptedServer { peer in
            guard let head = peer.readHead() else { return }
            var bytes = Array(accepting(head).utf8)
            bytes += frame(2, Array("ab".utf8)) + frame(2, []) + frame(2, Array("cd".utf8), isFinal: false)
            bytes += frame(9, Array("now".utf8)) + frame(0, [], isFinal: false) + frame(0, Array("ef".utf8))
            bytes += frame(2, [UInt8](repeating: 0x67, count: 300)) + frame(8, [3, 232])
            if isTrickled { peer.trickle(bytes) } else { peer.write(bytes) }
            _ = peer.readBytes(1_000)
        }
        try await withClient { client in
            let socket = try await client.webSocket(url(server.port, "/rpc?version=2.0"))
            var received: [UInt8] = []
            for try await chunk in socket.incoming { received += chunk }
            #expect(
                String(decoding: received, as: UTF8.self) == "abcdef" + String(repeating: "g", count: 300))
        }
    }

    @Test func pingsAreAnsweredWhileNobodyReceives() async throws {
        let server = try ScriptedServer { peer in
            guard let head = peer.readHead() else { return }
            peer.write(Array(accepting(head).utf8) + frame(2, [1]) + frame(9, [7, 8]))
            // The pong comes although the client's application sleeps on its first byte.
            guard let pong = peer.readFrame(), pong.opcode == 10, pong.payload == [7, 8] else { return }
            guard let message = peer.readFrame(), message.opcode == 2 else { return }
            peer.write(frame(2, message.payload + [99]))
            guard let close = peer.readFrame(), close.opcode == 8, close.payload == [3, 232] else { return }
            peer.write(frame(8, [3, 232]))
        }
        try await withClient { client in
            let socket = try await client.webSocket(url(server.port))
            try await socket.send([1, 2, 3])
            #expect(try await socket.receive() == [1])
            #expect(try await socket.receive() == [1, 2, 3, 99])
            await socket.close()
            #expect(try await socket.receive() == nil)
        }
    }

    struct CloseCase: Sendable, CustomTestStringConvertible {
        var bytes: [UInt8]
        var error: WebSocketError?
        var reply: UInt16

        var testDescription: String { "\(bytes.prefix(4)) → \(reply)" }
    }

    static let closeCases = [
        CloseCase(bytes: frame(8, [3, 233]), error: nil, reply: 1_001),
        CloseCase(
            bytes: frame(8, [3, 243] + Array("boom".utf8)), error: .closed(code: 1_011, reason: "boom"),
            reply: 1_011),
        CloseCase(bytes: frame(8, []), error: .closed(code: 1_005, reason: ""), reply: 1_000),
        CloseCase(bytes: frame(1, [65]), error: .protocolViolation("a text message"), reply: 1_003),
        CloseCase(bytes: frame(0, [1]), error: .protocolViolation("a continuation of nothing"), reply: 1_002),
        CloseCase(bytes: [0xc2, 1, 1], error: .protocolViolation("reserved bits are set"), reply: 1_002),
        CloseCase(
            bytes: [0x82, 0x7f, 0, 0, 1, 0, 0, 0, 0, 0],
            error: .protocolViolation("a message of more than 4 MiB"),
            reply: 1_009),
    ]

    @Test(arguments: closeCases)
    func endsAsTheCodeSays(_ test: CloseCase) async throws {
        let (bytes, expected, reply) = (test.bytes, test.error, test.reply)
        let server = try ScriptedServer { peer in
            guard let head = peer.readHead() else { return }
            peer.write(Array(accepting(head).utf8) + bytes)
            guard let close = peer.readFrame(), close.opcode == 8 else { return }
            let code = close.payload.prefix(2).reduce(0) { $0 << 8 | UInt16($1) }
            #expect(code == reply)
        }
        try await withClient { client in
            let socket = try await client.webSocket(url(server.port))
            if let expected {
                await #expect(throws: expected) { try await socket.receive() }
            } else {
                #expect(try await socket.receive() == nil)
            }
        }
    }

    @Test func aLostConnectionIsAnError() async throws {
        let server = try ScriptedServer { peer in
            guard let head = peer.readHead() else { return }
            peer.write(Array(accepting(head).utf8) + frame(2, [1]))
        }
        try await withClient { client in
            let socket = try await client.webSocket(url(server.port))
            #expect(try await socket.receive() == [1])
            await #expect(throws: WebSocketError.connectionLost) { try await socket.receive() }
        }
    }

    @Test func aSlowReceiverSlowsThePeer() async throws {
        let count = 600
        let server = try ScriptedServer { peer in
            guard let head = peer.readHead() else { return }
            peer.write(accepting(head))
            for number in 0..<count {
                peer.write(frame(2, [UInt8](repeating: UInt8(number & 255), count: 65_000)))
            }
            peer.write(frame(8, [3, 232]))
            _ = peer.readBytes(8)
        }
        try await withClient { client in
            let socket = try await client.webSocket(url(server.port))
            try await Task.sleep(for: .milliseconds(300))
            var total = 0
            for try await chunk in socket.incoming { total += chunk.count }
            #expect(total == count * 65_000)
        }
    }

    @Test func aWrongAcceptIsRefused() async throws {
        let server = try ScriptedServer { peer in
            guard peer.readHead() != nil else { return }
            peer.write(accepting("Sec-WebSocket-Key: another\r\n"))
            _ = peer.readBytes(1)
        }
        try await withClient { client in
            let error = await #expect(throws: HTTPError.self) {
                _ = try await client.webSocket(url(server.port))
            }
            #expect(error?.kind == .protocolViolation)
        }
    }

    @Test func derpOverWebSocketIsADescriptor() async throws {
        let server = try ScriptedServer { peer in
            guard let head = peer.readHead(), head.contains("Sec-WebSocket-Protocol: derp\r\n") else {
                return
            }
            peer.write(
                Array(accepting(head, extra: "Sec-WebSocket-Protocol: derp\r\n").utf8)
                    + frame(2, Array("key".utf8)))
            guard let message = peer.readFrame() else { return }
            peer.write(frame(9, []) + frame(2, message.payload.reversed()))
            guard let pong = peer.readFrame(), pong.opcode == 10 else { return }
            peer.write(frame(8, [3, 232]))
            _ = peer.readBytes(8)
        }
        try await withClient { client in
            let descriptor = try await client.derpWebSocket(url(server.port, "/derp"))
            var buffer = [UInt8](repeating: 0, count: 16)
            #expect(read(descriptor.number, &buffer, 16) == 3)
            #expect(buffer.starts(with: Array("key".utf8)))
            _ = write(descriptor.number, "xyz", 3)
            #expect(read(descriptor.number, &buffer, 16) == 3)
            #expect(buffer.starts(with: Array("zyx".utf8)))
            #expect(read(descriptor.number, &buffer, 16) == 0)
        }
    }
}

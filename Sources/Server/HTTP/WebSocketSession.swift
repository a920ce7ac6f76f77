// SPDX-License-Identifier: Apache-2.0

internal import NIOCore
internal import Synchronization

/// The server's end of one WebSocket. One task reads; any task may write: each frame goes out whole.
final class WebSocketSession: Sendable {
    private let stream: ByteStream
    private let decoder: Mutex<WebSocketDecoder>
    private let pongs = Mutex(0)
    private let isClosing = Mutex(false)

    init(stream: ByteStream, leftOver: [UInt8]) {
        self.stream = stream
        var decoder = WebSocketDecoder()
        decoder.append(leftOver)
        self.decoder = Mutex(decoder)
    }

    /// Takes only short frames from now on: for routes on which the peer has nothing to say.
    func expectNothing() { decoder.withLock { $0.maximumFrameBytes = 4096 } }

    /// What a reader gets.
    enum Received: Sendable {
        /// Payload of a binary frame. Borders of messages carry no meaning on our byte-stream routes.
        case bytes([UInt8])
        /// A whole text message.
        case text(String)
    }

    /// The next payload, or nil after a normal close (1000, 1001, 1005). Pings are answered on the way.
    func receive() async throws -> Received? {
        var text: [UInt8] = []
        while true {
            guard let frame = try await nextFrame() else { return nil }
            switch frame {
            case .ping(let payload): try await stream.write(WebSocketEncoder.pong(payload))
            case .pong: pongs.withLock { $0 += 1 }
            case .close(let code, _):
                await close(code: code == 1005 ? 1000 : code)
                guard [1000, 1001, 1005].contains(code) else { throw WebSocketError.disconnected }
                return nil
            case .data(let payload, false, _):
                if !payload.isEmpty { return .bytes(payload) }
            case .data(let payload, true, let isFinal):
                guard text.count + payload.count <= 1 << 20 else { throw WebSocketError.tooLarge }
                text += payload
                if isFinal { return .text(String(decoding: text, as: UTF8.self)) }
            }
        }
    }

    private func nextFrame() async throws -> WebSocketFrame? {
        while true {
            if let frame = try decoder.withLock({ try $0.next() }) { return frame }
            guard let bytes = try await stream.read() else { throw WebSocketError.disconnected }
            decoder.withLock { $0.append(bytes.readableBytesView) }
        }
    }

    /// Sends one binary message.
    func send(_ bytes: some Collection<UInt8>) async throws {
        try await stream.write(WebSocketEncoder.data(bytes, isText: false))
    }

    /// Sends one text message.
    func send(text: some Collection<UInt8>) async throws {
        try await stream.write(WebSocketEncoder.data(text, isText: true))
    }

    /// Sends a close frame once and ends the connection.
    func close(code: UInt16, reason: String = "") async {
        let first = isClosing.withLock { closing in
            defer { closing = true }
            return !closing
        }
        if first, code != 1006 {
            // The peer may be gone already: then there is nobody to tell.
            try? await stream.write(WebSocketEncoder.close(code: code, reason: reason))
        }
        stream.close()
    }

    /// Sends a ping every 15 s until the connection ends; closes it when the answer takes longer than that, or when
    /// `isAllowed`, asked as often, says no. Somebody must be reading, or the answers are not seen.
    func keepAlive(while isAllowed: @Sendable () async -> Bool = { true }) async throws {
        try await Task.sleep(for: .seconds(15))
        while true {
            guard await isAllowed() else {
                await close(code: 1008, reason: "no longer allowed")
                throw WebSocketError.disconnected
            }
            let before = pongs.withLock { $0 }
            try await stream.write(WebSocketEncoder.ping([]))
            try await Task.sleep(for: .seconds(15))
            guard pongs.withLock({ $0 }) > before else {
                await close(code: 1001, reason: "Ping failed")
                throw WebSocketError.pingTimeout
            }
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import NIOCore
internal import Synchronization

/// An open WebSocket seen as two byte streams. Message borders carry no meaning. Pings are answered by the event
/// loop, also while nobody receives, as long as fewer than 4 MiB wait; then the peer is slowed down by TCP.
/// One task receives, any task sends or closes.
public final class WebSocketConnection: Sendable {
    /// Header fields of the 101 response.
    public let responseHeaders: HeaderFields
    private let channel: any Channel
    private let inbox: Inbox

    init(channel: any Channel, inbox: Inbox, responseHeaders: HeaderFields) {
        self.channel = channel
        self.inbox = inbox
        self.responseHeaders = responseHeaders
    }

    /// The next bytes; nil when the peer closed with 1000 or 1001, or after `close`. Bytes that arrived before a
    /// failure are delivered first.
    public func receive() async throws(WebSocketError) -> [UInt8]? { try await inbox.next(channel) }

    /// The incoming bytes as a sequence that one task may iterate.
    public var incoming: Incoming { Incoming(connection: self) }

    /// Sends one binary message, and returns when the bytes are in the socket: the back-pressure of the sender.
    public func send(_ bytes: [UInt8]) async throws(WebSocketError) {
        do {
            // Longer messages would exceed what peers accept.
            var rest = bytes[...]
            while rest.count > 1 << 20 {
                try await channel.writeAndFlush(ByteBuffer(bytes: rest.prefix(1 << 20)))
                rest = rest.dropFirst(1 << 20)
            }
            try await channel.writeAndFlush(ByteBuffer(bytes: rest))
        } catch let error as WebSocketError {
            throw error
        } catch {
            throw .connectionLost
        }
    }

    /// Starts the close handshake and returns when the close frame is on its way; the connection ends when the peer
    /// answers or a second has passed. `reason` is cut at 123 bytes.
    public func close(code: UInt16 = 1000, reason: String = "") async {
        inbox.finish(.finished)
        do {
            try await channel.triggerUserOutboundEvent(WebSocketByteHandler.Close(code: code, reason: reason))
        } catch {
            channel.close(promise: nil)
        }
    }

    /// Ends the connection at once, without a handshake.
    public func abort() {
        inbox.finish(.failed(.cancelled))
        channel.close(promise: nil)
    }

    /// Bytes in the order of arrival; chunks have no meaning.
    public struct Incoming: AsyncSequence, Sendable {
        let connection: WebSocketConnection

        /// Calls `receive`.
        public struct AsyncIterator: AsyncIteratorProtocol {
            let connection: WebSocketConnection

            public mutating func next() async throws(WebSocketError) -> [UInt8]? {
                try await connection.receive()
            }
        }

        public func makeAsyncIterator() -> AsyncIterator { AsyncIterator(connection: connection) }
    }
}

/// Chunks between the loop and the receiving task. Bounded: above `limit` bytes the channel stops reading.
final class Inbox: Sendable {
    /// Enough for the windows of many RPC streams, so that a blocked application does not stop pongs.
    static let limit = 4 << 20

    private struct State {
        var chunks = CircularBuffer<[UInt8]>()
        var buffered = 0
        var end: WebSocketEnd?
        var isPaused = false
        var waiter: CheckedContinuation<Result<[UInt8]?, WebSocketError>, Never>?
    }

    private let state = Mutex(State())

    /// Called on the loop. True when the channel is to stop reading.
    func append(_ chunk: [UInt8]) -> Bool {
        let (waiter, pause) = state.withLock {
            state -> (CheckedContinuation<Result<[UInt8]?, WebSocketError>, Never>?, Bool) in
            guard state.end == nil else { return (nil, false) }
            if let waiter = state.waiter {
                state.waiter = nil
                return (waiter, false)
            }
            state.chunks.append(chunk)
            state.buffered += chunk.count
            guard state.buffered > Self.limit, !state.isPaused else { return (nil, false) }
            state.isPaused = true
            return (nil, true)
        }
        waiter?.resume(returning: .success(chunk))
        return pause
    }

    /// No more chunks. The first end counts.
    func finish(_ end: WebSocketEnd) {
        let waiter = state.withLock { state in
            if state.end == nil { state.end = end }
            let waiter = state.waiter
            state.waiter = nil
            return waiter
        }
        waiter?.resume(returning: Self.result(end))
    }

    func next(_ channel: any Channel) async throws(WebSocketError) -> [UInt8]? {
        let result = await withTaskCancellationHandler {
            await withCheckedContinuation { waiter in
                let (ready, resume) = state.withLock { Self.take(&$0, waiter) }
                if resume { channel.setOption(.autoRead, value: true).whenFailure { _ in } }
                if let ready { waiter.resume(returning: ready) }
            }
        } onCancel: {
            let waiter = state.withLock { state in
                let waiter = state.waiter
                state.waiter = nil
                if waiter == nil, state.end == nil { state.end = .failed(.cancelled) }
                return waiter
            }
            waiter?.resume(returning: .failure(.cancelled))
        }
        return try result.get()
    }

    private static func take(
        _ state: inout State, _ waiter: CheckedContinuation<Result<[UInt8]?, WebSocketError>, Never>
    ) -> (Result<[UInt8]?, WebSocketError>?, resume: Bool) {
        if let chunk = state.chunks.popFirst() {
            state.buffered -= chunk.count
            let resume = state.isPaused && state.buffered < limit / 2
            if resume { state.isPaused = false }
            return (.success(chunk), resume)
        }
        if let end = state.end { return (result(end), false) }
        precondition(state.waiter == nil, "two tasks receive from one WebSocket")
        state.waiter = waiter
        return (nil, false)
    }

    private static func result(_ end: WebSocketEnd) -> Result<[UInt8]?, WebSocketError> {
        switch end {
        case .finished: return .success(nil)
        case .failed(let error): return .failure(error)
        }
    }
}

/// Puts bytes from the loop into the inbox.
final class InboxHandler: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer

    private let inbox: Inbox

    init(inbox: Inbox) { self.inbox = inbox }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        if inbox.append(Array(unwrapInboundIn(data).readableBytesView)) {
            context.channel.setOption(.autoRead, value: false).whenFailure { _ in }
        }
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        if let end = event as? WebSocketEnd { inbox.finish(end) }
        context.fireUserInboundEventTriggered(event)
    }

    func channelInactive(context: ChannelHandlerContext) {
        inbox.finish(.failed(.connectionLost))
        context.fireChannelInactive()
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import DERPRelay
internal import LinuxIO
internal import NIOCore
internal import NIOPosix
internal import Synchronization
internal import TLS

/// The bytes of one accepted connection. Nothing is read from the socket until `read` asks for it, so a slow
/// consumer slows its peer down, and the socket can be given away whole: see `detach`.
final class ByteStream: Sendable {
    private let channel: any Channel
    private let handler: NIOLoopBound<DemandHandler>
    /// What lies between these bytes and the socket, if anything does.
    private let encryption: NIOLoopBound<TLSHandler>?
    /// Textual address of the peer, without port.
    let peerAddress: String
    /// Where this connection counts, as long as it does.
    private let place = Mutex<ConnectionCount?>(nil)
    /// Whether TLS lies between these bytes and the socket.
    var isEncrypted: Bool { encryption != nil }

    /// A peer that takes nothing for this long is gone.
    private static let writeTimeout = TimeAmount.seconds(60)

    /// Send buffer of each end of a bridge's socket pair: the largest frame fits.
    private static let bridgeBytes = 64 << 10
    /// Bytes that may wait encrypted.
    private static let bridgeWaterMark = ChannelOptions.Types.WriteBufferWaterMark(
        low: 8 << 10, high: 32 << 10)

    /// Adds the reading end to a channel's pipeline, behind `session` if its bytes are sealed. `early`: plain bytes
    /// that were received before. Call on the channel's event loop.
    init(wrapping channel: any Channel, session: TLSSession?, early: [UInt8] = []) throws {
        self.channel = channel
        peerAddress = channel.remoteAddress?.ipAddress ?? ""
        let (handler, encryption) = (
            DemandHandler(early: ByteBuffer(bytes: early)), session.map(TLSHandler.init)
        )
        if let encryption { try channel.pipeline.syncOperations.addHandler(encryption) }
        try channel.pipeline.syncOperations.addHandler(handler)
        self.handler = NIOLoopBound(handler, eventLoop: channel.eventLoop)
        self.encryption = encryption.map { NIOLoopBound($0, eventLoop: channel.eventLoop) }
    }

    /// The next bytes, at least one, or nil at the end of the stream. Cancelling, or waiting longer than
    /// `timeout`, closes the connection. One reader at a time.
    func read(timeout: TimeAmount? = nil) async throws -> ByteBuffer? {
        let channel = channel
        let timer = timeout.map { time in
            channel.eventLoop.scheduleTask(in: time) { channel.close(promise: nil) }
        }
        defer { timer?.cancel() }
        return try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { continuation in
                channel.eventLoop.execute { self.handler.value.read(continuation) }
            }
        } onCancel: {
            channel.close(promise: nil)
        }
    }

    /// Writes and waits until the socket has taken all of it.
    func write(_ bytes: some Sequence<UInt8>) async throws {
        try await write(ByteBuffer(bytes: bytes))
    }

    /// Writes and waits until the socket has taken all of it.
    func write(_ buffer: ByteBuffer) async throws {
        let channel = channel
        let timer = channel.eventLoop.scheduleTask(in: Self.writeTimeout) { channel.close(promise: nil) }
        defer { timer.cancel() }
        try await channel.writeAndFlush(buffer).get()
    }

    /// Closes the connection; more than once does nothing.
    func close() { channel.close(promise: nil) }

    /// Returns once the connection is closed, by whomever.
    func closed() async { try? await channel.closeFuture.get() }

    /// This connection was counted there.
    func occupy(_ count: ConnectionCount) { place.withLock { $0 = count } }

    /// It does not count any more; more than once does nothing.
    func leavePlace() {
        let count = place.withLock { place in
            defer { place = nil }
            return place
        }
        count?.leave()
    }

    /// Takes the socket away from the event loop: a descriptor of its own, its encryption, and plain bytes that were
    /// received but not read. Only while nobody reads.
    func detach() async throws -> Detached {
        let (channel, handler, encryption) = (channel, handler, encryption)
        return try await channel.eventLoop.submit {
            let copy = try channel.pipeline.syncOperations.withUnsafeTransportIfAvailable(
                of: NIOBSDSocket.Handle.self
            ) { number in Descriptor.duplicate(number) }
            guard let copy, copy >= 0 else { throw SystemError(call: "fcntl") }
            let leftOver = handler.value.takeBuffered()
            let session = encryption?.value.detach()
            channel.close(promise: nil)  // closes its own descriptor; the copy keeps the connection open
            return Detached(number: copy, session: session, leftOver: Array(leftOver.readableBytesView))
        }.get()
    }

    /// Carries the bytes of a WebSocket's binary messages to and from one end of a socket pair from now on, and gives
    /// the other end away. `leftOver`: what was received of it before. All of it happens on the event loop: no task
    /// has a part in it. Only while nobody reads; afterwards only `close` and `closed` are of use.
    func bridge(webSocket leftOver: [UInt8]) async throws -> Int32 {
        let (near, far) = try Descriptor.socketPair(nonBlocking: true).release()
        // What lies between the relay's queues and the socket has no priorities and knows no caps.
        for end in [near, far] { Descriptor.setSendBuffer(end, bytes: Self.bridgeBytes) }
        let (channel, handler) = (channel, handler)
        do {
            try await channel.eventLoop.flatSubmit {
                let (outer, inner) = BridgeHandler.pair()
                let ends = NIOLoopBound((outer, inner), eventLoop: channel.eventLoop)
                return ClientBootstrap(group: channel.eventLoop)
                    .channelOption(.autoRead, value: false)
                    .channelOption(.maxMessagesPerRead, value: 1)
                    .channelInitializer { other in
                        other.eventLoop.makeCompletedFuture {
                            try other.pipeline.syncOperations.addHandler(ends.value.1)
                        }
                    }
                    .withConnectedSocket(near)
                    .flatMapThrowing { _ in
                        let pipeline = channel.pipeline.syncOperations
                        try pipeline.addHandler(ends.value.0, position: .after(handler.value))
                        try pipeline.addHandler(WebSocketBytes(), position: .after(handler.value))
                        Self.setRelayOptions(of: channel)
                        handler.value.passOn(early: ByteBuffer(bytes: leftOver))
                        ends.value.0.start()
                        ends.value.1.start()
                    }
            }.get()
        } catch {
            OwnedDescriptor(taking: far).close()
            channel.close(promise: nil)
            throw error
        }
        leavePlace()
        return far
    }

    /// As the relay sets them for sockets that it has itself.
    private static func setRelayOptions(of channel: any Channel) {
        let limits = Relay.Limits()
        try? channel.syncOptions?.setOption(.writeBufferWaterMark, value: Self.bridgeWaterMark)
        // What is read at once NIO keeps as a buffer for as long as the connection lives.
        try? channel.syncOptions?.setOption(.maxMessagesPerRead, value: 1)
        // Best effort: without them the connection is slower to notice things.
        try? channel.pipeline.syncOperations.withUnsafeTransportIfAvailable(of: NIOBSDSocket.Handle.self) {
            Descriptor.setUnsentLowWater($0, bytes: limits.kernelUnsentBytes)
            Descriptor.setPatience(
                $0, unacknowledgedMilliseconds: Int(clamping: limits.stallNanoseconds / 1_000_000),
                idleSeconds: limits.probeSeconds)
        }
    }

    /// What `detach` gives: the caller owns the descriptor number.
    struct Detached: Sendable {
        var number: Int32
        var session: TLSSession?
        var leftOver: [UInt8]
    }
}

/// Last handler of the pipeline: keeps what arrived and reads only when somebody waits. Lives on the event loop.
private final class DemandHandler: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias InboundOut = ByteBuffer

    private var context: ChannelHandlerContext?
    private var buffered: ByteBuffer
    private var waiter: CheckedContinuation<ByteBuffer?, any Error>?
    private var isEnded = false
    private var failure: (any Error)?
    private var isPassing = false

    init(early: ByteBuffer) { buffered = early }

    func handlerAdded(context: ChannelHandlerContext) { self.context = context }

    func handlerRemoved(context: ChannelHandlerContext) {
        self.context = nil
        finish(nil)
    }

    func read(_ continuation: CheckedContinuation<ByteBuffer?, any Error>) {
        guard waiter == nil else {
            continuation.resume(throwing: ChannelError.operationUnsupported)
            return
        }
        waiter = continuation
        deliver()
        if waiter != nil { context?.read() }
    }

    /// Leaves everything to the next handler from now on: first `early`, then what arrived and was not read.
    func passOn(early: ByteBuffer) {
        var bytes = early
        var rest = takeBuffered()
        bytes.writeBuffer(&rest)
        isPassing = true
        guard bytes.readableBytes > 0, let context else { return }
        context.fireChannelRead(wrapInboundOut(bytes))
        context.fireChannelReadComplete()
    }

    func takeBuffered() -> ByteBuffer {
        defer { buffered = ByteBuffer() }
        return buffered
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        guard !isPassing else { return context.fireChannelRead(data) }
        var bytes = unwrapInboundIn(data)
        if buffered.readableBytes == 0 { buffered = bytes } else { buffered.writeBuffer(&bytes) }
    }

    func channelReadComplete(context: ChannelHandlerContext) {
        guard !isPassing else { return context.fireChannelReadComplete() }
        deliver()
        if waiter != nil { context.read() }
    }

    func channelInactive(context: ChannelHandlerContext) {
        finish(nil)
        context.fireChannelInactive()
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        finish(error)
        context.close(promise: nil)
    }

    private func finish(_ error: (any Error)?) {
        guard !isEnded else { return }
        isEnded = true
        failure = error
        deliver()
    }

    private func deliver() {
        guard let waiting = waiter else { return }
        if buffered.readableBytes > 0 {
            waiter = nil
            waiting.resume(returning: takeBuffered())
        } else if isEnded {
            waiter = nil
            if let failure { waiting.resume(throwing: failure) } else { waiting.resume(returning: nil) }
        }
    }
}

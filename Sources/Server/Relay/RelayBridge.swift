// SPDX-License-Identifier: Apache-2.0

internal import DERPRelay
internal import LinuxIO
internal import NIOCore
internal import NIOPosix

/// Carries the messages of a WebSocket to the relay, which wants a bare descriptor.
enum RelayBridge {
    /// Returns when either side closed.
    static func run(
        _ socket: WebSocketSession, _ relay: Relay, _ group: MultiThreadedEventLoopGroup, source: String
    ) async throws {
        let (inner, outer) = try Descriptor.socketPair(nonBlocking: true).release()
        let end: ByteStream
        do {
            end = try await ClientBootstrap(group: group).channelOption(.autoRead, value: false)
                .withConnectedSocket(outer) { channel in
                    channel.eventLoop.makeCompletedFuture {
                        try ByteStream(wrapping: channel, isEncrypted: false)
                    }
                }
        } catch {
            OwnedDescriptor(taking: inner).close()
            throw error
        }
        relay.adopt(OwnedDescriptor(taking: inner), source: source)
        defer { end.close() }
        try await withThrowingTaskGroup(of: Void.self) { tasks in
            tasks.addTask {
                while case .bytes(let bytes) = try await socket.receive() {
                    try await end.write(ByteBuffer(bytes: bytes))
                }
            }
            tasks.addTask {
                while let bytes = try await end.read() { try await socket.send(bytes.readableBytesView) }
            }
            defer { tasks.cancelAll() }
            try await tasks.next()
        }
    }
}

/// One side of a bridge between an encrypted connection and a socket pair: what comes in here goes out there, and
/// nothing more is read while the other side cannot write. Both sides live on one event loop.
final class BridgeHandler: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer

    private var partner: BridgeHandler?
    private var context: ChannelHandlerContext?
    private var wantsRead = false

    /// Makes two sides of one bridge.
    static func pair() -> (BridgeHandler, BridgeHandler) {
        let (first, second) = (BridgeHandler(), BridgeHandler())
        first.partner = second
        second.partner = first
        return (first, second)
    }

    func handlerAdded(context: ChannelHandlerContext) { self.context = context }

    func handlerRemoved(context: ChannelHandlerContext) {
        self.context = nil
        partner = nil
    }

    /// Passes bytes on that came before the bridge was there, and begins to read.
    func start(early: ByteBuffer) {
        if early.readableBytes > 0, let partner {
            partner.context?.writeAndFlush(NIOAny(early), promise: nil)
        }
        readMore()
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        partner?.context?.write(data, promise: nil)
    }

    func channelReadComplete(context: ChannelHandlerContext) {
        partner?.context?.flush()
        readMore()
    }

    func channelWritabilityChanged(context: ChannelHandlerContext) {
        if context.channel.isWritable, let partner, partner.wantsRead { partner.readMore() }
        context.fireChannelWritabilityChanged()
    }

    func channelInactive(context: ChannelHandlerContext) {
        partner?.context?.close(promise: nil)
        partner?.partner = nil
        partner = nil
        context.fireChannelInactive()
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) { context.close(promise: nil) }

    private func readMore() {
        wantsRead = partner?.context?.channel.isWritable != true
        if !wantsRead { context?.read() }
    }
}

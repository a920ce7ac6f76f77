// SPDX-License-Identifier: Apache-2.0

internal import NIOCore
internal import TLS

/// Opens and seals what passes a channel. Lives on the event loop. Unlike NIOSSL's handler it holds no buffers while
/// nothing is said, and gives its session away to whoever takes the connection.
final class TLSHandler: ChannelDuplexHandler {
    typealias InboundIn = ByteBuffer
    typealias InboundOut = ByteBuffer
    typealias OutboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    /// Why a connection ends.
    struct Failure: Error, CustomStringConvertible {
        var description: String
    }

    /// Nil once it was given away.
    private var session: TLSSession?

    /// Begins a connection, or goes on with one.
    init(_ session: TLSSession) { self.session = session }

    /// Gives the session away: what comes now passes untouched. Only while nobody reads.
    func detach() -> TLSSession? {
        defer { session = nil }
        return session
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        guard let session else { return context.fireChannelRead(data) }
        let sealed = unwrapInboundIn(data)
        var answer: [UInt8] = []
        var plain = context.channel.allocator.buffer(capacity: sealed.readableBytes + TLSSession.heldBytes)
        plain.writeWithUnsafeMutableBytes(minimumWritableBytes: plain.capacity) { room in
            sealed.withUnsafeReadableBytes { session.receive($0, into: room, output: &answer) }
        }
        if !answer.isEmpty { context.writeAndFlush(wrapOutboundOut(ByteBuffer(bytes: answer)), promise: nil) }
        if plain.readableBytes > 0 { context.fireChannelRead(wrapInboundOut(plain)) }
        switch session.phase {
        case .handshake, .open: break
        case .ended: close(context: context, mode: .all, promise: nil)
        case .failed:
            context.fireErrorCaught(Failure(description: "TLS: \(session.failure ?? "")"))
            context.close(promise: nil)
        }
    }

    func write(context: ChannelHandlerContext, data: NIOAny, promise: EventLoopPromise<Void>?) {
        guard let session else { return context.write(data, promise: promise) }
        var sealed: [UInt8] = []
        guard unwrapOutboundIn(data).withUnsafeReadableBytes({ session.seal($0, output: &sealed) }) else {
            promise?.fail(ChannelError.ioOnClosedChannel)
            return
        }
        context.write(wrapOutboundOut(ByteBuffer(bytes: sealed)), promise: promise)
    }

    func close(context: ChannelHandlerContext, mode: CloseMode, promise: EventLoopPromise<Void>?) {
        var end: [UInt8] = []
        if mode == .all { session?.end(output: &end) }
        if !end.isEmpty { context.writeAndFlush(wrapOutboundOut(ByteBuffer(bytes: end)), promise: nil) }
        context.close(mode: mode, promise: promise)
    }
}

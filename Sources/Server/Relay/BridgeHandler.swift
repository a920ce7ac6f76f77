// SPDX-License-Identifier: Apache-2.0

internal import NIOCore

/// One side of a bridge between a connection and a socket pair: what comes in here goes out there, and nothing more is
/// read while the other side cannot write. Both sides live on one event loop.
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
        part()
    }

    /// Begins to read.
    func start() { readMore() }

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
        part()
        context.fireChannelInactive()
    }

    /// The end of one side is that of the other.
    private func part() {
        let other = partner
        partner = nil
        other?.partner = nil
        other?.context?.close(promise: nil)
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) { context.close(promise: nil) }

    private func readMore() {
        wantsRead = partner?.context?.channel.isWritable != true
        if !wantsRead { context?.read() }
    }
}

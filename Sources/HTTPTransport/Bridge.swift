// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import NIOCore
internal import NIOPosix

/// Carries bytes between a channel (TLS, WebSocket) and one end of a socket pair whose other end was given away.
/// Reading on one side stops while the other side cannot write.
enum Bridge {
    /// Adds a bridge behind the channel's other handlers and delivers the descriptor. Call it on the loop.
    static func start(_ outer: any Channel, _ pending: Pending<Int32>) throws {
        let (near, far) = try Descriptor.socketPair().release()
        let outerHandler = BridgeHandler()
        let innerHandler = NIOLoopBound(BridgeHandler(), eventLoop: outer.eventLoop)
        outerHandler.partner = innerHandler.value
        innerHandler.value.partner = outerHandler
        do {
            try outer.pipeline.syncOperations.addHandler(outerHandler)
        } catch {
            close(near)
            close(far)
            throw error
        }
        ClientBootstrap(group: outer.eventLoop).channelInitializer { channel in
            channel.eventLoop.makeCompletedFuture {
                try channel.pipeline.syncOperations.addHandler(innerHandler.value)
            }
        }
        .channelOption(.allowRemoteHalfClosure, value: true)
        .withConnectedSocket(near)
        .whenComplete { result in
            switch result {
            case .success:
                if !pending.succeed(far) { close(far) }
            case .failure(let error):
                // NIO closed `near`.
                close(far)
                pending.fail(error)
                outer.close(promise: nil)
            }
        }
    }
}

/// One side of the bridge. Both sides live on the same loop.
private final class BridgeHandler: ChannelDuplexHandler {
    typealias InboundIn = NIOAny
    typealias InboundOut = NIOAny
    typealias OutboundIn = NIOAny
    typealias OutboundOut = NIOAny

    /// Broken when the channel closes.
    var partner: BridgeHandler?
    private var context: ChannelHandlerContext?
    private var hasPendingRead = false
    /// Bytes that arrived before the partner's channel was up: what came right behind the 101.
    private var early: [NIOAny] = []
    private var isUp = false
    private var isWritable: Bool { isUp && context?.channel.isWritable == true }

    func handlerAdded(context: ChannelHandlerContext) {
        self.context = context
        isUp = context.channel.isActive
    }

    func handlerRemoved(context: ChannelHandlerContext) {
        self.context = nil
        partner = nil
    }

    func channelActive(context: ChannelHandlerContext) {
        isUp = true
        if let partner {
            for data in partner.early { context.write(data, promise: nil) }
            partner.early = []
            context.flush()
            partner.partnerBecameWritable()
        }
        context.fireChannelActive()
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        guard let partner else { return }
        if partner.isUp, let target = partner.context {
            target.write(data, promise: nil)
        } else {
            early.append(data)
        }
    }

    func channelReadComplete(context: ChannelHandlerContext) {
        partner?.context?.flush()
        context.fireChannelReadComplete()
    }

    func channelInactive(context: ChannelHandlerContext) {
        partner?.context?.close(promise: nil)
        partner?.partner = nil
        partner = nil
        context.fireChannelInactive()
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        if let event = event as? ChannelEvent, case .inputClosed = event {
            // The descriptor's owner will write no more: DERP has no half-close, so that ends the connection.
            partner?.context?.close(promise: nil)
            context.close(promise: nil)
        } else if event is WebSocketEnd {
            context.close(promise: nil)
        } else {
            context.fireUserInboundEventTriggered(event)
        }
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) { context.close(promise: nil) }

    func channelWritabilityChanged(context: ChannelHandlerContext) {
        if context.channel.isWritable { partner?.partnerBecameWritable() }
        context.fireChannelWritabilityChanged()
    }

    func read(context: ChannelHandlerContext) {
        if let partner, partner.isWritable {
            context.read()
        } else {
            hasPendingRead = true
        }
    }

    private func partnerBecameWritable() {
        guard hasPendingRead else { return }
        hasPendingRead = false
        context?.read()
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import NIOCore

/// Frames of a WebSocket to bytes and back, on the event loop, for connections that are carried on as a stream of
/// bytes: borders of messages mean nothing, payload is passed on as it comes. `derp.md` §5.
final class WebSocketBytes: ChannelDuplexHandler {
    typealias InboundIn = ByteBuffer
    typealias InboundOut = ByteBuffer
    typealias OutboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    private var decoder = WebSocketDecoder(maximumFrameBytes: 1 << 40, passesPartsOn: true)
    private var hasEnded = false

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        guard !hasEnded else { return }
        decoder.append(unwrapInboundIn(data).readableBytesView)
        do throws(WebSocketError) {
            while !hasEnded, let frame = try decoder.next() { receive(frame, context) }
            decoder.releaseIfEmpty()
        } catch {
            end(context, code: error.closeCode)
        }
    }

    private func receive(_ frame: WebSocketFrame, _ context: ChannelHandlerContext) {
        switch frame {
        case .data(let payload, false, _):
            if !payload.isEmpty { context.fireChannelRead(wrapInboundOut(ByteBuffer(bytes: payload))) }
        case .data(_, true, _): end(context, code: WebSocketError.notBinary.closeCode)
        case .ping(let payload):
            // One that does not read gets no answers that would have to wait. RFC 6455 §5.5.3 allows that.
            guard context.channel.isWritable else { return }
            context.writeAndFlush(
                wrapOutboundOut(ByteBuffer(bytes: WebSocketEncoder.pong(payload))), promise: nil)
        case .pong: break
        case .close(let code, _): end(context, code: code == 1005 ? 1000 : code)
        }
    }

    func write(context: ChannelHandlerContext, data: NIOAny, promise: EventLoopPromise<Void>?) {
        guard !hasEnded else {
            promise?.fail(ChannelError.outputClosed)
            return
        }
        let frame = WebSocketEncoder.data(unwrapOutboundIn(data).readableBytesView, isText: false)
        context.write(wrapOutboundOut(ByteBuffer(bytes: frame)), promise: promise)
    }

    /// The relay ended the connection: upstream closes with 1011, whatever the reason.
    func close(context: ChannelHandlerContext, mode: CloseMode, promise: EventLoopPromise<Void>?) {
        if mode == .all { sendClose(context, code: 1011) }
        context.close(mode: mode, promise: promise)
    }

    private func end(_ context: ChannelHandlerContext, code: UInt16) {
        sendClose(context, code: code)
        context.close(promise: nil)
    }

    private func sendClose(_ context: ChannelHandlerContext, code: UInt16) {
        guard !hasEnded else { return }
        hasEnded = true
        let frame = WebSocketEncoder.close(code: code, reason: "")
        context.writeAndFlush(wrapOutboundOut(ByteBuffer(bytes: frame)), promise: nil)
    }
}

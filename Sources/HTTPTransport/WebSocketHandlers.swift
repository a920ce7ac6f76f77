// SPDX-License-Identifier: Apache-2.0

internal import NIOCore
internal import NIOWebSocket

/// How a WebSocket ended, or why a message could not be sent.
public enum WebSocketError: Error, Hashable, Sendable, CustomStringConvertible {
    /// The peer closed with a code other than 1000 and 1001; 1005 when it gave none.
    case closed(code: UInt16, reason: String)
    /// The peer broke RFC 6455, or sent text where only bytes are allowed.
    case protocolViolation(String)
    /// The connection ended without a close frame.
    case connectionLost
    /// The task was cancelled, or this side closed already.
    case cancelled

    public var description: String {
        switch self {
        case .closed(let code, let reason):
            return "the peer closed the WebSocket: \(code)\(reason.isEmpty ? "" : " \(reason)")"
        case .protocolViolation(let detail): return "bad WebSocket data: \(detail)"
        case .connectionLost: return "the WebSocket connection was lost"
        case .cancelled: return "the WebSocket is closed"
        }
    }
}

/// What follows the last byte.
enum WebSocketEnd: Sendable {
    case finished
    case failed(WebSocketError)
}

/// Frames to bytes and back, with ping, pong and close handled here, on the loop, whatever the application does.
/// Inbound out: `ByteBuffer`s whose borders mean nothing, then one `WebSocketEnd` as a user event.
/// Outbound in: `ByteBuffer`s, each sent as one binary message. RFC 6455; byte-stream rules: rpc-transport §2.
final class WebSocketByteHandler: ChannelDuplexHandler {
    typealias InboundIn = WebSocketFrame
    typealias InboundOut = ByteBuffer
    typealias OutboundIn = ByteBuffer
    typealias OutboundOut = WebSocketFrame

    /// Asks for a close handshake.
    struct Close: Sendable {
        var code: UInt16
        var reason: String
    }

    /// Longest frame accepted. Peers send at most 4 MiB per message.
    static let frameLimit = (4 << 20) + 1_024
    /// How long the peer may take to answer our close frame.
    private static let closeTimeout = TimeAmount.seconds(1)

    private var hasEnded = false
    private var hasSentClose = false
    private var isInMessage = false

    /// Adds frame codec and this handler; they go where left-over bytes of the upgrade arrive.
    static func install(on channel: any Channel) throws {
        try channel.pipeline.syncOperations.addHandlers([
            ByteToMessageHandler(WebSocketFrameDecoder(maxFrameSize: frameLimit)), WebSocketFrameEncoder(),
            WebSocketByteHandler(),
        ])
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        let frame = unwrapInboundIn(data)
        guard !hasEnded else { return }
        guard !frame.rsv1, !frame.rsv2, !frame.rsv3 else {
            return fail("reserved bits are set", 1002, context)
        }
        guard frame.maskKey == nil else { return fail("the server masked a frame", 1002, context) }
        switch frame.opcode {
        case .binary:
            guard !isInMessage else { return fail("a message inside a message", 1002, context) }
            deliver(frame, context)
        case .continuation:
            guard isInMessage else { return fail("a continuation of nothing", 1002, context) }
            deliver(frame, context)
        case .text: fail("a text message", 1003, context)
        case .ping:
            guard !hasSentClose else { return }
            send(.pong, frame.data, context)
        case .pong: break
        case .connectionClose: receiveClose(frame.data, context)
        default: fail("an unknown opcode", 1002, context)
        }
    }

    private func deliver(_ frame: WebSocketFrame, _ context: ChannelHandlerContext) {
        isInMessage = !frame.fin
        if frame.data.readableBytes > 0 { context.fireChannelRead(wrapInboundOut(frame.data)) }
    }

    private func receiveClose(_ body: ByteBuffer, _ context: ChannelHandlerContext) {
        var body = body
        let code = body.readInteger(as: UInt16.self) ?? 1005
        let reason = String(decoding: body.readableBytesView, as: UTF8.self)
        let isOrderly = code == 1000 || code == 1001 || hasSentClose
        end(isOrderly ? .finished : .failed(.closed(code: code, reason: reason)), context)
        if !hasSentClose { sendClose(code == 1005 ? 1000 : code, "", context) }
        context.close(promise: nil)
    }

    private func fail(_ detail: String, _ code: UInt16, _ context: ChannelHandlerContext) {
        end(.failed(.protocolViolation(detail)), context)
        sendClose(code, detail, context)
        context.close(promise: nil)
    }

    private func end(_ how: WebSocketEnd, _ context: ChannelHandlerContext) {
        guard !hasEnded else { return }
        hasEnded = true
        context.fireUserInboundEventTriggered(how)
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        switch error {
        case NIOWebSocketError.invalidFrameLength: fail("a message of more than 4 MiB", 1009, context)
        case is NIOWebSocketError: fail("\(error)", 1002, context)
        default:
            end(.failed(.connectionLost), context)
            context.close(promise: nil)
        }
    }

    func channelInactive(context: ChannelHandlerContext) {
        end(hasSentClose ? .finished : .failed(.connectionLost), context)
        context.fireChannelInactive()
    }

    func write(context: ChannelHandlerContext, data: NIOAny, promise: EventLoopPromise<Void>?) {
        guard !hasSentClose else {
            promise?.fail(WebSocketError.cancelled)
            return
        }
        let bytes = unwrapOutboundIn(data)
        context.write(wrapOutboundOut(frame(.binary, bytes)), promise: promise)
    }

    func triggerUserOutboundEvent(
        context: ChannelHandlerContext, event: Any, promise: EventLoopPromise<Void>?
    ) {
        guard let close = event as? Close else {
            return context.triggerUserOutboundEvent(event, promise: promise)
        }
        promise?.succeed()
        guard !hasSentClose else { return }
        sendClose(close.code, close.reason, context)
        let channel = context.channel
        let timer = context.eventLoop.scheduleTask(in: Self.closeTimeout) { channel.close(promise: nil) }
        channel.closeFuture.whenComplete { _ in timer.cancel() }
    }

    private func sendClose(_ code: UInt16, _ reason: String, _ context: ChannelHandlerContext) {
        guard !hasSentClose else { return }
        var body = ByteBuffer(integer: code)
        body.writeBytes(reason.utf8.prefix(123))
        send(.connectionClose, body, context)
        hasSentClose = true
    }

    private func send(_ opcode: WebSocketOpcode, _ bytes: ByteBuffer, _ context: ChannelHandlerContext) {
        context.writeAndFlush(wrapOutboundOut(frame(opcode, bytes)), promise: nil)
    }

    /// RFC 6455 §5.3: MUST mask each frame with a fresh unpredictable key.
    private func frame(_ opcode: WebSocketOpcode, _ bytes: ByteBuffer) -> WebSocketFrame {
        WebSocketFrame(fin: true, opcode: opcode, maskKey: .random(), data: bytes)
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import NIOCore
internal import NIOHTTP1

/// What a request carries, checked and complete.
struct PreparedRequest: Sendable {
    var method: String
    var url: HTTPURL
    /// What the request line says: path and query, or the whole URL for a forwarding proxy.
    var target: String
    var headers: HeaderFields
    var body: [UInt8]
    var bodyLimit: Int
}

/// One HTTP/1.1 exchange at a time on a channel that may live for several. Event loop only.
final class ExchangeHandler: ChannelInboundHandler {
    typealias InboundIn = HTTPClientResponsePart
    typealias OutboundOut = HTTPClientRequestPart

    /// The end of an exchange; `isReusable` tells whether another may follow on the channel.
    typealias Completion = (Result<HTTPResponse, HTTPError>, _ isReusable: Bool) -> Void
    private struct Exchange {
        var request: PreparedRequest
        var completion: Completion
        var head: HTTPResponseHead?
        var body: [UInt8] = []
    }

    private let encoder = HTTPRequestEncoder()
    private let decoder = ByteToMessageHandler(HTTPResponseDecoder())
    private var exchange: Exchange?

    /// Adds this handler and NIO's to a fresh channel.
    static func install(on channel: any Channel) throws -> ExchangeHandler {
        let handler = ExchangeHandler()
        try channel.pipeline.syncOperations.addHandlers([handler.encoder, handler.decoder, handler])
        return handler
    }

    /// Sends a request. The channel must be idle.
    func start(
        _ request: PreparedRequest, on channel: any Channel, completion: @escaping Completion
    ) {
        exchange = Exchange(request: request, completion: completion)
        var head = HTTPRequestHead(
            version: .http1_1, method: HTTPMethod(rawValue: request.method), uri: request.target)
        for field in request.headers.fields { head.headers.add(name: field.name, value: field.value) }
        channel.write(HTTPClientRequestPart.head(head), promise: nil)
        if !request.body.isEmpty {
            channel.write(
                HTTPClientRequestPart.body(.byteBuffer(ByteBuffer(bytes: request.body))), promise: nil)
        }
        channel.writeAndFlush(HTTPClientRequestPart.end(nil), promise: nil)
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        guard exchange != nil else { return context.close(promise: nil) }
        switch unwrapInboundIn(data) {
        case .head(let head): exchange?.head = head
        case .body(let buffer):
            exchange?.body += buffer.readableBytesView
            if let exchange, exchange.body.count > exchange.request.bodyLimit {
                finish(.failure(error(.tooLarge, "more than \(exchange.request.bodyLimit) bytes")), context)
            }
        case .end: end(context)
        }
    }

    private func end(_ context: ChannelHandlerContext) {
        guard let exchange, let head = exchange.head else { return }
        let fields = head.headers.map { (name: $0.name, value: $0.value) }
        let response = HTTPResponse(
            status: Int(head.status.code), headers: HeaderFields(fields), body: exchange.body,
            isOverV6: context.channel.remoteAddress?.protocol == .inet6)
        guard response.status != 101 else {
            return finish(.failure(error(.protocolViolation, "an upgrade that nobody asked for")), context)
        }
        finish(.success(response), context, isReusable: head.isKeepAlive)
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        guard let exchange else { return context.close(promise: nil) }
        finish(.failure(.wrapping(error, origin: exchange.request.url.origin)), context)
    }

    func channelInactive(context: ChannelHandlerContext) {
        finish(.failure(error(.connectionLost, "")), context)
        context.fireChannelInactive()
    }

    private func finish(
        _ result: Result<HTTPResponse, HTTPError>, _ context: ChannelHandlerContext, isReusable: Bool = false
    ) {
        guard let exchange else { return }
        self.exchange = nil
        if !isReusable { context.close(promise: nil) }
        exchange.completion(result, isReusable)
    }

    private func error(_ kind: HTTPError.Kind, _ detail: String) -> HTTPError {
        HTTPError(kind, origin: exchange?.request.url.origin ?? "", detail: detail)
    }
}

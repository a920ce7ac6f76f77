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

/// One HTTP/1.1 exchange at a time on a channel that may live for several. On 101 it removes NIO's HTTP
/// handlers and itself, and left-over bytes go to whoever `upgraded` added behind it. Event loop only.
final class ExchangeHandler: ChannelInboundHandler, RemovableChannelHandler {
    typealias InboundIn = HTTPClientResponsePart
    typealias OutboundOut = HTTPClientRequestPart

    /// The end of an exchange; `isReusable` tells whether another may follow on the channel.
    typealias Completion = (Result<HTTPResponse, HTTPError>, _ isReusable: Bool) -> Void
    /// Called on 101 with its head, before the HTTP handlers leave: adds the next protocol's handlers.
    typealias Upgraded = (HTTPResponse) throws -> Void

    private struct Exchange {
        var request: PreparedRequest
        var upgraded: Upgraded?
        var completion: Completion
        var head: HTTPResponseHead?
        var body: [UInt8] = []
    }

    private let encoder = HTTPRequestEncoder()
    private let decoder = ByteToMessageHandler(HTTPResponseDecoder(leftOverBytesStrategy: .forwardBytes))
    private var exchange: Exchange?
    /// After a 101: what the decoder hands back while it leaves. It observes writes, so the next protocol's handlers
    /// must not answer any of these bytes before it is gone.
    private var leftOver: [NIOAny]?
    private var isInactive = false

    /// Adds this handler and NIO's to a fresh channel.
    static func install(on channel: any Channel) throws -> ExchangeHandler {
        let handler = ExchangeHandler()
        try channel.pipeline.syncOperations.addHandlers([handler.encoder, handler.decoder, handler])
        return handler
    }

    /// Sends a request. The channel must be idle.
    func start(
        _ request: PreparedRequest, on channel: any Channel, upgraded: Upgraded? = nil,
        completion: @escaping Completion
    ) {
        exchange = Exchange(request: request, upgraded: upgraded, completion: completion)
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
        guard leftOver == nil else {
            leftOver?.append(data)
            return
        }
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
            status: Int(head.status.code), headers: HeaderFields(fields), body: exchange.body)
        guard response.status == 101 else {
            return finish(.success(response), context, isReusable: head.isKeepAlive)
        }
        guard let upgraded = exchange.upgraded else {
            return finish(.failure(error(.protocolViolation, "an upgrade that nobody asked for")), context)
        }
        leftOver = []
        // The decoder leaves in a later turn of the loop; an end of file must not overtake it.
        context.channel.setOption(.autoRead, value: false).whenFailure { _ in }
        let pipeline = context.pipeline.syncOperations
        let removed = context.eventLoop.makePromise(of: Void.self)
        removed.futureResult.assumeIsolated().whenComplete { _ in
            self.switchProtocol(exchange, response, upgraded, context)
        }
        pipeline.removeHandler(encoder, promise: nil)
        pipeline.removeHandler(decoder, promise: removed)
    }

    private func switchProtocol(
        _ exchange: Exchange, _ response: HTTPResponse, _ upgraded: Upgraded, _ context: ChannelHandlerContext
    ) {
        guard self.exchange != nil else { return }
        self.exchange = nil
        do {
            try upgraded(response)
            for bytes in leftOver ?? [] { context.fireChannelRead(bytes) }
            if leftOver?.isEmpty == false { context.fireChannelReadComplete() }
            leftOver = nil
            if isInactive { context.fireChannelInactive() }
            context.pipeline.syncOperations.removeHandler(self, promise: nil)
            context.channel.setOption(.autoRead, value: true).whenFailure { _ in }
        } catch {
            exchange.completion(.failure(.wrapping(error, origin: exchange.request.url.origin)), false)
            context.close(promise: nil)
        }
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        guard let exchange else { return context.close(promise: nil) }
        finish(.failure(.wrapping(error, origin: exchange.request.url.origin)), context)
    }

    func channelInactive(context: ChannelHandlerContext) {
        guard leftOver == nil else {
            isInactive = true
            return
        }
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

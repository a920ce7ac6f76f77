// SPDX-License-Identifier: Apache-2.0

internal import NIOCore

extension PreparedRequest {
    /// Request line and header fields, as they go out.
    var head: String {
        headers.fields.reduce(into: "\(method) \(target) HTTP/1.1\r\n") {
            $0 += "\($1.name): \($1.value)\r\n"
        }
            + "\r\n"
    }
}

/// The body of an answer that refuses an upgrade: short, and read for its error message only.
struct RefusedBody {
    private let announced: Int?
    private let isChunked: Bool
    private let limit: Int
    private var raw: [UInt8] = []

    init(_ head: ResponseHead, limit: Int) {
        announced = head.headers["Content-Length"].flatMap { Int($0) }
        isChunked = announced == nil && head.headers.contains("Transfer-Encoding", token: "chunked")
        self.limit = min(limit, announced ?? limit)
    }

    mutating func append(_ bytes: some Collection<UInt8>) { raw += bytes.prefix(max(0, limit - raw.count)) }

    /// Whether nothing more is to be waited for; without length the end of the connection is the end.
    var isComplete: Bool { raw.count >= limit || isChunked && chunks().isComplete }

    /// The body so far.
    var bytes: [UInt8] { isChunked ? chunks().bytes : raw }

    private func chunks() -> (bytes: [UInt8], isComplete: Bool) {
        var result: [UInt8] = []
        var rest = raw[...]
        while let lineEnd = rest.firstIndex(of: 10) {
            let digits = String(decoding: rest[..<lineEnd], as: UTF8.self).prefix { $0.isHexDigit }
            guard let size = Int(digits, radix: 16), size > 0 else { return (result, true) }
            guard size <= rest.endIndex - lineEnd - 1 else { break }
            result += rest[(lineEnd + 1)..<(lineEnd + 1 + size)]
            rest = rest[(lineEnd + 1 + size)...].drop { $0 == 13 || $0 == 10 }
        }
        return (result, false)
    }
}

/// Asks for an upgrade on a fresh channel. NIO's decoder leaves the pipeline in a later turn of the loop than the 101,
/// and an end of file in between would swallow left-over bytes; here the switch and these bytes are one step.
final class UpgradeHandler: ChannelInboundHandler, RemovableChannelHandler {
    typealias InboundIn = ByteBuffer
    typealias InboundOut = ByteBuffer
    typealias OutboundOut = ByteBuffer

    /// Called on 101: adds the next protocol's handlers.
    typealias Upgraded = (HTTPResponse) throws -> Void

    private let request: PreparedRequest
    private let upgraded: Upgraded
    private let refused: (HTTPError) -> Void
    private var received = ByteBuffer()
    private var refusal: (head: ResponseHead, body: RefusedBody)?
    private var isFinished = false

    private init(
        _ request: PreparedRequest, _ upgraded: @escaping Upgraded, _ refused: @escaping (HTTPError) -> Void
    ) {
        self.request = request
        self.upgraded = upgraded
        self.refused = refused
    }

    static func send(
        _ request: PreparedRequest, on channel: any Channel, upgraded: @escaping Upgraded,
        refused: @escaping (HTTPError) -> Void
    ) throws {
        try channel.pipeline.syncOperations.addHandler(UpgradeHandler(request, upgraded, refused))
        channel.writeAndFlush(ByteBuffer(string: request.head), promise: nil)
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        guard !isFinished else { return context.fireChannelRead(data) }
        var bytes = unwrapInboundIn(data)
        if refusal != nil {
            refusal?.body.append(bytes.readableBytesView)
        } else {
            received.writeBuffer(&bytes)
            do {
                try readHead(context)
            } catch {
                finish(HTTPError.wrapping(error, origin: request.url.origin))
            }
        }
        if refusal?.body.isComplete == true { refuse() }
    }

    private func readHead(_ context: ChannelHandlerContext) throws {
        while let (head, length) = try ResponseHead.parse(received.readableBytesView) {
            received.moveReaderIndex(forwardBy: length)
            switch head.status {
            case 101: return try switchProtocol(head, context)
            case 100..<200: continue
            default:
                refusal = (head, RefusedBody(head, limit: request.bodyLimit))
                refusal?.body.append(received.readableBytesView)
                return
            }
        }
    }

    private func switchProtocol(_ head: ResponseHead, _ context: ChannelHandlerContext) throws {
        try upgraded(HTTPResponse(status: 101, headers: head.headers))
        isFinished = true
        if received.readableBytes > 0 {
            context.fireChannelRead(wrapInboundOut(received))
            context.fireChannelReadComplete()
        }
        context.pipeline.syncOperations.removeHandler(self, promise: nil)
    }

    private func refuse() {
        guard let refusal else { return }
        let response = HTTPResponse(
            status: refusal.head.status, headers: refusal.head.headers, body: refusal.body.bytes)
        finish(HTTPError(.upgradeRefused, origin: request.url.origin, response: response))
    }

    private func finish(_ error: HTTPError) {
        guard !isFinished else { return }
        isFinished = true
        refused(error)
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        guard !isFinished else { return context.fireErrorCaught(error) }
        finish(HTTPError.wrapping(error, origin: request.url.origin))
    }

    func channelInactive(context: ChannelHandlerContext) {
        if refusal != nil { refuse() }
        finish(HTTPError(.connectionLost, origin: request.url.origin))
        context.fireChannelInactive()
    }
}

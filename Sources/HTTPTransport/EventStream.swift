// SPDX-License-Identifier: Apache-2.0

internal import NIOCore
internal import NIOHTTP1

/// One server-sent event.
public struct ServerEvent: Sendable, Hashable {
    /// `message` unless the server says otherwise.
    public var name: String
    /// Its data lines, joined by line breaks.
    public var data: String

    /// An event.
    public init(name: String, data: String) {
        self.name = name
        self.data = data
    }
}

/// Cuts a byte stream into events. Pure. WHATWG HTML §9.2.6; comments, `id` and `retry` are skipped, and events
/// without data are none.
public struct EventParser: Sendable {
    /// Longest event accepted, in bytes. A workspace with hundreds of resources stays far below it.
    public static let limit = 4 << 20

    /// The line under way, and the data of the event under way.
    private var line: [UInt8] = []
    private var data: [UInt8] = []
    private var hasData = false
    private var name = ""
    private var endedInReturn = false

    /// At the beginning of a stream.
    public init() {}

    /// The events that these bytes complete; nil when one is longer than `limit`: the stream is of no use then.
    public mutating func receive(_ bytes: some Sequence<UInt8>) -> [ServerEvent]? {
        var events: [ServerEvent] = []
        for byte in bytes {
            // CR, LF and CRLF each end a line.
            if byte == 10, endedInReturn {
                endedInReturn = false
                continue
            }
            endedInReturn = byte == 13
            guard byte == 10 || byte == 13 else {
                guard line.count + data.count < Self.limit else { return nil }
                line.append(byte)
                continue
            }
            if line.isEmpty {
                if let event = dispatch() { events.append(event) }
            } else {
                readLine()
            }
            line.removeAll(keepingCapacity: true)
        }
        return events
    }

    private mutating func readLine() {
        let colon = line.firstIndex(of: 58) ?? line.endIndex
        var value = line[colon...].dropFirst()
        if value.first == 32 { value = value.dropFirst() }
        switch String(decoding: line[..<colon], as: UTF8.self) {
        case "event": name = String(decoding: value, as: UTF8.self)
        case "data":
            if hasData { data.append(10) }
            hasData = true
            data += value
        default: break
        }
    }

    private mutating func dispatch() -> ServerEvent? {
        defer {
            (name, data, hasData) = ("", [], false)
        }
        guard hasData else { return nil }
        return ServerEvent(
            name: name.isEmpty ? "message" : name, data: String(decoding: data, as: UTF8.self))
    }
}

/// An open stream of server-sent events. One task iterates it; it closes when nobody holds it any more.
public final class EventStream: Sendable {
    private let channel: any Channel
    private let inbox: Inbox
    private let origin: String

    init(channel: any Channel, inbox: Inbox, origin: String) {
        self.channel = channel
        self.inbox = inbox
        self.origin = origin
    }

    deinit { channel.close(promise: nil) }

    /// Calls `handle` with each event until it returns false, or until the server ends the stream. A connection that
    /// breaks, or is silent for too long, is an error.
    public func forEach(_ handle: (ServerEvent) -> Bool) async throws(HTTPError) {
        var parser = EventParser()
        while let bytes = try await receive() {
            guard let events = parser.receive(bytes) else {
                throw HTTPError(.tooLarge, origin: origin, detail: "an event of more than 4 MiB")
            }
            for event in events where !handle(event) { return }
        }
    }

    private func receive() async throws(HTTPError) -> [UInt8]? {
        do {
            return try await inbox.next(channel)
        } catch {
            throw HTTPError(error == .cancelled ? .cancelled : .connectionLost, origin: origin)
        }
    }
}

/// Reads the head of the answer, then passes its body on as it comes. Event loop only.
final class EventStreamHandler: ChannelInboundHandler {
    typealias InboundIn = HTTPClientResponsePart
    typealias InboundOut = ByteBuffer

    private let request: PreparedRequest
    private let pending: Pending<EventStream>
    private let inbox = Inbox()
    /// The answer that refuses, and its body so far.
    private var refusal: (head: HTTPResponseHead, body: [UInt8])?

    private init(_ request: PreparedRequest, _ pending: Pending<EventStream>) {
        self.request = request
        self.pending = pending
    }

    static func start(
        _ request: PreparedRequest, silence: TimeAmount, on channel: any Channel,
        _ pending: Pending<EventStream>
    ) throws {
        let handler = EventStreamHandler(request, pending)
        let operations = channel.pipeline.syncOperations
        try operations.addHandlers([IdleStateHandler(readTimeout: silence), HTTPRequestEncoder()])
        try operations.addHandlers([ByteToMessageHandler(HTTPResponseDecoder()), handler])
        try operations.addHandler(InboxHandler(inbox: handler.inbox))
        var head = HTTPRequestHead(
            version: .http1_1, method: HTTPMethod(rawValue: request.method), uri: request.target)
        for field in request.headers.fields { head.headers.add(name: field.name, value: field.value) }
        channel.write(HTTPClientRequestPart.head(head), promise: nil)
        channel.writeAndFlush(HTTPClientRequestPart.end(nil), promise: nil)
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        switch unwrapInboundIn(data) {
        case .head(let head):
            guard head.status == .ok else {
                refusal = (head, [])
                return
            }
            let stream = EventStream(channel: context.channel, inbox: inbox, origin: request.url.origin)
            if !pending.succeed(stream) { context.close(promise: nil) }
        case .body(let bytes):
            if refusal == nil { return context.fireChannelRead(wrapInboundOut(bytes)) }
            let room = request.bodyLimit - (refusal?.body.count ?? 0)
            refusal?.body += bytes.readableBytesView.prefix(room)
        case .end:
            if let (head, body) = refusal {
                let fields = head.headers.map { (name: $0.name, value: $0.value) }
                let response = HTTPResponse(
                    status: Int(head.status.code), headers: HeaderFields(fields), body: body)
                pending.fail(HTTPError(.upgradeRefused, origin: request.url.origin, response: response))
            } else {
                context.fireUserInboundEventTriggered(WebSocketEnd.finished)
            }
            context.close(promise: nil)
        }
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        guard event is IdleStateHandler.IdleStateEvent else {
            return context.fireUserInboundEventTriggered(event)
        }
        // Nothing for long, not even a ping: the server, or something on the way, is gone.
        context.fireUserInboundEventTriggered(WebSocketEnd.failed(.connectionLost))
        context.close(promise: nil)
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        pending.fail(error)
        context.close(promise: nil)
    }

    func channelInactive(context: ChannelHandlerContext) {
        pending.fail(HTTPError(.connectionLost, origin: request.url.origin))
        context.fireChannelInactive()
    }
}

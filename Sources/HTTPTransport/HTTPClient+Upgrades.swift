// SPDX-License-Identifier: Apache-2.0

internal import Crypto
internal import Glibc
public import LinuxIO
internal import NIOCore
internal import NIOPosix

extension HTTPClient {
    /// Opens a WebSocket. A server that answers with a plain response throws `upgradeRefused` with that response.
    /// `timeout` covers everything up to the 101.
    public func webSocket(
        _ url: HTTPURL, headers: HeaderFields = HeaderFields(), subprotocol: String? = nil,
        timeout: Duration = .seconds(30), options: ConnectOptions = ConnectOptions()
    ) async throws(HTTPError) -> WebSocketConnection {
        let handshake = WebSocketHandshake(subprotocol: subprotocol)
        let request = try prepare("GET", url, handshake.fields(adding: headers))
        let pending = Pending<WebSocketConnection>(origin: url.origin)
        start(request, options, timeout, pending) { response, channel in
            try handshake.check(response, origin: url.origin)
            try WebSocketByteHandler.install(on: channel)
            let inbox = Inbox()
            try channel.pipeline.syncOperations.addHandler(InboxHandler(inbox: inbox))
            let connection = WebSocketConnection(
                channel: channel, inbox: inbox, responseHeaders: response.headers)
            if !pending.succeed(connection) { channel.close(promise: nil) }
        }
        return try await pending.value()
    }

    /// Asks the server to switch to another protocol (`Upgrade: DERP`) and gives the connection away as a blocking
    /// descriptor, positioned right behind the 101. Over plain TCP it is the socket itself, so that its new owner
    /// reads and writes without a detour; over TLS it is one end of a socket pair that this client's thread
    /// encrypts for, with back-pressure in both directions and half-close passed on.
    public func upgrade(
        _ url: HTTPURL, protocol name: String, headers: HeaderFields = HeaderFields(),
        timeout: Duration = .seconds(10), options: ConnectOptions = ConnectOptions()
    ) async throws(HTTPError) -> OwnedDescriptor {
        var fields: HeaderFields = ["Upgrade": name, "Connection": "Upgrade"]
        fields.add(contentsOf: headers)
        let request = try prepare("GET", url, fields)
        let pending = Pending<Int32>(origin: url.origin)
        if url.scheme == .http {
            takeSocket(request, options, timeout, pending)
        } else {
            start(request, options, timeout, pending) { _, channel in
                try Bridge.start(channel, pending)
            }
        }
        return OwnedDescriptor(taking: try await pending.value())
    }

    /// The same for a relay behind a proxy that knows only WebSockets: subprotocol `derp`, binary messages, bridged
    /// to a descriptor. derp.md §5.
    public func derpWebSocket(
        _ url: HTTPURL, headers: HeaderFields = HeaderFields(), timeout: Duration = .seconds(10),
        options: ConnectOptions = ConnectOptions()
    ) async throws(HTTPError) -> OwnedDescriptor {
        let handshake = WebSocketHandshake(subprotocol: "derp")
        let request = try prepare("GET", url, handshake.fields(adding: headers))
        let pending = Pending<Int32>(origin: url.origin)
        start(request, options, timeout, pending) { response, channel in
            try handshake.check(response, origin: url.origin)
            try WebSocketByteHandler.install(on: channel)
            try Bridge.start(channel, pending)
        }
        return OwnedDescriptor(taking: try await pending.value())
    }

    /// Opens a stream of server-sent events. Any answer but 200 throws `upgradeRefused` with it. `timeout` covers
    /// everything up to the answer; a stream on which nothing came for `silence` breaks.
    public func events(
        _ url: HTTPURL, headers: HeaderFields = HeaderFields(), timeout: Duration = .seconds(30),
        silence: Duration = .seconds(60)
    ) async throws(HTTPError) -> EventStream {
        var fields: HeaderFields = ["Accept": "text/event-stream"]
        fields.add(contentsOf: headers)
        let request = try prepare("GET", url, fields)
        let pending = Pending<EventStream>(origin: url.origin)
        let loop = loop
        pending.expire(after: timeout, on: loop, doing: "GET \(url.path)")
        loop.execute {
            self.connector.connect(to: request.url, options: ConnectOptions(), forwarding: false)
                .whenComplete { result in
                    do {
                        let channel = try result.get()
                        pending.attach(channel)
                        try EventStreamHandler.start(
                            request, silence: TimeAmount(silence), on: channel, pending)
                    } catch {
                        pending.fail(error)
                    }
                }
        }
        return try await pending.value()
    }

    /// Connects, sends the request, and on 101 calls `upgraded` on the loop. Other answers fail `pending`.
    private func start<Value: Sendable>(
        _ request: PreparedRequest, _ options: ConnectOptions, _ timeout: Duration, _ pending: Pending<Value>,
        upgraded: @escaping @Sendable (HTTPResponse, any Channel) throws -> Void
    ) {
        let loop = loop
        pending.expire(after: timeout, on: loop, doing: "upgrade of \(request.url.path)")
        loop.execute {
            self.connector.connect(to: request.url, options: options, forwarding: false).whenComplete {
                result in
                do {
                    let channel = try result.get()
                    pending.attach(channel)
                    try UpgradeHandler.send(request, on: channel) { response in
                        try upgraded(response, channel)
                    } refused: { error in
                        pending.fail(error)
                        channel.close(promise: nil)
                    }
                } catch {
                    pending.fail(error)
                }
            }
        }
    }

    /// Connects with NIO, then takes the socket away from it before anything was sent, so that no byte behind the
    /// 101 can end up in NIO's buffers.
    private func takeSocket(
        _ request: PreparedRequest, _ options: ConnectOptions, _ timeout: Duration, _ pending: Pending<Int32>
    ) {
        let deadline = Clock.monotonicNanoseconds() + UInt64(max(0, TimeAmount(timeout).nanoseconds))
        let loop = loop
        pending.expire(after: timeout, on: loop, doing: "upgrade of \(request.url.path)")
        loop.execute {
            self.connector.connect(to: request.url, options: options, forwarding: false).whenComplete {
                result in
                do {
                    let channel = try result.get()
                    let copy = try channel.pipeline.syncOperations.withUnsafeTransportIfAvailable(
                        of: NIOBSDSocket.Handle.self
                    ) { fcntl($0, F_DUPFD_CLOEXEC, 3) }
                    // Closes NIO's number only: the connection lives on in the copy.
                    channel.close(promise: nil)
                    guard let copy, copy >= 0 else {
                        throw HTTPError(
                            .unreachable, origin: request.url.origin, detail: "no descriptor left")
                    }
                    // A blocking read of a few hundred bytes; cancellation is noticed when it ends.
                    try DedicatedThread(name: "http-upgrade") {
                        RawUpgrade.run(OwnedDescriptor(taking: copy), request, deadline, pending)
                    }.detach()
                } catch {
                    pending.fail(error)
                }
            }
        }
    }
}

/// RFC 6455 §4.1: key and fields of the request, and what the answer must say.
private struct WebSocketHandshake: Sendable {
    let key: String
    let subprotocol: String?

    init(subprotocol: String?) {
        var generator = SystemRandomNumberGenerator()
        key = base64((0..<16).map { _ in UInt8.random(in: 0...255, using: &generator) })
        self.subprotocol = subprotocol
    }

    func fields(adding headers: HeaderFields) -> HeaderFields {
        var fields: HeaderFields = [
            "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": key,
        ]
        if let subprotocol { fields.add("Sec-WebSocket-Protocol", subprotocol) }
        fields.add(contentsOf: headers)
        return fields
    }

    func check(_ response: HTTPResponse, origin: String) throws {
        let wrong = { (detail: String) in HTTPError(.protocolViolation, origin: origin, detail: detail) }
        guard response.headers.contains("Upgrade", token: "websocket") else {
            throw wrong("an upgrade to something else than a WebSocket")
        }
        let digest = Insecure.SHA1.hash(data: Array("\(key)258EAFA5-E914-47DA-95CA-C5AB0DC85B11".utf8))
        guard response.headers["Sec-WebSocket-Accept"] == base64(Array(digest)) else {
            throw wrong("a wrong Sec-WebSocket-Accept")
        }
        // RFC 6455 §4.1: MUST fail when the server chose an extension or subprotocol that was not offered.
        guard response.headers["Sec-WebSocket-Extensions"] == nil else {
            throw wrong("an extension nobody offered")
        }
        guard response.headers["Sec-WebSocket-Protocol"] == subprotocol else {
            throw wrong("another subprotocol")
        }
    }
}

/// The upgrade on a bare socket: the head is peeked at and then read to its last byte, never further.
private enum RawUpgrade {
    /// `MSG_PEEK`, which Swift imports as an enumeration on some systems and as a number on others.
    private static let peek: Int32 = 2

    static func run(
        _ socket: consuming OwnedDescriptor, _ request: PreparedRequest, _ deadline: UInt64,
        _ pending: Pending<Int32>
    ) {
        do {
            let number = socket.number
            try Descriptor.setNonBlocking(number)
            try Array(request.head.utf8).withUnsafeBytes { try Descriptor.writeAll(number, $0) }
            let head = try readHead(number, deadline, request.url.origin)
            guard head.status == 101 else {
                let body = readBody(number, head, limit: request.bodyLimit, deadline)
                let response = HTTPResponse(status: head.status, headers: head.headers, body: body)
                throw HTTPError(.upgradeRefused, origin: request.url.origin, response: response)
            }
            try Descriptor.setNonBlocking(number, false)
            let released = socket.release()
            if !pending.succeed(released) { Glibc.close(released) }
        } catch {
            pending.fail(error)
        }
    }

    private static func readHead(_ number: Int32, _ deadline: UInt64, _ origin: String) throws -> ResponseHead
    {
        var buffer = [UInt8](repeating: 0, count: ResponseHead.lengthLimit)
        var seen = 0
        while true {
            try waitReadable(number, deadline, origin)
            // SO_RCVLOWAT would spare the loop below, but a peer that stops in mid-head must still time out.
            let count = recv(number, &buffer, buffer.count, peek)
            if count < 0, errno == EAGAIN || errno == EINTR { continue }
            guard count > 0 else { throw HTTPError(.connectionLost, origin: origin) }
            if let (head, length) = try ResponseHead.parse(buffer[..<count]) {
                guard recv(number, &buffer, length, 0) == length else {
                    throw HTTPError(.connectionLost, origin: origin)
                }
                return head
            }
            guard count < buffer.count else {
                throw HTTPError(
                    .protocolViolation, origin: origin, detail: "a response head of more than 64 KiB")
            }
            // Part of a head stays readable, so poll would not wait: give the rest a moment.
            if count == seen { poll(nil, 0, 1) }
            seen = count
        }
    }

    private static func readBody(
        _ number: Int32, _ head: ResponseHead, limit: Int, _ deadline: UInt64
    ) -> [UInt8] {
        var body = RefusedBody(head, limit: limit)
        var buffer = [UInt8](repeating: 0, count: 4_096)
        while !body.isComplete {
            guard (try? waitReadable(number, deadline, "")) != nil else { break }
            let count = recv(number, &buffer, buffer.count, 0)
            guard count > 0 else { break }
            body.append(buffer[..<count])
        }
        return body.bytes
    }

    private static func waitReadable(_ number: Int32, _ deadline: UInt64, _ origin: String) throws {
        let now = Clock.monotonicNanoseconds()
        guard now < deadline else { throw HTTPError(.timedOut, origin: origin, detail: "upgrade") }
        var wait = pollfd(fd: number, events: Int16(POLLIN), revents: 0)
        let milliseconds = Int32(clamping: (deadline - now) / 1_000_000 + 1)
        guard poll(&wait, 1, milliseconds) != 0 else {
            throw HTTPError(.timedOut, origin: origin, detail: "upgrade")
        }
    }
}

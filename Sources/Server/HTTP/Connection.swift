// SPDX-License-Identifier: Apache-2.0

internal import Logging
internal import NIOCore

/// Answers the requests of one HTTP/1.1 connection, one after the other, until either side closes it or a route
/// turns it into something else. An upgrade may come after any number of plain requests, and one that is refused
/// is answered like any other request.
struct Connection: Sendable {
    let stream: ByteStream
    let responder: any Responder
    let logger: Logger
    /// Fields of every answer.
    let commonFields: [(name: String, value: String)]
    let counters: HTTPCounters
    /// How long a client may take from its connection to the end of its first request's head. Nil: as for others.
    var firstHeadTimeout: TimeAmount?

    /// Finds the answer for a request. Never throws: errors are answers too.
    protocol Responder: Sendable {
        func respond(to call: Call) async -> Reply
    }

    /// Serves until the connection is over.
    func run() async {
        let reader = RequestReader(stream: stream)
        var deadline = firstHeadTimeout.map { NIODeadline.now() + $0 }
        do {
            while let head = try await reader.nextHead(until: deadline) {
                deadline = nil
                let call = Call(
                    head: head, source: reader, peerAddress: stream.peerAddress,
                    isEncrypted: stream.isEncrypted, requestID: .random())
                let reply = await responder.respond(to: call)
                if case .upgrade(let upgrade) = reply.body {
                    try await switchProtocols(upgrade, call)
                    await upgrade.run(stream, reader.leftOver)
                    break
                }
                try await send(reply, to: call)
                guard await reader.finish() else {
                    await linger()
                    break
                }
                if !head.keepsAlive { break }
            }
            if let deadline, NIODeadline.now() >= deadline { counters.add(\.silent) }
        } catch let error as RequestError {
            counters.add(\.malformed)
            await refuse(error)
            await linger()
        } catch {
            logger.debug(
                "connection ended", metadata: ["error": "\(error)", "peer": "\(stream.peerAddress)"])
        }
        stream.close()
    }

    /// Lets a client that is still sending read its answer: closing with bytes unread would reset the connection.
    private func linger() async {
        let deadline = NIODeadline.now() + .seconds(1)
        var left = 1 << 20
        while left > 0, let bytes = try? await stream.read(timeout: deadline - .now()) {
            left -= bytes.readableBytes
        }
    }

    private func switchProtocols(_ upgrade: Upgrade, _ call: Call) async throws {
        guard let fields = upgrade.fields else { return }
        try await stream.write(headText(status: 101, fields: fields, call).utf8)
    }

    private func refuse(_ error: RequestError) async {
        let status = error.status
        let body = Reply.message("The request could not be read.", status: status)
        guard case .bytes(let bytes, let type) = body.body else { return }
        let text =
            "HTTP/1.1 \(status) \(Self.reason(status))\r\nContent-Type: \(type)\r\n"
            + "Content-Length: \(bytes.count)\r\nConnection: close\r\n\r\n"
        // The stranger may have gone: then nobody needs the answer.
        try? await stream.write(Array(text.utf8) + bytes)
    }
}

// MARK: Answers

extension Connection {
    private func send(_ reply: Reply, to call: Call) async throws {
        var fields = reply.fields
        let isHead = call.head.method == "HEAD"
        if !call.head.keepsAlive || call.source.isSpoiled { fields.append(("Connection", "close")) }
        switch reply.body {
        case .none:
            if reply.status != 204, reply.status != 304 { fields.append(("Content-Length", "0")) }
            try await stream.write(headText(status: reply.status, fields: fields, call).utf8)
        case .bytes(let bytes, let type):
            fields += [("Content-Type", type), ("Content-Length", String(bytes.count))]
            let head = Array(headText(status: reply.status, fields: fields, call).utf8)
            try await stream.write(isHead ? head : head + bytes)
        case .file(let path, let offset, let count, let type):
            fields += [("Content-Type", type), ("Content-Length", String(count))]
            try await stream.write(headText(status: reply.status, fields: fields, call).utf8)
            if !isHead { try await sendFile(path, offset: offset, count: count) }
        case .stream(let type, let produce):
            fields += [("Content-Type", type), ("Transfer-Encoding", "chunked"), ("Connection", "close")]
            try await stream.write(headText(status: reply.status, fields: fields, call).utf8)
            if !isHead { try await sendStream(produce) }
        case .upgrade: break
        }
    }

    /// Runs `produce` until it ends or the client closes the connection.
    private func sendStream(_ produce: @escaping @Sendable (StreamWriter) async throws -> Void) async throws {
        let stream = stream
        let writer = StreamWriter { bytes in
            guard !bytes.isEmpty else { return }
            try await stream.write(Array(String(bytes.count, radix: 16).utf8) + [13, 10] + bytes + [13, 10])
        }
        try await withThrowingTaskGroup(of: Bool.self) { group in
            group.addTask {
                try await produce(writer)
                return true
            }
            group.addTask {
                await stream.closed()
                return false
            }
            defer {
                group.cancelAll()
                stream.close()  // wakes the second child, which cannot be cancelled
            }
            guard try await group.next() == true else { throw CancellationError() }
            try await stream.write("0\r\n\r\n".utf8)
        }
    }

    private func sendFile(_ path: String, offset: Int, count: Int) async throws {
        var reader = try FileReader(path: path, offset: offset)
        var rest = count
        while rest > 0 {
            let piece = try reader.read(upTo: min(rest, 256 * 1024))
            guard !piece.isEmpty else { throw RequestError.malformed("file shrank") }
            try await stream.write(piece)
            rest -= piece.count
        }
    }

    private func headText(status: Int, fields: [(name: String, value: String)], _ call: Call) -> String {
        var text = "HTTP/1.1 \(status) \(Self.reason(status))\r\n"
        for field in commonFields + fields { text += "\(field.name): \(field.value)\r\n" }
        return text + "X-Coder-Request-Id: \(call.requestID)\r\n\r\n"
    }

    private static func reason(_ status: Int) -> String {
        let reasons = [
            101: "Switching Protocols", 200: "OK", 201: "Created", 204: "No Content", 206: "Partial Content",
            304: "Not Modified", 307: "Temporary Redirect", 400: "Bad Request", 401: "Unauthorized",
            403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 406: "Not Acceptable",
            408: "Request Timeout", 409: "Conflict",
            410: "Gone", 412: "Precondition Failed", 413: "Content Too Large", 416: "Range Not Satisfiable",
            426: "Upgrade Required", 429: "Too Many Requests", 431: "Request Header Fields Too Large",
            500: "Internal Server Error", 501: "Not Implemented", 503: "Service Unavailable",
            505: "HTTP Version Not Supported",
        ]
        return reasons[status] ?? "Status"
    }
}

// SPDX-License-Identifier: Apache-2.0

/// What a route answers.
struct Reply: Sendable {
    /// The body, or what takes its place.
    enum Body: Sendable {
        case none
        case bytes([UInt8], type: String)
        /// Written piece by piece; ends when the closure returns or the client has gone.
        case stream(type: String, @Sendable (StreamWriter) async throws -> Void)
        /// A part of a file.
        case file(path: String, offset: Int, count: Int, type: String)
        /// The connection becomes something else.
        case upgrade(Upgrade)
    }

    var status: Int
    var fields: [(name: String, value: String)] = []
    var body: Body

    /// A JSON answer.
    static func json(_ value: JSON, status: Int = 200) -> Reply {
        Reply(status: status, body: .bytes(value.encoded + [10], type: "application/json; charset=utf-8"))
    }

    /// `{"message": …}`
    static func message(_ text: String, status: Int = 200) -> Reply {
        .json(["message": JSON(text)], status: status)
    }

    /// A text answer.
    static func text(_ text: String, status: Int = 200, type: String = "text/plain; charset=utf-8") -> Reply {
        Reply(status: status, body: .bytes(Array(text.utf8), type: type))
    }

    /// 204.
    static var noContent: Reply { Reply(status: 204, body: .none) }

    /// The answer for an error.
    static func error(_ error: APIError) -> Reply {
        var reply = Reply.json(error.json, status: error.status)
        reply.fields = error.fields.map { ($0.name, $0.value) }
        // RFC 6750 §3; RFC 9110 §11.6.1: a 401 must say how to do better.
        if let word = [401: "invalid_token", 403: "insufficient_scope"][error.status] {
            let text = error.message.filter { $0.isASCII && $0 != "\"" && $0 != "\\" && !$0.isNewline }
            reply.fields.append(
                (
                    "WWW-Authenticate",
                    "Bearer realm=\"coder\", error=\"\(word)\", error_description=\"\(text)\""
                ))
        }
        return reply
    }
}

/// What a connection turns into after its last HTTP answer.
struct Upgrade: Sendable {
    /// Fields of the 101 answer; nil: no answer at all (DERP's fast start).
    var fields: [(name: String, value: String)]?
    /// Runs until the connection is over. Gets the bytes that came after the request.
    var run: @Sendable (ByteStream, _ leftOver: [UInt8]) async -> Void
}

/// Writes the pieces of a streamed body.
struct StreamWriter: Sendable {
    let write: @Sendable ([UInt8]) async throws -> Void

    /// One server-sent event: two lines and an empty one. Clients read exactly that.
    func event(_ name: String, _ data: JSON) async throws {
        try await write(Array("event: \(name)\ndata: ".utf8) + data.encoded + [10, 10])
    }

    /// The event that only keeps the connection alive.
    func ping() async throws { try await write(Array("event: ping\n\n".utf8)) }
}

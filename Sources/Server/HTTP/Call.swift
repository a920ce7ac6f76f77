// SPDX-License-Identifier: Apache-2.0

/// One request on its way through a route, with what routing and authentication found out about it.
struct Call: Sendable {
    var head: RequestHead
    /// Where the body is read from; routes find it in `body`.
    var source: RequestReader
    /// Filled when the caller has been let in.
    var body: [UInt8] = []
    /// Address of the client, without port.
    var peerAddress: String
    /// Whether it came over TLS.
    var isEncrypted = false
    /// In every log line and answer of this request.
    var requestID: Identifier
    /// Values of the placeholders of the route's path, percent-decoded.
    var parameters: [String: String] = [:]
    var query = Query("")
    /// Who asks.
    var identity = Identity.anonymous
    /// Finds out again who asks: the key may have been revoked since.
    var renewIdentity: @Sendable (Call) async throws -> Identity = { $0.identity }

    /// Who sent a request.
    enum Identity: Sendable {
        case anonymous
        case user(Subject)
        case agent(AgentIdentity)
    }

    /// The body as JSON; 400 when it is none.
    func json() throws(APIError) -> JSON {
        do {
            return try JSON(parsing: body)
        } catch {
            throw APIError(400, "Request body must be valid JSON.", detail: "\(error)")
        }
    }

    /// The body as JSON; an empty object when there is none.
    func optionalJSON() throws(APIError) -> JSON { body.isEmpty ? .object([]) : try json() }

    /// A placeholder of the path.
    func parameter(_ name: String) -> String { parameters[name] ?? "" }

    /// A placeholder that must be a UUID; 400 when it is none.
    func identifier(_ name: String) throws(APIError) -> Identifier {
        guard let id = Identifier(parameter(name)) else {
            throw APIError.invalid(name, "Invalid UUID", message: "Invalid UUID \"\(parameter(name))\".")
        }
        return id
    }

    /// The signed-in user. Routes that are open to others must not call this.
    func subject() throws(APIError) -> Subject {
        guard case .user(let subject) = identity else { throw APIError.signedOut("Not signed in.") }
        return subject
    }

    /// Whether who opened a long connection may still have it: the key is good, and `permission` throws no refusal.
    /// Only a clear refusal counts: losing the database disconnects nobody.
    func isStillAllowed(_ permission: @Sendable (Call) async throws -> Void = { _ in }) async -> Bool {
        do {
            var call = self
            call.identity = try await renewIdentity(self)
            try await permission(call)
            return true
        } catch let error as APIError {
            return ![401, 403, 404].contains(error.status)
        } catch {
            return true
        }
    }

    /// The agent that asks.
    func agent() throws(APIError) -> AgentIdentity {
        guard case .agent(let agent) = identity else {
            throw APIError(401, "Workspace agent not authorized.")
        }
        return agent
    }

    /// Whether the client asks for a WebSocket.
    var wantsWebSocket: Bool {
        head.tokens("upgrade").contains("websocket") && head.tokens("connection").contains("upgrade")
    }
}

/// The part of a request target after `?`.
struct Query: Sendable {
    private var items: [(name: String, value: String)] = []

    init(_ text: some StringProtocol) {
        for part in text.split(separator: "&") {
            let pair = part.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            items.append(
                (PercentCoding.decodeForm(pair[0]), pair.count > 1 ? PercentCoding.decodeForm(pair[1]) : ""))
        }
    }

    /// The first value under that name.
    subscript(name: String) -> String? { items.first { $0.name == name }?.value }

    /// Whether the name is there, with or without a value.
    func has(_ name: String) -> Bool { items.contains { $0.name == name } }

    /// A number that is not negative; 400 otherwise.
    func count(_ name: String) throws(APIError) -> Int {
        guard let text = self[name], !text.isEmpty else { return 0 }
        guard let value = Int(text), value >= 0, value < Int(Int32.max) else {
            throw APIError.invalid(
                name, "Query param \"\(name)\" must be a valid integer (\(text))",
                message: "Query parameters have invalid values.")
        }
        return value
    }

    /// A truth value; 400 otherwise.
    func flag(_ name: String) throws(APIError) -> Bool {
        switch self[name] ?? "" {
        case "", "false", "0", "f", "F", "FALSE", "False": return false
        case "true", "1", "t", "T", "TRUE", "True": return true
        case let text:
            throw APIError.invalid(
                name, "Query param \"\(name)\" must be a valid boolean (\(text))",
                message: "Query parameters have invalid values.")
        }
    }
}

/// `%41` → `A`.
enum PercentCoding {
    /// Decodes a path segment; broken escapes stay as they are.
    static func decode(_ text: some StringProtocol) -> String { decode(text, plusIsSpace: false) }

    /// Decodes a part of a query.
    static func decodeForm(_ text: some StringProtocol) -> String { decode(text, plusIsSpace: true) }

    private static func decode(_ text: some StringProtocol, plusIsSpace: Bool) -> String {
        let bytes = Array(text.utf8)
        var out: [UInt8] = []
        var index = 0
        while index < bytes.count {
            let byte = bytes[index]
            if byte == UInt8(ascii: "%"), index + 2 < bytes.count,
                let high = Character(Unicode.Scalar(bytes[index + 1])).hexDigitValue,
                let low = Character(Unicode.Scalar(bytes[index + 2])).hexDigitValue
            {
                out.append(UInt8(high << 4 | low))
                index += 3
                continue
            }
            out.append(plusIsSpace && byte == UInt8(ascii: "+") ? 32 : byte)
            index += 1
        }
        return String(decoding: out, as: UTF8.self)
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import HTTPTransport
internal import Logging
internal import Synchronization

/// An answer of the server that is not a success: what it said, ready to be shown.
struct APIError: Error, Sendable, CustomStringConvertible {
    var status: Int
    var method: String
    var path: String
    var message: String
    var detail = ""
    var validations: [(field: String, detail: String)] = []
    var isVerbose = false

    /// One line, unless the user wants to know more.
    var description: String {
        var text = message
        if !validations.isEmpty {
            text += " " + validations.map { "\($0.field): \($0.detail)" }.joined(separator: "; ")
        }
        if status == 401 {
            text += " Try logging in using 'coder login'."
        } else if !detail.isEmpty, detail != message, validations.isEmpty || isVerbose {
            if text.hasSuffix(".") { text.removeLast() }
            text += ": " + detail
        }
        guard !isVerbose else {
            return "API request error to \"\(method):\(path)\". Status code \(status)\n\(text)"
        }
        return text.split(whereSeparator: \.isNewline).joined(separator: " ")
    }

    /// Reads the server's error object; other bodies are summed up.
    init(status: Int, method: String, url: HTTPURL, body: [UInt8], isVerbose: Bool) {
        self.status = status
        self.method = method
        path = url.path
        self.isVerbose = isVerbose
        if let json = try? JSON.parse(body), let text = json["message"].string {
            message = text
            detail = json["detail"].text
            validations = json["validations"].elements.map { ($0["field"].text, $0["detail"].text) }
        } else {
            message = "unexpected answer of \(url.origin): HTTP status \(status)."
            detail = status == 404 ? "Is \(url.origin) the address of a Coder server?" : ""
        }
    }
}

/// The deployment's HTTP API: JSON in and out, errors as `APIError`.
struct APIClient: Sendable {
    let http: HTTPClient
    let base: HTTPURL
    var token: String?
    let console: Console
    let version: String
    let warnsAboutVersion: Bool
    let showsRequests: Bool
    let isVerbose: Bool
    /// Where requests are noted: method, route and status, never contents.
    private var logger: Logger?
    private let hasWarned = Once()

    init(
        http: HTTPClient, base: HTTPURL, token: String?, console: Console, version: String,
        warnsAboutVersion: Bool, showsRequests: Bool, isVerbose: Bool
    ) {
        self.http = http
        self.base = base
        self.token = token
        self.console = console
        self.version = version
        self.warnsAboutVersion = warnsAboutVersion
        self.showsRequests = showsRequests
        self.isVerbose = isVerbose
    }

    /// The same, with every request noted.
    func logging(to logger: Logger?) -> APIClient {
        var client = self
        client.logger = logger
        return client
    }

    /// URL of an API route: `users/me`.
    func url(_ route: String, _ query: [(String, String)] = []) -> HTTPURL {
        base.appending("/api/v2/\(route)", query: query)
    }

    /// Header that says who asks.
    var credentials: HeaderFields {
        guard let token, !token.isEmpty else { return [:] }
        return ["Coder-Session-Token": token]
    }

    func get(_ route: String, _ query: [(String, String)] = []) async throws -> JSON {
        try await send("GET", route, query)
    }

    func post(_ route: String, _ body: JSON? = nil) async throws -> JSON {
        try await send("POST", route, [], body)
    }

    func put(_ route: String, _ body: JSON) async throws -> JSON {
        try await send("PUT", route, [], body)
    }

    func patch(_ route: String, _ body: JSON) async throws -> JSON {
        try await send("PATCH", route, [], body)
    }

    func delete(_ route: String) async throws -> JSON { try await send("DELETE", route) }

    /// The status and body as they are.
    func raw(
        _ method: String, _ route: String, _ query: [(String, String)] = [], _ body: JSON? = nil
    ) async throws -> HTTPResponse {
        let target = url(route, query)
        var headers = credentials
        if body != nil { headers["Content-Type"] = "application/json" }
        if showsRequests { console.note("> \(method) \(target)\n\(body?.pretty ?? "")") }
        let response: HTTPResponse
        do {
            response = try await http.request(
                method, target, headers: headers, body: body.map { Array($0.compact.utf8) })
        } catch {
            logger?.warning("\(method) \(target.path)", metadata: ["error": "\(error)"])
            throw error
        }
        logger?.info("\(method) \(target.path)", metadata: ["status": "\(response.status)"])
        if showsRequests { console.note("< \(response.status)\n\(response.text)") }
        notice(response)
        return response
    }

    private func send(
        _ method: String, _ route: String, _ query: [(String, String)] = [], _ body: JSON? = nil
    ) async throws -> JSON {
        let response = try await raw(method, route, query, body)
        guard 200..<300 ~= response.status else {
            throw APIError(
                status: response.status, method: method, url: url(route), body: response.body,
                isVerbose: isVerbose)
        }
        guard !response.body.isEmpty else { return .null }
        do {
            return try JSON.parse(response.body)
        } catch {
            throw CommandError(
                "\(base.origin) answered \(method) \(url(route).path) with something else than JSON")
        }
    }

    /// Warns once when client and server are of different releases.
    private func notice(_ response: HTTPResponse) {
        guard warnsAboutVersion, let server = response.headers["X-Coder-Build-Version"], hasWarned.claim(),
            release(server) != release(version)
        else { return }
        console.note("version mismatch: client \(version), server \(server)")
    }

    private func release(_ version: String) -> Substring { version.prefix { $0 != "-" && $0 != "+" } }

    private final class Once: Sendable {
        private let isDone = Mutex(false)

        func claim() -> Bool {
            isDone.withLock { isDone in
                defer { isDone = true }
                return !isDone
            }
        }
    }
}

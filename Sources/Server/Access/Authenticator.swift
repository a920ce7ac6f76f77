// SPDX-License-Identifier: Apache-2.0

internal import Synchronization

/// Finds out who sent a request. `rest/01-conventions.md` §2.
final class Authenticator: Sendable {
    private let store: Store
    private let limiter: RateLimiter
    private let refreshesSessions: Bool

    init(store: Store, apiLimitPerMinute: Int, refreshesSessions: Bool = true) {
        self.store = store
        self.refreshesSessions = refreshesSessions
        limiter = RateLimiter(limit: apiLimitPerMinute)
    }

    static let cookieName = "coder_session_token"

    /// The caller, if it may call such a route at all; throws 401, 400 or 429 otherwise. Requests are counted per
    /// route, as it is registered, and caller: whoever is known by a key cannot be shut out by a stranger.
    func identify(
        _ call: Call, for access: RouteTable.Access, route: String
    ) async throws -> Call.Identity {
        let source = RateLimiter.source(call.peerAddress)
        guard access != .anonymous else {
            if route.hasPrefix("/api/") { try limiter.admit("\(source) \(route)", now: .now()) }
            return .anonymous
        }
        do {
            let identity = try await known(call, for: access)
            switch identity {
            case .agent(let agent): try limiter.admit("\(agent.agentID) \(route)", now: .now())
            case .user(let subject):
                let isExempt = subject.isOwner && call.head.first("x-coder-bypass-ratelimit") == "true"
                if !isExempt { try limiter.admit("\(subject.userID) \(route)", now: .now()) }
            case .anonymous: break
            }
            return identity
        } catch let error as APIError where error.status == 401 {
            try limiter.admit("\(source) refused", now: .now())
            throw error
        }
    }

    /// The caller as the database knows it now; no matter how often it asks.
    func known(_ call: Call, for access: RouteTable.Access) async throws -> Call.Identity {
        guard access != .anonymous else { return .anonymous }
        guard let token = try Self.token(call) else {
            let detail = "Cookie \"\(Self.cookieName)\" or query parameter must be provided."
            throw access == .agent
                ? APIError(401, "Cookie \"\(Self.cookieName)\" must be provided.")
                : APIError.signedOut(detail)
        }
        switch access {
        case .agent: return .agent(try await agent(token))
        case .userOrAgent where Identifier(token) != nil: return .agent(try await agent(token))
        default: return .user(try await user(token, call))
        }
    }

    private func agent(_ token: String) async throws -> AgentIdentity {
        guard let token = Identifier(token) else { throw APIError(401, "Workspace agent token invalid.") }
        guard let agent = try await store.agent(token: token) else {
            throw APIError(401, "Workspace agent not authorized.")
        }
        return agent
    }

    private func user(_ token: String, _ call: Call) async throws -> Subject {
        let parts = token.split(separator: "-", omittingEmptySubsequences: false)
        guard parts.count == 2, parts[0].utf8.count == APIKeys.idLength,
            parts[1].utf8.count == APIKeys.secretLength
        else { throw APIError.signedOut("Invalid format of the session token.") }
        guard let key = try await store.apiKey(id: String(parts[0])) else {
            throw APIError.signedOut("API key is invalid.")
        }
        guard Digest.areEqual(Digest.sha256(Array(parts[1].utf8)), key.hashedSecret) else {
            throw APIError.signedOut("API key secret is invalid.")
        }
        let now = Timestamp.now()
        guard key.expiresAt >= now else {
            throw APIError.signedOut("API key expired at \"\(key.expiresAt.rfc3339)\".")
        }
        guard let user = try await store.user(id: key.userID), !user.isDeleted else {
            throw APIError.signedOut("User of this API key not found.")
        }
        guard user.status != "suspended" else {
            throw APIError(
                401,
                "User is not active (status = \"suspended\"). Contact an admin to reactivate your account.")
        }
        try await touch(key, user, call, now: now)
        return Subject(
            userID: user.id, username: user.username, roles: user.roles,
            organizationIDs: user.organizationIDs,
            keyID: key.id, loginType: key.loginType, scopes: key.scopes, allowList: key.allowList)
    }

    /// At most hourly: when the key was last used, from where, and a longer life for a session in use.
    private func touch(_ key: APIKeyRecord, _ user: UserRecord, _ call: Call, now: Timestamp) async throws {
        var expiry: Timestamp?
        if refreshesSessions, key.expiresAt.seconds(since: now) <= Double(key.lifetimeSeconds - 3600) {
            expiry = now.adding(seconds: key.lifetimeSeconds)
        }
        let isStale = now.seconds(since: key.lastUsed) > 3600
        if isStale || expiry != nil {
            try await store.touchKey(key.id, address: call.peerAddress, now: now, expiresAt: expiry)
        }
        if isStale || user.status == "dormant" { try await store.touchUser(user.id, now: now) }
    }

    // MARK: Where the token is

    /// First that is not empty wins: cookie, query, header, bearer, old query name.
    private static func token(_ call: Call) throws(APIError) -> String? {
        let cookie = cookies(call.head)[cookieName] ?? ""
        let header = call.head.first("coder-session-token") ?? ""
        let authorization = call.head.first("authorization") ?? ""
        let bearer =
            authorization.lowercased().hasPrefix("bearer ")
            ? String(authorization.dropFirst("bearer ".count)).trimmingSpaces() : ""
        if !cookie.isEmpty { try refuseForgery(call, cookie: cookie, header: header, bearer: bearer) }
        return [
            cookie, call.query[cookieName] ?? "", header, bearer, call.query["access_token"] ?? "",
        ].first { !$0.isEmpty }
    }

    /// A browser sends the cookie along with requests that other sites make. Until the web interface hands out
    /// tokens of its own, a cookie alone changes nothing.
    private static func refuseForgery(
        _ call: Call, cookie: String, header: String, bearer: String
    ) throws(APIError) {
        if !header.isEmpty, header != cookie {
            throw APIError(
                400,
                "CSRF error encountered. Authentication via \"\(cookieName)\" cookie and "
                    + "\"Coder-Session-Token\" header detected, but the values do not match.")
        }
        let path = call.head.target
        let isExempt =
            ["GET", "HEAD", "OPTIONS", "TRACE"].contains(call.head.method) || !bearer.isEmpty
            || header == cookie || call.query[cookieName] == cookie
            || path.hasPrefix("/api/v2/workspaceagents/") || path.hasPrefix("/derp")
        guard isExempt else {
            throw APIError(400, "Something is wrong with your CSRF token. Please refresh the page.")
        }
    }

    static func cookies(_ head: RequestHead) -> [String: String] {
        var result: [String: String] = [:]
        for field in head.fields where field.name.lowercased() == "cookie" {
            for part in field.value.split(separator: ";") {
                let pair = part.split(separator: "=", maxSplits: 1)
                guard pair.count == 2 else { continue }
                let name = String(pair[0]).trimmingSpaces()
                if result[name] == nil { result[name] = String(pair[1]).trimmingSpaces() }
            }
        }
        return result
    }
}

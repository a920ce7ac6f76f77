// SPDX-License-Identifier: Apache-2.0

/// First user, login and logout, users, keys and tokens.
struct UserRoutes {
    let services: Services

    func register(_ routes: RouteTable) {
        let services = services
        routes.api(.get, "users/first", .anonymous) { _ in
            guard try await services.store.hasUsers() else {
                throw APIError(404, "The initial user has not been created!")
            }
            return .message("The initial user has already been created!")
        }
        routes.api(.post, "users/first", .anonymous) { try await firstUser($0) }
        routes.api(.post, "users/login", .anonymous) { try await login($0) }
        routes.api(.post, "users/logout", .user) { try await logout($0) }
        routes.api(.get, "users/authmethods", .anonymous) { _ in
            .json([
                "password": ["enabled": true],
                "github": ["enabled": false, "default_provider_configured": false],
                "oidc": ["enabled": false, "signInText": "", "iconUrl": ""],
            ])
        }
        routes.api(.post, "users/validate-password", .anonymous) { call in
            let complaint = PasswordStrength.complaint(try call.json()["password"]?.text ?? "")
            return .json(["valid": JSON.bool(complaint == nil), "details": JSON(complaint ?? "")])
        }
        routes.api(.get, "auth/scopes", .anonymous) { _ in .json(["external": JSON(KeyScopes.known)]) }
        routes.api(.get, "users/{user}", .user) { call in
            .json(try await services.store(for: call).user(call.parameter("user")).json)
        }
        routes.api(.get, "users/{user}/roles", .user) { call in
            let user = try await services.store(for: call).user(call.parameter("user"))
            return .json(["roles": JSON(user.roles), "organization_roles": [:]])
        }
        routes.api(.get, "users/{user}/login-type", .user) { call in
            let user = try await services.store(for: call).user(call.parameter("user"))
            guard user.id == (try call.subject().userID) else { throw APIError.forbidden }
            return .json(["login_type": JSON(user.loginType)])
        }
        routes.api(.get, "users/{user}/appearance", .user) { _ in
            .json(["theme_preference": "", "terminal_font": ""])
        }
        routes.api(.get, "users/{user}/autofill-parameters", .user) { _ in .json([]) }
        registerKeys(routes)
    }

    private func registerKeys(_ routes: RouteTable) {
        let services = services
        routes.api(.post, "users/{user}/keys", .user) { try await newSession($0) }
        routes.api(.post, "users/{user}/keys/tokens", .user) { try await newToken($0) }
        routes.api(.get, "users/{user}/keys/tokens", .user) { call in
            let store = try services.store(for: call)
            let user = try await store.user(call.parameter("user"))
            return .json(
                .array(try await store.tokens(of: user.id, includeAll: call.query.flag("include_all"))))
        }
        routes.api(.get, "users/{user}/keys/tokens/tokenconfig", .user) { call in
            let seconds = services.maximumTokenLifetime(of: try call.subject())
            return .json(["max_token_lifetime": JSON(seconds * 1_000_000_000)])
        }
        routes.api(.get, "users/{user}/keys/tokens/{keyname}", .user) { call in
            let store = try services.store(for: call)
            let user = try await store.user(call.parameter("user"))
            return .json(try await store.key(of: user.id, name: call.parameter("keyname")).json())
        }
        routes.api(.get, "users/{user}/keys/{keyid}", .user) { call in
            let store = try services.store(for: call)
            let user = try await store.user(call.parameter("user"))
            return .json(try await store.key(of: user.id, id: call.parameter("keyid")).json())
        }
        routes.api(.delete, "users/{user}/keys/{keyid}", .user) { call in
            let store = try services.store(for: call)
            let user = try await store.user(call.parameter("user"))
            try await store.deleteKey(of: user.id, id: call.parameter("keyid"))
            return .noContent
        }
    }

    // MARK: First user, login, logout

    private func firstUser(_ call: Call) async throws -> Reply {
        try services.loginLimiter.admit(RateLimiter.source(call.peerAddress), now: .now())
        let body = try call.json()
        let (email, username) = (body["email"]?.text ?? "", body["username"]?.text ?? "")
        let password = body["password"]?.text ?? ""
        guard Names.isEmail(email) else { throw Names.refusal("email", tag: "email", value: email) }
        guard Names.isPlain(username) else {
            throw Names.refusal("username", tag: "username", value: username)
        }
        if let complaint = PasswordStrength.complaint(password) {
            throw APIError.invalid("password", complaint, message: "Password is not strong enough!")
        }
        if try await services.store.hasUsers() {
            throw APIError(409, "The initial user has already been created.")
        }
        let hash = await services.passwords.hash(password)
        let made = try await services.store.createFirstUser(
            email: email, username: username, name: Names.realName(body["name"]?.text ?? ""),
            passwordHash: hash,
            now: .now())
        guard let made else { throw APIError(409, "The initial user has already been created.") }
        return .json(["user_id": JSON(made.user), "organization_id": JSON(made.organization)], status: 201)
    }

    private func login(_ call: Call) async throws -> Reply {
        try services.loginLimiter.admit(RateLimiter.source(call.peerAddress), now: .now())
        let body = try call.json()
        let (email, password) = (body["email"]?.text ?? "", body["password"]?.text ?? "")
        guard Names.isEmail(email) else { throw Names.refusal("email", tag: "email", value: email) }
        guard !password.isEmpty else { throw Names.refusal("password", tag: "required", value: "") }
        let user = try await services.store.user(email: email)
        guard services.checking.enter() else {
            var busy = APIError(429, "Too many people are logging in at this moment.")
            busy.fields = [.init(name: "Retry-After", value: "2")]
            throw busy
        }
        defer { services.checking.leave() }
        let usable = user.flatMap { $0.loginType == "password" ? $0.hashedPassword : nil }
        guard await services.passwords.verify(password, usable), let user else {
            if let user, user.loginType != "password" {
                throw APIError(
                    403,
                    "Incorrect login type, attempting to use \"password\" but user is of login type "
                        + "\"\(user.loginType)\"")
            }
            throw APIError(401, "Incorrect email or password.")
        }
        guard user.status != "suspended" else {
            throw APIError(401, "Your account is suspended. Contact an admin to reactivate your account.")
        }
        let now = Timestamp.now()
        try await services.store.touchUser(user.id, now: now)
        let token = try await services.store.createKey(
            NewKey(
                userID: user.id, loginType: "password", lifetimeSeconds: services.options.sessionSeconds,
                address: call.peerAddress), now: now)
        var reply = Reply.json(["session_token": JSON(token)], status: 201)
        let secure = services.options.secureAuthCookie ? "; Secure" : ""
        reply.fields = [
            ("Set-Cookie", "\(Authenticator.cookieName)=\(token); Path=/; HttpOnly; SameSite=Lax\(secure)")
        ]
        return reply
    }

    private func logout(_ call: Call) async throws -> Reply {
        let subject = try call.subject()
        _ = try await services.store.deleteKey(id: subject.keyID)
        try await services.store.database.query(
            "DELETE FROM api_keys WHERE user_id = $1 AND 'coder:application_connect' = ANY(scopes)",
            [SQLValue(subject.userID)])
        var reply = Reply.message("Logged out!")
        reply.fields = [("Set-Cookie", "\(Authenticator.cookieName)=; Path=/; Max-Age=0; HttpOnly")]
        return reply
    }

    // MARK: Keys

    private func newSession(_ call: Call) async throws -> Reply {
        let store = try services.store(for: call)
        let user = try await store.user(call.parameter("user"))
        try store.require(.create, .init(type: "api_key", owner: user.id))
        let key = try await services.store.createKey(
            NewKey(
                userID: user.id, loginType: "password", lifetimeSeconds: services.options.tokenSeconds,
                address: call.peerAddress, scopes: store.subject.scopes,
                allowList: store.subject.allowList), now: .now())
        return .json(["key": JSON(key)], status: 201)
    }

    private func newToken(_ call: Call) async throws -> Reply {
        let store = try services.store(for: call)
        let user = try await store.user(call.parameter("user"))
        try store.require(.create, .init(type: "api_key", owner: user.id))
        let body = try call.optionalJSON()
        var new = NewKey(
            userID: user.id, loginType: "token", lifetimeSeconds: services.options.tokenSeconds,
            address: call.peerAddress, tokenName: body["token_name"]?.text ?? "",
            scopes: store.subject.scopes, allowList: store.subject.allowList)
        if new.tokenName.isEmpty { new.tokenName = Names.random() }
        new.lifetimeSeconds = try lifetime(body["lifetime"]?.integer ?? 0, of: store.subject)
        if let scopes = try scopes(body) { new.scopes = scopes }
        if let list = try allowList(body) { new.allowList = list }
        try store.subject.requireCoverage(scopes: new.scopes, allowList: new.allowList)
        do {
            return .json(["key": JSON(try await services.store.createKey(new, now: .now()))], status: 201)
        } catch let error as DatabaseError where error.isUniqueViolation {
            throw APIError(
                409, "A token with name \"\(new.tokenName)\" already exists.",
                validations: [
                    .init(field: "name", detail: "This value is already in use and should be unique.")
                ])
        }
    }

    private func lifetime(_ nanoseconds: Int64, of subject: Subject) throws(APIError) -> Int64 {
        guard nanoseconds != 0 else { return services.options.tokenSeconds }
        let maximum = services.maximumTokenLifetime(of: subject)
        guard nanoseconds > 0, nanoseconds / 1_000_000_000 <= maximum else {
            throw APIError(
                400, "Failed to validate create API key request.",
                detail: nanoseconds > 0
                    ? "lifetime must be less than \(maximum / 3600)h0m0s"
                    : "lifetime must be positive number greater than 0")
        }
        return max(1, nanoseconds / 1_000_000_000)
    }

    /// Nil when the body names none: then the new key may do what the one that makes it may do.
    private func scopes(_ body: JSON) throws(APIError) -> [String]? {
        var asked = body["scopes"]?.elements?.compactMap(\.text) ?? []
        if asked.isEmpty, let old = body["scope"]?.text { asked = [old] }
        guard !asked.isEmpty else { return nil }
        return try asked.map { name throws(APIError) in
            guard let scope = KeyScopes.canonical(name) else {
                throw APIError(
                    400, "Failed to create API key.",
                    detail: "invalid or unsupported API key scope: \"\(name)\"")
            }
            return scope
        }
    }

    /// `type:id` or `type:*`; nil when the body names none.
    private func allowList(_ body: JSON) throws(APIError) -> [String]? {
        guard let list = body["allow_list"]?.elements, !list.isEmpty else { return nil }
        return try list.map { element throws(APIError) in
            let parts = (element.text ?? "").split(separator: ":", maxSplits: 1)
            guard parts.count == 2, parts[1] == "*" || Identifier(parts[1]) != nil else {
                throw APIError.invalid(
                    "allow_list", "invalid allow_list entry", message: "Failed to create API key.")
            }
            return "\(parts[0]):\(parts[1].lowercased())"
        }
    }
}

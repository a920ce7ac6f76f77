// SPDX-License-Identifier: Apache-2.0

/// `<id>-<secret>`: ten and twenty-two letters and digits.
enum APIKeys {
    static let idLength = 10
    static let secretLength = 22

    /// A new key: what is stored, and the text that is shown once.
    static func make() -> (id: String, hashedSecret: [UInt8], token: String) {
        let id = random(idLength)
        let secret = random(secretLength)
        return (id, Digest.sha256(Array(secret.utf8)), "\(id)-\(secret)")
    }

    private static func random(_ count: Int) -> String {
        let alphabet = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
        var generator = SystemRandomNumberGenerator()
        return String((0..<count).compactMap { _ in alphabet.randomElement(using: &generator) })
    }
}

/// A row of `api_keys`.
struct APIKeyRecord: Sendable {
    var id: String
    var hashedSecret: [UInt8]
    var userID: Identifier
    var username = ""
    var lastUsed: Timestamp
    var expiresAt: Timestamp
    var createdAt: Timestamp
    var updatedAt: Timestamp
    var loginType: String
    var lifetimeSeconds: Int64
    var tokenName: String
    var scopes: [String]
    var allowList: [String]

    init(_ row: Row) {
        id = row.text("id")
        hashedSecret = row.bytes("hashed_secret")
        userID = row.identifier("user_id")
        lastUsed = row.time("last_used")
        expiresAt = row.time("expires_at")
        createdAt = row.time("created_at")
        updatedAt = row.time("updated_at")
        loginType = row.text("login_type")
        lifetimeSeconds = row.integer("lifetime_seconds")
        tokenName = row.text("token_name")
        scopes = row.list("scopes")
        allowList = row.list("allow_list")
    }

    /// `codersdk.APIKey`; with a user name, `codersdk.APIKeyWithOwner`.
    func json(username: String? = nil) -> JSON {
        // The old field knows two words only.
        let scope = scopes.contains("coder:application_connect") ? "application_connect" : "all"
        var result: JSON = [
            "id": JSON(id), "user_id": JSON(userID), "last_used": JSON(lastUsed),
            "expires_at": JSON(expiresAt),
            "created_at": JSON(createdAt), "updated_at": JSON(updatedAt), "login_type": JSON(loginType),
            "scope": JSON(scope), "scopes": JSON(scopes), "token_name": JSON(tokenName),
            "lifetime_seconds": JSON(lifetimeSeconds), "allow_list": JSON(allowList),
        ]
        if let username { result.add("username", JSON(username)) }
        return result
    }
}

/// What a new key shall be.
struct NewKey: Sendable {
    var userID: Identifier
    var loginType: String
    var lifetimeSeconds: Int64
    var address: String
    var tokenName = ""
    var scopes = ["coder:all"]
    var allowList = ["*:*"]
}

extension Store {
    /// Makes a key and returns its text, which nobody can read again.
    func createKey(_ new: NewKey, now: Timestamp) async throws -> String {
        let key = APIKeys.make()
        try await database.query(
            """
            INSERT INTO api_keys (id, hashed_secret, user_id, last_used, expires_at, created_at, updated_at,
                login_type, lifetime_seconds, ip_address, token_name, scopes, allow_list)
            VALUES ($1, $2, $3, $4, $5, $4, $4, $6, $7, $8, $9, $10, $11)
            """,
            [
                SQLValue(key.id), .bytes(key.hashedSecret), SQLValue(new.userID), SQLValue(now),
                SQLValue(now.adding(seconds: new.lifetimeSeconds)), SQLValue(new.loginType),
                SQLValue(new.lifetimeSeconds), SQLValue(new.address.isEmpty ? "0.0.0.0" : new.address),
                SQLValue(new.tokenName), SQLValue(new.scopes), SQLValue(new.allowList),
            ])
        return key.token
    }

    func apiKey(id: String) async throws -> APIKeyRecord? {
        try await database.first("SELECT * FROM api_keys WHERE id = $1", [SQLValue(id)]).map(
            APIKeyRecord.init)
    }

    func touchKey(_ id: String, address: String, now: Timestamp, expiresAt: Timestamp?) async throws {
        try await database.query(
            """
            UPDATE api_keys SET last_used = $2, updated_at = $2, ip_address = $3,
                expires_at = coalesce($4::timestamptz, expires_at) WHERE id = $1
            """,
            [
                SQLValue(id), SQLValue(now), SQLValue(address.isEmpty ? "0.0.0.0" : address),
                SQLValue(expiresAt),
            ])
    }

    /// False when there was none.
    func deleteKey(id: String) async throws -> Bool {
        try await !database.query("DELETE FROM api_keys WHERE id = $1 RETURNING id", [SQLValue(id)]).isEmpty
    }
}

extension GuardedStore {
    /// A key of that user, by its id or by its token name.
    func key(of user: Identifier, id: String? = nil, name: String? = nil) async throws -> APIKeyRecord {
        let row = try await store.database.first(
            """
            SELECT * FROM api_keys WHERE user_id = $1
                AND (id = $2 OR (token_name = $3 AND login_type = 'token' AND $3 <> ''))
            """, [SQLValue(user), SQLValue(id ?? ""), SQLValue(name ?? "")])
        guard let row else { throw APIError.notFound }
        try require(.read, .init(type: "api_key", owner: user))
        return APIKeyRecord(row)
    }

    /// Long-lived tokens of that user, or of everybody the caller may read.
    func tokens(of user: Identifier, includeAll: Bool) async throws -> [JSON] {
        let rows = try await store.database.query(
            """
            SELECT k.*, u.username FROM api_keys k JOIN users u ON u.id = k.user_id
            WHERE k.login_type = 'token' AND ($2 OR k.user_id = $1) ORDER BY k.created_at, k.id
            """, [SQLValue(user), SQLValue(includeAll)])
        return rows.compactMap { row in
            let key = APIKeyRecord(row)
            guard subject.may(.read, .init(type: "api_key", owner: key.userID)) else { return nil }
            return key.json(username: row.text("username"))
        }
    }

    func deleteKey(of user: Identifier, id: String) async throws {
        let key = try await key(of: user, id: id)
        try require(.delete, .init(type: "api_key", owner: user))
        guard try await store.deleteKey(id: key.id) else { throw APIError.notFound }
    }
}

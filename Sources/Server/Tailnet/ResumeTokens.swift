// SPDX-License-Identifier: Apache-2.0

/// Tokens by which a client keeps its peer id over connections: compact JWS with HS512. `rpc-transport.md` §7.
struct ResumeTokens: Sendable {
    /// Why a token was refused.
    enum Refused: Error, Equatable {
        case malformed
        case unknownKey
        case badSignature
        case expired
        /// It was given to somebody else.
        case foreign
    }

    /// 24 h. `rpc-transport.md` §7.
    static let lifetimeSeconds: Int64 = 86_400

    private let keys: [String: [UInt8]]
    private let current: String

    /// Secrets by key id, and the id of the one that signs.
    init(keys: [String: [UInt8]], current: String) {
        self.keys = keys
        self.current = current
    }

    /// A token for a peer of that user, and when it expires.
    func issue(_ peer: Identifier, user: Identifier, now: Timestamp) -> (token: String, expiresAt: Timestamp)
    {
        let expiry = now.adding(seconds: Self.lifetimeSeconds)
        let header: JSON = ["alg": "HS512", "kid": JSON(current)]
        let claims: JSON = [
            "sub": JSON(peer), "exp": JSON(expiry.unixSeconds), "user": JSON(user),
        ]
        let signed = [header, claims].map { Base64.encode($0.encoded, .url, padded: false) }.joined(
            separator: ".")
        return (
            signed + "." + Base64.encode(signature(signed, keys[current] ?? []), .url, padded: false), expiry
        )
    }

    /// The peer of a user's token. Nil for one without a key id, which counts as no token at all.
    func verify(_ token: String, user: Identifier, now: Timestamp) throws(Refused) -> Identifier? {
        let parts = token.split(separator: ".", omittingEmptySubsequences: false)
        guard token.utf8.count <= 4096, parts.count == 3, let header = Self.json(parts[0]),
            let claims = Self.json(parts[1]), let given = Base64.decode(parts[2])
        else { throw .malformed }
        guard let kid = header["kid"]?.text, !kid.isEmpty else { return nil }
        guard header["alg"]?.text == "HS512" else { throw .malformed }
        guard let key = keys[kid] else { throw .unknownKey }
        guard Digest.areEqual(signature("\(parts[0]).\(parts[1])", key), given) else { throw .badSignature }
        guard let subject = claims["sub"]?.text, let peer = Identifier(subject),
            let expiry = claims["exp"]?.integer
        else { throw .malformed }
        guard expiry > now.unixSeconds else { throw .expired }
        guard claims["user"]?.text.flatMap({ Identifier($0) }) == user else { throw .foreign }
        return peer
    }

    private func signature(_ text: String, _ key: [UInt8]) -> [UInt8] {
        Digest.hmacSHA512(Array(text.utf8), key: key)
    }

    private static func json(_ part: Substring) -> JSON? {
        Base64.decode(part).flatMap { try? JSON(parsing: $0) }
    }

    /// Reads the keys from the database.
    static func load(_ database: any Database) async throws -> ResumeTokens {
        let rows = try await database.query(
            """
            SELECT sequence, secret FROM crypto_keys WHERE feature = 'tailnet_resume' AND secret IS NOT NULL
                AND (deletes_at IS NULL OR deletes_at > now()) ORDER BY sequence
            """)
        var keys: [String: [UInt8]] = [:]
        for row in rows { keys[row.text("sequence")] = Array(row.text("secret").utf8) }
        return ResumeTokens(keys: keys, current: rows.last?.text("sequence") ?? "")
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import Crypto

/// SSH key pairs that workspaces use towards git servers, one per user.
struct GitKey: Sendable {
    var publicKey: String
    var privateKey: String
    var createdAt: Timestamp
    var updatedAt: Timestamp

    /// A new Ed25519 pair in OpenSSH's text forms (PROTOCOL.key in OpenSSH's source).
    static func make() -> (publicKey: String, privateKey: String) {
        let key = Curve25519.Signing.PrivateKey()
        let (open, secret) = (Array(key.publicKey.rawRepresentation), Array(key.rawRepresentation))
        let blob = field("ssh-ed25519") + field(open)
        let check = Digest.random(4)
        var inner = check + check + field("ssh-ed25519") + field(open) + field(secret + open) + field("")
        for padding in 1...8 where inner.count % 8 != 0 { inner.append(UInt8(padding)) }
        let whole =
            Array("openssh-key-v1\0".utf8) + field("none") + field("none") + field("") + [0, 0, 0, 1]
            + field(blob)
            + field(inner)
        let text = Array(Base64.encode(whole))
        let lines = stride(from: 0, to: text.count, by: 70).map {
            String(text[$0..<min($0 + 70, text.count)])
        }
        let armour =
            ["-----BEGIN OPENSSH PRIVATE KEY-----"] + lines + ["-----END OPENSSH PRIVATE KEY-----", ""]
        return ("ssh-ed25519 \(Base64.encode(blob))\n", armour.joined(separator: "\n"))
    }

    private static func field(_ bytes: [UInt8]) -> [UInt8] {
        let count = UInt32(bytes.count)
        return [UInt8(count >> 24), UInt8(count >> 16 & 255), UInt8(count >> 8 & 255), UInt8(count & 255)]
            + bytes
    }

    private static func field(_ text: String) -> [UInt8] { field(Array(text.utf8)) }
}

extension Store {
    /// A user's key pair; made when there is none, or when a new one is asked for.
    func gitKey(of user: Identifier, renew: Bool, now: Timestamp) async throws -> GitKey {
        let fresh = GitKey.make()
        let row = try await database.first(
            """
            INSERT INTO gitsshkeys (user_id, created_at, updated_at, private_key, public_key)
            VALUES ($1, $2, $2, $3, $4) ON CONFLICT (user_id) DO UPDATE SET
                private_key = CASE WHEN $5 THEN excluded.private_key ELSE gitsshkeys.private_key END,
                public_key = CASE WHEN $5 THEN excluded.public_key ELSE gitsshkeys.public_key END,
                updated_at = CASE WHEN $5 THEN excluded.updated_at ELSE gitsshkeys.updated_at END
            RETURNING *
            """,
            [
                SQLValue(user), SQLValue(now), SQLValue(fresh.privateKey), SQLValue(fresh.publicKey),
                SQLValue(renew),
            ])
        guard let row else { throw APIError.internal }
        return GitKey(
            publicKey: row.text("public_key"), privateKey: row.text("private_key"),
            createdAt: row.time("created_at"),
            updatedAt: row.time("updated_at"))
    }
}

/// `users/{user}/gitsshkey`
struct GitKeyRoutes {
    let services: Services

    func register(_ routes: RouteTable) {
        let services = services
        for method in [HTTPMethod.get, .put] {
            routes.api(method, "users/{user}/gitsshkey", .user) { call in
                let store = try services.store(for: call)
                let user = try await store.user(call.parameter("user"))
                try store.require(method == .get ? .read : .update, .init(type: "user", id: user.id))
                let key = try await services.store.gitKey(of: user.id, renew: method == .put, now: .now())
                return .json([
                    "user_id": JSON(user.id), "created_at": JSON(key.createdAt),
                    "updated_at": JSON(key.updatedAt),
                    "public_key": JSON(key.publicKey),
                ])
            }
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

/// A row of `users` with the organizations it is a member of.
struct UserRecord: Sendable {
    var id: Identifier
    var email: String
    var username: String
    var name: String
    var hashedPassword: String
    var createdAt: Timestamp
    var updatedAt: Timestamp
    var lastSeenAt: Timestamp
    var status: String
    var loginType: String
    var avatarURL: String
    var roles: [String]
    var isDeleted: Bool
    var organizationIDs: [Identifier]

    init(_ row: Row) {
        id = row.identifier("id")
        email = row.text("email")
        username = row.text("username")
        name = row.text("name")
        hashedPassword = String(decoding: row.bytes("hashed_password"), as: UTF8.self)
        createdAt = row.time("created_at")
        updatedAt = row.time("updated_at")
        lastSeenAt = row.time("last_seen_at")
        status = row.text("status")
        loginType = row.text("login_type")
        avatarURL = row.text("avatar_url")
        roles = row.list("rbac_roles")
        isDeleted = row.flag("deleted")
        organizationIDs = row.list("organization_ids").compactMap { Identifier($0) }
    }

    static let columns = """
        u.*, (SELECT coalesce(array_agg(m.organization_id ORDER BY m.created_at), '{}')
              FROM organization_members m WHERE m.user_id = u.id) AS organization_ids
        """

    /// `codersdk.User`
    var json: JSON {
        var result: JSON = ["id": JSON(id), "username": JSON(username)]
        result.addUnlessEmpty("name", name)
        result.addUnlessEmpty("avatar_url", avatarURL)
        result.add("email", JSON(email))
        result.add("created_at", JSON(createdAt))
        result.add("updated_at", JSON(updatedAt))
        result.add("last_seen_at", JSON(lastSeenAt))
        result.add("status", JSON(status))
        result.add("login_type", JSON(loginType))
        result.add("organization_ids", .array(organizationIDs.map { JSON($0) }))
        result.add(
            "roles", .array(roles.map { ["name": JSON($0), "display_name": JSON(Self.displayName($0))] }))
        return result
    }

    private static func displayName(_ role: String) -> String {
        role.split(separator: "-").map { $0.prefix(1).uppercased() + $0.dropFirst() }.joined(separator: " ")
    }
}

extension Store {
    func user(id: Identifier) async throws -> UserRecord? {
        try await database.first("SELECT \(UserRecord.columns) FROM users u WHERE u.id = $1", [SQLValue(id)])
            .map(UserRecord.init)
    }

    func user(email: String) async throws -> UserRecord? {
        try await database.first(
            "SELECT \(UserRecord.columns) FROM users u WHERE lower(u.email) = lower($1) AND NOT u.deleted",
            [SQLValue(email)]
        ).map(UserRecord.init)
    }

    func user(name: String) async throws -> UserRecord? {
        try await database.first(
            "SELECT \(UserRecord.columns) FROM users u WHERE lower(u.username) = lower($1) AND NOT u.deleted",
            [SQLValue(name)]
        ).map(UserRecord.init)
    }

    /// Whether anybody but system accounts exists.
    func hasUsers() async throws -> Bool {
        try await database.first("SELECT 1 AS x FROM users WHERE NOT is_system AND NOT deleted LIMIT 1")
            != nil
    }

    /// Dormant users wake up by being seen.
    func touchUser(_ id: Identifier, now: Timestamp) async throws {
        try await database.query(
            """
            UPDATE users SET last_seen_at = $2, status = CASE status WHEN 'dormant' THEN 'active' ELSE status END
            WHERE id = $1
            """, [SQLValue(id), SQLValue(now)])
    }

    /// Makes the first user, owner of the deployment, member of the default organization. Nil when there is one.
    func createFirstUser(
        email: String, username: String, name: String, passwordHash: String, now: Timestamp
    ) async throws -> (user: Identifier, organization: Identifier)? {
        let user = Identifier.random()
        return try await database.transaction { run in
            // Two requests at once: the second waits here and then finds the first one's user.
            try await run.query("LOCK TABLE users IN SHARE ROW EXCLUSIVE MODE")
            let existing = try await run.first(
                "SELECT 1 AS x FROM users WHERE NOT is_system AND NOT deleted LIMIT 1")
            guard existing == nil else { return nil }
            let organization = try await run.first("SELECT id FROM organizations WHERE is_default")
            guard let organization = organization?.identifier("id") else { return nil }
            try await run.query(
                """
                INSERT INTO users (id, email, username, name, hashed_password, created_at, updated_at, last_seen_at,
                    status, rbac_roles, login_type)
                VALUES ($1, $2, $3, $4, $5, $6, $6, $6, 'active', '{owner}', 'password')
                """,
                [
                    SQLValue(user), SQLValue(email), SQLValue(username), SQLValue(name),
                    .bytes(Array(passwordHash.utf8)), SQLValue(now),
                ])
            try await run.query(
                """
                INSERT INTO organization_members (user_id, organization_id, created_at, updated_at)
                VALUES ($1, $2, $3, $3)
                """, [SQLValue(user), SQLValue(organization), SQLValue(now)])
            try await Seed.externalTemplate(run, organization: organization, creator: user, now: now)
            return (user, organization)
        }
    }
}

extension GuardedStore {
    /// `me`, a UUID, or a user name. Unknown ones are 400, as in upstream's middleware.
    func user(_ text: String) async throws -> UserRecord {
        let found: UserRecord?
        if text == "me" {
            found = try await store.user(id: subject.userID)
        } else if let id = Identifier(text) {
            found = try await store.user(id: id)
        } else {
            found = try await store.user(name: text)
        }
        let unknown = APIError(400, "Resource not found or you do not have access to this resource")
        guard let found, !found.isDeleted else { throw unknown }
        guard subject.may(.read, .init(type: "user", id: found.id)) else { throw unknown }
        return found
    }
}

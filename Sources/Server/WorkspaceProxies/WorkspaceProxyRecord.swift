// SPDX-License-Identifier: Apache-2.0

internal import Mesh

/// A row of `workspace_proxies`: a place at the edge that registers with the server. Ours relay and do nothing else.
struct WorkspaceProxyRecord: Sendable {
    var id: Identifier
    var name: String
    var displayName: String
    var icon: String
    var url: String
    var wildcardHostname: String
    var createdAt: Timestamp
    var updatedAt: Timestamp
    var isDeleted: Bool
    var hashedSecret: [UInt8]
    /// Its number among all proxies, for the id of its region.
    var number: Int
    var isDERPEnabled: Bool
    var isDERPOnly: Bool
    var version: String

    init(_ row: Row) {
        id = row.identifier("id")
        name = row.text("name")
        displayName = row.text("display_name")
        icon = row.text("icon")
        url = row.text("url")
        wildcardHostname = row.text("wildcard_hostname")
        createdAt = row.time("created_at")
        updatedAt = row.time("updated_at")
        isDeleted = row.flag("deleted")
        hashedSecret = row.bytes("token_hashed_secret")
        number = Int(row.integer("region_id"))
        isDERPEnabled = row.flag("derp_enabled")
        isDERPOnly = row.flag("derp_only")
        version = row.text("version")
    }

    /// Region ids travel as port numbers inside of the mesh.
    static let maximumRegionID = 65_535

    /// The region of its relay, nil before it has told its URL. `coordinator.md` §8.2. `stunPort`: of the STUN
    /// responder at the same host, if there is one.
    func region(first: Int, stunPort: Int?) -> DERPMap.Region? {
        guard isDERPEnabled, let url = AccessURL(url) else { return nil }
        let id = first + number
        guard id <= Self.maximumRegionID else { return nil }
        var node = DERPMap.Node(name: "\(id)a", regionID: id, hostName: url.host)
        node.derpPort = url.port
        node.stunPort = stunPort ?? -1
        node.forcesHTTP = !url.isSecure
        return DERPMap.Region(
            id: id, code: "coder_\(name.lowercased())", name: displayName.isEmpty ? name : displayName,
            nodes: [node])
    }
}

/// Whether a proxy can be reached, and since when we know.
struct ProxyHealth: Sendable, Equatable {
    /// `ok`, `unreachable`, `unhealthy`, `unregistered`.
    var status = "unregistered"
    var errors: [String] = []
    var warnings: [String] = []
    var checkedAt = Timestamp.zero
    /// Whether it answered at all, with whatever report.
    var isAnswered = false
}

/// A proxy with its state.
struct KnownProxy: Sendable {
    var row: WorkspaceProxyRecord
    var health: ProxyHealth

    /// `codersdk.Region`
    var regionJSON: JSON {
        [
            "id": JSON(row.id), "name": JSON(row.name), "display_name": JSON(row.displayName),
            "icon_url": JSON(row.icon), "healthy": .bool(health.status == "ok"),
            "path_app_url": JSON(row.url), "wildcard_hostname": JSON(row.wildcardHostname),
        ]
    }

    /// `codersdk.WorkspaceProxy`
    var json: JSON {
        var result = regionJSON
        result.add("derp_enabled", .bool(row.isDERPEnabled))
        result.add("derp_only", .bool(row.isDERPOnly))
        result.add(
            "status",
            [
                "status": JSON(health.status),
                "report": ["errors": JSON(health.errors), "warnings": JSON(health.warnings)],
                "checked_at": JSON(health.checkedAt),
            ])
        result.add("created_at", JSON(row.createdAt))
        result.add("updated_at", JSON(row.updatedAt))
        result.add("deleted", .bool(row.isDeleted))
        result.add("version", JSON(row.version))
        return result
    }
}

/// `<proxy id>:<secret>`
enum ProxyTokens {
    static let secretLength = 64

    /// A new secret: its text, and what is stored.
    static func make() -> (secret: String, hashed: [UInt8]) {
        let secret = Digest.hex(Digest.random(secretLength / 2))
        return (secret, Digest.sha256(Array(secret.utf8)))
    }
}

extension Store {
    /// Those that were not deleted.
    func workspaceProxies() async throws -> [WorkspaceProxyRecord] {
        try await database.query("SELECT * FROM workspace_proxies WHERE NOT deleted ORDER BY lower(name)")
            .map(
                WorkspaceProxyRecord.init)
    }

    /// By UUID or name.
    func workspaceProxy(_ text: String) async throws -> WorkspaceProxyRecord? {
        try await database.first(
            """
            SELECT * FROM workspace_proxies
            WHERE NOT deleted AND (id = $1::uuid OR $1::uuid IS NULL AND lower(name) = lower($2))
            """, [SQLValue(Identifier(text)), SQLValue(text)]
        ).map(WorkspaceProxyRecord.init)
    }

    /// The proxy whose token this is.
    func workspaceProxy(token: String) async throws -> WorkspaceProxyRecord? {
        let parts = token.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
        guard parts.count == 2, parts[1].utf8.count == ProxyTokens.secretLength,
            let id = Identifier(parts[0]), let proxy = try await workspaceProxy(id.text),
            Digest.areEqual(Digest.sha256(Array(parts[1].utf8)), proxy.hashedSecret)
        else { return nil }
        return proxy
    }

    /// What a proxy told of itself when it registered.
    func registerProxy(_ id: Identifier, _ told: ProxyRegistration, now: Timestamp) async throws {
        try await database.query(
            """
            UPDATE workspace_proxies SET url = $2, wildcard_hostname = $3, derp_enabled = $4, derp_only = $5,
                version = $6, updated_at = $7 WHERE id = $1
            """,
            [
                SQLValue(id), SQLValue(told.accessURL.text), SQLValue(told.wildcardHostname),
                SQLValue(told.isDERPEnabled), SQLValue(told.isDERPOnly), SQLValue(told.version),
                SQLValue(now),
            ])
    }
}

extension GuardedStore {
    private func require(_ action: Subject.Action) throws(APIError) {
        try require(action, .init(type: "workspace_proxy"))
    }

    /// Those that were not deleted.
    func workspaceProxies() async throws -> [WorkspaceProxyRecord] {
        try require(.read)
        return try await store.workspaceProxies()
    }

    /// By UUID or name; 404 when there is none.
    func workspaceProxy(_ text: String, _ action: Subject.Action = .read) async throws -> WorkspaceProxyRecord
    {
        try require(action)
        guard let proxy = try await store.workspaceProxy(text) else { throw APIError.notFound }
        return proxy
    }

    /// A new proxy and its token, which nobody can read again.
    func createWorkspaceProxy(
        name: String, displayName: String, icon: String, now: Timestamp
    ) async throws -> (WorkspaceProxyRecord, token: String) {
        try require(.create)
        let (secret, hashed) = ProxyTokens.make()
        let id = Identifier.random()
        do {
            let row = try await store.database.first(
                """
                INSERT INTO workspace_proxies (id, name, display_name, icon, created_at, updated_at,
                    token_hashed_secret) VALUES ($1, $2, $3, $4, $5, $5, $6) RETURNING *
                """,
                [
                    SQLValue(id), SQLValue(name), SQLValue(displayName), SQLValue(icon), SQLValue(now),
                    .bytes(hashed),
                ])
            guard let row else { throw APIError.internal }
            return (WorkspaceProxyRecord(row), "\(id.text):\(secret)")
        } catch let error as DatabaseError where error.isUniqueViolation {
            throw APIError(409, "Workspace proxy with name \"\(name)\" already exists.")
        }
    }

    /// Changes names and icon, and the token on demand.
    func updateWorkspaceProxy(
        _ proxy: WorkspaceProxyRecord, name: String, displayName: String, icon: String,
        regeneratesToken: Bool, now: Timestamp
    ) async throws -> (WorkspaceProxyRecord, token: String) {
        try require(.update)
        let (secret, hashed) = ProxyTokens.make()
        do {
            let row = try await store.database.first(
                """
                UPDATE workspace_proxies SET name = $2, display_name = $3, icon = $4, updated_at = $5,
                    token_hashed_secret = $6 WHERE id = $1 RETURNING *
                """,
                [
                    SQLValue(proxy.id), SQLValue(name), SQLValue(displayName), SQLValue(icon), SQLValue(now),
                    .bytes(regeneratesToken ? hashed : proxy.hashedSecret),
                ])
            guard let row else { throw APIError.notFound }
            return (WorkspaceProxyRecord(row), regeneratesToken ? "\(proxy.id.text):\(secret)" : "")
        } catch let error as DatabaseError where error.isUniqueViolation {
            throw APIError(409, "Workspace proxy with name \"\(name)\" already exists.")
        }
    }

    /// Its name becomes free, its token void.
    func deleteWorkspaceProxy(_ proxy: WorkspaceProxyRecord, now: Timestamp) async throws {
        try require(.delete)
        try await store.database.query(
            "UPDATE workspace_proxies SET deleted = true, updated_at = $2 WHERE id = $1",
            [SQLValue(proxy.id), SQLValue(now)])
    }
}

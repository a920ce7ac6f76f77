// SPDX-License-Identifier: Apache-2.0

/// Organizations and their members.
struct OrganizationRoutes {
    let services: Services

    func register(_ routes: RouteTable) {
        let services = services
        routes.api(.get, "organizations", .user) { call in
            .json(.array(try await services.store(for: call).organizations().map(OrganizationRecord.json)))
        }
        routes.api(.get, "organizations/{organization}", .user) { call in
            let row = try await services.store(for: call).organization(call.parameter("organization"))
            return .json(OrganizationRecord.json(row))
        }
        routes.api(.get, "users/{user}/organizations", .user) { call in
            let store = try services.store(for: call)
            let user = try await store.user(call.parameter("user"))
            let rows = try await store.organizations().filter {
                user.organizationIDs.contains($0.identifier("id"))
            }
            return .json(.array(rows.map(OrganizationRecord.json)))
        }
        routes.api(.get, "users/{user}/organizations/{organizationname}", .user) { call in
            let store = try services.store(for: call)
            _ = try await store.user(call.parameter("user"))
            return .json(
                OrganizationRecord.json(try await store.organization(call.parameter("organizationname"))))
        }
    }
}

/// `codersdk.Organization` from a row of `organizations`.
enum OrganizationRecord {
    static func json(_ row: Row) -> JSON {
        [
            "id": JSON(row.identifier("id")), "name": JSON(row.text("name")),
            "display_name": JSON(row.text("display_name")), "icon": JSON(row.text("icon")),
            "description": JSON(row.text("description")), "created_at": JSON(row.time("created_at")),
            "updated_at": JSON(row.time("updated_at")), "is_default": JSON.bool(row.flag("is_default")),
        ]
    }
}

extension Store {
    func organizations() async throws -> [Row] {
        try await database.query("SELECT * FROM organizations WHERE NOT deleted ORDER BY lower(name)")
    }
}

extension GuardedStore {
    /// Those that the user may read.
    func organizations() async throws -> [Row] {
        try await store.organizations().filter {
            subject.may(.read, .init(type: "organization", id: $0.identifier("id")))
        }
    }

    /// A UUID, a name, `default`, or the zero UUID.
    func organization(_ text: String) async throws -> Row {
        let id = Identifier(text)
        let found = try await organizations().first { row in
            if text == "default" || id == .zero { return row.flag("is_default") }
            return row.identifier("id") == id || row.text("name").lowercased() == text.lowercased()
        }
        guard let found else { throw APIError.notFound }
        return found
    }
}

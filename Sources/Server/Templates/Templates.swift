// SPDX-License-Identifier: Apache-2.0

/// Rows of `templates` and `template_versions`, and their JSON.
enum TemplateRecord {
    static let query = """
        SELECT t.*, o.name AS organization_name, o.display_name AS organization_display_name,
            o.icon AS organization_icon, u.username AS created_by_name
        FROM templates t JOIN organizations o ON o.id = t.organization_id JOIN users u ON u.id = t.created_by
        """

    static let versionQuery = """
        SELECT v.*, u.username AS created_by_name, u.name AS created_by_full_name, u.avatar_url, \(Jobs.columns)
        FROM template_versions v JOIN users u ON u.id = v.created_by JOIN provisioner_jobs j ON j.id = v.job_id
        """

    private static let allDays: JSON = JSON([
        "monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday",
    ])

    /// `codersdk.Template`
    static func json(_ row: Row) -> JSON {
        let none: JSON = ["P50": nil, "P95": nil]
        var template: JSON = [
            "id": JSON(row.identifier("id")), "created_at": JSON(row.time("created_at")),
            "updated_at": JSON(row.time("updated_at")),
            "organization_id": JSON(row.identifier("organization_id")),
            "organization_name": JSON(row.text("organization_name")),
            "organization_display_name": JSON(row.text("organization_display_name")),
            "organization_icon": JSON(row.text("organization_icon")), "name": JSON(row.text("name")),
            "display_name": JSON(row.text("display_name")), "provisioner": JSON(row.text("provisioner")),
            "active_version_id": JSON(row.identifier("active_version_id")), "active_user_count": -1,
            "build_time_stats": ["start": none, "stop": none, "delete": none],
            "description": JSON(row.text("description")),
            "deprecated": .bool(!row.text("deprecated").isEmpty),
            "deprecation_message": JSON(row.text("deprecated")), "icon": JSON(row.text("icon")),
        ]
        for (key, column) in [("default_ttl_ms", "default_ttl"), ("activity_bump_ms", "activity_bump")] {
            template.add(key, JSON(row.integer(column) / 1_000_000))
        }
        template.add("autostop_requirement", ["days_of_week": [], "weeks": 1])
        template.add("autostart_requirement", ["days_of_week": allDays])
        template.add("created_by_id", JSON(row.identifier("created_by")))
        template.add("created_by_name", JSON(row.text("created_by_name")))
        for key in ["allow_user_autostart", "allow_user_autostop", "allow_user_cancel_workspace_jobs"] {
            template.add(key, .bool(row.flag(key)))
        }
        for column in ["failure_ttl", "time_til_dormant", "time_til_dormant_autodelete"] {
            template.add(column + "_ms", JSON(row.integer(column) / 1_000_000))
        }
        template.add("require_active_version", .bool(row.flag("require_active_version")))
        template.add("max_port_share_level", JSON(row.text("max_port_sharing_level")))
        template.add("cors_behavior", JSON(row.text("cors_behavior")))
        template.add("use_classic_parameter_flow", .bool(row.flag("use_classic_parameter_flow")))
        return template
    }

    /// `codersdk.TemplateVersion`
    static func versionJSON(_ row: Row) -> JSON {
        var creator: JSON = [
            "id": JSON(row.identifier("created_by")), "username": JSON(row.text("created_by_name")),
        ]
        creator.addUnlessEmpty("name", row.text("created_by_full_name"))
        creator.addUnlessEmpty("avatar_url", row.text("avatar_url"))
        var version: JSON = ["id": JSON(row.identifier("id"))]
        version.addUnlessEmpty("template_id", row.optionalIdentifier("template_id")?.text)
        version.add("organization_id", JSON(row.identifier("organization_id")))
        version.add("created_at", JSON(row.time("created_at")))
        version.add("updated_at", JSON(row.time("updated_at")))
        version.add("name", JSON(row.text("name")))
        version.add("message", JSON(row.text("message")))
        version.add("job", Jobs.json(row))
        version.add("readme", JSON(row.text("readme")))
        version.add("created_by", creator)
        version.add("archived", .bool(row.flag("archived")))
        version.add("has_external_agent", .bool(row.flag("has_external_agent")))
        return version
    }

    static func object(_ row: Row) -> Subject.Object {
        .init(type: "template", id: row.identifier("id"), organization: row.identifier("organization_id"))
    }
}

extension GuardedStore {
    func template(_ id: Identifier) async throws -> Row {
        let row = try await store.database.first(TemplateRecord.query + " WHERE t.id = $1", [SQLValue(id)])
        guard let row, !row.flag("deleted"), subject.may(.read, TemplateRecord.object(row)) else {
            throw APIError.notFound
        }
        return row
    }

    /// A version of a template that the user may read.
    func templateVersion(_ id: Identifier) async throws -> Row {
        let row = try await store.database.first(
            TemplateRecord.versionQuery + " WHERE v.id = $1", [SQLValue(id)])
        guard let row else { throw APIError.notFound }
        let object = Subject.Object(
            type: "template", id: row.optionalIdentifier("template_id"),
            organization: row.identifier("organization_id"))
        guard subject.may(.read, object) else { throw APIError.notFound }
        return row
    }

    func templates(_ search: TemplateSearch) async throws -> [Row] {
        guard !search.isNothing else { return [] }
        return try await store.database.query(
            TemplateRecord.query
                + """
                 WHERE t.deleted = $5 AND ($1 = '' OR lower(t.name) = $1)
                AND ($2 = '' OR position($2 in lower(t.name)) > 0 OR position($2 in lower(t.display_name)) > 0)
                AND ($3::uuid IS NULL OR t.organization_id = $3::uuid) AND (t.deprecated <> '') = $4
                AND ($6 = '' OR lower(t.display_name) = $6)
                AND (cardinality($7::uuid[]) = 0 OR t.id = ANY($7::uuid[]))
                AND ($8::uuid IS NULL OR t.created_by = $8::uuid)
                AND ($9::boolean IS NULL OR $9::boolean = coalesce((SELECT v.has_external_agent
                    FROM template_versions v WHERE v.id = t.active_version_id), false))
                ORDER BY lower(t.name), t.id
                """,
            [
                SQLValue(search.exactName), SQLValue(search.text), SQLValue(search.organization),
                SQLValue(search.isDeprecated), SQLValue(search.isDeleted), SQLValue(search.exactDisplayName),
                SQLValue(search.ids), SQLValue(search.author),
                search.hasExternalAgent.map { SQLValue($0) } ?? .null,
            ]
        ).filter { subject.may(.read, TemplateRecord.object($0)) }
    }
}

/// What a list of templates is narrowed to.
struct TemplateSearch: Sendable {
    var exactName = ""
    var text = ""
    var organization: Identifier?
    var isDeprecated = false
    var isDeleted = false
    var exactDisplayName = ""
    var ids: [Identifier] = []
    var author: Identifier?
    var hasExternalAgent: Bool?
    /// Nothing can be like that.
    var isNothing = false
}

// SPDX-License-Identifier: Apache-2.0

/// Rows of workspaces and builds, and their JSON.
enum WorkspaceRecord {
    /// Columns of a build and its job; the build is `b`, its job `j`, its version `v`, who started it `i`.
    private static let buildColumns = """
        b.id AS b_id, b.created_at AS b_created_at, b.updated_at AS b_updated_at, b.build_number AS b_build_number,
        b.transition AS b_transition, b.initiator_id AS b_initiator_id, b.reason AS b_reason,
        b.template_version_id AS b_template_version_id, b.deadline AS b_deadline, b.max_deadline AS b_max_deadline,
        b.daily_cost AS b_daily_cost, b.has_external_agent AS b_has_external_agent, v.name AS b_version_name,
        coalesce(i.username, '') AS b_initiator_name, \(Jobs.columns)
        """

    private static let columns = """
        w.id, w.created_at, w.updated_at, w.owner_id, w.organization_id, w.template_id, w.deleted, w.name,
        w.autostart_schedule, w.ttl, w.last_used_at, w.dormant_at, w.deleting_at, w.automatic_updates, w.favorite,
        w.next_start_at, u.username AS owner_name, u.avatar_url AS owner_avatar_url, o.name AS organization_name,
        t.name AS template_name, t.display_name AS template_display_name, t.icon AS template_icon,
        t.allow_user_cancel_workspace_jobs, t.active_version_id, t.require_active_version,
        t.use_classic_parameter_flow
        """

    private static let joins = """
        JOIN users u ON u.id = w.owner_id JOIN organizations o ON o.id = w.organization_id
        JOIN templates t ON t.id = w.template_id
        """

    private static let buildJoins = """
        JOIN provisioner_jobs j ON j.id = b.job_id JOIN template_versions v ON v.id = b.template_version_id
        LEFT JOIN users i ON i.id = b.initiator_id
        """

    /// Workspaces, each with its latest build.
    static let query = """
        SELECT \(columns), \(buildColumns) FROM workspaces w \(joins)
        JOIN LATERAL (SELECT * FROM workspace_builds l WHERE l.workspace_id = w.id
                      ORDER BY l.build_number DESC LIMIT 1) b ON true
        \(buildJoins)
        """

    /// Builds, each with its workspace.
    static let buildQuery = """
        SELECT \(columns), \(buildColumns) FROM workspace_builds b JOIN workspaces w ON w.id = b.workspace_id
        \(joins) \(buildJoins)
        """

    static func object(_ row: Row) -> Subject.Object {
        .init(
            type: "workspace", id: row.identifier("id"), owner: row.identifier("owner_id"),
            organization: row.identifier("organization_id"))
    }

    /// `codersdk.WorkspaceStatus` of the build in the row.
    static func status(_ row: Row) -> String {
        let transition = row.text("b_transition")
        switch Jobs.status(row) {
        case "running":
            return ["start": "starting", "stop": "stopping", "delete": "deleting"][transition] ?? "pending"
        case "succeeded":
            return ["start": "running", "stop": "stopped", "delete": "deleted"][transition] ?? "pending"
        case let other: return other
        }
    }

    /// `codersdk.Workspace`, seen by `viewer`.
    static func json(_ row: Row, resources: [JSON], viewer: Identifier) -> JSON {
        let agents = resources.flatMap { $0["agents"]?.elements ?? [] }
        let failing = agents.filter { $0["health"]?["healthy"]?.flag == false && $0["parent_id"] == .null }
        var result: JSON = [
            "id": JSON(row.identifier("id")), "created_at": JSON(row.time("created_at")),
            "updated_at": JSON(row.time("updated_at")), "owner_id": JSON(row.identifier("owner_id")),
            "owner_name": JSON(row.text("owner_name")),
            "owner_avatar_url": JSON(row.text("owner_avatar_url")),
            "organization_id": JSON(row.identifier("organization_id")),
            "organization_name": JSON(row.text("organization_name")),
            "template_id": JSON(row.identifier("template_id")),
            "template_name": JSON(row.text("template_name")),
            "template_display_name": JSON(row.text("template_display_name")),
            "template_icon": JSON(row.text("template_icon")),
            "template_allow_user_cancel_workspace_jobs": .bool(row.flag("allow_user_cancel_workspace_jobs")),
            "template_active_version_id": JSON(row.identifier("active_version_id")),
            "template_require_active_version": .bool(row.flag("require_active_version")),
            "template_use_classic_parameter_flow": .bool(row.flag("use_classic_parameter_flow")),
            "latest_build": buildJSON(row, resources: resources), "latest_app_status": nil,
            "outdated": .bool(row.identifier("b_template_version_id") != row.identifier("active_version_id")),
            "name": JSON(row.text("name")),
        ]
        result.addUnlessEmpty("autostart_schedule", row.optionalText("autostart_schedule"))
        if let ttl = row.optionalInteger("ttl") { result.add("ttl_ms", JSON(ttl / 1_000_000)) }
        result.add("last_used_at", JSON(row.time("last_used_at")))
        result.add("deleting_at", JSON(row.optionalTime("deleting_at")))
        result.add("dormant_at", JSON(row.optionalTime("dormant_at")))
        result.add(
            "health",
            ["healthy": .bool(failing.isEmpty), "failing_agents": .array(failing.compactMap { $0["id"] })])
        result.add("automatic_updates", JSON(row.text("automatic_updates")))
        result.add("allow_renames", false)
        result.add("favorite", .bool(row.flag("favorite") && row.identifier("owner_id") == viewer))
        result.add("next_start_at", JSON(row.optionalTime("next_start_at")))
        result.add("is_prebuild", false)
        result.add("task_id", nil)
        return result
    }

    /// `codersdk.WorkspaceBuild` of the build in the row.
    static func buildJSON(_ row: Row, resources: [JSON]) -> JSON {
        func optional(_ column: String) -> JSON {
            let time = row.time(column)
            return time == .zero ? .null : JSON(time)
        }
        var build: JSON = [
            "id": JSON(row.identifier("b_id")), "created_at": JSON(row.time("b_created_at")),
            "updated_at": JSON(row.time("b_updated_at")), "workspace_id": JSON(row.identifier("id")),
            "workspace_name": JSON(row.text("name")), "workspace_owner_id": JSON(row.identifier("owner_id")),
            "workspace_owner_name": JSON(row.text("owner_name")),
        ]
        build.addUnlessEmpty("workspace_owner_avatar_url", row.text("owner_avatar_url"))
        build.add("template_version_id", JSON(row.identifier("b_template_version_id")))
        build.add("template_version_name", JSON(row.text("b_version_name")))
        build.add("build_number", JSON(row.integer("b_build_number")))
        build.add("transition", JSON(row.text("b_transition")))
        build.add("initiator_id", JSON(row.identifier("b_initiator_id")))
        build.add("initiator_name", JSON(row.text("b_initiator_name")))
        build.add("job", Jobs.json(row))
        build.add("reason", JSON(row.text("b_reason")))
        build.add("resources", .array(resources))
        build.add("deadline", optional("b_deadline"))
        build.add("max_deadline", optional("b_max_deadline"))
        build.add("status", JSON(status(row)))
        build.add("daily_cost", JSON(row.integer("b_daily_cost")))
        build.add("matched_provisioners", ["count": 0, "available": 0, "most_recently_seen": nil])
        build.add("template_version_preset_id", nil)
        build.add("has_ai_task", false)
        build.add("has_external_agent", .bool(row.flag("b_has_external_agent")))
        return build
    }
}

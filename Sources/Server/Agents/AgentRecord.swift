// SPDX-License-Identifier: Apache-2.0

/// Resources and agents of builds, and their JSON.
enum AgentRecord {
    /// How long after the last sign of life an agent counts as gone.
    static let inactiveSeconds = 30.0

    /// `connecting`, `connected`, `disconnected`, or `timeout`.
    static func status(_ row: Row, now: Timestamp) -> String {
        guard let last = row.optionalTime("last_connected_at"), row.optionalTime("first_connected_at") != nil
        else {
            let patience = row.integer("connection_timeout_seconds")
            let age = now.seconds(since: row.time("created_at"))
            return patience > 0 && age > Double(patience) ? "timeout" : "connecting"
        }
        if let gone = row.optionalTime("disconnected_at"), gone >= last { return "disconnected" }
        return now.seconds(since: last) > inactiveSeconds ? "disconnected" : "connected"
    }

    private static func health(status: String, lifecycle: String) -> JSON {
        let reason: String? =
            switch (status, lifecycle) {
            case ("connected", "start_error"): "agent startup script exited with an error"
            case ("connected", "shutting_down"), ("connected", "shutdown_timeout"),
                ("connected", "shutdown_error"):
                "agent is shutting down"
            case ("connected", _): nil
            case (_, "off"): "agent is not running"
            case ("timeout", _): "agent is taking too long to connect"
            case ("disconnected", _): "agent has lost connection"
            default: nil
            }
        guard let reason else { return ["healthy": true] }
        return ["healthy": false, "reason": JSON(reason)]
    }

    /// `codersdk.WorkspaceAgent`
    static func json(
        _ row: Row, logSources: [JSON], latency: JSON?, troubleshootingURL: String, now: Timestamp
    ) -> JSON {
        let status = status(row, now: now)
        let lifecycle = row.text("lifecycle_state")
        var agent: JSON = [
            "id": JSON(row.identifier("id")), "parent_id": JSON(row.optionalIdentifier("parent_id")),
            "created_at": JSON(row.time("created_at")), "updated_at": JSON(row.time("updated_at")),
        ]
        for key in ["first_connected_at", "last_connected_at", "disconnected_at", "started_at", "ready_at"] {
            agent.addUnlessEmpty(key, row.optionalTime(key))
        }
        agent.add("status", JSON(status))
        agent.add("lifecycle_state", JSON(lifecycle))
        agent.add("name", JSON(row.text("name")))
        agent.add("resource_id", JSON(row.identifier("resource_id")))
        agent.addUnlessEmpty("instance_id", row.text("auth_instance_id"))
        agent.add("architecture", JSON(row.text("architecture")))
        agent.add("environment_variables", row.json("environment_variables"))
        agent.add("operating_system", JSON(row.text("operating_system")))
        agent.add("logs_length", JSON(row.integer("logs_length")))
        agent.add("logs_overflowed", .bool(row.flag("logs_overflowed")))
        agent.addUnlessEmpty("directory", row.text("directory"))
        agent.addUnlessEmpty("expanded_directory", row.text("expanded_directory"))
        agent.add("version", JSON(row.text("version")))
        agent.add("api_version", JSON(row.text("api_version")))
        agent.add("apps", [])
        if let latency { agent.add("latency", latency) }
        agent.add("connection_timeout_seconds", JSON(row.integer("connection_timeout_seconds")))
        let own = row.text("troubleshooting_url")
        agent.add("troubleshooting_url", JSON(own.isEmpty ? troubleshootingURL : own))
        agent.add("subsystems", JSON(row.list("subsystems")))
        agent.add("health", health(status: status, lifecycle: lifecycle))
        agent.add("display_apps", JSON(row.list("display_apps")))
        agent.add("log_sources", .array(logSources))
        agent.add("scripts", [])
        agent.add("startup_script_behavior", "non-blocking")
        return agent
    }

    /// `codersdk.WorkspaceResource`
    static func resourceJSON(_ row: Row, agents: [JSON]) -> JSON {
        var resource: JSON = [
            "id": JSON(row.identifier("id")), "created_at": JSON(row.time("created_at")),
            "job_id": JSON(row.identifier("job_id")), "workspace_transition": JSON(row.text("transition")),
            "type": JSON(row.text("type")), "name": JSON(row.text("name")), "hide": .bool(row.flag("hide")),
            "icon": JSON(row.text("icon")),
        ]
        if !agents.isEmpty { resource.add("agents", .array(agents)) }
        resource.add("daily_cost", JSON(row.integer("daily_cost")))
        return resource
    }
}

extension Services {
    /// The resources of each job, with their agents.
    func resources(ofJobs jobs: [Identifier]) async throws -> [Identifier: [JSON]] {
        guard !jobs.isEmpty else { return [:] }
        let resources = try await store.database.query(
            "SELECT * FROM workspace_resources WHERE job_id = ANY($1::uuid[]) ORDER BY name, id",
            [SQLValue(jobs)])
        let agents = try await agentRows(
            "a.resource_id = ANY($1::uuid[]) AND NOT a.deleted",
            [SQLValue(resources.map { $0.identifier("id") })])
        var byResource: [Identifier: [JSON]] = [:]
        for agent in agents { byResource[agent.resource, default: []].append(agent.json) }
        var result: [Identifier: [JSON]] = [:]
        for row in resources {
            let json = AgentRecord.resourceJSON(row, agents: byResource[row.identifier("id")] ?? [])
            result[row.identifier("job_id"), default: []].append(json)
        }
        return result
    }

    /// The JSON of agents that meet a condition on `workspace_agents a`.
    func agentRows(
        _ condition: String, _ values: [SQLValue]
    ) async throws -> [(resource: Identifier, json: JSON)] {
        let rows = try await store.database.query(
            "SELECT a.* FROM workspace_agents a WHERE \(condition) ORDER BY a.display_order, a.name, a.id",
            values)
        let sources = try await store.database.query(
            """
            SELECT * FROM workspace_agent_log_sources WHERE workspace_agent_id = ANY($1::uuid[])
            ORDER BY created_at, id
            """,
            [SQLValue(rows.map { $0.identifier("id") })])
        let now = Timestamp.now()
        let troubleshooting = options.docsURL + "/admin/templates/troubleshooting"
        var result: [(resource: Identifier, json: JSON)] = []
        for row in rows {
            let id = row.identifier("id")
            let own = sources.filter { $0.identifier("workspace_agent_id") == id }.map { source -> JSON in
                [
                    "workspace_agent_id": JSON(id), "id": JSON(source.identifier("id")),
                    "created_at": JSON(source.time("created_at")),
                    "display_name": JSON(source.text("display_name")), "icon": JSON(source.text("icon")),
                ]
            }
            let json = AgentRecord.json(
                row, logSources: own, latency: await mesh.latency(ofAgent: id),
                troubleshootingURL: troubleshooting, now: now)
            result.append((row.identifier("resource_id"), json))
        }
        return result
    }
}

extension Store {
    /// The agent with that token, if it belongs to the latest build of a living workspace and that build started it.
    func agent(token: Identifier) async throws -> AgentIdentity? {
        let row = try await database.first(
            """
            SELECT a.id, a.name, a.resource_id, a.api_key_scope, w.id AS workspace_id, w.name AS workspace_name,
                w.owner_id, w.organization_id, u.username, b.id AS build_id
            FROM workspace_agents a JOIN workspace_resources r ON r.id = a.resource_id
            JOIN workspace_builds b ON b.job_id = r.job_id JOIN workspaces w ON w.id = b.workspace_id
            JOIN users u ON u.id = w.owner_id
            WHERE a.auth_token = $1 AND NOT a.deleted AND NOT w.deleted AND b.transition = 'start'
                AND u.status <> 'suspended' AND NOT u.deleted
                AND b.build_number = (SELECT max(build_number) FROM workspace_builds l WHERE l.workspace_id = w.id)
            """, [SQLValue(token)])
        return row.map { row in
            AgentIdentity(
                agentID: row.identifier("id"), agentName: row.text("name"),
                resourceID: row.identifier("resource_id"),
                workspaceID: row.identifier("workspace_id"), workspaceName: row.text("workspace_name"),
                ownerID: row.identifier("owner_id"), ownerName: row.text("username"),
                organizationID: row.identifier("organization_id"), buildID: row.identifier("build_id"),
                keyScope: row.text("api_key_scope"))
        }
    }
}

extension GuardedStore {
    /// The workspace of an agent, if the user may do `action` with it. Agents of earlier builds are not found.
    func workspace(ofAgent agent: Identifier, action: Subject.Action = .read) async throws -> Row {
        let row = try await store.database.first(
            WorkspaceRecord.query
                + """
                 WHERE NOT w.deleted AND j.id = (SELECT r.job_id FROM workspace_agents a
                    JOIN workspace_resources r ON r.id = a.resource_id WHERE a.id = $1 AND NOT a.deleted)
                """, [SQLValue(agent)])
        guard let row, subject.may(action, WorkspaceRecord.object(row)) else { throw APIError.notFound }
        return row
    }
}

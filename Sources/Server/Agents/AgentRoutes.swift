// SPDX-License-Identifier: Apache-2.0

/// Agents as users see them: state and logs.
struct AgentRoutes {
    let services: Services

    func register(_ routes: RouteTable) {
        let services = services
        routes.api(.get, "workspaceagents/{workspaceagent}", .user) { call in
            let id = try call.identifier("workspaceagent")
            _ = try await services.store(for: call).workspace(ofAgent: id)
            guard let agent = try await services.agentRows("a.id = $1", [SQLValue(id)]).first else {
                throw APIError.notFound
            }
            return .json(agent.json)
        }
        for name in ["logs", "startup-logs"] {
            routes.api(.get, "workspaceagents/{workspaceagent}/\(name)", .user) { call in
                let id = try call.identifier("workspaceagent")
                _ = try await services.store(for: call).workspace(ofAgent: id)
                return try await LogStreams(services: services).agentLogs(call, agent: id)
            }
        }
        routes.api(.get, "workspaceagents/{workspaceagent}/listening-ports", .user) { call in
            _ = try await services.store(for: call).workspace(ofAgent: call.identifier("workspaceagent"))
            return .json(["ports": []])
        }
        routes.api(.get, "workspaceagents/{workspaceagent}/containers", .user) { call in
            _ = try await services.store(for: call).workspace(ofAgent: call.identifier("workspaceagent"))
            return .json(["devcontainers": [], "containers": [], "warnings": []])
        }
    }
}

extension Store {
    /// Lines of an agent's log with a greater id than `after`: `codersdk.WorkspaceAgentLog`.
    func agentLogs(_ agent: Identifier, after: Int64) async throws -> [JSON] {
        try await database.query(
            "SELECT * FROM workspace_agent_logs WHERE agent_id = $1 AND id > $2 ORDER BY id",
            [SQLValue(agent), SQLValue(after)]
        ).map { row in
            [
                "id": JSON(row.integer("id")), "created_at": JSON(row.time("created_at")),
                "output": JSON(row.text("output")), "level": JSON(row.text("level")),
                "source_id": JSON(row.identifier("log_source_id")),
            ]
        }
    }
}

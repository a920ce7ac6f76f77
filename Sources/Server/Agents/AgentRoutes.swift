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
            try await requireConnected(call)
            return .json(["ports": []])
        }
        routes.api(.get, "workspaceagents/{workspaceagent}/containers", .user) { call in
            try await requireConnected(call)
            return .json(["devcontainers": [], "containers": [], "warnings": []])
        }
        routes.api(.get, "workspaceagents/{workspaceagent}/watch-metadata", .user) { call in
            let (store, agent) = (try services.store(for: call), try call.identifier("workspaceagent"))
            _ = try await store.workspace(ofAgent: agent)
            return Reply(
                status: 200, fields: [("Cache-Control", "no-cache"), ("X-Accel-Buffering", "no")],
                body: .stream(type: "text/event-stream") { writer in
                    try await Self.metadata(of: agent, store) { try await writer.event("data", $0) }
                })
        }
        routes.api(.get, "workspaceagents/{workspaceagent}/watch-metadata-ws", .user) { call in
            let (store, agent) = (try services.store(for: call), try call.identifier("workspaceagent"))
            _ = try await store.workspace(ofAgent: agent)
            return try call.webSocket { socket in
                await socket.sendOnly(for: call) {
                    try await Self.metadata(of: agent, store) { list in
                        try await socket.send(text: (["type": "data", "data": list] as JSON).encoded)
                    }
                }
            }
        }
        // Nobody is notified of anything yet: the socket stays open and says nothing.
        routes.api(.get, "notifications/inbox/watch", .user) { call in
            try call.webSocket { socket in
                await socket.sendOnly(for: call) { while true { try await Task.sleep(for: .seconds(3600)) } }
            }
        }
    }

    /// Throws 400 unless the agent is connected: what these routes tell, only the agent knows.
    private func requireConnected(_ call: Call) async throws {
        let id = try call.identifier("workspaceagent")
        _ = try await services.store(for: call).workspace(ofAgent: id)
        let agent = try await services.agentRows("a.id = $1", [SQLValue(id)]).first
        let status = agent?.json["status"]?.text ?? "disconnected"
        guard status == "connected" else {
            throw APIError(
                400, "Agent state is \"\(status)\", it must be in the \"connected\" state.")
        }
    }

    /// Reports the metadata of an agent, of which there is none yet, now and every 5 s while its build is the latest.
    private static func metadata(
        of agent: Identifier, _ store: GuardedStore, _ report: @Sendable (JSON) async throws -> Void
    ) async throws {
        repeat {
            try await report([])
            try await Task.sleep(for: .seconds(5))
        } while try await store.isCurrent(agent)
    }
}

extension GuardedStore {
    /// Whether the agent is still there for the user. Throws when nobody can tell.
    fileprivate func isCurrent(_ agent: Identifier) async throws -> Bool {
        do {
            _ = try await workspace(ofAgent: agent)
            return true
        } catch is APIError {
            return false
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

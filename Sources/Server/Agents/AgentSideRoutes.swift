// SPDX-License-Identifier: Apache-2.0

internal import Coordinator
internal import RPC

/// Doors for agents, behind their own token.
struct AgentSideRoutes {
    let services: Services

    func register(_ routes: RouteTable) {
        let services = services
        routes.api(.get, "workspaceagents/me/rpc", .agent) { try await rpc($0) }
        routes.api(.post, "workspaceagents/me/log-source", .agent) { try await logSource($0) }
        routes.api(.patch, "workspaceagents/me/logs", .agent) { try await logs($0) }
        routes.api(.get, "workspaceagents/me/gitsshkey", .agent) { call in
            let agent = try call.agent()
            guard agent.keyScope != "no_user_data" else { throw APIError.forbidden }
            let key = try await services.store.gitKey(of: agent.ownerID, renew: false, now: .now())
            return .json(["public_key": JSON(key.publicKey), "private_key": JSON(key.privateKey)])
        }
        routes.api(.get, "workspaceagents/me/reinit", .agent) { call in
            // Workspaces that are made in advance do not exist yet: nobody is ever claimed.
            Reply(
                status: 200, fields: [("Cache-Control", "no-cache")],
                body: .stream(type: "text/event-stream") { writer in
                    while true {
                        try await writer.ping()
                        try await Task.sleep(for: .seconds(15))
                    }
                })
        }
        for name in ["external-auth", "gitauth"] {
            routes.api(.get, "workspaceagents/me/\(name)", .agent) { _ in
                throw APIError(404, "No git provider is configured on this server.")
            }
        }
        routes.api(.patch, "workspaceagents/me/app-status", .agent) { _ in
            throw APIError(400, "Failed to get workspace app.", detail: "this workspace has no applications")
        }
    }

    private func rpc(_ call: Call) async throws -> Reply {
        let agent = try call.agent()
        try TailnetRoutes.checkVersion(call.query["version"], standard: "2.0")
        guard let token = try await services.store.token(ofAgent: agent.agentID) else {
            throw APIError.notFound
        }
        var handlers = RPCHandlers()
        AgentService(services: services, agent: agent, apiVersion: call.query["version"] ?? "2.0").register(
            &handlers)
        TailnetService(services: services, peer: agent.agentID, role: .agent, name: agent.workspaceName)
            .register(&handlers)
        let (services, complete) = (services, handlers)
        return try call.webSocket { socket in
            await services.mesh.sessions.serve(socket, handlers: complete) { connection in
                await services.agentSessions.watch(agent, token: token, connection)
            }
        }
    }

    private func logSource(_ call: Call) async throws -> Reply {
        let (agent, body) = (try call.agent(), try call.json())
        guard let id = body["id"]?.text.flatMap({ Identifier($0) })?.unlessZero else {
            throw Names.refusal("id", tag: "uuid", value: body["id"]?.text ?? "")
        }
        let now = Timestamp.now()
        let (name, icon) = (body["display_name"]?.text ?? "", body["icon"]?.text ?? "")
        try await services.store.addLogSource(agent.agentID, id: id, name: name, icon: icon, now: now)
        return .json(
            [
                "workspace_agent_id": JSON(agent.agentID), "id": JSON(id), "created_at": JSON(now),
                "display_name": JSON(name), "icon": JSON(icon),
            ], status: 201)
    }

    private func logs(_ call: Call) async throws -> Reply {
        let (agent, body) = (try call.agent(), try call.json())
        let lines = (body["logs"]?.elements ?? []).map { line in
            AgentLogLine(output: line["output"]?.text ?? "", level: Self.level(line["level"]?.text))
        }
        guard !lines.isEmpty else { throw APIError.invalid("logs", "No logs provided.") }
        let source = body["log_source_id"]?.text.flatMap { Identifier($0) }?.unlessZero
        let isStored = try await services.store.appendAgentLogs(
            agent.agentID, source: source, lines: lines, now: .now())
        services.events.publish(.agentLogs(agent.agentID))
        guard isStored else { throw APIError(413, "Logs limit exceeded") }
        return .json(.null)
    }

    private static func level(_ text: String?) -> String {
        let known = ["trace", "debug", "info", "warn", "error"]
        return text.flatMap { known.contains($0) ? $0 : nil } ?? "info"
    }
}

extension Store {
    func token(ofAgent agent: Identifier) async throws -> Identifier? {
        try await database.first("SELECT auth_token FROM workspace_agents WHERE id = $1", [SQLValue(agent)])?
            .optionalIdentifier("auth_token")
    }
}

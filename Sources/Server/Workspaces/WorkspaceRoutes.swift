// SPDX-License-Identifier: Apache-2.0

/// Workspaces: list, make, read, watch, mark as used.
struct WorkspaceRoutes {
    let services: Services

    func register(_ routes: RouteTable) {
        let services = services
        routes.api(.get, "workspaces", .user) { try await list($0) }
        routes.api(.get, "workspaces/{workspace}", .user) { call in
            let store = try services.store(for: call)
            let includeDeleted = try call.query.flag("include_deleted") || call.query.flag("deleted")
            let row = try await store.workspace(call.identifier("workspace"), includeDeleted: includeDeleted)
            return .json(try await services.workspaceJSON(row, viewer: store.subject.userID))
        }
        routes.api(.get, "users/{user}/workspace/{workspacename}", .user) { call in
            let store = try services.store(for: call)
            let user = try await store.user(call.parameter("user"))
            let row = try await store.workspace(
                owner: user.id, name: call.parameter("workspacename"),
                includeDeleted: try call.query.flag("include_deleted"))
            return .json(try await services.workspaceJSON(row, viewer: store.subject.userID))
        }
        routes.api(.post, "users/{user}/workspaces", .user) { try await create($0) }
        routes.api(.post, "organizations/{organization}/members/{user}/workspaces", .user) {
            try await create($0)
        }
        routes.api(.post, "workspaces/{workspace}/usage", .user) { try await usage($0) }
        routes.api(.get, "workspaces/{workspace}/watch", .user) { try await watch($0) }
        routes.api(.get, "workspaces/{workspace}/watch-ws", .user) { try await watchSocket($0) }
        routes.api(.put, "workspaces/{workspace}/dormant", .user) { try await setDormant($0) }
        for method in [HTTPMethod.put, .delete] {
            routes.api(method, "workspaces/{workspace}/favorite", .user) { call in
                let store = try services.store(for: call)
                let row = try await store.workspace(call.identifier("workspace"))
                guard row.identifier("owner_id") == store.subject.userID else { throw APIError.forbidden }
                try await services.store.database.query(
                    "UPDATE workspaces SET favorite = $2 WHERE id = $1",
                    [SQLValue(row.identifier("id")), SQLValue(method == .put)])
                return .noContent
            }
        }
        routes.api(.get, "workspaces/{workspace}/external-agent/{agent}/credentials", .user) {
            try await credentials($0)
        }
        routes.api(.get, "workspaces/{workspace}/resolve-autostart", .user) { call in
            _ = try await services.store(for: call).workspace(call.identifier("workspace"))
            return .json(["parameter_mismatch": false])
        }
    }

    // MARK: List and create

    private func list(_ call: Call) async throws -> Reply {
        let store = try services.store(for: call)
        let search = try await search(call, store)
        var rows = try await store.workspaces(search)
        if let status = search.agentStatus { rows = try await services.keep(rows, withAgentThatIs: status) }
        let (offset, limit) = (try call.query.count("offset"), try call.query.count("limit"))
        let page = Array(limit == 0 ? rows.dropFirst(offset) : rows.dropFirst(offset).prefix(limit))
        let resources = try await services.resources(ofJobs: page.map { $0.identifier("j_id") })
        let workspaces = page.map { row in
            WorkspaceRecord.json(
                row, resources: resources[row.identifier("j_id")] ?? [], viewer: store.subject.userID)
        }
        return .json(["workspaces": .array(workspaces), "count": JSON(rows.count)])
    }

    private func search(_ call: Call, _ store: GuardedStore) async throws -> WorkspaceSearch {
        let query = try SearchQuery(call.query["q"] ?? "")
        try query.allow(
            [
                "owner", "name", "template", "status", "dormant", "outdated", "organization",
                "has_external_agent",
                "has-agent", "last_used_after", "last_used_before", "has-ai-task", "shared",
                "shared_with_user",
                "shared_with_group",
            ], repeated: ["id", "param"])
        var search = WorkspaceSearch(name: query["name"] ?? query.free)
        var owner = query["owner"]
        if query.free.contains("/") {
            let parts = query.free.split(separator: "/", omittingEmptySubsequences: false)
            guard parts.count == 2 else {
                throw APIError.invalid(
                    "q", "Query element \"\(query.free)\" can only contain 1 '/'", message: "Invalid query.")
            }
            owner = String(parts[0])
            search.name = String(parts[1])
        }
        if let owner, !owner.isEmpty {
            do {
                search.owner = try await store.user(owner).id
            } catch {
                throw APIError.invalid("owner", "user \"\(owner)\" does not exist", message: "Invalid query.")
            }
        }
        search.template = query["template"] ?? ""
        search.status = try query.word("status", of: Self.statuses) ?? ""
        search.agentStatus = try query.word(
            "has-agent", of: ["connecting", "connected", "disconnected", "timeout"])
        search.isDormantOnly = try query.flag("dormant") ?? false
        search.isOutdated = try query.flag("outdated")
        search.hasExternalAgent = try query.flag("has_external_agent")
        search.usedAfter = try query.time("last_used_after")
        search.usedBefore = try query.time("last_used_before")
        search.ids = query.list("id").compactMap { Identifier($0) }
        // There are no tasks, parameters, or workspaces of others that were shared: who asks for them gets none.
        let isShared = try query.flag("shared") ?? false
        search.isNothing =
            try query.flag("has-ai-task") == true || isShared || !query.list("param").isEmpty
            || query["shared_with_user"] != nil || query["shared_with_group"] != nil
        if let organization = query["organization"] {
            search.organization = try await store.organization(organization).identifier("id")
        }
        return search
    }

    private static let statuses = [
        "pending", "starting", "running", "stopping", "stopped", "failed", "canceling", "canceled", "deleted",
        "deleting",
    ]

    private func create(_ call: Call) async throws -> Reply {
        let store = try services.store(for: call)
        let user = try await store.user(call.parameter("user"))
        let body = try call.json()
        let name = body["name"]?.text ?? ""
        guard Names.isPlain(name) else { throw Names.refusal("name", tag: "workspace_name", value: name) }
        let schedule = body["autostart_schedule"]?.text ?? ""
        if !schedule.isEmpty, let complaint = WeeklySchedule.complaint(schedule) {
            throw APIError.invalid("schedule", complaint, message: "Invalid Autostart Schedule.")
        }
        let (template, version) = try await chosenVersion(body, store)
        guard template.text("deprecated").isEmpty else {
            throw APIError(
                400,
                "Template \"\(template.text("name"))\" has been deprecated, "
                    + "and cannot be used to create a new workspace."
            )
        }
        try store.require(.create, .init(type: "workspace", owner: user.id))
        let new = NewWorkspace(
            owner: user.id, organization: template.identifier("organization_id"),
            template: template.identifier("id"),
            version: version, name: name, schedule: schedule.isEmpty ? nil : schedule,
            ttlNanoseconds: try ttl(body["ttl_ms"]),
            automaticUpdates: updates(body["automatic_updates"]?.text),
            initiator: store.subject.userID)
        let id = try await services.store.createWorkspace(new, now: .now())
        services.events.publish(.workspace(id))
        let row = try await store.workspace(id)
        return .json(try await services.workspaceJSON(row, viewer: store.subject.userID), status: 201)
    }

    /// Exactly one of template and version is given; the zero UUID means neither.
    private func chosenVersion(_ body: JSON, _ store: GuardedStore) async throws -> (Row, Identifier) {
        let template = body["template_id"]?.text.flatMap { Identifier($0) }?.unlessZero
        let version = body["template_version_id"]?.text.flatMap { Identifier($0) }?.unlessZero
        switch (template, version) {
        case (let template?, nil):
            let row = try await store.template(template)
            return (row, row.identifier("active_version_id"))
        case (nil, let version?):
            let row = try await store.templateVersion(version)
            guard let template = row.optionalIdentifier("template_id") else {
                throw APIError.invalid("template_version_id", "template version has no template")
            }
            if row.flag("archived") {
                throw APIError(400, "Archived template versions cannot be used to make a workspace.")
            }
            return (try await store.template(template), version)
        default:
            throw APIError.invalid(
                "template_id", "exactly one of template_id and template_version_id must be given")
        }
    }

    private func ttl(_ value: JSON?) throws(APIError) -> Int64? {
        guard let milliseconds = value?.integer, milliseconds != 0 else { return nil }
        guard (60_000...2_592_000_000).contains(milliseconds) else {
            throw APIError.invalid(
                "ttl_ms", "time until shutdown must be between one minute and 30 days",
                message: "Invalid Workspace Time to Shutdown.")
        }
        return milliseconds / 60_000 * 60_000 * 1_000_000
    }

    private func updates(_ text: String?) -> String { text == "always" ? "always" : "never" }

    // MARK: One workspace

    private func usage(_ call: Call) async throws -> Reply {
        let store = try services.store(for: call)
        let row = try await store.workspace(call.identifier("workspace"), action: .update)
        try await services.store.database.query(
            "UPDATE workspaces SET last_used_at = greatest(last_used_at, $2) WHERE id = $1",
            [SQLValue(row.identifier("id")), SQLValue(Timestamp.now())])
        return .noContent
    }

    private func setDormant(_ call: Call) async throws -> Reply {
        let store = try services.store(for: call)
        let row = try await store.workspace(call.identifier("workspace"), action: .update)
        let dormant = try call.json()["dormant"]?.flag ?? false
        guard dormant != (row.optionalTime("dormant_at") != nil) else {
            return Reply(status: 304, body: .none)
        }
        let now = Timestamp.now()
        try await services.store.database.query(
            "UPDATE workspaces SET dormant_at = $2, last_used_at = $3 WHERE id = $1",
            [SQLValue(row.identifier("id")), dormant ? SQLValue(now) : .null, SQLValue(now)])
        services.events.publish(.workspace(row.identifier("id")))
        let fresh = try await store.workspace(row.identifier("id"))
        return .json(try await services.workspaceJSON(fresh, viewer: store.subject.userID))
    }

    /// What to run on the machine that shall become the workspace.
    private func credentials(_ call: Call) async throws -> Reply {
        let store = try services.store(for: call)
        let row = try await store.workspace(call.identifier("workspace"), action: .update)
        guard row.flag("b_has_external_agent") else {
            throw APIError(404, "Workspace does not have an external agent.")
        }
        let agent = try await services.store.database.first(
            """
            SELECT a.auth_token, a.operating_system, a.architecture FROM workspace_agents a
            JOIN workspace_resources r ON r.id = a.resource_id
            WHERE r.job_id = $1 AND a.name = $2 AND r.type = 'coder_external_agent' AND NOT a.deleted
            """, [SQLValue(row.identifier("j_id")), SQLValue(call.parameter("agent"))])
        guard let agent else {
            throw APIError(404, "External agent '\(call.parameter("agent"))' not found in workspace.")
        }
        let token = agent.identifier("auth_token").text
        let (system, processor) = (agent.text("operating_system"), agent.text("architecture"))
        let url = "\(services.publicURL(for: call))/api/v2/init-script/\(system)/\(processor)"
        return .json([
            "command": JSON("curl -fsSL \"\(url)\" | CODER_AGENT_TOKEN=\"\(token)\" sh"),
            "agent_token": JSON(token),
        ])
    }

    // MARK: Watch

    private func watch(_ call: Call) async throws -> Reply {
        let (store, id) = (try services.store(for: call), try call.identifier("workspace"))
        _ = try await store.workspace(id)
        let services = services
        var reply = Reply(
            status: 200,
            body: .stream(type: "text/event-stream") { writer in
                try await writer.ping()
                try await services.watchWorkspace(id, store) { workspace in
                    if let workspace {
                        try await writer.event("data", workspace)
                    } else {
                        guard await call.isStillAllowed() else { throw APIError.forbidden }
                        try await writer.ping()
                    }
                }
            })
        reply.fields = [("Cache-Control", "no-cache"), ("X-Accel-Buffering", "no")]
        return reply
    }

    private func watchSocket(_ call: Call) async throws -> Reply {
        let (store, id) = (try services.store(for: call), try call.identifier("workspace"))
        _ = try await store.workspace(id)
        let services = services
        return try call.webSocket { socket in
            await socket.sendOnly(for: call) {
                try await socket.send(text: (["type": "ping", "data": nil] as JSON).encoded)
                try await services.watchWorkspace(id, store) { workspace in
                    guard let workspace else { return }
                    try await socket.send(text: (["type": "data", "data": workspace] as JSON).encoded)
                }
            }
        }
    }
}

extension Services {
    /// Those whose latest build has an agent in that state.
    fileprivate func keep(_ rows: [Row], withAgentThatIs status: String) async throws -> [Row] {
        let resources = try await resources(ofJobs: rows.map { $0.identifier("j_id") })
        return rows.filter { row in
            let agents = (resources[row.identifier("j_id")] ?? []).flatMap { $0["agents"]?.elements ?? [] }
            return agents.contains { $0["status"]?.text == status }
        }
    }

    /// `codersdk.Workspace` with the resources of its latest build.
    func workspaceJSON(_ row: Row, viewer: Identifier) async throws -> JSON {
        let job = row.identifier("j_id")
        return WorkspaceRecord.json(
            row, resources: try await resources(ofJobs: [job])[job] ?? [], viewer: viewer)
    }

    /// Calls `report` with the workspace now and after each change, and with nil every 15 s.
    func watchWorkspace(
        _ id: Identifier, _ store: GuardedStore, _ report: @Sendable (JSON?) async throws -> Void
    ) async throws {
        let changes = events.subscribe(.workspace(id))
        defer { changes.cancel() }
        while true {
            let row = try await store.workspace(id, includeDeleted: true)
            try await report(try await workspaceJSON(row, viewer: store.subject.userID))
            while try await changes.next(timeoutSeconds: 15) == false { try await report(nil) }
        }
    }
}

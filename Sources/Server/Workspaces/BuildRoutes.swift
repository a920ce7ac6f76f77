// SPDX-License-Identifier: Apache-2.0

/// Builds: start, stop, delete; reading them and their logs.
struct BuildRoutes {
    let services: Services

    func register(_ routes: RouteTable) {
        let services = services
        routes.api(.get, "workspaces/{workspace}/builds", .user) { call in
            let store = try services.store(for: call)
            let row = try await store.workspace(call.identifier("workspace"), includeDeleted: true)
            let builds = try await services.store.database.query(
                WorkspaceRecord.buildQuery + " WHERE w.id = $1 ORDER BY b.build_number DESC",
                [SQLValue(row.identifier("id"))])
            let (offset, limit) = (try call.query.count("offset"), try call.query.count("limit"))
            let page = Array(limit == 0 ? builds.dropFirst(offset) : builds.dropFirst(offset).prefix(limit))
            return .json(.array(try await json(page)))
        }
        routes.api(.post, "workspaces/{workspace}/builds", .user) { try await create($0) }
        routes.api(.get, "workspacebuilds/{workspacebuild}", .user) { call in
            let row = try await services.store(for: call).build(call.identifier("workspacebuild"))
            return .json(try await json([row])[0])
        }
        routes.api(.get, "users/{user}/workspace/{workspacename}/builds/{buildnumber}", .user) { call in
            let store = try services.store(for: call)
            let user = try await store.user(call.parameter("user"))
            guard let number = Int32(call.parameter("buildnumber")) else {
                throw APIError(400, "Failed to parse build number as integer.")
            }
            let workspace = try await store.workspace(
                owner: user.id, name: call.parameter("workspacename"), includeDeleted: true)
            let row = try await services.store.database.first(
                WorkspaceRecord.buildQuery + " WHERE w.id = $1 AND b.build_number = $2",
                [SQLValue(workspace.identifier("id")), SQLValue(number)])
            guard let row else { throw APIError.notFound }
            return .json(try await json([row])[0])
        }
        routes.api(.get, "workspacebuilds/{workspacebuild}/parameters", .user) { call in
            let row = try await services.store(for: call).build(call.identifier("workspacebuild"))
            let values = try await services.store.database.query(
                "SELECT name, value FROM workspace_build_parameters WHERE workspace_build_id = $1 ORDER BY name",
                [SQLValue(row.identifier("b_id"))])
            return .json(
                .array(values.map { ["name": JSON($0.text("name")), "value": JSON($0.text("value"))] }))
        }
        routes.api(.get, "workspacebuilds/{workspacebuild}/resources", .user) { call in
            let row = try await services.store(for: call).build(call.identifier("workspacebuild"))
            let job = row.identifier("j_id")
            return .json(.array(try await services.resources(ofJobs: [job])[job] ?? []))
        }
        routes.api(.get, "workspacebuilds/{workspacebuild}/logs", .user) { call in
            let row = try await services.store(for: call).build(call.identifier("workspacebuild"))
            return try await LogStreams(services: services).jobLogs(call, job: row.identifier("j_id"))
        }
        routes.api(.patch, "workspacebuilds/{workspacebuild}/cancel", .user) { call in
            _ = try await services.store(for: call).build(call.identifier("workspacebuild"))
            throw APIError(400, "Job has already completed!")
        }
        for name in ["workspacebuilds/{workspacebuild}/timings", "workspaces/{workspace}/timings"] {
            routes.api(.get, name, .user) { call in
                let store = try services.store(for: call)
                if call.parameters["workspace"] != nil {
                    _ = try await store.workspace(call.identifier("workspace"))
                } else {
                    _ = try await store.build(call.identifier("workspacebuild"))
                }
                return .json([
                    "provisioner_timings": [], "agent_script_timings": [], "agent_connection_timings": [],
                ])
            }
        }
    }

    private static let reasons: Set<String> = [
        "dashboard", "cli", "ssh_connection", "vscode_connection", "jetbrains_connection",
    ]

    private func create(_ call: Call) async throws -> Reply {
        let store = try services.store(for: call)
        let body = try call.json()
        let transition = body["transition"]?.text ?? ""
        guard ["start", "stop", "delete"].contains(transition) else {
            throw Names.refusal("transition", tag: "oneof", value: transition)
        }
        let row = try await store.workspace(call.identifier("workspace"), includeDeleted: true)
        try store.require(transition == "delete" ? .delete : .update, WorkspaceRecord.object(row))
        if row.flag("deleted"), transition != "delete" {
            throw APIError(409, "Workspace \"\(row.text("name"))\" is deleted.")
        }
        if ["pending", "running", "canceling"].contains(Jobs.status(row)) {
            throw APIError(409, "A workspace build is already active.")
        }
        var version = row.identifier("b_template_version_id")
        if let asked = body["template_version_id"]?.text.flatMap({ Identifier($0) })?.unlessZero {
            let found = try await store.templateVersion(asked)
            guard found.optionalIdentifier("template_id") == row.identifier("template_id") else {
                throw APIError.invalid("template_version_id", "template version not found in template")
            }
            version = asked
        }
        let reason = body["reason"]?.text ?? ""
        let id = try await services.store.createBuild(
            NewBuild(
                workspace: row.identifier("id"), organization: row.identifier("organization_id"),
                version: version,
                transition: transition,
                reason: transition == "start" && Self.reasons.contains(reason) ? reason : "initiator",
                initiator: store.subject.userID), now: .now())
        services.events.publish(.workspace(row.identifier("id")))
        services.events.publish(.agentsOf(row.identifier("id")))
        return .json(try await json([try await store.build(id)])[0], status: 201)
    }

    private func json(_ rows: [Row]) async throws -> [JSON] {
        let resources = try await services.resources(ofJobs: rows.map { $0.identifier("j_id") })
        return rows.map { WorkspaceRecord.buildJSON($0, resources: resources[$0.identifier("j_id")] ?? []) }
    }
}

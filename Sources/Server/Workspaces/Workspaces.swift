// SPDX-License-Identifier: Apache-2.0

/// What a new workspace shall be.
struct NewWorkspace: Sendable {
    var owner: Identifier
    var organization: Identifier
    var template: Identifier
    var version: Identifier
    var name: String
    var schedule: String?
    var ttlNanoseconds: Int64?
    var automaticUpdates = "never"
    var initiator: Identifier
}

/// What a new build shall do.
struct NewBuild: Sendable {
    var workspace: Identifier
    var organization: Identifier
    var version: Identifier
    var transition: String
    var reason: String
    var initiator: Identifier
}

extension Store {
    /// Inserts a workspace with its first build. Throws 409 when the owner has one of that name.
    func createWorkspace(_ new: NewWorkspace, now: Timestamp) async throws -> Identifier {
        let id = Identifier.random()
        do {
            try await database.transaction { run in
                try await run.query(
                    """
                    INSERT INTO workspaces (id, created_at, updated_at, owner_id, organization_id, template_id, name,
                        autostart_schedule, ttl, last_used_at, automatic_updates)
                    VALUES ($1, $2, $2, $3, $4, $5, $6, $7, $8, $2, $9)
                    """,
                    [
                        SQLValue(id), SQLValue(now), SQLValue(new.owner), SQLValue(new.organization),
                        SQLValue(new.template), SQLValue(new.name), SQLValue(new.schedule),
                        new.ttlNanoseconds.map { SQLValue($0) } ?? .null, SQLValue(new.automaticUpdates),
                    ])
                let build = NewBuild(
                    workspace: id, organization: new.organization, version: new.version, transition: "start",
                    reason: "initiator", initiator: new.initiator)
                try await insertBuild(run, build, number: 1, now: now)
            }
        } catch let error as DatabaseError where error.isUniqueViolation {
            throw APIError(
                409, "Workspace \"\(new.name)\" already exists.",
                validations: [
                    .init(field: "name", detail: "This value is already in use and should be unique.")
                ])
        }
        return id
    }

    /// Adds a build to a workspace; it is finished when this returns. Returns the build's id.
    func createBuild(_ new: NewBuild, now: Timestamp) async throws -> Identifier {
        try await database.transaction { run in
            // The row lock makes builds of one workspace queue up.
            let last = try await run.first(
                """
                SELECT coalesce(max(b.build_number), 0) AS number FROM workspace_builds b
                JOIN (SELECT id FROM workspaces WHERE id = $1 FOR UPDATE) w ON w.id = b.workspace_id
                """, [SQLValue(new.workspace)])
            let number = Int(last?.integer("number") ?? 0) + 1
            if new.transition == "delete" {
                try await run.query(
                    "UPDATE workspaces SET deleted = true, updated_at = $2 WHERE id = $1",
                    [
                        SQLValue(new.workspace), SQLValue(now),
                    ])
            } else if new.transition == "start" {
                try await run.query(
                    "UPDATE workspaces SET dormant_at = NULL, deleting_at = NULL, last_used_at = $2 WHERE id = $1",
                    [SQLValue(new.workspace), SQLValue(now)])
            }
            return try await insertBuild(run, new, number: number, now: now)
        }
    }

    @discardableResult
    private func insertBuild(
        _ run: any SQLRunner, _ new: NewBuild, number: Int, now: Timestamp
    ) async throws -> Identifier {
        let build = Identifier.random()
        let verb =
            ["start": "Starting workspace", "stop": "Stopping workspace"][new.transition]
            ?? "Deleting workspace"
        let job = try await Jobs.insertFinished(
            run, type: "workspace_build", organization: new.organization, initiator: new.initiator,
            input: ["workspace_build_id": JSON(build)], now: now, stages: ["Setting up", verb, "Cleaning Up"])
        try await run.query(
            """
            INSERT INTO workspace_builds (id, created_at, updated_at, workspace_id, template_version_id, build_number,
                transition, initiator_id, job_id, reason, has_ai_task, has_external_agent)
            VALUES ($1, $2, $2, $3, $4, $5, $6, $7, $8, $9, false, $10)
            """,
            [
                SQLValue(build), SQLValue(now), SQLValue(new.workspace), SQLValue(new.version),
                SQLValue(number),
                SQLValue(new.transition), SQLValue(new.initiator), SQLValue(job), SQLValue(new.reason),
                SQLValue(new.transition == "start"),
            ])
        if new.transition == "start" {
            try await Jobs.insertExternalAgent(run, job: job, transition: "start", token: .random(), now: now)
        }
        return build
    }
}

extension GuardedStore {
    /// One workspace with its latest build. 410 when it is deleted and not asked for.
    func workspace(
        _ id: Identifier, includeDeleted: Bool = false, action: Subject.Action = .read
    ) async throws -> Row {
        let row = try await store.database.first(WorkspaceRecord.query + " WHERE w.id = $1", [SQLValue(id)])
        guard let row else { throw APIError.notFound }
        try require(action, WorkspaceRecord.object(row))
        if row.flag("deleted"), !includeDeleted {
            throw APIError(
                410,
                "Workspace \"\(id)\" was deleted, you can view this workspace by specifying '?deleted=true' "
                    + "and trying again.")
        }
        return row
    }

    /// By owner and name; a living one wins over deleted ones.
    func workspace(owner: Identifier, name: String, includeDeleted: Bool) async throws -> Row {
        let row = try await store.database.first(
            WorkspaceRecord.query
                + """
                 WHERE w.owner_id = $1 AND lower(w.name) = lower($2) AND (NOT w.deleted OR $3)
                ORDER BY w.deleted, w.created_at DESC LIMIT 1
                """, [SQLValue(owner), SQLValue(name), SQLValue(includeDeleted)])
        guard let row, subject.may(.read, WorkspaceRecord.object(row)) else { throw APIError.notFound }
        return row
    }

    /// All that match and may be read: the caller's favourites, then running ones, then by owner and name.
    func workspaces(_ search: WorkspaceSearch) async throws -> [Row] {
        guard !search.isNothing else { return [] }
        let rows = try await store.database.query(
            WorkspaceRecord.query
                + """
                 WHERE w.deleted = $1 AND ($2::uuid IS NULL OR w.owner_id = $2::uuid)
                AND ($3 = '' OR position($3 in lower(w.name)) > 0) AND ($4 = '' OR lower(t.name) = $4)
                AND ($5::uuid IS NULL OR w.organization_id = $5::uuid)
                AND (cardinality($6::uuid[]) = 0 OR w.id = ANY($6::uuid[]))
                AND (NOT $7 OR w.dormant_at IS NOT NULL)
                AND ($8::timestamptz IS NULL OR w.last_used_at >= $8::timestamptz)
                AND ($9::timestamptz IS NULL OR w.last_used_at <= $9::timestamptz)
                """,
            [
                SQLValue(search.status == "deleted"), SQLValue(search.owner), SQLValue(search.name),
                SQLValue(search.template), SQLValue(search.organization), SQLValue(search.ids),
                SQLValue(search.isDormantOnly), SQLValue(search.usedAfter), SQLValue(search.usedBefore),
            ])
        func rank(_ row: Row) -> (Int, Int, String, String) {
            let isFavorite = row.flag("favorite") && row.identifier("owner_id") == subject.userID
            let isRunning = WorkspaceRecord.status(row) == "running"
            return (
                isFavorite ? 0 : 1, isRunning ? 0 : 1, row.text("owner_name").lowercased(),
                row.text("name").lowercased()
            )
        }
        return rows.filter { row in
            let isOutdated = row.identifier("b_template_version_id") != row.identifier("active_version_id")
            return subject.may(.read, WorkspaceRecord.object(row))
                && (search.status.isEmpty || search.status == WorkspaceRecord.status(row))
                && (search.isOutdated == nil || search.isOutdated == isOutdated)
                && (search.hasExternalAgent == nil
                    || search.hasExternalAgent == row.flag("b_has_external_agent"))
        }.sorted { rank($0) < rank($1) }
    }

    /// A build with its workspace.
    func build(_ id: Identifier) async throws -> Row {
        let row = try await store.database.first(
            WorkspaceRecord.buildQuery + " WHERE b.id = $1", [SQLValue(id)])
        guard let row, subject.may(.read, WorkspaceRecord.object(row)) else { throw APIError.notFound }
        return row
    }
}

/// What a list of workspaces is narrowed to.
struct WorkspaceSearch: Sendable {
    var owner: Identifier?
    var name = ""
    var template = ""
    var status = ""
    var organization: Identifier?
    var ids: [Identifier] = []
    var isDormantOnly = false
    var isOutdated: Bool?
    var hasExternalAgent: Bool?
    /// State of one of its agents.
    var agentStatus: String?
    var usedAfter: Timestamp?
    var usedBefore: Timestamp?
    /// Nothing can be like that.
    var isNothing = false
}

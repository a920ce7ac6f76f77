// SPDX-License-Identifier: Apache-2.0

/// Templates and their versions: reading, and the dry run that `coder create` asks for.
struct TemplateRoutes {
    let services: Services

    func register(_ routes: RouteTable) {
        let services = services
        routes.api(.get, "templates", .user) { call in
            let store = try services.store(for: call)
            let rows = try await store.templates(try await search(call, store))
            return .json(.array(rows.map(TemplateRecord.json)))
        }
        routes.api(.get, "templates/{template}", .user) { call in
            .json(
                TemplateRecord.json(try await services.store(for: call).template(call.identifier("template")))
            )
        }
        routes.api(.get, "organizations/{organization}/templates", .user) { call in
            let store = try services.store(for: call)
            var search = try await search(call, store)
            search.organization = try await store.organization(call.parameter("organization")).identifier(
                "id")
            return .json(.array(try await store.templates(search).map(TemplateRecord.json)))
        }
        routes.api(.get, "organizations/{organization}/templates/{templatename}", .user) { call in
            let store = try services.store(for: call)
            let organization = try await store.organization(call.parameter("organization")).identifier("id")
            let name = call.parameter("templatename").lowercased()
            let found = try await store.templates(TemplateSearch(exactName: name, organization: organization))
                .first
            guard let found else { throw APIError.notFound }
            return .json(TemplateRecord.json(found))
        }
        routes.api(.get, "templates/{template}/versions", .user) { call in
            let store = try services.store(for: call)
            let template = try await store.template(call.identifier("template"))
            let rows = try await store.store.database.query(
                TemplateRecord.versionQuery + " WHERE v.template_id = $1 ORDER BY v.created_at, v.id",
                [SQLValue(template.identifier("id"))])
            return .json(.array(rows.map(TemplateRecord.versionJSON)))
        }
        routes.api(.get, "templates/{template}/versions/{templateversionname}", .user) { call in
            let store = try services.store(for: call)
            let template = try await store.template(call.identifier("template"))
            let row = try await store.store.database.first(
                TemplateRecord.versionQuery + " WHERE v.template_id = $1 AND v.name = $2",
                [SQLValue(template.identifier("id")), SQLValue(call.parameter("templateversionname"))])
            guard let row else { throw APIError.notFound }
            return .json(TemplateRecord.versionJSON(row))
        }
        registerVersions(routes)
        registerDryRun(routes)
    }

    private func registerVersions(_ routes: RouteTable) {
        let services = services
        routes.api(.get, "templateversions/{templateversion}", .user) { call in
            let row = try await services.store(for: call).templateVersion(call.identifier("templateversion"))
            return .json(TemplateRecord.versionJSON(row))
        }
        routes.api(.get, "templateversions/{templateversion}/resources", .user) { call in
            let row = try await services.store(for: call).templateVersion(call.identifier("templateversion"))
            return .json(
                .array(
                    try await services.resources(ofJobs: [row.identifier("job_id")])[row.identifier("job_id")]
                        ?? []))
        }
        routes.api(.get, "templateversions/{templateversion}/logs", .user) { call in
            let row = try await services.store(for: call).templateVersion(call.identifier("templateversion"))
            return try await LogStreams(services: services).jobLogs(call, job: row.identifier("job_id"))
        }
        for name in ["rich-parameters", "presets", "variables", "external-auth", "schema", "parameters"] {
            routes.api(.get, "templateversions/{templateversion}/\(name)", .user) { call in
                _ = try await services.store(for: call).templateVersion(call.identifier("templateversion"))
                return .json([])
            }
        }
    }

    private func registerDryRun(_ routes: RouteTable) {
        let services = services
        let path = "templateversions/{templateversion}/dry-run"
        routes.api(.post, path, .user) { call in
            let store = try services.store(for: call)
            let version = try await store.templateVersion(call.identifier("templateversion"))
            let now = Timestamp.now()
            let job = try await services.store.database.transaction { run in
                let job = try await Jobs.insertFinished(
                    run, type: "template_version_dry_run",
                    organization: version.identifier("organization_id"),
                    initiator: store.subject.userID,
                    input: ["template_version_id": JSON(version.identifier("id"))], now: now)
                try await Jobs.insertExternalAgent(
                    run, job: job, transition: "start", token: .random(), now: now)
                return job
            }
            return .json(Jobs.json(try await dryRun(job, store)), status: 201)
        }
        routes.api(.get, path + "/{jobid}", .user) { call in
            .json(Jobs.json(try await dryRun(call.identifier("jobid"), services.store(for: call))))
        }
        routes.api(.get, path + "/{jobid}/resources", .user) { call in
            let row = try await dryRun(call.identifier("jobid"), services.store(for: call))
            let job = row.identifier("j_id")
            return .json(.array(try await services.resources(ofJobs: [job])[job] ?? []))
        }
        routes.api(.get, path + "/{jobid}/logs", .user) { call in
            let row = try await dryRun(call.identifier("jobid"), services.store(for: call))
            return try await LogStreams(services: services).jobLogs(call, job: row.identifier("j_id"))
        }
        routes.api(.get, path + "/{jobid}/matched-provisioners", .user) { call in
            _ = try await dryRun(call.identifier("jobid"), services.store(for: call))
            return .json(["count": 1, "available": 1, "most_recently_seen": JSON(Timestamp.now())])
        }
    }

    /// Dry runs belong to who asked for them.
    private func dryRun(_ job: Identifier, _ store: GuardedStore) async throws -> Row {
        let row = try await store.store.database.first(
            "SELECT \(Jobs.columns) FROM provisioner_jobs j WHERE j.id = $1 AND j.type = 'template_version_dry_run'",
            [SQLValue(job)])
        guard let row, store.subject.isOwner || row.identifier("j_initiator_id") == store.subject.userID
        else {
            throw APIError.notFound
        }
        return row
    }

    private func search(_ call: Call, _ store: GuardedStore) async throws -> TemplateSearch {
        let query = try SearchQuery(call.query["q"] ?? "")
        try query.allow(
            [
                "name", "exact_name", "exact_display_name", "organization", "deprecated", "deleted",
                "has-ai-task",
                "has_external_agent", "author", "author_id",
            ], repeated: ["ids"])
        var search = TemplateSearch(exactName: query["exact_name"] ?? "", text: query["name"] ?? query.free)
        search.exactDisplayName = query["exact_display_name"] ?? ""
        search.ids = query.list("ids").compactMap { Identifier($0) }
        search.isDeleted = try query.flag("deleted") ?? false
        search.hasExternalAgent = try query.flag("has_external_agent")
        // There are no tasks.
        search.isNothing = try query.flag("has-ai-task") == true
        if let author = query["author_id"] ?? query["author"] {
            search.author = try await store.user(author).id
        }
        if let organization = query["organization"] {
            search.organization = try await store.organization(organization).identifier("id")
        }
        search.isDeprecated = try query.flag("deprecated") ?? false
        return search
    }
}

// SPDX-License-Identifier: Apache-2.0

/// Provisioner jobs. Until there is a provisioner, the server does what little its own template needs and records
/// each job as one that has succeeded.
enum Jobs {
    /// Records a job that ran and succeeded just now, with the log lines that clients show.
    static func insertFinished(
        _ run: any SQLRunner, type: String, organization: Identifier, initiator: Identifier, input: JSON,
        now: Timestamp, stages: [String] = ["Setting up", "Cleaning Up"]
    ) async throws -> Identifier {
        let job = Identifier.random()
        try await run.query(
            """
            INSERT INTO provisioner_jobs (id, created_at, updated_at, started_at, completed_at, organization_id,
                initiator_id, provisioner, storage_method, type, input, file_id, tags)
            VALUES ($1, $2, $2, $2, $2, $3, $4, 'terraform', 'file', $5, $6, $7,
                '{"owner": "", "scope": "organization"}')
            """,
            [
                SQLValue(job), SQLValue(now), SQLValue(organization), SQLValue(initiator), SQLValue(type),
                SQLValue(input), SQLValue(Identifier.zero),
            ])
        for stage in stages {
            try await run.query(
                """
                INSERT INTO provisioner_job_logs (job_id, created_at, source, level, stage, output)
                VALUES ($1, $2, 'provisioner_daemon', 'info', $3, '')
                """, [SQLValue(job), SQLValue(now), SQLValue(stage)])
        }
        return job
    }

    /// The one resource of an external workspace, with its agent `main`. Returns the agent's id.
    @discardableResult
    static func insertExternalAgent(
        _ run: any SQLRunner, job: Identifier, transition: String, token: Identifier, now: Timestamp
    ) async throws -> Identifier {
        let (resource, agent) = (Identifier.random(), Identifier.random())
        try await run.query(
            """
            INSERT INTO workspace_resources (id, created_at, job_id, transition, type, name)
            VALUES ($1, $2, $3, $4, 'coder_external_agent', 'main')
            """, [SQLValue(resource), SQLValue(now), SQLValue(job), SQLValue(transition)])
        try await run.query(
            """
            INSERT INTO workspace_agents (id, created_at, updated_at, name, resource_id, auth_token, architecture,
                operating_system, environment_variables, connection_timeout_seconds)
            VALUES ($1, $2, $2, 'main', $3, $4, 'amd64', 'linux', '{}', 0)
            """, [SQLValue(agent), SQLValue(now), SQLValue(resource), SQLValue(token)])
        return agent
    }

    /// Columns of a job under a prefix, for `json`.
    static let columns = """
        j.id AS j_id, j.created_at AS j_created_at, j.started_at AS j_started_at, j.canceled_at AS j_canceled_at,
        j.completed_at AS j_completed_at, j.error AS j_error, j.error_code AS j_error_code, j.worker_id AS j_worker_id,
        j.file_id AS j_file_id, j.tags AS j_tags, j.organization_id AS j_organization_id,
        j.initiator_id AS j_initiator_id, j.input AS j_input, j.type AS j_type, j.logs_overflowed AS j_logs_overflowed
        """

    /// `succeeded`, `failed`, … from the moments that were recorded.
    static func status(_ row: Row) -> String {
        let isFailed = !row.text("j_error").isEmpty
        let isCanceled = row.optionalTime("j_canceled_at") != nil
        if row.optionalTime("j_completed_at") != nil {
            return isFailed ? "failed" : isCanceled ? "canceled" : "succeeded"
        }
        if isFailed { return "failed" }
        if isCanceled { return "canceling" }
        return row.optionalTime("j_started_at") == nil ? "pending" : "running"
    }

    /// `codersdk.ProvisionerJob`
    static func json(_ row: Row) -> JSON {
        var job: JSON = ["id": JSON(row.identifier("j_id")), "created_at": JSON(row.time("j_created_at"))]
        job.addUnlessEmpty("started_at", row.optionalTime("j_started_at"))
        job.addUnlessEmpty("completed_at", row.optionalTime("j_completed_at"))
        job.addUnlessEmpty("canceled_at", row.optionalTime("j_canceled_at"))
        job.addUnlessEmpty("error", row.text("j_error"))
        job.addUnlessEmpty("error_code", row.text("j_error_code"))
        job.add("status", JSON(status(row)))
        job.addUnlessEmpty("worker_id", row.optionalIdentifier("j_worker_id")?.text)
        job.add("file_id", JSON(row.identifier("j_file_id")))
        job.add("tags", row.json("j_tags"))
        job.add("queue_position", 0)
        job.add("queue_size", 0)
        job.add("organization_id", JSON(row.identifier("j_organization_id")))
        job.add("initiator_id", JSON(row.identifier("j_initiator_id")))
        job.add("input", row.json("j_input"))
        job.add("type", JSON(row.text("j_type")))
        job.add(
            "metadata",
            [
                "template_version_name": "", "template_id": JSON(Identifier.zero), "template_name": "",
                "template_display_name": "", "template_icon": "",
            ])
        job.add("logs_overflowed", .bool(row.flag("j_logs_overflowed")))
        return job
    }
}

extension Store {
    /// Log lines of a job with a greater id than `after`: `codersdk.ProvisionerJobLog`.
    func jobLogs(_ job: Identifier, after: Int64) async throws -> [JSON] {
        try await database.query(
            "SELECT * FROM provisioner_job_logs WHERE job_id = $1 AND id > $2 ORDER BY id",
            [SQLValue(job), SQLValue(after)]
        ).map { row in
            [
                "id": JSON(row.integer("id")), "created_at": JSON(row.time("created_at")),
                "log_source": JSON(row.text("source")), "log_level": JSON(row.text("level")),
                "stage": JSON(row.text("stage")), "output": JSON(row.text("output")),
            ]
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

/// What a new deployment contains.
enum Seed {
    /// The organization that everybody belongs to, the deployment's identifier, and the keys that must survive a
    /// restart. Does nothing on a database that has them.
    static func deployment(_ database: any Database, now: Timestamp) async throws {
        try await database.query(
            """
            INSERT INTO organizations (id, name, display_name, created_at, updated_at, is_default)
            VALUES ($1, 'coder', 'Coder', $2, $2, true) ON CONFLICT DO NOTHING
            """, [SQLValue(Identifier.random()), SQLValue(now)])
        for (key, value) in [
            ("deployment_id", Identifier.random().text), ("derp_private_key", Digest.hex(Digest.random(32))),
            ("derp_mesh_key", Digest.hex(Digest.random(16))),
        ] {
            try await database.query(
                "INSERT INTO site_configs (key, value) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                [SQLValue(key), SQLValue(value)])
        }
        try await database.query(
            """
            INSERT INTO crypto_keys (feature, sequence, secret, starts_at)
            VALUES ('tailnet_resume', 1, $1, $2) ON CONFLICT DO NOTHING
            """, [SQLValue(Digest.hex(Digest.random(64))), SQLValue(now)])
    }

    /// A value of `site_configs`; empty when it is not there.
    static func value(_ key: String, _ database: any Database) async throws -> String {
        try await database.first("SELECT value FROM site_configs WHERE key = $1", [SQLValue(key)])?.text(
            "value") ?? ""
    }

    /// The template for machines that exist already: nothing is provisioned, a workspace is one agent's token.
    static func externalTemplate(
        _ run: any SQLRunner, organization: Identifier, creator: Identifier, now: Timestamp
    ) async throws {
        let (template, version) = (Identifier.random(), Identifier.random())
        let job = try await Jobs.insertFinished(
            run, type: "template_version_import", organization: organization, initiator: creator,
            input: ["template_version_id": JSON(version)], now: now)
        try await run.query(
            """
            INSERT INTO templates (id, created_at, updated_at, organization_id, name, display_name, description, icon,
                provisioner, active_version_id, created_by, activity_bump, allow_user_cancel_workspace_jobs)
            VALUES ($1, $2, $2, $3, 'external', 'External machine',
                'A machine that exists already: run the agent there yourself.', '/icon/lxc.svg',
                'terraform', $4, $5, 3600000000000, true)
            """,
            [SQLValue(template), SQLValue(now), SQLValue(organization), SQLValue(version), SQLValue(creator)])
        try await run.query(
            """
            INSERT INTO template_versions (id, template_id, organization_id, created_at, updated_at, name, readme,
                job_id, created_by, message, has_ai_task, has_external_agent)
            VALUES ($1, $2, $3, $4, $4, 'built-in', $5, $6, $7, 'Made with the deployment', false, true)
            """,
            [
                SQLValue(version), SQLValue(template), SQLValue(organization), SQLValue(now),
                SQLValue(readme),
                SQLValue(job), SQLValue(creator),
            ])
        try await Jobs.insertExternalAgent(run, job: job, transition: "start", token: .random(), now: now)
    }

    private static let readme = """
        # External machine

        Attaches a machine that exists already. `coder external-workspaces create <name>` prints what to run there.
        """
}

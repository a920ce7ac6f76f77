// SPDX-License-Identifier: Apache-2.0

internal import Logging

/// Deletes what nobody will ask for any more. `rest/server-semantics.md` §8.
enum Retention {
    private static let interval: Duration = .seconds(600)

    /// What goes, in days of age. Any server that shares the database may do it.
    private static let statements = [
        "DELETE FROM api_keys WHERE expires_at < now() - interval '7 days'",
        """
        DELETE FROM provisioner_jobs WHERE type = 'template_version_dry_run'
            AND created_at < now() - interval '1 day'
        """,
        """
        DELETE FROM workspace_agent_logs l USING workspace_agents a, workspace_resources r, workspace_builds b
        WHERE a.id = l.agent_id AND r.id = a.resource_id AND b.job_id = r.job_id
            AND l.created_at < now() - interval '7 days' AND b.build_number <
                (SELECT max(build_number) FROM workspace_builds n WHERE n.workspace_id = b.workspace_id)
        """,
    ]

    /// Deletes now and every ten minutes, until the task is cancelled.
    static func run(_ database: any Database, _ logger: Logger) async {
        while !Task.isCancelled {
            do {
                try await purge(database)
                try await Task.sleep(for: interval)
            } catch is CancellationError {
                return
            } catch {
                logger.warning("old records not deleted", metadata: ["error": "\(error)"])
                // Only cancellation ends the wait early.
                try? await Task.sleep(for: interval)
            }
        }
    }

    static func purge(_ database: any Database) async throws {
        for statement in statements { try await database.query(statement) }
    }
}

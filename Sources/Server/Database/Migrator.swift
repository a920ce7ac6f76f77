// SPDX-License-Identifier: Apache-2.0

/// Brings a database to the present schema: numbered scripts, each run once, in order, in its own transaction.
enum Migrator {
    /// Why the schema could not be brought up to date.
    enum MigrationError: Error, CustomStringConvertible {
        /// The database has been used by a newer program.
        case newerSchema(found: Int, known: Int)
        case oldServer(version: Int)

        var description: String {
            switch self {
            case .newerSchema(let found, let known):
                "the database has schema version \(found), this program knows \(known): use a newer program"
            case .oldServer(let version): "PostgreSQL 13 or newer is needed, this one is \(version / 10_000)"
            }
        }
    }

    /// Any number that no other program takes an advisory lock on.
    private static let lockKey = 0x636F_6465

    /// Applies what is missing. Several servers may start at once: one works, the others wait.
    static func migrate(_ database: some Database) async throws {
        let version = try await database.first("SELECT current_setting('server_version_num')::int AS v")
        guard let number = version?.integer("v"), number >= 130_000 else {
            throw MigrationError.oldServer(version: Int(version?.integer("v") ?? 0))
        }
        try await database.transaction { run in
            // Changing large tables takes its time, and so does waiting for another server that does it.
            try await run.query("SET LOCAL statement_timeout = 0")
            try await run.query("SET LOCAL lock_timeout = 0")
            try await run.query("SELECT pg_advisory_xact_lock(\(lockKey))::text")
            try await run.query(
                """
                CREATE TABLE IF NOT EXISTS schema_migrations (
                    version int PRIMARY KEY, applied_at timestamptz NOT NULL)
                """)
            let row = try await run.first("SELECT coalesce(max(version), 0) AS v FROM schema_migrations")
            let found = Int(row?.integer("v") ?? 0)
            guard found <= Migrations.all.count else {
                throw MigrationError.newerSchema(found: found, known: Migrations.all.count)
            }
            for (index, statements) in Migrations.all.enumerated().dropFirst(found) {
                for statement in statements { try await run.query(statement) }
                try await run.query(
                    "INSERT INTO schema_migrations (version, applied_at) VALUES ($1, now())",
                    [SQLValue(index + 1)])
            }
        }
    }
}

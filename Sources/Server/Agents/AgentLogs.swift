// SPDX-License-Identifier: Apache-2.0

internal import Mesh

/// One line of an agent's log.
struct AgentLogLine: Sendable {
    var output: String
    var level: String
}

/// Addresses that peers report.
enum PeerAddress {
    /// Whether PostgreSQL's `inet` takes it.
    static func isLiteral(_ text: String) -> Bool { IPAddress(text) != nil }
}

extension Store {
    /// Source of lines that name none. `agent.md` §3.
    private static let externalSource = Identifier("3b579bf4-1ed8-4b99-87a8-e9a1e3410410") ?? .zero

    /// Appends lines to an agent's log. False when the log is full (1 MiB): then nothing more is stored, ever.
    func appendAgentLogs(
        _ agent: Identifier, source: Identifier?, lines: [AgentLogLine], now: Timestamp
    ) async throws -> Bool {
        let state = try await database.first(
            "SELECT logs_overflowed FROM workspace_agents WHERE id = $1", [SQLValue(agent)])
        guard let state, !state.flag("logs_overflowed") else { return false }
        guard !lines.isEmpty else { return true }
        if source == nil {
            try await addLogSource(
                agent, id: Self.externalSource, name: "External", icon: "/emojis/1f310.png", now: now)
        }
        // An empty line takes room, too.
        let length = lines.map { $0.output.utf8.count + 32 }.reduce(0, +)
        do {
            try await database.transaction { run in
                try await run.query(
                    "UPDATE workspace_agents SET logs_length = logs_length + $2 WHERE id = $1",
                    [SQLValue(agent), SQLValue(min(length, 2_000_000))])
                try await run.query(
                    """
                    INSERT INTO workspace_agent_logs (agent_id, created_at, output, level, log_source_id)
                    SELECT $1, $2, line.output, line.level, $3
                    FROM unnest($4::text[], $5::text[]) WITH ORDINALITY AS line (output, level, position)
                    ORDER BY line.position
                    """,
                    [
                        SQLValue(agent), SQLValue(now), SQLValue(source ?? Self.externalSource),
                        SQLValue(lines.map(\.output)), SQLValue(lines.map(\.level)),
                    ])
            }
            return true
        } catch let error as DatabaseError where error.isCheckViolation {
            try await database.query(
                "UPDATE workspace_agents SET logs_overflowed = true WHERE id = $1", [SQLValue(agent)])
            return false
        }
    }

    /// Adds a source of log lines unless it is there.
    func addLogSource(
        _ agent: Identifier, id: Identifier, name: String, icon: String, now: Timestamp
    ) async throws {
        try await database.query(
            """
            INSERT INTO workspace_agent_log_sources (workspace_agent_id, id, created_at, display_name, icon)
            SELECT $1, $2, $3, $4, $5
            WHERE (SELECT count(*) FROM workspace_agent_log_sources WHERE workspace_agent_id = $1) < 64
            ON CONFLICT DO NOTHING
            """,
            [
                SQLValue(agent), SQLValue(id), SQLValue(now), SQLValue(String(name.prefix(127))),
                SQLValue(String(icon.prefix(256))),
            ])
    }
}

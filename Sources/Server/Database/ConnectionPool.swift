// SPDX-License-Identifier: Apache-2.0

/// A few connections shared by all tasks. Each statement or transaction has one of them for itself; who comes when
/// all are taken waits in line.
actor ConnectionPool: Database {
    private let conninfo: String
    private let limit: Int
    private var idle: [PostgresConnection] = []
    private var count = 0
    private var waiting: [CheckedContinuation<PostgresConnection, Never>] = []

    init(conninfo: String, limit: Int = 10) {
        self.conninfo = conninfo
        self.limit = limit
    }

    func query(_ sql: String, _ parameters: [SQLValue]) async throws -> [Row] {
        let connection = await take()
        defer { giveBack(connection) }
        return try await connection.query(sql, parameters)
    }

    func transaction<Result: Sendable>(
        _ body: @Sendable (any SQLRunner) async throws -> Result
    ) async throws -> Result {
        let connection = await take()
        defer { giveBack(connection) }
        try await connection.command("BEGIN")
        do {
            let result = try await body(connection)
            try await connection.command("COMMIT")
            return result
        } catch {
            do {
                try await connection.command("ROLLBACK")
            } catch {
                await connection.close()  // in doubt: the server rolls back when the connection ends
            }
            throw error
        }
    }

    /// Runs statements as they are, for migrations.
    func script(_ sql: String) async throws {
        let connection = await take()
        defer { giveBack(connection) }
        try await connection.command(sql)
    }

    /// Closes the idle connections.
    func close() async {
        let all = idle
        for connection in all { await connection.close() }
    }

    private func take() async -> PostgresConnection {
        if let connection = idle.popLast() { return connection }
        if count < limit {
            count += 1
            return PostgresConnection(conninfo: conninfo)
        }
        return await withCheckedContinuation { waiting.append($0) }
    }

    private func giveBack(_ connection: PostgresConnection) {
        if waiting.isEmpty {
            idle.append(connection)
        } else {
            waiting.removeFirst().resume(returning: connection)
        }
    }
}

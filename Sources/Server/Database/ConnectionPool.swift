// SPDX-License-Identifier: Apache-2.0

/// A few connections shared by all tasks. Each statement or transaction has one of them for itself; who comes when
/// all are taken waits in line.
actor ConnectionPool: Database {
    private let conninfo: String
    private let limit: Int
    private var idle: [PostgresConnection] = []
    private var count = 0
    private var waiting:
        [(number: UInt64, continuation: CheckedContinuation<PostgresConnection, any Error>)] = []
    private var lastNumber: UInt64 = 0

    /// Longer lines and longer waits help nobody: what asks has given up by then.
    private static let maximumWaiting = 1024
    private static let patience: Duration = .seconds(10)

    init(conninfo: String, limit: Int = 10) {
        self.conninfo = conninfo
        self.limit = limit
    }

    func query(_ sql: String, _ parameters: [SQLValue]) async throws -> [Row] {
        let connection = try await take()
        defer { giveBack(connection) }
        return try await connection.query(sql, parameters)
    }

    func transaction<Result: Sendable>(
        _ body: @Sendable (any SQLRunner) async throws -> Result
    ) async throws -> Result {
        let connection = try await take()
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
        let connection = try await take()
        defer { giveBack(connection) }
        try await connection.command(sql)
    }

    /// Closes the idle connections.
    func close() async {
        let all = idle
        for connection in all { await connection.close() }
    }

    private func take() async throws -> PostgresConnection {
        if let connection = idle.popLast() { return connection }
        if count < limit {
            count += 1
            return PostgresConnection(conninfo: conninfo)
        }
        guard waiting.count < Self.maximumWaiting else { throw Self.busy }
        lastNumber += 1
        let number = lastNumber
        let timer = Task {
            try await Task.sleep(for: Self.patience)
            self.giveUp(number)
        }
        defer { timer.cancel() }
        return try await withCheckedThrowingContinuation { waiting.append((number, $0)) }
    }

    private func giveUp(_ number: UInt64) {
        guard let index = waiting.firstIndex(where: { $0.number == number }) else { return }
        waiting.remove(at: index).continuation.resume(throwing: Self.busy)
    }

    private func giveBack(_ connection: PostgresConnection) {
        if waiting.isEmpty {
            idle.append(connection)
        } else {
            waiting.removeFirst().continuation.resume(returning: connection)
        }
    }

    private static let busy = DatabaseError(
        sqlState: "", message: "all connections are taken", constraint: "", isDisconnected: true)
}

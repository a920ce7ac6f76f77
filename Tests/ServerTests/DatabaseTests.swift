// SPDX-License-Identifier: Apache-2.0

import Foundation
import HTTPTransport
import Server
import Testing

/// What users notice of the database.
@Suite(.server) struct DatabaseTests {
    /// Statuses of requests that are made at the same time, so that each has a connection of its own.
    private static func statuses(_ server: TestServer) async throws -> [Int] {
        try await withThrowingTaskGroup(of: Int.self) { group in
            for _ in 0..<20 { group.addTask { try await server.call("GET", "workspaces").status } }
            return try await group.reduce(into: []) { $0.append($1) }
        }
    }

    @Test func connectionsThatWereClosedWhileIdleFailNobody() async throws {
        let server = try TestServer.shared()
        let all = Array(repeating: 200, count: 20)
        #expect(try await Self.statuses(server) == all)
        try await server.hosted.execute(
            """
            SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
            WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'
            """)
        #expect(try await Self.statuses(server) == all)
    }
}

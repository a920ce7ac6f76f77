// SPDX-License-Identifier: Apache-2.0

import Foundation
import HTTPTransport
import Server
import Testing

/// What users notice of the database.
@Suite(.serialized, .server) struct DatabaseTests {
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

    @Test func oldRecordsGo() async throws {
        let server = try TestServer.shared()
        var keys: [String] = []
        for days in [6, 8] {
            let id = try await server.call("POST", "users/me/keys").text("key").prefix(10)
            try await server.hosted.execute(
                "UPDATE api_keys SET expires_at = now() - interval '\(days) days' WHERE id = '\(id)'")
            keys.append(String(id))
        }
        let template = try #require(try await server.call("GET", "templates").list.first)
        let path = "templateversions/\(template["active_version_id"] ?? "")/dry-run"
        var jobs: [String] = []
        for hours in [23, 25] {
            let job = try await server.call("POST", path, ["workspace_name": "x"]).text("id")
            try await server.hosted.execute(
                "UPDATE provisioner_jobs SET created_at = now() - interval '\(hours) hours' WHERE id = '\(job)'"
            )
            jobs.append(job)
        }
        try await server.hosted.purge()
        #expect(try await server.call("GET", "users/me/keys/\(keys[0])").status == 200)
        #expect(try await server.call("GET", "users/me/keys/\(keys[1])").status == 404)
        #expect(try await server.call("GET", "\(path)/\(jobs[0])").status == 200)
        #expect(try await server.call("GET", "\(path)/\(jobs[1])").status == 404)
    }
}

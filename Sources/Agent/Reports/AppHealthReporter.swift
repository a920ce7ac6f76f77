// SPDX-License-Identifier: Apache-2.0

internal import HTTPTransport
package import RPC
internal import SwiftProtobuf
internal import Synchronization

/// Asks the apps of a workspace whether they are well, and tells the server what changed. agent.md §4.5.
package struct AppHealthReporter: Sendable {
    /// One app by its checks.
    package struct State: Sendable {
        private let threshold: Int32
        private var failures: Int32 = 0
        package private(set) var health = AgentAppHealth.initializing

        /// Not well after `threshold` failed checks in a row and one more.
        package init(threshold: Int32) { self.threshold = threshold }

        /// A check had this outcome.
        package mutating func record(isHealthy: Bool) {
            if isHealthy {
                failures = 0
                health = .healthy
            } else if failures < threshold {
                failures += 1
            } else {
                health = .unhealthy
            }
        }
    }

    private final class Table: Sendable {
        let states = Mutex<[RawUUID: AgentAppHealth]>([:])
    }

    private let check: @Sendable (_ url: String, _ timeout: Duration) async -> Bool
    private let table = Table()

    /// `check` asks an app; false for no answer, and for one of 500 and more.
    package init(check: @escaping @Sendable (_ url: String, _ timeout: Duration) async -> Bool) {
        self.check = check
    }

    /// Those that are to be asked.
    package static func checked(_ apps: [AgentWorkspaceApp]) -> [AgentWorkspaceApp] {
        apps.filter {
            !$0.healthcheck.url.isEmpty && $0.healthcheck.interval.seconds > 0 && $0.healthcheck.threshold > 0
                && RawUUID($0.id) != nil
        }
    }

    /// Reports over this connection until it fails.
    package func run(_ apps: [AgentWorkspaceApp], on connection: RPCConnection) async throws {
        try await withThrowingTaskGroup(of: Void.self) { group in
            for app in Self.checked(apps) { group.addTask { try await repeatedly(app) } }
            group.addTask { try await deliver(on: connection) }
            defer { group.cancelAll() }
            try await group.next()
        }
    }

    private func repeatedly(_ app: AgentWorkspaceApp) async throws {
        guard let id = RawUUID(app.id) else { return }
        let interval = Duration.seconds(min(app.healthcheck.interval.seconds, 1 << 30))
        var state = State(threshold: app.healthcheck.threshold)
        while true {
            try await Task.sleep(for: interval)
            state.record(
                isHealthy: await check(app.healthcheck.url, interval - .milliseconds(1)))
            table.states.withLock { $0[id] = state.health }
        }
    }

    private func deliver(on connection: RPCConnection) async throws {
        var told: [RawUUID: AgentAppHealth] = [:]
        while true {
            try await Task.sleep(for: .seconds(1))
            let states = table.states.withLock { $0 }
            let changed = states.filter { ($0.value != told[$0.key] ?? .initializing) }
            guard !changed.isEmpty else { continue }
            var request = AgentBatchUpdateAppHealthRequest()
            request.updates = changed.map { id, health in
                var update = AgentBatchUpdateAppHealthRequest.HealthUpdate()
                update.id = id.bytes()
                update.health = health
                return update
            }
            do throws(RPCError) {
                _ = try await connection.unary(AgentMethods.batchUpdateAppHealths, request)
            } catch {
                guard case .failed = error else { throw error }
            }
            told.merge(changed) { $1 }
        }
    }

    /// Asks by HTTP, with nothing of what the agent says to its server. `client` must be of its own.
    static func ask(_ client: HTTPClient, _ text: String, _ timeout: Duration) async -> Bool {
        guard let url = HTTPURL(text) else { return false }
        do {
            return try await client.request("GET", url, bodyLimit: 1 << 20, timeout: timeout).status < 500
        } catch {
            return false  // that it does not answer is the answer
        }
    }
}

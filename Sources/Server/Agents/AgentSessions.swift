// SPDX-License-Identifier: Apache-2.0

internal import Logging
internal import RPC
internal import Synchronization

/// Watches over agents' RPC connections and records when each was last seen. `agent.md` §3, connection monitor.
final class AgentSessions: Sendable {
    private let store: Store
    private let events: Events
    private let logger: Logger
    /// Number of the newest session of each agent: an older one that ends later says nothing about the agent.
    private let newest = Mutex<[Identifier: UInt64]>([:])
    private let counter = Atomic<UInt64>(0)

    /// Time between pings, and how long an answer may take.
    private static let pingSeconds = 15
    private static let pongSeconds = 30

    init(store: Store, events: Events, logger: Logger) {
        self.logger = logger
        self.store = store
        self.events = events
    }

    /// Returns when the agent no longer answers, is no longer part of the latest build, or the task is cancelled.
    func watch(_ agent: AgentIdentity, token: Identifier, _ connection: RPCConnection) async {
        let number = counter.wrappingAdd(1, ordering: .relaxed).newValue
        newest.withLock { $0[agent.agentID] = number }
        let changes = events.subscribe(.agentsOf(agent.workspaceID))
        defer { changes.cancel() }
        await seen(agent)
        events.publish(.workspace(agent.workspaceID))
        while !Task.isCancelled {
            do {
                _ = try await changes.next(timeoutSeconds: Self.pingSeconds)
            } catch {
                break  // cancelled: the connection has ended
            }
            guard newest.withLock({ $0[agent.agentID] }) == number, await isValid(token) else { break }
            guard await Self.answers(connection) else { break }
            await seen(agent)
        }
        await gone(agent, number)
    }

    /// Whether the agent still belongs to the latest build. An unreachable database disconnects nobody.
    private func isValid(_ token: Identifier) async -> Bool {
        do {
            return try await store.agent(token: token) != nil
        } catch {
            return true
        }
    }

    private func seen(_ agent: AgentIdentity) async {
        do {
            try await store.database.query(
                """
                UPDATE workspace_agents SET first_connected_at = coalesce(first_connected_at, $2),
                    last_connected_at = $2, updated_at = $2 WHERE id = $1
                """, [SQLValue(agent.agentID), SQLValue(Timestamp.now())])
        } catch {
            logger.warning(
                "agent's presence not recorded", metadata: ["agent": "\(agent.agentID)", "error": "\(error)"])
        }
    }

    private func gone(_ agent: AgentIdentity, _ number: UInt64) async {
        let isNewest = newest.withLock { newest in
            guard newest[agent.agentID] == number else { return false }
            newest[agent.agentID] = nil
            return true
        }
        guard isNewest else { return }
        let (store, events) = (store, events)
        // The session's task is cancelled by now, but this must be written.
        await Task {
            // Without a database the time-out of 30 s says the same.
            _ = try? await store.database.query(
                "UPDATE workspace_agents SET disconnected_at = $2, updated_at = $2 WHERE id = $1",
                [SQLValue(agent.agentID), SQLValue(Timestamp.now())])
            events.publish(.workspace(agent.workspaceID))
        }.value
    }

    private static func answers(_ connection: RPCConnection) async -> Bool {
        await withTaskGroup(of: Bool.self) { group in
            group.addTask { (try? await connection.ping()) != nil }
            group.addTask {
                // Cancelled when the answer came.
                try? await Task.sleep(for: .seconds(pongSeconds))
                return false
            }
            defer { group.cancelAll() }
            return await group.next() ?? false
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import RPC

/// `WorkspaceUpdates`: the workspaces of one user and their agents, first all of them, then what changes.
/// `coordinator.md` §2.
struct WorkspaceUpdates {
    /// What a client knows.
    struct Snapshot: Equatable {
        var workspaces: [Identifier: Workspace] = [:]
        var agents: [Identifier: Agent] = [:]
    }

    struct Workspace: Equatable {
        var name: String
        var status: String
    }

    struct Agent: Equatable {
        var name: String
        var workspace: Identifier
    }

    let services: Services
    let store: GuardedStore
    let owner: Identifier

    /// Changes within this time are told together.
    private static let pause: Duration = .seconds(1)

    /// Reports until it is cancelled. The first report is made even when there is nothing to tell.
    func run(_ report: (TailnetWorkspaceUpdate) async throws -> Void) async throws {
        let changes = services.events.subscribe(.anyWorkspace)
        defer { changes.cancel() }
        var known = try await snapshot()
        try await report(Self.difference(from: Snapshot(), to: known))
        while true {
            // Once a minute also without being told: other servers may write to the same database.
            _ = try await changes.next(timeoutSeconds: 60)
            let fresh = try await snapshot()
            if fresh != known { try await report(Self.difference(from: known, to: fresh)) }
            known = fresh
            try await Task.sleep(for: Self.pause)
        }
    }

    private func snapshot() async throws -> Snapshot {
        let rows = try await store.workspaces(WorkspaceSearch(owner: owner))
        let resources = try await services.resources(ofJobs: rows.map { $0.identifier("j_id") })
        var result = Snapshot()
        for row in rows {
            let id = row.identifier("id")
            result.workspaces[id] = Workspace(name: row.text("name"), status: WorkspaceRecord.status(row))
            let agents = (resources[row.identifier("j_id")] ?? []).flatMap { $0["agents"]?.elements ?? [] }
            for agent in agents {
                guard let agentID = agent["id"]?.text.flatMap({ Identifier($0) }) else { continue }
                result.agents[agentID] = Agent(name: agent["name"]?.text ?? "", workspace: id)
            }
        }
        return result
    }

    static func difference(from old: Snapshot, to new: Snapshot) -> TailnetWorkspaceUpdate {
        var update = TailnetWorkspaceUpdate()
        update.upsertedWorkspaces = new.workspaces.filter { old.workspaces[$0.key] != $0.value }.map(message)
        update.upsertedAgents = new.agents.filter { old.agents[$0.key] != $0.value }.map(message)
        update.deletedWorkspaces = old.workspaces.filter { new.workspaces[$0.key] == nil }.map(message)
        update.deletedAgents = old.agents.filter { new.agents[$0.key] == nil }.map(message)
        return update
    }

    private static let statuses: [String: TailnetWorkspace.Status] = [
        "pending": .pending, "starting": .starting, "running": .running, "stopping": .stopping,
        "stopped": .stopped, "failed": .failed, "canceling": .canceling, "canceled": .canceled,
        "deleting": .deleting, "deleted": .deleted,
    ]

    private static func message(_ id: Identifier, _ workspace: Workspace) -> TailnetWorkspace {
        var message = TailnetWorkspace()
        message.id = id.raw.bytes()
        message.name = workspace.name
        message.status = statuses[workspace.status] ?? .unknown
        return message
    }

    private static func message(_ id: Identifier, _ agent: Agent) -> TailnetAgent {
        var message = TailnetAgent()
        message.id = id.raw.bytes()
        message.name = agent.name
        message.workspaceID = agent.workspace.raw.bytes()
        return message
    }
}

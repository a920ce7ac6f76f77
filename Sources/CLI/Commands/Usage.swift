// SPDX-License-Identifier: Apache-2.0

/// Tells the server each minute that the workspace is in use.
package enum Usage {
    static func report(
        _ client: APIClient, _ workspace: Workspace, _ agent: WorkspaceAgent?, app: String
    ) -> Task<Void, Never> {
        let body = agent.map { agent -> JSON in
            let known = ["vscode", "jetbrains"].contains(app) ? app : "ssh"
            return .record(["agent_id": .string(agent.id), "app_name": .string(known)])
        }
        let route = "workspaces/\(workspace.id)/usage"
        return Task {
            guard app != "disable" else { return }
            await `repeat`(every: .seconds(60)) {
                do {
                    _ = try await client.raw("POST", route, [], body)
                } catch  where client.isVerbose {
                    client.console.note("usage report: \(error)")
                }
            }
        }
    }

    /// Reports again and again until its task is cancelled. A report that fails is only a missed courtesy: a server
    /// that restarts must neither disturb the session nor end the reports.
    package static func `repeat`(every interval: Duration, _ report: () async throws -> Void) async {
        while !Task.isCancelled {
            do { try await report() } catch is CancellationError { return } catch {}
            do { try await Task.sleep(for: interval) } catch { return }
        }
    }
}

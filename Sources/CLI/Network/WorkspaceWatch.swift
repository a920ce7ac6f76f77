// SPDX-License-Identifier: Apache-2.0

internal import HTTPTransport
internal import Tailnet

/// Tells a session that its workspace is no longer the one it was opened in (`WorkspaceEnd`), so that it ends instead
/// of waiting for an agent that never comes back. Follows `workspaces/{id}/watch`; a server that is away for a while
/// does no harm.
enum WorkspaceWatch {
    /// Pauses between attempts to follow the workspace. cli/commands.md §4.1.1.
    private static let pauses = (first: Duration.seconds(1), limit: Duration.seconds(15))

    /// Returns why the workspace is not what it was, when that happens. Throws only when the task is cancelled.
    static func waitForEnd(of workspace: Workspace, _ client: APIClient) async throws -> String {
        var generator = SystemRandomNumberGenerator()
        var backoff = Backoff(from: pauses.first, to: pauses.limit, seed: generator.next())
        let build = workspace.build["id"].text
        let url = client.url("workspaces/\(workspace.id)/watch")
        let words = { (end: WorkspaceEnd) in "the workspace \"\(workspace.name)\" \(end.words)" }
        while true {
            do {
                var end: WorkspaceEnd?
                let stream = try await client.http.events(url, headers: client.credentials)
                try await stream.forEach { event in
                    guard event.name == "data", let json = try? JSON.parse(event.data.utf8) else {
                        return true
                    }
                    backoff.reset()
                    end = WorkspaceEnd(of: json, since: build, when: .asked)
                    return end == nil
                }
                if let end { return words(end) }
            } catch let error where error.kind == .upgradeRefused {
                let end = error.response.flatMap {
                    WorkspaceEnd(status: $0.status, $0.body, since: build, when: .asked)
                }
                if let end { return words(end) }
            } catch {
                // The server or the way to it is gone for a while: the session needs neither.
                if client.isVerbose { client.console.note("watching the workspace: \(error)") }
            }
            try await Task.sleep(for: backoff.next())
        }
    }
}

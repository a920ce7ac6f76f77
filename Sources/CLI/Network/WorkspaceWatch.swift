// SPDX-License-Identifier: Apache-2.0

internal import HTTPTransport
internal import Tailnet

/// Tells a session that its workspace is no longer the one it was opened in, so that it ends instead of waiting for an
/// agent that never comes back. Follows `workspaces/{id}/watch`; a server that is away for a while does no harm.
package enum WorkspaceWatch {
    /// Pauses between attempts to follow the workspace. cli/commands.md §4.1.1.
    private static let pauses = (first: Duration.seconds(1), limit: Duration.seconds(15))

    /// Why a session that began with `build` is over; nil while it is not. `workspace` is what the server sent.
    package static func end(of workspace: JSON, since build: String) -> String? {
        let (now, name) = (workspace["latest_build"], workspace["name"].text)
        switch now["transition"].text {
        case "stop": return "the workspace \"\(name)\" was stopped"
        case "delete": return "the workspace \"\(name)\" was deleted"
        case "start" where !now["id"].text.isEmpty && now["id"].text != build:
            return "the workspace \"\(name)\" was started anew"
        default: return nil
        }
    }

    /// Returns why the workspace is not what it was, when that happens. Throws only when the task is cancelled.
    static func waitForEnd(of workspace: Workspace, _ client: APIClient) async throws -> String {
        var generator = SystemRandomNumberGenerator()
        var backoff = Backoff(from: pauses.first, to: pauses.limit, seed: generator.next())
        let build = workspace.build["id"].text
        let url = client.url("workspaces/\(workspace.id)/watch")
        while true {
            do {
                var reason: String?
                let stream = try await client.http.events(url, headers: client.credentials)
                try await stream.forEach { event in
                    guard event.name == "data", let json = try? JSON.parse(event.data.utf8) else {
                        return true
                    }
                    backoff.reset()
                    reason = end(of: json, since: build)
                    return reason == nil
                }
                if let reason { return reason }
            } catch let error where error.kind == .upgradeRefused {
                if let reason = end(after: error.response, workspace.name) { return reason }
            } catch {
                // The server or the way to it is gone for a while: the session needs neither.
                if client.isVerbose { client.console.note("watching the workspace: \(error)") }
            }
            try await Task.sleep(for: backoff.next())
        }
    }

    /// A server that says itself that the workspace is gone; not a proxy's page.
    private static func end(after response: HTTPResponse?, _ name: String) -> String? {
        guard let response, response.status == 404 || response.status == 410,
            let json = try? JSON.parse(response.body), json["message"].string != nil
        else { return nil }
        return "the workspace \"\(name)\" is no longer there"
    }
}

// SPDX-License-Identifier: Apache-2.0

/// Starts and stops workspaces.
struct WorkspaceBuilds {
    let client: APIClient
    let console: Console

    /// What a build is asked for beside its transition.
    struct Wishes: Sendable {
        /// `cli`, `ssh_connection`, `vscode_connection`, `jetbrains_connection`.
        var reason = "cli"
        /// Whether the template's active version is to be used, whatever the workspace had.
        var updates = false
        /// `rich_parameter_values`.
        var parameters: [JSON] = []
    }

    /// Asks for a build.
    func ask(_ transition: String, _ workspace: Workspace, _ wishes: Wishes) async throws -> JSON {
        var body: [JSON.Member] = [
            .init(key: "transition", value: .string(transition)),
            .init(key: "reason", value: .string(wishes.reason)),
        ]
        if wishes.updates {
            body.append(
                .init(key: "template_version_id", value: workspace.json["template_active_version_id"]))
        }
        if !wishes.parameters.isEmpty {
            body.append(.init(key: "rich_parameter_values", value: .array(wishes.parameters)))
        }
        return try await client.post("workspaces/\(workspace.id)/builds", .object(body))
    }

    /// Asks for a start. A workspace that may only run its template's active version is moved to it.
    func start(_ workspace: Workspace, _ wishes: Wishes) async throws -> JSON {
        var wishes = wishes
        if workspace.json["automatic_updates"].text == "always" { wishes.updates = true }
        do {
            return try await ask("start", workspace, wishes)
        } catch let error as APIError where error.status == 403 && !wishes.updates {
            console.note(
                "The workspace may not start with the template version of its last build."
                    + " It is moved to the active version.")
            wishes.updates = true
            return try await ask("start", workspace, wishes)
        }
    }

    func wait(for build: JSON) async throws {
        try await BuildWaiter(client: client, console: console).wait(for: build)
    }

    func reload(_ workspace: Workspace) async throws -> Workspace {
        Workspace(json: try await client.get("workspaces/\(workspace.id)"))
    }
}

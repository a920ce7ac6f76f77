// SPDX-License-Identifier: Apache-2.0

internal import HTTPTransport

/// `coder open vscode`: an editor on this machine, on a folder of a workspace. cli/commands.md §4.8.
package enum OpenCommand {
    static let command = Command(
        name: "open", summary: "Open a workspace in an editor, or an app of it.",
        subcommands: [
            OpenAppCommand.command,
            Command(
                name: "vscode", usage: "<workspace> [directory]",
                summary: "Open a workspace in VS Code Desktop.",
                details: "A directory is one of the workspace, from the agent's own if it is relative.",
                arguments: .between(1, 2),
                options: [
                    CommandOption(
                        "generate-token", env: "CODER_OPEN_VSCODE_GENERATE_TOKEN", .bool,
                        help: "Put a new token into the link, also inside of a workspace.")
                ], run: vscode),
        ])

    @Sendable private static func vscode(_ invocation: Invocation) async throws -> Int32 {
        let client = try invocation.client()
        let finder = AgentFinder(invocation: invocation, client: client)
        let name = try WorkspaceName(invocation.words[0])
        // Inside of a workspace there is no editor to start, and the one outside is logged in.
        let isInside = invocation.environment["CODER"] == "true"
        let (workspace, found) = try await finder.find(name, autostart: true)
        var agent = found
        try await finder.waitUntilReady(agent, wait: "no")
        if agent.hasParent {
            let parent = agent.json["parent_id"].text
            agent = workspace.agents.first { $0.id == parent } ?? agent
        }
        agent = WorkspaceAgent(json: try await client.get("workspaceagents/\(agent.id)"))
        let folder = try directory(
            invocation.words.count > 1 ? invocation.words[1] : "", in: agent.json["expanded_directory"].text)
        var query = [
            ("agent", agent.name), ("folder", folder), ("owner", workspace.ownerName),
            ("url", client.base.path == "/" ? client.base.origin : "\(client.base)"),
            ("workspace", workspace.name),
        ].filter { !$0.1.isEmpty }
        let wantsToken = invocation.values.bool("generate-token")
        var key = ""
        if !isInside || wantsToken {
            key = try await client.post("users/me/keys")["key"].text
            query.append(("token", key))
        }
        let address = link(query)
        guard !isInside, !invocation.values.bool("no-open"), open(address, invocation.environment) else {
            if !isInside { invocation.console.note("No program opened the link; open it yourself:") }
            // A link that stays on the screen should not let everybody in.
            if !wantsToken, !key.isEmpty {
                _ = try await client.delete("users/me/keys/\(key.prefix { $0 != "-" })")
                invocation.console.say(link(query.filter { $0.0 != "token" }))
            } else {
                invocation.console.say(address)
            }
            return 0
        }
        invocation.console.note("Opened \(workspace.fullName) in VS Code Desktop.")
        return 0
    }

    /// The folder to open: `wanted` as it is, or below the agent's own.
    package static func directory(_ wanted: String, in base: String) throws -> String {
        guard !wanted.hasPrefix("~") else {
            throw CommandError("a directory with ~ is not expanded: write it in full, or relative to \(base)")
        }
        if wanted.isEmpty || wanted.hasPrefix("/") { return wanted.isEmpty ? base : wanted }
        guard !base.isEmpty else {
            throw CommandError("the agent has no directory of its own: write the directory in full")
        }
        var parts = base.split(separator: "/")
        for part in wanted.split(separator: "/") where part != "." {
            if part == ".." { _ = parts.popLast() } else { parts.append(part) }
        }
        return "/" + parts.joined(separator: "/")
    }

    /// Keys in order, as the extension's own links have them.
    package static func link(_ query: [(String, String)]) -> String {
        "vscode://coder.coder-remote/open?"
            + query.sorted { $0.0 < $1.0 }.map { "\($0.0)=\(HTTPURL.encode($0.1))" }.joined(separator: "&")
    }

    /// True when a program took the link.
    static func open(_ address: String, _ environment: [String: String]) -> Bool {
        let script = "xdg-open \"$1\" >/dev/null 2>&1 && echo opened"
        return ChildProcess.output(
            of: ["/bin/sh", "-c", script, "sh", address], environment: environment) == "opened\n"
    }
}

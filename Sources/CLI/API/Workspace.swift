// SPDX-License-Identifier: Apache-2.0

internal import HTTPTransport

/// A workspace as the server describes it; only what commands need is read, the rest stays in `json`.
struct Workspace: Sendable {
    let json: JSON

    var id: String { json["id"].text }
    var name: String { json["name"].text }
    var ownerName: String { json["owner_name"].text }
    var fullName: String { "\(ownerName)/\(name)" }
    var build: JSON { json["latest_build"] }
    var isOutdated: Bool { json["outdated"].bool }

    /// Agents of the latest build, those of dev containers included.
    var agents: [WorkspaceAgent] {
        build["resources"].elements.flatMap { $0["agents"].elements }.map(WorkspaceAgent.init)
    }

    /// What the latest build did, or does: Started, Stopping, Failed, …
    var statusWord: String {
        let transition = build["transition"].text
        switch build["job"]["status"].text {
        case "pending": return "Queued"
        case "running":
            return ["start": "Starting", "stop": "Stopping", "delete": "Deleting"][transition] ?? "Running"
        case "succeeded":
            return ["start": "Started", "stop": "Stopped", "delete": "Deleted"][transition] ?? "Succeeded"
        case "canceling": return "Canceling"
        case "canceled": return "Canceled"
        case "failed": return "Failed"
        default: return "Unknown"
        }
    }
}

/// One agent of a workspace.
struct WorkspaceAgent: Sendable {
    let json: JSON

    var id: String { json["id"].text }
    var name: String { json["name"].text }
    /// connecting, connected, disconnected, timeout
    var status: String { json["status"].text }
    /// created, starting, ready, start_timeout, start_error, shutting_down, …
    var lifecycle: String { json["lifecycle_state"].text }
    /// Names of the programs that write into its log, by identifier.
    var logSources: [String: String] {
        let pairs = json["log_sources"].elements.map { ($0["id"].text, $0["display_name"].text) }
        return Dictionary(pairs, uniquingKeysWith: { first, _ in first })
    }
    var hasParent: Bool { !json["parent_id"].isNull }
    /// Whether a login waits for scripts unless told otherwise.
    var blocksLogin: Bool { json["scripts"].elements.contains { $0["start_blocks_login"].bool } }
}

/// What people write to name a workspace and an agent.
package struct WorkspaceName: Sendable, Hashable {
    /// `me` unless given.
    package var owner = "me"
    package var workspace: String
    package var agent: String?

    /// `[owner/]workspace[.agent]`.
    package init(_ text: String) throws {
        var rest = text[...]
        if let slash = rest.firstIndex(of: "/") {
            owner = String(rest[..<slash])
            rest = rest[rest.index(after: slash)...]
        }
        if let dot = rest.firstIndex(of: ".") {
            agent = String(rest[rest.index(after: dot)...])
            rest = rest[..<dot]
        }
        workspace = String(rest)
        try check(text)
    }

    /// The forms of `coder ssh`: also `owner--workspace[--agent]`, `owner--workspace.agent` and
    /// `agent.workspace.owner`, with the prefix or suffix of a configured host name taken off.
    package init(host text: String, prefix: String, suffix: String) throws {
        var host = text[...]
        if !prefix.isEmpty, host.hasPrefix(prefix) {
            host = host.dropFirst(prefix.count)
        } else if !suffix.isEmpty, host.hasSuffix(".\(suffix)") {
            host = host.dropLast(suffix.count + 1)
        }
        let dots = host.split(separator: ".", omittingEmptySubsequences: false)
        if dots.count == 3, !host.contains("/"), host.range(ofText: "--") == nil {
            (agent, workspace, owner) = (String(dots[0]), String(dots[1]), String(dots[2]))
            try check(text)
            return
        }
        let parts = Self.split(host)
        switch parts.count {
        case 1: workspace = parts[0].text
        case 2:
            // A dot comes before an agent; a slash or dashes come behind an owner.
            if parts[1].separator == "." {
                (workspace, agent) = (parts[0].text, parts[1].text)
            } else {
                (owner, workspace) = (parts[0].text, parts[1].text)
            }
        case 3: (owner, workspace, agent) = (parts[0].text, parts[1].text, parts[2].text)
        default: throw CommandError("invalid workspace name: \"\(text)\"")
        }
        try check(text)
    }

    private static func split(_ text: Substring) -> [(separator: String, text: String)] {
        var parts = [(separator: "", text: "")]
        var rest = text
        while let character = rest.first {
            if rest.hasPrefix("--") {
                parts.append(("--", ""))
                rest = rest.dropFirst(2)
            } else if character == "/" || character == "." {
                parts.append((String(character), ""))
                rest = rest.dropFirst()
            } else {
                parts[parts.count - 1].text.append(character)
                rest = rest.dropFirst()
            }
        }
        return parts
    }

    private func check(_ text: String) throws {
        // Letters and digits with single dashes between them; agents may have underscores.
        let isName = { (name: String) in
            !name.isEmpty && name.utf8.count <= 64 && !name.hasPrefix("-") && !name.hasSuffix("-")
                && name.range(ofText: "--") == nil
                && name.utf8.allSatisfy {
                    48...57 ~= $0 || 65...90 ~= $0 || 97...122 ~= $0 || $0 == 45 || $0 == 95
                }
        }
        guard isName(owner), isName(workspace), agent.map(isName) ?? true else {
            throw CommandError("invalid workspace name: \"\(Table.clean(text))\"")
        }
    }

    /// Whether the workspace is named by its identifier.
    var isIdentifier: Bool {
        let groups = workspace.split(separator: "-", omittingEmptySubsequences: false)
        return groups.map(\.count) == [8, 4, 4, 4, 12] && groups.joined().allSatisfy(\.isHexDigit)
    }
}

extension APIClient {
    /// Looks a workspace up. A missing one is named in the error.
    func workspace(_ name: WorkspaceName) async throws -> Workspace {
        do {
            if name.isIdentifier { return Workspace(json: try await get("workspaces/\(name.workspace)")) }
            let owner = HTTPURL.encode(name.owner)
            return Workspace(
                json: try await get("users/\(owner)/workspace/\(HTTPURL.encode(name.workspace))"))
        } catch let error as APIError where error.status == 404 || error.status == 410 {
            let shown = name.owner == "me" ? name.workspace : "\(name.owner)/\(name.workspace)"
            throw CommandError("there is no workspace \"\(shown)\": 'coder list' shows those you have")
        }
    }
}

extension Workspace {
    /// The agent that is meant: the named one, or the only one.
    func agent(named name: String?) throws -> WorkspaceAgent {
        let agents = agents
        guard !agents.isEmpty else {
            guard build["transition"].text == "start" else {
                throw CommandError(
                    "the workspace \"\(self.name)\" is not running (\(statusWord.lowercased()))")
            }
            throw CommandError("the workspace \"\(self.name)\" has no agents")
        }
        let names = agents.map(\.name).sorted().joined(separator: ", ")
        if let name {
            guard let agent = agents.first(where: { $0.name == name }) else {
                throw CommandError("the workspace \"\(self.name)\" has no agent \"\(name)\", only: \(names)")
            }
            return agent
        }
        let own = agents.filter { !$0.hasParent }
        guard agents.count == 1 || own.count == 1 else {
            throw CommandError("the workspace \"\(self.name)\" has several agents, name one of: \(names)")
        }
        return agents.count == 1 ? agents[0] : own[0]
    }
}

extension StringProtocol {
    /// Where `text` first occurs.
    func range(ofText text: String) -> Range<Index>? {
        var start = startIndex
        while start < endIndex {
            if self[start...].hasPrefix(text) { return start..<index(start, offsetBy: text.count) }
            start = index(after: start)
        }
        return nil
    }
}

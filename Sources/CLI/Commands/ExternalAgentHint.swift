// SPDX-License-Identifier: Apache-2.0

internal import HTTPTransport

/// What has to be run on the machine of an external workspace. Each start makes a new token for its agent, and the
/// agent that runs there with the old one is locked out: whoever starts the workspace must hear of it.
enum ExternalAgentHint {
    /// The token of one agent, and the server's own command line.
    static func credentials(
        _ client: APIClient, _ workspace: Workspace, _ agent: WorkspaceAgent
    ) async throws -> JSON {
        try await client.get(
            "workspaces/\(workspace.id)/external-agent/\(HTTPURL.encode(agent.name))/credentials")
    }

    /// The two lines that attach a machine.
    static func lines(_ url: HTTPURL, _ token: String) -> String {
        "export CODER_AGENT_URL=\(address(url)) CODER_AGENT_TOKEN=\(token)\ncoder agent\n"
    }

    /// What stands above the lines: how a machine gets the program, too.
    static func preface(_ url: HTTPURL) -> String {
        "Run these lines on its machine. If there is no coder yet, this installs it:\n\n"
            + "curl -fsSL \(address(url))/install.sh | sh\n"
    }

    /// After a start: the new lines, on standard error. A command that goes on to wait for the agent ends without a
    /// terminal, as nobody there could run them.
    static func tell(_ invocation: Invocation, _ client: APIClient, _ workspace: Workspace) async throws {
        guard workspace.build["has_external_agent"].bool else { return }
        let console = invocation.console
        guard console.isErrorTerminal else {
            throw CommandError(
                "the workspace \"\(workspace.name)\" was started: its agent has a new token. Run what"
                    + " 'coder external-workspaces agent-instructions \(workspace.name)' shows on its machine"
            )
        }
        console.note("Its agent has a new token.\n" + preface(client.base))
        console.error(try await allLines(client, workspace))
    }

    /// The lines of all agents.
    static func allLines(_ client: APIClient, _ workspace: Workspace) async throws -> String {
        var text = ""
        for agent in workspace.agents {
            let credentials = try await credentials(client, workspace, agent)
            text += lines(client.base, credentials["agent_token"].text)
        }
        return text
    }

    private static func address(_ url: HTTPURL) -> String { url.path == "/" ? url.origin : "\(url)" }
}

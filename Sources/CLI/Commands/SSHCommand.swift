// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import HTTPTransport
internal import LinuxIO
internal import Mesh

/// `coder ssh`.
enum SSHCommand {
    static let command = Command(
        name: "ssh", usage: "<workspace> [-- command...]",
        summary: "Open a shell in a workspace, or run a command there.",
        details: """
            A shell gets a terminal. A command gets one when input, output and errors are all terminals; else output \
            and errors stay apart. The exit status is the remote one.
              coder ssh dev
              coder ssh dev -- make -j2
              ssh -o ProxyCommand='coder ssh --stdio dev' dev
            """,
        arguments: .atLeast(1), options: options, run: run)

    private static let options: [CommandOption] =
        [
            CommandOption(
                "stdio", env: "CODER_SSH_STDIO", .bool,
                help: "Carry raw SSH bytes on standard input and output."),
            CommandOption(
                "ssh-host-prefix", env: "CODER_SSH_SSH_HOST_PREFIX", help: "Prefix to take off the host name."
            ),
            CommandOption(
                "hostname-suffix", env: "CODER_SSH_HOSTNAME_SUFFIX",
                help: "Suffix to take off the host name, without dot."),
            CommandOption(
                "forward-agent", short: "A", env: "CODER_SSH_FORWARD_AGENT", .bool,
                help: "Offer your ssh-agent to the workspace."),
            CommandOption(
                "identity-agent", env: "CODER_SSH_IDENTITY_AGENT",
                help: "Socket of the ssh-agent to offer, instead of $SSH_AUTH_SOCK. Implies --forward-agent."),
            CommandOption(
                "forward-gpg", short: "G", env: "CODER_SSH_FORWARD_GPG", .bool, hidden: true,
                help: "Offer your gpg-agent to the workspace. Not available yet."),
            CommandOption(
                "remote-forward", short: "R", env: "CODER_SSH_REMOTE_FORWARD", .stringArray,
                help:
                    "Lead a port or socket of the workspace here: <remote port>:<local address>:<local port>,"
                    + " or <remote socket>:<local socket>. Repeatable."),
            CommandOption(
                "no-wait", env: "CODER_SSH_NO_WAIT", .bool, help: "Do not wait for the startup scripts."),
            CommandOption(
                "env", short: "e", env: "CODER_SSH_ENV", .stringArray,
                help: "Environment variable for the session, KEY=value."),
            CommandOption(
                "disable-autostart", env: "CODER_SSH_DISABLE_AUTOSTART", .bool,
                help: "Do not start a stopped workspace."),
            CommandOption(
                "container", short: "c", env: "CODER_SSH_CONTAINER", hidden: true,
                help: "A container of the workspace. Not available yet."),
            CommandOption(
                "container-user", env: "CODER_SSH_CONTAINER_USER", hidden: true,
                help: "User inside the container. Not available yet."),
            CommandOption(
                "usage-app", env: "CODER_SSH_USAGE_APP", hidden: true, help: "What the usage is reported as."),
            CommandOption(
                "workspace-poll-interval", env: "CODER_WORKSPACE_POLL_INTERVAL", .duration, default: "1m",
                hidden: true, help: "Accepted."),
            CommandOption(
                "force-new-tunnel", .bool, hidden: true, help: "Accepted; there is no other tunnel."),
            CommandOption("test.force-ppid", .int, hidden: true, help: "For tests: the parent process."),
        ] + sharedOptions

    /// Options of every command that editors use.
    static let sharedOptions: [CommandOption] = [
        CommandOption(
            "wait", env: "CODER_SSH_WAIT", .choice(["yes", "no", "auto"]), default: "auto",
            help: "Whether to wait for the startup scripts; auto waits when a script asks for it."),
        CommandOption(
            "log-dir", short: "l", env: "CODER_SSH_LOG_DIR",
            help: "Directory for a log file of this connection."),
        CommandOption(
            "network-info-dir",
            help: "Directory for <parent pid>.json, which tells editors about the connection."),
        CommandOption(
            "network-info-interval", .duration, default: "5s", help: "How often that file is written."),
    ]

    @Sendable static func run(_ invocation: Invocation) async throws -> Int32 {
        let values = invocation.values
        let name = try WorkspaceName(
            host: invocation.words[0], prefix: values.string("ssh-host-prefix"),
            suffix: values.string("hostname-suffix"))
        for (option, what) in [
            ("forward-gpg", "forwarding of gpg-agent"), ("container", "sessions in containers"),
            ("container-user", "sessions in containers"),
        ] where values.source(option) > .default {
            throw CommandError("--\(option): \(what) is not available in this version")
        }
        var plan = SSHPlan(name: name, isStdio: values.bool("stdio"))
        plan.startsWorkspace = !values.bool("disable-autostart")
        plan.waitPolicy = values.bool("no-wait") ? "no" : values.string("wait")
        plan.usageApp = values.string("usage-app")
        plan.words = Array(invocation.words.dropFirst())
        plan.request.environment = try variables(values.list("env"))
        plan.request.remoteForwards = try values.list("remote-forward").map { try RemoteForward($0) }
        guard plan.request.remoteForwards.isEmpty || !plan.isStdio else {
            throw CommandError("--remote-forward does not go with --stdio: let ssh forward (ssh -R)")
        }
        let identity = values.string("identity-agent")
        if values.bool("forward-agent") || !identity.isEmpty {
            let socket = identity.isEmpty ? invocation.environment["SSH_AUTH_SOCK"] ?? "" : identity
            if !socket.isEmpty { plan.request.agentSocket = socket }
        }
        return try await SSHRun(invocation: invocation, client: try invocation.client(), plan: plan).run()
    }

    static func variables(_ texts: [String]) throws -> [(String, String)] {
        try texts.map { text in
            guard let equals = text.firstIndex(of: "="), equals > text.startIndex,
                !text.utf8.contains(0)
            else { throw CommandError("invalid --env \"\(Table.clean(text))\": write it like KEY=value") }
            return (String(text[..<equals]), String(text[text.index(after: equals)...]))
        }
    }
}

/// `coder vscodessh`: what versions of the VS Code extension before 1.9 put into their ssh configuration.
enum VSCodeSSHCommand {
    static let command = Command(
        name: "vscodessh", usage: "<coder-vscode--owner--workspace[--agent]>",
        summary: "For old versions of the VS Code extension.", arguments: .exactly(1),
        options: [
            CommandOption("session-token-file", help: "File with the session token."),
            CommandOption("url-file", help: "File with the deployment's URL."),
        ] + SSHCommand.sharedOptions, isHidden: true, run: run)

    @Sendable private static func run(_ invocation: Invocation) async throws -> Int32 {
        let values = invocation.values
        for option in ["network-info-dir", "session-token-file", "url-file"]
        where values.string(option).isEmpty {
            throw CommandError("--\(option) is required")
        }
        let text = invocation.words[0]
        let parts = text.split(separator: "--", omittingEmptySubsequences: false).map(String.init)
        guard 3...4 ~= parts.count, !parts.contains("") else {
            throw CommandError(
                "invalid host \"\(Table.clean(text))\": want coder-vscode--<owner>--<workspace>[--<agent>]")
        }
        let name = try WorkspaceName(
            host: "\(parts[1])/\(parts[2])" + (parts.count == 4 ? ".\(parts[3])" : ""), prefix: "", suffix: ""
        )
        let address = try TextFile.read(values.string("url-file")).trimmed
        guard let url = HTTPURL(address) else {
            throw CommandError("\"\(Table.clean(address))\" is not an http or https URL")
        }
        let token = try TextFile.read(values.string("session-token-file")).trimmed
        var plan = SSHPlan(name: name, isStdio: true)
        plan.waitPolicy = values.string("wait")
        plan.usageApp = "vscode"
        plan.logName = "\(parentProcess()).log"
        let client = invocation.client(url: url, token: token)
        return try await SSHRun(invocation: invocation, client: client, plan: plan).run()
    }
}

/// Finds the agent that a name means, starts a stopped workspace, and waits for agents that are not there yet.
struct AgentFinder {
    let invocation: Invocation
    let client: APIClient

    func find(_ name: WorkspaceName, autostart: Bool) async throws -> (Workspace, WorkspaceAgent) {
        var workspace = try await client.workspace(name)
        if workspace.build["transition"].text != "start" {
            workspace = try await start(workspace, autostart: autostart)
            try await ExternalAgentHint.tell(invocation, client, workspace)
        }
        return (workspace, try workspace.agent(named: name.agent))
    }

    private func start(_ workspace: Workspace, autostart: Bool) async throws -> Workspace {
        guard autostart else {
            throw CommandError("the workspace \"\(workspace.name)\" is not running, and is not to be started")
        }
        guard workspace.build["transition"].text != "delete" else {
            throw CommandError("the workspace \"\(workspace.name)\" is deleted")
        }
        guard workspace.build["status"].text == "stopped" else {
            throw CommandError("the workspace \"\(workspace.name)\" is \(workspace.build["status"].text)")
        }
        invocation.console.note("The workspace was stopped; it is started now...")
        let build = try await client.post(
            "workspaces/\(workspace.id)/builds",
            .record(["transition": .string("start"), "reason": .string("ssh_connection")]))
        try await BuildWaiter(client: client, console: invocation.console).wait(for: build)
        return Workspace(json: try await client.get("workspaces/\(workspace.id)"))
    }

    /// Waits with a visible line while the agent is not connected, or its scripts run and the login is to wait.
    func waitUntilReady(_ agent: WorkspaceAgent, wait policy: String) async throws {
        var agent = agent
        var stage: Stage?
        let console = invocation.console
        let waits = policy == "yes" || policy == "auto" && agent.blocksLogin
        let began = Timestamp.now
        while true {
            let next = try problem(of: agent, waits: waits, console)
            if next != stage?.name {
                stage?.end(console)
                stage = next.map { Stage($0, console) }
                if next == Self.connecting, agent.status == "timeout" {
                    console.note(
                        "The agent has trouble connecting. Is it running? See its log on the workspace's machine."
                    )
                }
            }
            guard next != nil else { return }
            try AgentPatience(console, wait: policy).check(agent, waited: began.age)
            try await Task.sleep(for: period(began.age))
            agent = WorkspaceAgent(json: try await client.get("workspaceagents/\(agent.id)"))
        }
    }

    private static let connecting = "Waiting for the workspace agent to connect"

    private func problem(of agent: WorkspaceAgent, waits: Bool, _ console: Console) throws -> String? {
        switch agent.status {
        case "connecting", "timeout": return Self.connecting
        case "disconnected": return "The workspace agent lost connection; waiting for it to come back"
        default: break
        }
        switch agent.lifecycle {
        case "created", "starting":
            return waits ? "Running workspace agent startup scripts (--wait=no goes on without them)" : nil
        case "start_timeout", "start_error":
            console.note("Warning: the startup scripts of the workspace failed or took too long.")
            return nil
        case "shutting_down", "shutdown_timeout", "shutdown_error", "off":
            throw CommandError("the workspace is shutting down")
        default: return nil
        }
    }

    /// 500 ms at first, longer for those who wait for long.
    private func period(_ age: Duration) -> Duration {
        switch age.components.seconds {
        case ..<60: return .milliseconds(500)
        case ..<120: return .seconds(1)
        case ..<300: return .seconds(2)
        case ..<600: return .seconds(4)
        default: return .seconds(8)
        }
    }
}

/// Tells the server each minute that the workspace is in use.
enum Usage {
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
            do {
                while !Task.isCancelled {
                    _ = try await client.raw("POST", route, [], body)
                    try await Task.sleep(for: .seconds(60))
                }
            } catch {
                // Only a courtesy: a server that restarts must not disturb the session.
                if client.isVerbose { client.console.note("usage report: \(error)") }
            }
        }
    }
}

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

    private static let options: [CommandOption] = [
        CommandOption(
            "stdio", env: "CODER_SSH_STDIO", .bool, help: "Carry raw SSH bytes on standard input and output."),
        CommandOption(
            "ssh-host-prefix", env: "CODER_SSH_SSH_HOST_PREFIX", help: "Prefix to take off the host name."),
        CommandOption(
            "hostname-suffix", env: "CODER_SSH_HOSTNAME_SUFFIX",
            help: "Suffix to take off the host name, without dot."),
        CommandOption(
            "wait", env: "CODER_SSH_WAIT", .choice(["yes", "no", "auto"]), default: "auto",
            help: "Whether to wait for the startup scripts; auto waits when a script asks for it."),
        CommandOption(
            "no-wait", env: "CODER_SSH_NO_WAIT", .bool, help: "Do not wait for the startup scripts."),
        CommandOption(
            "env", short: "e", env: "CODER_SSH_ENV", .stringArray,
            help: "Environment variable for the session, KEY=value."),
        CommandOption(
            "disable-autostart", env: "CODER_SSH_DISABLE_AUTOSTART", .bool,
            help: "Do not start a stopped workspace."),
        CommandOption(
            "usage-app", env: "CODER_SSH_USAGE_APP", hidden: true, help: "What the usage is reported as."),
        CommandOption(
            "workspace-poll-interval", env: "CODER_WORKSPACE_POLL_INTERVAL", .duration, default: "1m",
            hidden: true,
            help: "Accepted."),
        CommandOption(
            "network-info-dir",
            help: "Directory for <parent pid>.json, which tells editors about the connection."),
        CommandOption(
            "network-info-interval", .duration, default: "5s", help: "How often that file is written."),
        CommandOption("force-new-tunnel", .bool, hidden: true, help: "Accepted; there is no other tunnel."),
    ]

    @Sendable static func run(_ invocation: Invocation) async throws -> Int32 {
        let values = invocation.values
        let name = try WorkspaceName(
            host: invocation.words[0], prefix: values.string("ssh-host-prefix"),
            suffix: values.string("hostname-suffix"))
        let environment = try variables(values.list("env"))
        let client = try invocation.client()
        let finder = AgentFinder(invocation: invocation, client: client)
        let (workspace, agent) = try await finder.find(name, autostart: !values.bool("disable-autostart"))
        if workspace.isOutdated, invocation.console.isErrorTerminal, !values.bool("stdio") {
            invocation.console.note(
                "The workspace is outdated, a newer version of its template is here: "
                    + "\(client.base.origin)/@\(workspace.fullName)")
        }
        try await finder.waitUntilReady(agent, wait: values.bool("no-wait") ? "no" : values.string("wait"))
        let link = try await AgentLink.open(invocation, client, agent)
        let usage = Usage.report(client, workspace, agent, app: values.string("usage-app"))
        defer { usage.cancel() }
        do {
            try await link.reach(agent.name, invocation.console)
            let information = NetworkInformation.write(values, link)
            defer { information?.cancel() }
            let status =
                values.bool("stdio")
                ? try await carry(link) : try await session(invocation, link, environment)
            await link.close()
            return status
        } catch {
            await link.close()
            throw error
        }
    }

    static func variables(_ texts: [String]) throws -> [(String, String)] {
        try texts.map { text in
            guard let equals = text.firstIndex(of: "="), equals > text.startIndex,
                !text.utf8.contains(0)
            else { throw CommandError("invalid --env \"\(Table.clean(text))\": write it like KEY=value") }
            return (String(text[..<equals]), String(text[text.index(after: equals)...]))
        }
    }

    /// `--stdio`: the engine moves the bytes itself.
    private static func carry(_ link: AgentLink) async throws -> Int32 {
        // The numbers 0 and 1 stay open for the rest of the program.
        let input = fcntl(0, F_DUPFD_CLOEXEC, 3)
        let output = fcntl(1, F_DUPFD_CLOEXEC, 3)
        guard input >= 0, output >= 0 else { throw CommandError("standard input or output is closed") }
        let stream = try await link.node.dial(
            SocketAddress(link.address, port: 1), bridging: OwnedDescriptor(taking: input),
            writing: OwnedDescriptor(taking: output))
        let signal = try await untilStopped {
            await withTaskCancellationHandler {
                _ = await stream.ended()
            } onCancel: {
                stream.abort()
            }
        }
        return signal == nil ? 0 : 1
    }

    private static func session(
        _ invocation: Invocation, _ link: AgentLink, _ environment: [(String, String)]
    ) async throws -> Int32 {
        let console = invocation.console
        let command = invocation.words.count > 1 ? invocation.words.dropFirst().joined(separator: " ") : nil
        let isTerminal =
            command == nil
            ? console.isInputTerminal
            : console.isInputTerminal && console.isOutputTerminal && console.isErrorTerminal
        var request = SSHSessionRequest(command: command, wantsTerminal: isTerminal)
        request.environment = environment
        if let terminal = invocation.environment["TERM"], !terminal.isEmpty, terminal != "dumb" {
            request.terminal = terminal
        }
        let socket = try await link.node.dial(SocketAddress(link.address, port: 1))
        switch try await SSHSession.run(over: socket, request) {
        case .exited(let status): return status
        case .refused(let reason): throw CommandError(reason)
        case .stopped(let signal): return 128 + signal
        case .lost(let reason):
            console.fail("connection lost: \(reason)")
            return 255
        }
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

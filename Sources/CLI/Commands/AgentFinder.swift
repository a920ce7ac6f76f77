// SPDX-License-Identifier: Apache-2.0

internal import HTTPTransport

/// Finds the agent that a name means, starts a stopped workspace, and waits for builds and agents that are not there
/// yet.
struct AgentFinder {
    let invocation: Invocation
    let client: APIClient

    private var console: Console { invocation.console }
    private var builds: BuildWaiter { BuildWaiter(client: client, console: console) }

    func find(_ name: WorkspaceName, autostart: Bool) async throws -> (Workspace, WorkspaceAgent) {
        var workspace = try await client.workspace(name)
        if workspace.build["transition"].text != "start" {
            workspace = try await start(workspace, autostart: autostart)
            try await ExternalAgentHint.tell(invocation, client, workspace)
        }
        // Agents are only known once the build is done.
        if ["pending", "running"].contains(workspace.build["job"]["status"].text) {
            try await builds.wait(for: workspace.build)
            workspace = try await again(workspace)
        }
        return (workspace, try workspace.agent(named: name.agent))
    }

    private func again(_ workspace: Workspace) async throws -> Workspace {
        Workspace(json: try await client.get("workspaces/\(workspace.id)"))
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
        console.note("The workspace was stopped; it is started now...")
        do {
            try await builds.wait(for: try await build(workspace, []))
        } catch let error as APIError where error.status == 409 {
            console.note("Somebody else starts or stops it at this moment.")
            let workspace = try await again(workspace)
            return workspace.build["transition"].text == "start"
                ? workspace : try await start(workspace, autostart: false)
        } catch let error as APIError where error.status == 403 {
            // The template may require its active version.
            let version = workspace.json["template_active_version_id"].text
            guard !version.isEmpty else { throw error }
            let member = JSON.Member(key: "template_version_id", value: .string(version))
            try await builds.wait(for: try await build(workspace, [member]))
        }
        return try await again(workspace)
    }

    private func build(_ workspace: Workspace, _ more: [JSON.Member]) async throws -> JSON {
        let usual = JSON.record(["transition": .string("start"), "reason": .string("ssh_connection")])
        return try await client.post("workspaces/\(workspace.id)/builds", .object(usual.members + more))
    }

    /// Waits with a visible line while the agent is not connected, or its scripts run and the login is to wait: what
    /// the scripts print is shown then.
    func waitUntilReady(_ agent: WorkspaceAgent, wait policy: String) async throws {
        var agent = agent
        var stage: Stage?
        let waits = policy == "yes" || policy == "auto" && agent.blocksLogin
        let began = Timestamp.now
        var hasWarned = false
        var logs = LogFollower(client: client, console: console, route: "workspaceagents/\(agent.id)/logs")
        let sources = agent.logSources
        while true {
            let next = try problem(of: agent, waits: waits)
            let wasScripts = stage?.name == Self.scripts
            if next == Self.scripts || wasScripts {
                await logs.show { sources[$0["source_id"].text].map { "\($0): " } ?? "" }
            }
            if next != stage?.name {
                stage?.end(console, failed: wasScripts && agent.lifecycle != "ready")
                stage = next.map { Stage($0, console) }
            }
            if agent.status == "timeout", !hasWarned {
                hasWarned = true
                console.note(
                    "The agent has trouble connecting. Is it running? See its log on the workspace's machine."
                )
            }
            guard next != nil else { return warn(agent) }
            try AgentPatience(console, wait: policy).check(agent, waited: began.age)
            agent = try await look(agent, after: period(began.age))
        }
    }

    private static let connecting = "Waiting for the workspace agent to connect"
    private static let scripts = "Running workspace agent startup scripts (--wait=no goes on without them)"

    /// What is waited for; nil when nothing is.
    private func problem(of agent: WorkspaceAgent, waits: Bool) throws -> String? {
        switch agent.status {
        case "connecting", "timeout": return Self.connecting
        case "disconnected": return "The workspace agent lost connection; waiting for it to come back"
        default: break
        }
        switch agent.lifecycle {
        case "created", "starting": return waits ? Self.scripts : nil
        case "shutting_down", "shutdown_timeout", "shutdown_error", "off":
            throw CommandError("the workspace is shutting down")
        default: return nil
        }
    }

    private func warn(_ agent: WorkspaceAgent) {
        if ["start_timeout", "start_error"].contains(agent.lifecycle) {
            console.note("Warning: the startup scripts of the workspace failed or took too long.")
        }
    }

    /// The agent a moment later. A server that restarts is no reason to give up: it may be away for a minute.
    private func look(_ agent: WorkspaceAgent, after pause: Duration) async throws -> WorkspaceAgent {
        let began = Timestamp.now
        while true {
            try await Task.sleep(for: pause)
            do {
                return WorkspaceAgent(json: try await client.get("workspaceagents/\(agent.id)"))
            } catch let error where Self.passes(error) && began.age < .seconds(60) {
                continue
            }
        }
    }

    /// Whether an error may be over in a moment: no connection, or a proxy without its server.
    private static func passes(_ error: any Error) -> Bool {
        if let error = error as? HTTPError { return error.kind != .cancelled }
        return (error as? APIError).map { 502...504 ~= $0.status } ?? false
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

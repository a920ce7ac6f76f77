// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import HTTPTransport
internal import Mesh

/// Gathers what somebody needs who is to find out what is wrong with a deployment or a workspace. What cannot be had is
/// noted, and no reason to stop. cli/commands.md §3.11.
struct SupportBundle {
    let invocation: Invocation
    let client: APIClient
    private let redaction: Redaction
    private(set) var files: [(name: String, content: [UInt8])] = []
    private var notes: [String] = []

    init(_ invocation: Invocation, _ client: APIClient) {
        self.invocation = invocation
        self.client = client
        redaction = Redaction(known: [client.token].compactMap { $0 })
    }

    // MARK: Parts

    /// The deployment, as far as who asks may see it. `cap`: workspaces listed; zero or less: all.
    mutating func addDeployment(workspaces cap: Int) async throws {
        for (name, route) in [
            ("buildinfo", "buildinfo"), ("config", "deployment/config"), ("experiments", "experiments"),
            ("health", "debug/health"), ("stats", "deployment/stats"), ("entitlements", "entitlements"),
            ("health_settings", "debug/health/settings"),
        ] {
            _ = try await fetch("deployment/\(name).json", route)
        }
        let query = cap > 0 ? [("limit", "\(cap)")] : []
        _ = try await fetch("deployment/workspaces.json", "workspaces", query)
    }

    /// This machine's network, and what the deployment knows of the mesh.
    mutating func addNetwork() async throws {
        _ = try await fetch("network/connection_info.json", "workspaceagents/connection")
        _ = try await fetch("network/coordinator_debug.html", "debug/coordinator")
        _ = try await fetch("network/tailnet_debug.html", "debug/tailnet")
        let interfaces = NetworkInterface.all().map { interface in
            JSON.record([
                "name": .string(interface.name), "mtu": .int(interface.mtu),
                "addresses": .array(interface.addresses.map { .string($0) }),
            ])
        }
        add("network/interfaces.json", .record(["interfaces": .array(interfaces)]))
        let client = client
        try await attempt("network/netcheck.json") { try await NetcheckCommand.gather(client).json }
    }

    /// A workspace and its build.
    mutating func add(_ workspace: Workspace) async throws {
        add("workspace/workspace.json", workspace.json)
        let build = workspace.build["id"].text
        if let parameters = try await answer("workspacebuilds/\(build)/parameters") {
            add("workspace/parameters.json", redaction.parameters(parameters))
        }
        _ = try await fetch("workspace/template.json", "templates/\(workspace.json["template_id"].text)")
        _ = try await fetch(
            "workspace/template_version.json",
            "templateversions/\(workspace.build["template_version_id"].text)")
        try await addLog("workspace/build_logs.txt", "workspacebuilds/\(build)/logs")
    }

    /// An agent, and the connection to it: both sides' records of the paths.
    mutating func add(_ agent: WorkspaceAgent) async throws {
        add("agent/agent.json", agent.json)
        try await addLog("agent/startup_logs.txt", "workspaceagents/\(agent.id)/logs")
        _ = try await fetch("agent/listening_ports.json", "workspaceagents/\(agent.id)/listening-ports")
        let link: AgentLink
        do {
            link = try await AgentLink.open(invocation, client, agent)
        } catch let error where !(error is CancellationError) {
            return note("agent: \(error)")
        }
        do {
            try await addConnection(link, agent)
            await link.close()
        } catch {
            await link.close()
            throw error
        }
    }

    private mutating func addConnection(_ link: AgentLink, _ agent: WorkspaceAgent) async throws {
        let console = invocation.console
        try await attempt("agent/ping_result.json") {
            try await link.reach(agent.name, console, within: .seconds(15))
            // Long enough for probes, their repetition and the choice.
            try await Task.sleep(for: .seconds(3))
            let result = try await link.node.ping(link.peer)
            return .record([
                "latency_ms": .double(Double(result.latency.nanoseconds) / 1e6),
                "path": .string(link.describe(result.path)),
            ])
        }
        try await attempt("agent/netcheck.json") {
            try await AgentAPI.get("/api/v0/netcheck", node: link.node, address: link.address)
        }
        var missing: [String] = []
        do {
            add("agent/path_recordings.json", try await link.records.json { missing.append($0) })
        } catch let error where !(error is CancellationError) {
            note("agent/path_recordings.json: \(error)")
        }
        for text in missing { note("agent/path_recordings.json: \(text)") }
    }

    /// A template and its active version, by `[organization/]name` or identifier.
    mutating func add(template name: String) async throws {
        let parts = name.split(separator: "/").map { HTTPURL.encode(String($0)) }
        let route =
            parts.count == 2
            ? "organizations/\(parts[0])/templates/\(parts[1])"
            : "organizations/default/templates/\(parts.first ?? "")"
        let folder = "templates/\(parts.last ?? "")"
        guard let template = try await fetch("\(folder)/template.json", route) else { return }
        _ = try await fetch(
            "\(folder)/template_version.json", "templateversions/\(template["active_version_id"].text)")
    }

    /// Who made it, and what is missing in it. The last part.
    mutating func addNotes() {
        var system = utsname()
        uname(&system)
        let kernel = withUnsafeBytes(of: &system.release) {
            String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
        }
        let machine = withUnsafeBytes(of: &system.machine) {
            String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
        }
        let lines = [
            "client: \(Build.version)", "deployment: \(client.base.origin)",
            "system: Linux \(kernel) \(machine)", "time: \(Timestamp.now.text())",
        ]
        add("cli_logs.txt", text: lines.joined(separator: "\n") + "\n")
        add("logs.txt", text: notes.map { "\($0)\n" }.joined())
    }

    // MARK: Details

    mutating func note(_ text: String) { notes.append(text) }

    private mutating func add(_ name: String, _ json: JSON) {
        files.append((name, Array((redaction.json(json).pretty + "\n").utf8)))
    }

    private mutating func add(_ name: String, text: String) {
        files.append((name, Array(redaction.text(text).utf8)))
    }

    /// Adds what `body` finds.
    private mutating func attempt(_ name: String, _ body: () async throws -> JSON) async throws {
        do {
            add(name, try await body())
        } catch let error where !(error is CancellationError) {
            note("\(name): \(error)")
        }
    }

    /// Adds the answer to a question; JSON is returned too.
    private mutating func fetch(
        _ name: String, _ route: String, _ query: [(String, String)] = []
    ) async throws -> JSON? {
        guard name.hasSuffix(".json") else {
            if let body = try await body(route, query) {
                add(name, text: String(decoding: body, as: UTF8.self))
            }
            return nil
        }
        guard let json = try await answer(route, query) else { return nil }
        add(name, json)
        return json
    }

    private mutating func answer(_ route: String, _ query: [(String, String)] = []) async throws -> JSON? {
        guard let body = try await body(route, query) else { return nil }
        do {
            return try JSON.parse(body)
        } catch {
            note("\(route): \(error)")
            return nil
        }
    }

    private mutating func body(_ route: String, _ query: [(String, String)]) async throws -> [UInt8]? {
        do {
            let answer = try await client.raw("GET", route, query)
            if answer.status == 200 { return answer.body }
            note("\(route): status \(answer.status)")
        } catch let error where !(error is CancellationError) {
            note("\(route): \(error)")
        }
        return nil
    }

    /// A log as lines: time, level, text.
    private mutating func addLog(_ name: String, _ route: String) async throws {
        guard let log = try await answer(route) else { return }
        let lines = log.elements.map { line in
            let level = line["log_level"].string ?? line["level"].text
            let words = [line["created_at"].text, "[\(level)]", line["stage"].text, line["output"].text]
            return words.filter { !$0.isEmpty }.joined(separator: " ") + "\n"
        }
        add(name, text: lines.joined())
    }
}

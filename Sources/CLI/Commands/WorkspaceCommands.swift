// SPDX-License-Identifier: Apache-2.0

internal import HTTPTransport

/// `coder list` and `coder external-workspaces list`.
enum ListCommand {
    static let names = [
        "favorite", "workspace", "organization id", "organization name", "template", "status", "healthy",
        "last built",
        "current version", "outdated", "starts at", "starts next", "stops after", "stops next", "daily cost",
    ]
    private static let shown =
        "workspace,template,status,healthy,last built,current version,outdated,starts at,stops after"

    static let command = Command(
        name: "list", aliases: ["ls"], summary: "List workspaces.", options: options(default: shown),
        run: { try await list($0, extra: "") })

    static func options(default shown: String) -> [CommandOption] {
        [
            CommandOption("all", short: "a", .bool, help: "Everyone's workspaces that you may see."),
            CommandOption("search", default: "owner:me", help: "Search query."),
            Commands.columns(names, default: shown), Commands.output(["table", "json"]),
        ]
    }

    /// `extra` narrows the search further.
    static func list(_ invocation: Invocation, extra: String) async throws -> Int32 {
        let client = try invocation.client()
        var query = invocation.values.string("search")
        if invocation.values.bool("all"), invocation.values.source("search") <= .default { query = "" }
        if !extra.isEmpty { query += query.isEmpty ? extra : " \(extra)" }
        let answer = try await client.get("workspaces", [("q", query)])
        let workspaces = answer["workspaces"].elements.map(Workspace.init).sorted {
            $0.fullName < $1.fullName
        }
        let json = JSON.array(workspaces.map(\.json))
        invocation.show(
            json, names: names, rows: workspaces.map(row),
            empty: "No workspaces found! Create one:\n\n  coder external-workspaces create <name>\n")
        return 0
    }

    private static func row(_ workspace: Workspace) -> [String] {
        let json = workspace.json
        let build = workspace.build
        let isFavorite = json["favorite"].bool
        let word = workspace.statusWord
        let isUp = word == "Started" || word == "Starting"
        let built = Timestamp(build["job"]["created_at"].text) ?? Timestamp(build["created_at"].text)
        let stops = Timestamp(build["deadline"].text)
        let ttl = json["ttl_ms"].int.map { Duration.milliseconds($0) }
        return [
            "\(isFavorite)", (isFavorite ? "★ " : "  ") + workspace.fullName, json["organization_id"].text,
            json["organization_name"].text, json["template_name"].text, word,
            isUp ? "\(json["health"]["healthy"].bool)" : "", built.map { shortDuration($0.age) } ?? "",
            build["template_version_name"].text, "\(workspace.isOutdated)",
            schedule(json["autostart_schedule"].text), json["next_start_at"].text,
            ttl.map(shortDuration) ?? "", isUp ? stops?.text() ?? "" : "", "\(build["daily_cost"].int ?? 0)",
        ]
    }

    /// `CRON_TZ=Europe/Berlin 30 9 * * 1-5` in words: `9:30AM Mon-Fri (Europe/Berlin)`.
    static func schedule(_ cron: String) -> String {
        var words = cron.split(separator: " ")[...]
        var zone = "UTC"
        if let first = words.first, first.hasPrefix("CRON_TZ=") {
            zone = String(first.dropFirst(8))
            words = words.dropFirst()
        }
        guard words.count == 5, let minute = Int(words[words.startIndex]),
            let hour = Int(words[words.startIndex + 1])
        else { return cron }
        let names = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"]
        let days = words[words.startIndex + 4].split(separator: ",").map { part in
            part.split(separator: "-").map { day in
                Int(day).flatMap { 0..<7 ~= $0 ? names[$0] : nil } ?? String(day)
            }.joined(separator: "-")
        }.joined(separator: ",")
        let clock = "\((hour + 11) % 12 + 1):\(minute < 10 ? "0" : "")\(minute)\(hour < 12 ? "AM" : "PM")"
        return "\(clock) \(days == "*" ? "daily" : days) (\(zone))"
    }
}

/// `coder show`.
enum ShowCommand {
    static let command = Command(
        name: "show", usage: "<workspace>", summary: "Show a workspace's resources, and how to reach them.",
        arguments: .exactly(1), options: [CommandOption("details", .bool, help: "Show full error texts.")],
        run: run)

    @Sendable static func run(_ invocation: Invocation) async throws -> Int32 {
        let client = try invocation.client()
        let name = try WorkspaceName(invocation.words[0])
        async let buildInfo = client.get("buildinfo")
        let workspace = try await client.workspace(name)
        var ports: [String: [JSON]] = [:]
        for agent in workspace.agents where agent.status == "connected" && !agent.hasParent {
            // Servers that cannot ask the agent say so: then there is nothing to show.
            let answer = try await client.raw("GET", "workspaceagents/\(agent.id)/listening-ports")
            if answer.status == 200 { ports[agent.id] = try JSON.parse(answer.body)["ports"].elements }
        }
        let server = try await buildInfo["version"].text
        invocation.console.out(tree(workspace, server: server, ports: ports))
        return 0
    }

    /// `ports`: what programs listen on, by agent.
    private static func tree(_ workspace: Workspace, server: String, ports: [String: [JSON]]) -> String {
        var rows: [[String]] = []
        let agentCount = workspace.agents.filter { !$0.hasParent }.count
        for resource in workspace.build["resources"].elements where resource["type"].text != "random_string" {
            rows.append(["\(resource["type"].text).\(resource["name"].text)", "", "", "", ""])
            let agents = resource["agents"].elements.map(WorkspaceAgent.init).filter { !$0.hasParent }
            for (index, agent) in agents.enumerated() {
                let branch = index == agents.count - 1 ? "└─" : "├─"
                let system = "\(agent.json["operating_system"].text), \(agent.json["architecture"].text)"
                let target = agentCount > 1 ? "\(workspace.name).\(agent.name)" : workspace.name
                rows.append([
                    "\(branch) \(agent.name) (\(system))", status(agent), health(agent),
                    version(agent.json["version"].text, server: server), "coder ssh \(target)",
                ])
                rows += openPorts(ports[agent.id] ?? [], below: index == agents.count - 1 ? "   " : "│  ")
            }
        }
        return Table.box(header: ["RESOURCE", "STATUS", "HEALTH", "VERSION", "ACCESS"], rows: rows)
    }

    private static func openPorts(_ ports: [JSON], below stem: String) -> [[String]] {
        guard !ports.isEmpty else { return [] }
        let lines = ports.enumerated().map { index, port in
            let process = Table.clean(port["process_name"].text)
            return "\(stem)   \(index == ports.count - 1 ? "└─" : "├─") \(port["port"].int ?? 0)/"
                + port["network"].text + (process.isEmpty ? "" : " [\(process)]")
        }
        return (["\(stem)└─ Open Ports"] + lines).map { [$0, "", "", "", ""] }
    }

    private static func status(_ agent: WorkspaceAgent) -> String {
        let since = { (field: String) -> String in
            guard let time = Timestamp(agent.json[field].text) else { return "" }
            return " [\(time.age.components.seconds)s]"
        }
        switch agent.status {
        case "connected": return "⦿ connected"
        case "disconnected": return "⦾ disconnected" + since("disconnected_at")
        case "timeout": return "⦾ timeout" + since("created_at")
        default: return "⦾ connecting" + since("created_at")
        }
    }

    private static func health(_ agent: WorkspaceAgent) -> String {
        agent.json["health"]["healthy"].bool ? "✔ healthy" : "✘ \(agent.json["health"]["reason"].text)"
    }

    private static func version(_ version: String, server: String) -> String {
        guard !version.isEmpty else { return "" }
        let release = { (text: String) -> [Int] in
            text.drop { $0 == "v" }.prefix { $0 != "-" && $0 != "+" }.split(separator: ".").compactMap {
                Int($0)
            }
        }
        return release(version).lexicographicallyPrecedes(release(server)) ? "\(version) (outdated)" : version
    }
}

/// `coder delete`.
enum DeleteCommand {
    static let command = Command(
        name: "delete", usage: "<workspace>", summary: "Delete a workspace.", arguments: .exactly(1),
        options: [
            CommandOption("orphan", .bool, help: "Forget the workspace without destroying its resources."),
            Commands.yes,
        ], run: run)

    @Sendable static func run(_ invocation: Invocation) async throws -> Int32 {
        let client = try invocation.client()
        let workspace = try await client.workspace(WorkspaceName(invocation.words[0]))
        if !invocation.values.bool("yes") {
            guard try invocation.prompt.confirm("Delete workspace \(workspace.fullName)?", default: false)
            else {
                throw SilentFailure()
            }
        }
        let build = try await client.post(
            "workspaces/\(workspace.id)/builds",
            .record(["transition": .string("delete"), "orphan": .bool(invocation.values.bool("orphan"))]))
        try await BuildWaiter(client: client, console: invocation.console).wait(for: build)
        invocation.console.say(
            "The \(workspace.fullName) workspace has been deleted at \(Timestamp.now.stamp)!")
        return 0
    }
}

/// `coder create`: from a template by name. Parameters and presets come with the templates.
enum CreateCommand {
    static let options: [CommandOption] = [
        CommandOption("template", short: "t", env: "CODER_TEMPLATE_NAME", help: "Name of the template."),
        CommandOption(
            "template-version", env: "CODER_TEMPLATE_VERSION",
            help: "Version of the template. Default: the active one."),
        CommandOption(
            "start-at", env: "CODER_WORKSPACE_START_AT",
            help: "When the workspace starts by itself, as a cron line."),
        CommandOption(
            "stop-after", env: "CODER_WORKSPACE_STOP_AFTER", .duration,
            help: "How long it runs before it is stopped."),
        CommandOption(
            "automatic-updates", env: "CODER_WORKSPACE_AUTOMATIC_UPDATES", .choice(["always", "never"]),
            default: "never", help: "Whether starting moves it to the template's newest version."),
        CommandOption(
            "parameter", env: "CODER_RICH_PARAMETER", .stringArray,
            help: "name=value of a template parameter."),
        Commands.organization, Commands.yes,
    ]

    static let command = Command(
        name: "create", usage: "[workspace]", summary: "Create a workspace.", arguments: .between(0, 1),
        options: options,
        run: { invocation in
            let workspace = try await create(invocation, isExternal: false)
            invocation.console.say(
                "The \(workspace.name) workspace has been created at \(Timestamp.now.stamp)!")
            return 0
        })

    /// Makes the workspace, waits for its build, and returns it as it is then.
    static func create(_ invocation: Invocation, isExternal: Bool) async throws -> Workspace {
        let client = try invocation.client()
        var text = invocation.words.first ?? ""
        if text.isEmpty { text = try invocation.prompt.line("Specify a name for your workspace:") }
        let name = try WorkspaceName(text)
        let template = try await template(invocation, client, isExternal: isExternal)
        var body: [JSON.Member] = [
            .init(key: "name", value: .string(name.workspace)),
            .init(key: "automatic_updates", value: .string(invocation.values.string("automatic-updates"))),
        ]
        body.append(try await version(of: template, invocation, client))
        if !invocation.values.string("start-at").isEmpty {
            body.append(
                .init(key: "autostart_schedule", value: .string(invocation.values.string("start-at"))))
        }
        if let stop = invocation.values.duration("stop-after") {
            body.append(.init(key: "ttl_ms", value: .int(stop.wholeNanoseconds / 1_000_000)))
        }
        let parameters = invocation.values.list("parameter").compactMap { text -> JSON? in
            guard let equals = text.firstIndex(of: "=") else { return nil }
            return .record([
                "name": .string(String(text[..<equals])),
                "value": .string(String(text[text.index(after: equals)...])),
            ])
        }
        if !parameters.isEmpty { body.append(.init(key: "rich_parameter_values", value: .array(parameters))) }
        let made = Workspace(
            json: try await client.post("users/\(HTTPURL.encode(name.owner))/workspaces", .object(body)))
        try await BuildWaiter(client: client, console: invocation.console).wait(for: made.build)
        return Workspace(json: try await client.get("workspaces/\(made.id)"))
    }

    private static func template(
        _ invocation: Invocation, _ client: APIClient, isExternal: Bool
    ) async throws -> JSON {
        let wanted = invocation.values.string("template")
        let query =
            isExternal && wanted.isEmpty
            ? "has_external_agent:true" : wanted.isEmpty ? "" : "exact_name:\(wanted)"
        let templates = try await client.get("templates", query.isEmpty ? [] : [("q", query)]).elements.filter
        {
            wanted.isEmpty || $0["name"].text == wanted
        }
        guard let first = templates.first else {
            throw CommandError(
                wanted.isEmpty
                    ? "there is no template to make a workspace from" : "there is no template \"\(wanted)\"")
        }
        guard templates.count > 1 else { return first }
        let names = templates.map { $0["name"].text }
        guard invocation.console.isInputTerminal else {
            throw CommandError("choose a template with --template: \(names.joined(separator: ", "))")
        }
        let choice = try invocation.prompt.line(
            "Select a template (\(names.joined(separator: ", "))):", default: names[0]
        ) { names.contains($0) ? nil : "there is no template \"\($0)\"" }
        return templates.first { $0["name"].text == choice } ?? first
    }

    private static func version(
        of template: JSON, _ invocation: Invocation, _ client: APIClient
    ) async throws -> JSON.Member {
        let wanted = invocation.values.string("template-version")
        guard !wanted.isEmpty else {
            return .init(key: "template_version_id", value: template["active_version_id"])
        }
        let version = try await client.get(
            "templates/\(template["id"].text)/versions/\(HTTPURL.encode(wanted))")
        return .init(key: "template_version_id", value: version["id"])
    }
}

/// `coder external-workspaces`: workspaces on machines that exist already.
enum ExternalWorkspacesCommand {
    static let command = Command(
        name: "external-workspaces", summary: "Manage workspaces on machines that exist already.",
        options: [Commands.organization],
        subcommands: [
            Command(
                name: "create", usage: "[workspace]",
                summary: "Create a workspace, and show what to run on its machine.",
                arguments: .between(0, 1), options: CreateCommand.options, run: create),
            Command(
                name: "list", aliases: ["ls"], summary: "List external workspaces.",
                options: ListCommand.options(
                    default: "workspace,template,status,healthy,last built,current version,outdated"),
                run: { try await ListCommand.list($0, extra: "has_external_agent:true") }),
            Command(
                name: "agent-instructions", usage: "<workspace>[.agent]",
                summary: "Show what to run on the workspace's machine.", arguments: .exactly(1),
                options: [Commands.output(["text", "json"])], run: instructions),
        ])

    @Sendable static func create(_ invocation: Invocation) async throws -> Int32 {
        let workspace = try await CreateCommand.create(invocation, isExternal: true)
        let client = try invocation.client()
        invocation.console.note(
            "The \(workspace.name) workspace has been created at \(Timestamp.now.stamp)!\n\n"
                + ExternalAgentHint.preface(client.base))
        invocation.console.out(try await ExternalAgentHint.allLines(client, workspace))
        return 0
    }

    @Sendable static func instructions(_ invocation: Invocation) async throws -> Int32 {
        let client = try invocation.client()
        let name = try WorkspaceName(invocation.words[0])
        let workspace = try await client.workspace(name)
        let agent = try workspace.agent(named: name.agent)
        let credentials = try await ExternalAgentHint.credentials(client, workspace, agent)
        let token = credentials["agent_token"].text
        if invocation.values.string("output") == "json" {
            let json = JSON.record([
                "workspace_name": .string(workspace.name), "agent_name": .string(agent.name),
                "auth_type": .string("token"), "auth_token": .string(token),
                "init_script": credentials["command"],
            ])
            invocation.console.say(json.pretty)
        } else {
            invocation.console.note(ExternalAgentHint.preface(client.base))
            invocation.console.out(ExternalAgentHint.lines(client.base, token))
        }
        return 0
    }
}

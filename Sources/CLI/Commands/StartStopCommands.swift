// SPDX-License-Identifier: Apache-2.0

/// `coder start`, `stop`, `restart` and `update`.
enum StartStopCommands {
    static let all = [start, stop, restart, update]

    /// Values of the template's parameters, for commands that start a workspace.
    private static let parameters: [CommandOption] = [
        CommandOption(
            "parameter", env: "CODER_RICH_PARAMETER", .stringArray,
            help: "name=value of a template parameter; repeatable."),
        CommandOption(
            "ephemeral-parameter", env: "CODER_EPHEMERAL_PARAMETER", .stringArray,
            help: "name=value of a template parameter, for this start only; repeatable."),
        CommandOption(
            "build-option", env: "CODER_BUILD_OPTION", .stringArray, hidden: true,
            useInstead: "ephemeral-parameter", help: "Old name of --ephemeral-parameter."),
    ]
    private static let reason = CommandOption(
        "reason", .choice(["cli", "vscode_connection", "jetbrains_connection"]), default: "cli",
        hidden: true, help: "Why the workspace is started, for the audit log.")

    private static let start = Command(
        name: "start", usage: "<workspace>", summary: "Start a workspace.", arguments: .exactly(1),
        options: [
            CommandOption("no-wait", .bool, help: "Return once the start is queued."), reason, Commands.yes,
        ] + parameters, run: { try await Run($0).start() })

    private static let stop = Command(
        name: "stop", usage: "<workspace>", summary: "Stop a workspace.", arguments: .exactly(1),
        options: [Commands.yes], run: { try await Run($0).stop() })

    private static let restart = Command(
        name: "restart", usage: "<workspace>", summary: "Stop a workspace, and start it again.",
        arguments: .exactly(1), options: [Commands.yes] + parameters, run: { try await Run($0).restart() })

    private static let update = Command(
        name: "update", usage: "<workspace>",
        summary: "Move a workspace to the newest version of its template, and start it.",
        details: "A workspace that runs is stopped first.",
        arguments: .exactly(1), options: parameters, run: { try await Run($0).update() })

    /// One run of one of them.
    private struct Run {
        let invocation: Invocation
        let client: APIClient
        let builds: WorkspaceBuilds
        private var console: Console { invocation.console }

        init(_ invocation: Invocation) throws {
            self.invocation = invocation
            client = try invocation.client()
            builds = WorkspaceBuilds(client: client, console: invocation.console)
        }

        func start() async throws -> Int32 {
            var workspace = try await find()
            switch workspace.build["status"].text {
            case "pending":
                try confirmAnother("start", workspace)
            case "running":
                console.say("The \(workspace.name) workspace is running already.")
                return 0
            case "starting":
                try await builds.wait(for: workspace.build)
                return try await started(workspace)
            default: break
            }
            if !workspace.json["dormant_at"].isNull {
                console.note("Waking the dormant workspace...")
                _ = try await client.put(
                    "workspaces/\(workspace.id)/dormant", .record(["dormant": .bool(false)]))
                workspace = try await builds.reload(workspace)
            }
            let build = try await builds.start(workspace, try wishes())
            guard !invocation.values.bool("no-wait") else {
                console.say("The \(workspace.name) workspace has been started in no-wait mode.")
                return 0
            }
            try await builds.wait(for: build)
            return try await started(workspace)
        }

        func stop() async throws -> Int32 {
            let workspace = try await find()
            if workspace.build["status"].text == "pending" {
                try confirmAnother("stop", workspace)
            } else {
                try confirm("Stop the workspace \(workspace.fullName)?")
            }
            try await builds.wait(for: try await builds.ask("stop", workspace, .init()))
            console.say("The \(workspace.name) workspace has been stopped at \(Timestamp.now.stamp)!")
            return 0
        }

        func restart() async throws -> Int32 {
            let workspace = try await find()
            let wishes = try wishes()
            try confirm("Restart the workspace \(workspace.fullName)?")
            try await builds.wait(for: try await builds.ask("stop", workspace, .init()))
            try await builds.wait(for: try await builds.start(workspace, wishes))
            return try await started(workspace, word: "restarted")
        }

        func update() async throws -> Int32 {
            let workspace = try await find()
            var wishes = try wishes()
            wishes.updates = true
            guard workspace.isOutdated || !wishes.parameters.isEmpty else {
                console.say("The \(workspace.name) workspace is up to date.")
                return 0
            }
            if workspace.build["transition"].text == "start" {
                try await builds.wait(for: try await builds.ask("stop", workspace, .init()))
            }
            try await builds.wait(for: try await builds.start(workspace, wishes))
            return try await started(workspace, word: "updated and started")
        }

        private func find() async throws -> Workspace {
            try await client.workspace(WorkspaceName(invocation.words[0]))
        }

        private func started(_ workspace: Workspace, word: String = "started") async throws -> Int32 {
            console.say("The \(workspace.name) workspace has been \(word) at \(Timestamp.now.stamp)!")
            let now = try await builds.reload(workspace)
            guard now.build["has_external_agent"].bool else { return 0 }
            console.note("Its agent has a new token. " + ExternalAgentHint.preface(client.base))
            console.error(try await ExternalAgentHint.allLines(client, now))
            return 0
        }

        private func confirm(_ question: String) throws {
            guard !invocation.values.bool("yes") else { return }
            guard try invocation.prompt.confirm(question, default: true) else { throw SilentFailure() }
        }

        /// A build that waits for its turn may never get it: whether to queue another is the user's decision.
        private func confirmAnother(_ verb: String, _ workspace: Workspace) throws {
            guard !invocation.values.bool("yes") else { return }
            let question = "A build of \(workspace.fullName) is queued already. Queue another \(verb)?"
            guard try invocation.prompt.confirm(question, default: false) else { throw SilentFailure() }
        }

        private func wishes() throws -> WorkspaceBuilds.Wishes {
            var wishes = WorkspaceBuilds.Wishes()
            let reason = invocation.values.string("reason")
            if !reason.isEmpty { wishes.reason = reason }
            for option in ["parameter", "ephemeral-parameter"] {
                wishes.parameters += try invocation.values.list(option).map { text in
                    guard let equals = text.firstIndex(of: "="), equals > text.startIndex else {
                        throw CommandError("invalid --\(option) \"\(Table.clean(text))\": write name=value")
                    }
                    return .record([
                        "name": .string(String(text[..<equals])),
                        "value": .string(String(text[text.index(after: equals)...])),
                    ])
                }
            }
            return wishes
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

/// The tree of all commands.
enum Commands {
    static func root(hooks: Hooks) -> Command {
        var root = Command(
            name: "coder", summary: "Self-hosted cloud development environments.",
            details: """
                Log in, make a workspace, open a shell in it:
                  coder login https://coder.example.com
                  coder external-workspaces create dev
                  coder ssh dev
                """, options: globalOptions + agentOptions)
        root.subcommands =
            [
                LoginCommand.command, LogoutCommand.command, WhoamiCommand.command, VersionCommand.command,
                TokensCommand.command, ListCommand.command, ShowCommand.command, CreateCommand.command,
            ] + StartStopCommands.all + [
                DeleteCommand.command, ExternalWorkspacesCommand.command, SSHCommand.command,
                PortForwardCommand.command, OpenCommand.command, CompletionCommand.command,
                PingCommand.command, SpeedtestCommand.command, NetcheckCommand.command,
                SupportBundleCommand.command,
                ConfigSSHCommand.command,
                ConnectCommand.command, VSCodeSSHCommand.command, GitSSHCommand.command,
                GitAskpassCommand.command, WireGuardCommand.command, AgentCommand.command,
                MeshCommand.command,
                HostedCommands.server(hooks), HostedCommands.relay(hooks), RelayLoadCommand.command,
                CipherRateCommand.command, WorkspaceProxyCommand.command(hooks),
            ]
        return root
    }

    private static let networking = "Networking"

    private static let globalOptions: [CommandOption] = [
        CommandOption("url", env: "CODER_URL", .url, group: "Global", help: "URL to a deployment."),
        CommandOption(
            "token", env: "CODER_SESSION_TOKEN", group: "Global",
            help:
                "Specify an authentication token. Using CODER_SESSION_TOKEN keeps it out of the process list."
        ),
        CommandOption(
            "global-config", env: "CODER_CONFIG_DIR", group: "Global",
            help:
                "Path to the directory of the configuration. Default: coderv2 in the user's configuration directory."
        ),
        CommandOption(
            "use-keyring", env: "CODER_USE_KEYRING", .bool, default: "true", group: "Global", hidden: true,
            help: "Keep the token in the system's keyring. Not on Linux."),
        CommandOption(
            "header", env: "CODER_HEADER", .stringArray, group: "Global",
            help: "Additional HTTP headers, as key=value, for all requests, relays and WebSockets."),
        CommandOption(
            "header-command", env: "CODER_HEADER_COMMAND", group: "Global",
            help: "A command whose output lines, as key=value, are added as headers."),
        CommandOption(
            "no-version-warning", env: "CODER_NO_VERSION_WARNING", .bool, group: "Global",
            help: "No warning when the client's and the server's versions differ."),
        CommandOption(
            "no-feature-warning", env: "CODER_NO_FEATURE_WARNING", .bool, group: "Global",
            help: "No warnings about licences."),
        CommandOption(
            "force-tty", env: "CODER_FORCE_TTY", .bool, group: "Global",
            help: "Treat input and output as terminals."),
        CommandOption(
            "verbose", short: "v", env: "CODER_VERBOSE", .bool, group: "Global",
            help: "Show more of what happens."),
        CommandOption(
            "disable-direct-connections", env: "CODER_DISABLE_DIRECT_CONNECTIONS", .bool, group: "Global",
            help: "Only relayed connections to workspaces."),
        CommandOption(
            "disable-network-telemetry", env: "CODER_DISABLE_NETWORK_TELEMETRY", .bool, group: "Global",
            hidden: true,
            help: "Accepted; there is no telemetry."),
        CommandOption(
            "debug-options", .bool, group: "Global", help: "Print all options, how they are set, then exit."),
        CommandOption(
            "no-open", env: "CODER_NO_OPEN", .bool, group: "Global", hidden: true, help: "Open no browser."),
        CommandOption("debug-http", .bool, group: "Global", hidden: true, help: "Show requests and answers."),
        CommandOption("version", .bool, group: "Global", hidden: true, help: "Print the version."),
    ]

    /// Who the program is inside a workspace, when git runs it to be asked for a password.
    private static let agentOptions: [CommandOption] = [
        CommandOption(
            "agent-token", env: "CODER_AGENT_TOKEN", group: "Global", hidden: true, help: "The agent's token."
        ),
        CommandOption(
            "agent-token-file", env: "CODER_AGENT_TOKEN_FILE", group: "Global", hidden: true,
            help: "File with the agent's token."),
        CommandOption(
            "agent-url", env: "CODER_AGENT_URL", .url, group: "Global", hidden: true,
            help: "URL of the deployment."),
        CommandOption(
            "auth", env: "CODER_AGENT_AUTH", default: "token", group: "Global", hidden: true,
            help: "How the agent proves who it is."),
    ]

    /// Options that several commands share.
    static let yes = CommandOption("yes", short: "y", .bool, help: "Answer yes to all confirmations.")

    static func output(_ formats: [String]) -> CommandOption {
        CommandOption("output", short: "o", .choice(formats), default: formats[0], help: "Output format.")
    }

    static func columns(_ names: [String], default shown: String) -> CommandOption {
        CommandOption(
            "column", short: "c", .columns(names), default: shown,
            help: "Columns of the table: \(names.joined(separator: ", ")).")
    }

    static let organization = CommandOption(
        "org", short: "O", env: "CODER_ORGANIZATION",
        help: "Organization, by name or identifier. Needed only when you are in more than one.")
}

extension Invocation {
    /// Prints rows as the table or as JSON. An empty table says so on standard error.
    func show(_ json: JSON, names: [String], rows: [[String]], empty: String) {
        if values.string("output") == "json" {
            console.say(json.pretty)
        } else if rows.isEmpty {
            console.note(empty)
        } else {
            console.out(Table.text(names: names, columns: values.columns("column"), rows: rows))
        }
    }
}

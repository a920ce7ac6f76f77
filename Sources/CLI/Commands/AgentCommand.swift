// SPDX-License-Identifier: Apache-2.0

internal import Agent
internal import Glibc
internal import HTTPTransport
internal import LinuxIO

/// `coder agent`: what runs in a workspace.
enum AgentCommand {
    static let command = Command(
        name: "agent", summary: "Run the workspace agent: on the machine that is the workspace.",
        details: "CODER_AGENT_URL and CODER_AGENT_TOKEN tell it where it belongs.", options: options,
        isHidden: true,
        run: run)

    private static let options: [CommandOption] =
        [
            CommandOption("agent-token", env: "CODER_AGENT_TOKEN", help: "Token of the agent."),
            CommandOption(
                "agent-token-file", env: "CODER_AGENT_TOKEN_FILE", help: "File with the token of the agent."),
            CommandOption("agent-url", env: "CODER_AGENT_URL", .url, help: "URL of the deployment."),
            CommandOption(
                "auth", env: "CODER_AGENT_AUTH",
                .choice([
                    "token", "google-instance-identity", "aws-instance-identity", "azure-instance-identity",
                ]),
                default: "token", help: "How the agent proves who it is."),
            CommandOption(
                "log-dir", env: "CODER_AGENT_LOG_DIR", default: "/tmp", help: "Directory for coder-agent.log."
            ),
            CommandOption(
                "script-data-dir", env: "CODER_AGENT_SCRIPT_DATA_DIR", default: "/tmp",
                help: "Directory for scripts' data."),
            CommandOption(
                "agent-header", env: "CODER_AGENT_HEADER", .stringArray,
                help: "Additional HTTP headers, as key=value."),
            CommandOption(
                "agent-header-command", env: "CODER_AGENT_HEADER_COMMAND",
                help: "Program that prints additional HTTP headers, one key=value per line."),
            CommandOption("no-reap", .bool, help: "Do not reap orphans when running as process 1."),
            CommandOption(
                "ssh-max-timeout", env: "CODER_AGENT_SSH_MAX_TIMEOUT", .duration, default: "72h",
                help: "How long an idle session may last."),
            CommandOption(
                "tailnet-listen-port", env: "CODER_AGENT_TAILNET_LISTEN_PORT", .int, default: "0",
                help: "UDP port of the mesh; 0 means any."),
            CommandOption(
                "log-human", env: "CODER_AGENT_LOGGING_HUMAN", default: "/dev/stderr",
                help: "File for the log; empty: none."),
            CommandOption(
                "block-file-transfer", env: "CODER_AGENT_BLOCK_FILE_TRANSFER", .bool,
                help: "Refuse nc, rsync, scp and sftp."),
        ] + accepted

    /// Accepted so that start scripts of other releases work; what they switch does not exist here yet.
    private static let accepted: [CommandOption] = [
        ("pprof-address", "CODER_AGENT_PPROF_ADDRESS"),
        ("prometheus-address", "CODER_AGENT_PROMETHEUS_ADDRESS"),
        ("debug-address", "CODER_AGENT_DEBUG_ADDRESS"),
        ("log-json", "CODER_AGENT_LOGGING_JSON"), ("log-stackdriver", "CODER_AGENT_LOGGING_STACKDRIVER"),
        ("devcontainers-enable", "CODER_AGENT_DEVCONTAINERS_ENABLE"),
        ("devcontainers-project-discovery-enable", "CODER_AGENT_DEVCONTAINERS_PROJECT_DISCOVERY_ENABLE"),
        ("devcontainers-discovery-autostart-enable", "CODER_AGENT_DEVCONTAINERS_DISCOVERY_AUTOSTART_ENABLE"),
        ("socket-server-enabled", "CODER_AGENT_SOCKET_SERVER_ENABLED"),
        ("socket-path", "CODER_AGENT_SOCKET_PATH"),
        ("boundary-log-proxy-socket-path", "CODER_AGENT_BOUNDARY_LOG_PROXY_SOCKET_PATH"),
    ].map { CommandOption($0.0, env: $0.1, hidden: true, help: "Accepted.") }

    @Sendable static func run(_ invocation: Invocation) async throws -> Int32 {
        let values = invocation.values
        if InitProcess.isSelf, !values.bool("no-reap") {
            return await InitProcess.run(
                path: ProgramFile.path, arguments: CommandLine.arguments + ["--no-reap"],
                environment: invocation.environment)
        }
        guard values.string("auth") == "token" else {
            throw CommandError("--auth=\(values.string("auth")) is not supported yet, only token")
        }
        guard let url = HTTPURL(values.string("agent-url")) else {
            throw CommandError("the agent needs the deployment's URL: set CODER_AGENT_URL")
        }
        var token = values.string("agent-token")
        if token.isEmpty, !values.string("agent-token-file").isEmpty {
            token = try TextFile.read(values.string("agent-token-file")).trimmed
        }
        guard !token.isEmpty else { throw CommandError("the agent needs its token: set CODER_AGENT_TOKEN") }
        var options = AgentOptions(
            serverURL: url, token: token, version: invocation.hooks.version, binaryPath: ProgramFile.path)
        options.logDirectory = values.string("log-dir")
        options.scriptDataDirectory = values.string("script-data-dir")
        options.headers = try fields(values.list("agent-header") + commandHeaders(invocation), invocation)
        options.ignored = ignored(values)
        if let timeout = values.duration("ssh-max-timeout") { options.sshMaxTimeout = timeout }
        guard let port = UInt16(exactly: values.int("tailnet-listen-port") ?? 0) else {
            throw CommandError("--tailnet-listen-port is not a port")
        }
        options.listenPort = port
        options.blocksFileTransfer = values.bool("block-file-transfer")
        options.subsystems = splitCSV(invocation.environment["CODER_AGENT_SUBSYSTEM"] ?? "").filter {
            !$0.isEmpty
        }
        options.environment = invocation.environment.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }
        options.isVerbose = values.bool("verbose")
        // Forwards, sessions and resumable streams take several each.
        DescriptorLimit.raise()
        await AgentProgram.run(options, proxies: ProxySettings(environment: invocation.environment))
        return 0
    }

    private static func commandHeaders(_ invocation: Invocation) throws -> [String] {
        let command = invocation.values.string("agent-header-command")
        guard !command.isEmpty else { return [] }
        let output: String? = ChildProcess.output(
            of: ["/bin/sh", "-c", command], environment: invocation.environment)
        guard let text = output else { throw CommandError("--agent-header-command failed: \(command)") }
        return text.split(separator: "\n").map(String.init)
    }

    /// Options that were set, and do nothing here.
    private static func ignored(_ values: OptionValues) -> [String] {
        let names = accepted.map(\.flag) + ["log-human"]
        return names.filter { values.source($0) > .default }.map { "--\($0)" }
    }

    private static func fields(_ texts: [String], _ invocation: Invocation) -> HeaderFields {
        var fields: HeaderFields = ["User-Agent": "coder-agent/\(invocation.hooks.version)"]
        for text in texts {
            guard let equals = text.firstIndex(of: "=") else { continue }
            fields.add(String(text[..<equals]), String(text[text.index(after: equals)...]))
        }
        return fields
    }
}

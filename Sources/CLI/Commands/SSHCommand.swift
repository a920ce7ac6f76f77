// SPDX-License-Identifier: Apache-2.0

internal import HTTPTransport

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
                help: "Socket of the ssh-agent to offer with --forward-agent, instead of $SSH_AUTH_SOCK."),
            CommandOption(
                "forward-gpg", short: "G", env: "CODER_SSH_FORWARD_GPG", .bool,
                help: "Offer your gpg-agent to the workspace, and import your public keys there."),
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
            ("container", "sessions in containers"), ("container-user", "sessions in containers"),
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
        plan.forwardsGPG = values.bool("forward-gpg")
        if values.bool("forward-agent") {
            let identity = values.string("identity-agent")
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
        let client = try invocation.client(url: url, token: token)
        return try await SSHRun(invocation: invocation, client: client, plan: plan).run()
    }
}

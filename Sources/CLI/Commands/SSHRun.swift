// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import HTTPTransport
internal import LinuxIO
internal import Logging
internal import Tailnet

/// What one `coder ssh` is to do.
struct SSHPlan: Sendable {
    var name: WorkspaceName
    /// Raw bytes for an ssh that runs this program, instead of a session.
    var isStdio: Bool
    var startsWorkspace = false
    var waitPolicy = "auto"
    var usageApp = ""
    /// Whether the workspace may use the user's gpg-agent.
    var forwardsGPG = false
    /// Words of the command; empty for a shell.
    var words: [String] = []
    var request = SSHSessionRequest(command: nil, wantsTerminal: false)
    /// Name of the log file inside `--log-dir`; nil for the usual one.
    var logName: String?

    init(name: WorkspaceName, isStdio: Bool) {
        self.name = name
        self.isStdio = isStdio
    }
}

/// Finds the workspace, joins the mesh and runs the plan.
struct SSHRun: Sendable {
    let invocation: Invocation
    let client: APIClient
    let plan: SSHPlan

    private var console: Console { invocation.console }

    func run() async throws -> Int32 {
        let logger = try SSHLog.logger(invocation, plan)
        let client = client.logging(to: logger)
        let finder = AgentFinder(invocation: invocation, client: client)
        // What the server says about relays does not depend on the agent: it is asked for meanwhile.
        async let relays = client.get("workspaceagents/connection")
        let (workspace, agent) = try await finder.find(plan.name, autostart: plan.startsWorkspace)
        if workspace.isOutdated, console.isErrorTerminal, !plan.isStdio {
            console.note(
                "The workspace is outdated, a newer version of its template is here: "
                    + "\(client.base.origin)/@\(workspace.fullName)")
        }
        try await finder.waitUntilReady(agent, wait: plan.waitPolicy)
        let link = try await AgentLink.open(
            invocation, client, agent, connection: try await relays, logger: logger)
        let usage = Usage.report(client, workspace, agent, app: plan.usageApp)
        defer { usage.cancel() }
        let paths = logger.map { SSHLog.follow(link, $0) }
        defer { paths?.cancel() }
        do {
            try await link.reach(agent.name, console)
            let information = NetworkInformation.write(invocation.values, link)
            defer { information?.cancel() }
            let watch = ReturnWatch(client, workspace)
            let status = plan.isStdio ? try await carry(link, watch) : try await session(link, watch)
            logger?.info("ended", metadata: ["status": "\(status)"])
            return status
        } catch {
            logger?.error("ended", metadata: ["error": "\(error)"])
            await link.close()
            throw error
        }
    }

    // MARK: Raw bytes

    /// `--stdio`.
    private func carry(_ link: AgentLink, _ watch: ReturnWatch) async throws -> Int32 {
        let input = fcntl(0, F_DUPFD_CLOEXEC, 3)
        let output = fcntl(1, F_DUPFD_CLOEXEC, 3)
        guard input >= 0, output >= 0 else { throw CommandError("standard input or output is closed") }
        try Self.giveUpStandardStreams()
        let notice = LossNotice(console)
        let (lastWords, heard) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))
        let stream = try await link.stream(to: 1, local: [input, output]) { status in
            notice.show(status)
            watch.show(status)
            if status == .peerFinished { heard.yield() }
        }
        watch.guards(stream)
        let signal = try await untilStopped {
            try await withThrowingTaskGroup(of: Void.self) { group in
                group.addTask {
                    try await withTaskCancellationHandler {
                        let failure = await stream.ended()
                        if let reason = watch.reason ?? failure {
                            throw CommandError("connection lost: \(reason)")
                        }
                    } onCancel: {
                        stream.stop()
                    }
                }
                group.addTask { try await watchParent() }
                group.addTask {
                    // ssh has been told the end, and has a moment to end its side.
                    for await _ in lastWords { return try await Task.sleep(for: .seconds(5)) }
                    try Task.checkCancellation()
                }
                try await group.next()
                group.cancelAll()
                do { try await group.waitForAll() } catch is CancellationError { return }
            }
        }
        await link.close(settling: stream)
        return signal == nil ? 0 : 1
    }

    /// Numbers 0 and 1 become `/dev/null`: so that the stream alone holds the pipes, and closing its end is seen by
    /// ssh; and so that nothing else is ever written between the bytes.
    private static func giveUpStandardStreams() throws {
        let null = open("/dev/null", O_RDWR | O_CLOEXEC)
        guard null >= 0, dup2(null, 0) == 0, dup2(null, 1) == 1 else {
            throw SystemError(call: "dup2 /dev/null")
        }
        close(null)
    }

    /// Returns when the ssh that runs this program is gone without having closed its pipes: looked at each 10 s.
    private func watchParent() async throws {
        let forced = Int32(invocation.values.string("test.force-ppid"))
        let parent = parentProcess()
        while true {
            try await Task.sleep(for: .seconds(10))
            if let forced {
                if kill(forced, 0) != 0, errno == ESRCH { return }
            } else if parentProcess() != parent {
                return
            }
        }
    }

    // MARK: A session

    private func session(_ link: AgentLink, _ watch: ReturnWatch) async throws -> Int32 {
        let command = plan.words.isEmpty ? nil : plan.words.joined(separator: " ")
        var request = plan.request
        request.command = command
        request.wantsTerminal =
            command == nil
            ? console.isInputTerminal
            : console.isInputTerminal && console.isOutputTerminal && console.isErrorTerminal
        if let terminal = invocation.environment["TERM"], !terminal.isEmpty, terminal != "dumb" {
            request.terminal = terminal
        }
        if plan.forwardsGPG {
            let forward = GPGForward(link: link, environment: invocation.environment)
            request.remoteForwards.append(try await forward.prepare())
        }
        let (mine, theirs) = try Descriptor.socketPair(nonBlocking: true).release()
        let socket = OwnedDescriptor(taking: mine)
        let wakeUp = try WakeUp()
        let isScreen = request.wantsTerminal && console.isOutputTerminal
        let notice = isScreen ? LossNotice(screenOf: wakeUp) : LossNotice(console)
        if isScreen { request.notice = notice }
        request.wakeUp = wakeUp
        let stream = try await link.stream(to: 1, local: [theirs]) { status in
            notice.show(status)
            watch.show(status)
        }
        watch.guards(stream)
        request.isResumable = stream.isResuming
        let end = try await SSHSession.run(over: socket, request)
        await link.close(settling: stream)
        switch end {
        case .exited(let status): return status
        case .refused(let reason): throw CommandError(reason)
        case .stopped(let signal): return 128 + signal
        case .lost(let reason):
            let ended = await stream.ended()
            let cause = watch.reason ?? ended ?? reason
            console.fail("connection lost: \(cause)")
            return 255
        }
    }
}

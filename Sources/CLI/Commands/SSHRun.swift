// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import HTTPTransport
internal import LinuxIO
internal import Logging

/// What one `coder ssh` is to do.
struct SSHPlan: Sendable {
    var name: WorkspaceName
    /// Raw bytes for an ssh that runs this program, instead of a session.
    var isStdio: Bool
    var startsWorkspace = false
    var waitPolicy = "auto"
    var usageApp = ""
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
        do {
            try await link.reach(agent.name, console)
            let information = NetworkInformation.write(invocation.values, link)
            defer { information?.cancel() }
            return plan.isStdio ? try await carry(link) : try await session(link)
        } catch {
            await link.close()
            throw error
        }
    }

    // MARK: Raw bytes

    /// `--stdio`.
    private func carry(_ link: AgentLink) async throws -> Int32 {
        // The numbers 0 and 1 stay open for the rest of the program.
        let input = fcntl(0, F_DUPFD_CLOEXEC, 3)
        let output = fcntl(1, F_DUPFD_CLOEXEC, 3)
        guard input >= 0, output >= 0 else { throw CommandError("standard input or output is closed") }
        let notice = LossNotice(console, isScreen: false)
        let stream = try await link.stream(to: 1, local: [input, output]) { notice.show($0) }
        let signal = try await untilStopped {
            try await withThrowingTaskGroup(of: Void.self) { group in
                group.addTask {
                    try await withTaskCancellationHandler {
                        if let reason = await stream.ended() {
                            throw CommandError("connection lost: \(reason)")
                        }
                    } onCancel: {
                        stream.stop()
                    }
                }
                group.addTask { try await watchParent() }
                try await group.next()
                group.cancelAll()
                do { try await group.waitForAll() } catch is CancellationError { return }
            }
        }
        await link.close(settling: stream)
        return signal == nil ? 0 : 1
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

    private func session(_ link: AgentLink) async throws -> Int32 {
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
        let (mine, theirs) = try Descriptor.socketPair(nonBlocking: true).release()
        let notice = LossNotice(console, isScreen: request.wantsTerminal)
        let socket = OwnedDescriptor(taking: mine)
        let stream = try await link.stream(to: 1, local: [theirs]) { notice.show($0) }
        request.isResumable = stream.isResuming
        let end = try await SSHSession.run(over: socket, request)
        await link.close(settling: stream)
        switch end {
        case .exited(let status): return status
        case .refused(let reason): throw CommandError(reason)
        case .stopped(let signal): return 128 + signal
        case .lost(let reason):
            let cause = await stream.ended() ?? reason
            console.fail("connection lost: \(cause)")
            return 255
        }
    }
}

/// `--log-dir`: a file of its own for each connection, which editors show when something is wrong.
enum SSHLog {
    static func logger(_ invocation: Invocation, _ plan: SSHPlan) throws -> Logger? {
        let directory = invocation.values.string("log-dir")
        guard !directory.isEmpty else { return nil }
        try makeDirectories(directory, mode: 0o700)
        var generator = SystemRandomNumberGenerator()
        let letters = String(
            (0..<5).map { _ in "abcdefghijklmnopqrstuvwxyz".randomElement(using: &generator) ?? "a" })
        let parent = plan.isStdio ? "-\(parentProcess())" : ""
        let name = plan.logName ?? "coder-ssh-\(Timestamp.now.fileStamp)-\(letters)\(parent).log"
        let path = "\(directory)/\(name)"
        let flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | (plan.logName == nil ? O_EXCL : 0)
        let number = open(path, flags, 0o600)
        guard number >= 0 else {
            throw CommandError("cannot write \(path): \(String(cString: strerror(errno)))")
        }
        let level: Logger.Level = invocation.values.bool("verbose") ? .debug : .info
        return Logger(label: "coder") { _ in FileLog(number: number, logLevel: level) }
    }
}

/// Lines for people, appended to a file that stays open until the program ends.
private struct FileLog: LogHandler {
    let number: Int32
    var logLevel: Logger.Level
    var metadata: Logger.Metadata = [:]

    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    func log(event: LogEvent) {
        let fields = metadata.merging(event.metadata ?? [:]) { _, new in new }
        let details = fields.sorted { $0.key < $1.key }.map { " \($0.key)=\($0.value)" }.joined()
        let line = Array("\(Timestamp.now.text()) [\(event.level)] \(event.message)\(details)\n".utf8)
        _ = line.withUnsafeBytes { write(number, $0.baseAddress, $0.count) }
    }
}

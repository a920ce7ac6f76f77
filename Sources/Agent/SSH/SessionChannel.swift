// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import SSH

/// A `session` channel: collects its requests, then runs one program, or the sftp server.
final class SessionChannel: ChannelPart {
    /// What the session has to do with its surroundings.
    struct Context {
        var environment: SSHEnvironment
        var orphans: OrphanReaper
        /// Called when something starts, with the kind of session; and at the end with its status.
        var report: (SSHSessionKind, Int32?) -> Void
    }

    /// Bounds on `env` requests: no client sends more.
    private static let variableLimit = 256, variableBytesLimit = 1 << 20

    private let channel: ChannelID
    private let context: Context
    private var variables: [SSHEnvironment.Variable] = []
    private var variableBytes = 0
    private var terminalRequest: PTYRequest?
    /// Path of the socket of a forwarded ssh-agent.
    private(set) var agentSocket: ByteString?
    private(set) var display: XDisplay?
    private var hasStarted = false
    private var reportedKind: SSHSessionKind?

    // A running program.
    private var child: ChildProcess?
    private var exit: ChildProcess.Exit?
    private var terminal: PseudoTerminal?
    private var standardInput: OwnedDescriptor?
    private var standardOutput: OwnedDescriptor?
    private var standardError: OwnedDescriptor?
    private var input = InputQueue()
    private var inputEnded = false
    private var toldEndOfWrite = false
    private var unreported = 0
    /// Text of ours that goes out before the program's.
    private var greeting = ByteQueue(capacity: 64)
    private var greetingStream = DataStream.standard

    private var sftp: SFTPSession?
    private var isOver = false
    /// Status of a session that runs no program.
    private var fixedStatus: UInt32?

    init(channel: ChannelID, context: Context) {
        self.channel = channel
        self.context = context
    }

    // MARK: Requests

    /// Serves a request; the result is the answer.
    func handle(_ request: ChannelRequest, _ ssh: inout SSHConnection) -> Bool {
        switch request {
        case .pty(let pty):
            guard !hasStarted, terminalRequest == nil else { return false }
            terminalRequest = pty
            return true
        case .environment(let name, let value):
            variableBytes += name.bytes.count + value.bytes.count
            guard !hasStarted, variables.count < Self.variableLimit, variableBytes <= Self.variableBytesLimit
            else {
                return false
            }
            // The last one of a name wins among themselves.
            variables.removeAll { $0.name == name }
            variables.append((name, value))
            return true
        case .shell: return start(command: nil)
        case .exec(let command): return start(command: command)
        case .subsystem(let name): return startSubsystem(name)
        case .windowChange(let size):
            terminalRequest?.size = size
            terminal?.resize(
                rows: size.rows, columns: size.columns, pixelWidth: size.pixelWidth,
                pixelHeight: size.pixelHeight)
            return terminalRequest != nil
        case .breakSignal:
            // RFC 4335: a terminal's break, which its driver turns into SIGINT where BRKINT is set.
            guard terminal != nil, exit == nil else { return false }
            terminal?.sendBreak()
            return true
        case .signal(let name):
            guard let exit = SignalName.number(name), child != nil, self.exit == nil else { return false }
            child?.signal(exit)
            return true
        case .endOfWrite:
            // OpenSSH PROTOCOL §2.1: the client reads no more, so the program's next write is its last.
            standardOutput = nil
            return true
        default: return false
        }
    }

    /// Whether a socket for ssh-agent may be made for this session.
    var wantsAgentSocket: Bool { !hasStarted && agentSocket == nil }
    func setAgentSocket(_ path: ByteString) { agentSocket = path }
    /// Whether a display may be made for this session.
    var wantsDisplay: Bool { !hasStarted && display == nil }
    func setDisplay(_ display: XDisplay) { self.display = display }

    private func startSubsystem(_ name: String) -> Bool {
        guard !hasStarted else { return false }
        hasStarted = true
        guard name == "sftp", !isForContainer else {
            fixedStatus = 1
            return true
        }
        guard !context.environment.blocksFileTransfer else {
            fixedStatus = 65
            return true
        }
        reportStart()
        sftp = SFTPSession(
            directory: context.environment.workDirectory, home: context.environment.account.home)
        return true
    }

    private func start(command: ByteString?) -> Bool {
        guard !hasStarted else { return false }
        hasStarted = true
        if let command, context.environment.blocksFileTransfer, FileTransfer.isCommand(command) {
            greeting.append(Array("\u{2}File transfer has been disabled.\n".utf8))
            fixedStatus = 65
            return true
        }
        if isForContainer {
            // Rather nothing than a shell somewhere else than asked for.
            greeting.append(Array("this agent has no sessions in containers (CODER_CONTAINER)\n".utf8))
            greetingStream = terminalRequest == nil ? .error : .standard
            fixedStatus = 229
            return true
        }
        reportStart()
        if terminalRequest != nil, command == nil { greeting.append(context.environment.greeting()) }
        do {
            try spawn(command)
        } catch {
            greeting.append(Array("\(error)\n".utf8))
            greetingStream = terminalRequest == nil ? .error : .standard
            fixedStatus = 229  // `agent.md` §6: the program could not be set up
        }
        return true
    }

    /// Whether the client wants the program to run in a container of the workspace.
    private var isForContainer: Bool {
        variables.contains { $0.name == "CODER_CONTAINER" && !$0.value.bytes.isEmpty }
    }

    private func reportStart() {
        let name = variables.last { $0.name == "CODER_SSH_SESSION_TYPE" }?.value.description ?? ""
        let kind = SSHSessionKind(name)
        // Forwards to its back end are reported instead: `JetBrainsPorts`.
        guard kind != .jetbrains else { return }
        reportedKind = kind
        context.report(kind, nil)
    }

    // MARK: Starting

    private func spawn(_ command: ByteString?) throws(SystemError) {
        let environment = context.environment
        let shell = environment.account.shell
        guard command?.isCString != false else { throw SystemError(call: "exec", code: EINVAL) }
        var arguments: [[UInt8]] = [Array(shell.utf8)]
        if let command {
            arguments += [Array("-c".utf8), command.bytes]
        } else {
            arguments.append(Array("-l".utf8))
        }
        var extra: [SSHEnvironment.Variable] = [
            ("SSH_CLIENT", "0.0.0.0 0 0"), ("SSH_CONNECTION", "0.0.0.0 0 0.0.0.0 0"),
        ]
        if let agentSocket { extra.append(("SSH_AUTH_SOCK", agentSocket)) }
        if let display { extra.append(("DISPLAY", ByteString(display.name))) }
        if let request = terminalRequest {
            let terminal = try PseudoTerminal()
            try terminal.setModes(opcodes: request.modes.map(\.opcode), values: request.modes.map(\.value))
            terminal.resize(
                rows: request.size.rows, columns: request.size.columns, pixelWidth: request.size.pixelWidth,
                pixelHeight: request.size.pixelHeight)
            extra.append(("SSH_TTY", ByteString(terminal.path)))
            if !request.terminal.isEmpty { extra.append(("TERM", ByteString(request.terminal))) }
            child = try run(shell, arguments, extra, .terminal(path: terminal.path))
            self.terminal = consume terminal
            return
        }
        try spawnWithPipes(shell, arguments, extra)
    }

    private func spawnWithPipes(
        _ shell: String, _ arguments: [[UInt8]], _ extra: [SSHEnvironment.Variable]
    ) throws(SystemError) {
        let input = try Descriptor.pipe(), output = try Descriptor.pipe(), error = try Descriptor.pipe()
        for number in [input.second.number, output.first.number, error.first.number] {
            try Descriptor.setNonBlocking(number)
        }
        // F_SETPIPE_SZ: fewer turns of the loop per megabyte. Refused where the user's quota is used up: no
        // matter.
        for number in [input.second.number, output.first.number] { _ = fcntl(number, 1031, 1 << 20) }
        child = try run(
            shell, arguments, extra,
            .descriptors(input.first.number, output.second.number, error.second.number))
        standardInput = input.takeSecond()
        standardOutput = output.takeFirst()
        standardError = error.takeFirst()
    }

    private func run(
        _ shell: String, _ arguments: [[UInt8]], _ extra: [SSHEnvironment.Variable],
        _ streams: ChildProcess.Streams
    ) throws(SystemError) -> ChildProcess {
        let environment = context.environment
        let variables = environment.variables(session: variables, extra: extra)
        return try ChildProcess(
            path: Array(shell.utf8), arguments: arguments,
            environment: variables.map { $0.name.bytes + [0x3d] + $0.value.bytes },
            directory: Array(environment.workDirectory.utf8), streams: streams)
    }

    // MARK: ChannelPart

    private static let outputTag: UInt8 = 0, errorTag: UInt8 = 1, inputTag: UInt8 = 2, exitTag: UInt8 = 3

    func addInterests(_ ssh: borrowing SSHConnection, to list: inout PollList) {
        guard !isOver else { return }
        let canWrite = greeting.isEmpty && ssh.writableCount(channel) > 0
        if let number = terminal?.master.number {
            let events = (canWrite ? POLLIN : 0) | (input.isEmpty ? 0 : POLLOUT)
            list.add(number, events, self, tag: Self.outputTag)
        }
        if let number = standardOutput?.number, canWrite {
            list.add(number, POLLIN, self, tag: Self.outputTag)
        }
        if let number = standardError?.number, canWrite { list.add(number, POLLIN, self, tag: Self.errorTag) }
        if let number = standardInput?.number, !input.isEmpty {
            list.add(number, POLLOUT, self, tag: Self.inputTag)
        }
        if let number = child?.ended.number, exit == nil { list.add(number, POLLIN, self, tag: Self.exitTag) }
    }

    func ready(_ tag: UInt8, _ ssh: inout SSHConnection) {
        guard !isOver else { return }
        switch tag {
        case Self.exitTag:
            if exit == nil { exit = child?.reap() }
        case Self.inputTag:
            if let number = standardInput?.number { unreported += input.flush(into: number, isSocket: false) }
        case Self.errorTag:
            if let number = standardError?.number, ssh.copy(from: number, to: channel, .error) {
                standardError = nil
            }
        default:
            if let number = standardOutput?.number, ssh.copy(from: number, to: channel) {
                standardOutput = nil
            }
            guard let number = terminal?.master.number else { return }
            unreported += input.flush(into: number, isSocket: false)
            if ssh.writableCount(channel) > 0, ssh.copy(from: number, to: channel) { terminal = nil }
        }
    }

    func received(_ bytes: UnsafeRawBufferPointer) -> Int {
        if sftp != nil {
            sftp?.server.receive(bytes)
            return 0
        }
        guard !isOver, let number = terminal?.master.number ?? standardInput?.number else {
            // Before the program starts, and after it has closed its input, there is nobody to read.
            return hasStarted ? bytes.count : input.take(bytes, into: nil, isSocket: false)
        }
        return input.take(bytes, into: number, isSocket: false)
    }

    func endOfData(_ ssh: inout SSHConnection) { inputEnded = true }

    func pump(_ ssh: inout SSHConnection) {
        guard !isOver else { return }
        if !greeting.isEmpty { greeting.consume(ssh.write(channel, greeting.bytes, stream: greetingStream)) }
        pumpSFTP(&ssh)
        if unreported > 0 {
            ssh.consumed(channel, unreported)
            unreported = 0
        }
        if input.isBroken, standardInput != nil {
            standardInput = nil
            if !toldEndOfWrite { ssh.request(channel, .endOfWrite) }
            toldEndOfWrite = true
        }
        if inputEnded, input.isEmpty { standardInput = nil }
        finishIfDone(&ssh)
    }

    var wantsTurn: Bool { sftp?.server.isBusy ?? false }

    private func pumpSFTP(_ ssh: inout SSHConnection) {
        guard sftp != nil else { return }
        let before = sftp?.server.incomingCount ?? 0
        let isHealthy = sftp?.serve() ?? false
        unreported += before - (sftp?.server.incomingCount ?? 0)
        while let session = sftp, session.server.outgoingCount > 0 {
            let count = ssh.write(channel, session.server.outgoing)
            session.server.consumeOutgoing(count)
            guard count > 0 else { break }
            let before = session.server.incomingCount
            _ = session.serve()
            unreported += before - session.server.incomingCount
        }
        guard sftp?.server.outgoingCount == 0, !wantsTurn else { return }
        if !isHealthy { fixedStatus = 1 } else if inputEnded { fixedStatus = 0 }
    }

    // MARK: Ending

    private func finishIfDone(_ ssh: inout SSHConnection) {
        guard greeting.isEmpty else { return }
        if let status = fixedStatus { return finish(&ssh, status, signal: nil) }
        guard let exit, standardOutput == nil, standardError == nil else { return }
        // A background process may hold the terminal open: what is there now goes out, then it is over.
        if let number = terminal?.master.number {
            guard ssh.writableCount(channel) > 0 else { return }
            var rest = pollfd(fd: number, events: Int16(POLLIN), revents: 0)
            while terminal != nil, poll(&rest, 1, 0) > 0, rest.revents & Int16(POLLIN) != 0 {
                guard ssh.writableCount(channel) > 0 else { return }
                if ssh.copy(from: number, to: channel) { break }
            }
            terminal = nil
        }
        switch exit {
        case .code(let code): finish(&ssh, UInt32(bitPattern: code), signal: nil)
        case .signal(let number, let coreDumped):
            finish(&ssh, 255, signal: (SignalName.name(number), coreDumped))
        }
    }

    private func finish(
        _ ssh: inout SSHConnection, _ status: UInt32, signal: (name: String, coreDumped: Bool)?
    ) {
        isOver = true
        ssh.sendEOF(channel)
        // Our client reads the signal; all others the status, which upstream sends alone.
        if let signal {
            ssh.request(channel, .exitSignal(name: signal.name, coreDumped: signal.coreDumped, message: ""))
        }
        ssh.request(channel, .exitStatus(status))
        ssh.close(channel)
        reportEnd(Int32(bitPattern: status))
        release()
    }

    private func reportEnd(_ status: Int32) {
        guard let kind = reportedKind else { return }
        reportedKind = nil
        context.report(kind, status)
    }

    func closed() -> LateInput? {
        isOver = true
        reportEnd(0)
        defer { release() }
        guard exit == nil, !input.isEmpty, let pipe = standardInput.take() else { return nil }
        var rest = InputQueue()
        swap(&rest, &input)
        return LateInput(pipe, rest, isSocket: false)
    }

    /// Gives descriptors back. A program that still runs goes on alone, or is ended if it had a terminal.
    private func release() {
        if exit == nil, let running = child.take() {
            context.orphans.adopt(running, ends: terminalRequest != nil)
        }
        child = nil
        terminal = nil
        standardInput = nil
        standardOutput = nil
        standardError = nil
        sftp?.close()
        sftp = nil
    }
}

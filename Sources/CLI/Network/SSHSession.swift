// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import SSH

/// What the user wants to run on the other side.
struct SSHSessionRequest: Sendable {
    /// nil for a login shell.
    var command: String?
    /// Whether the remote program gets a terminal.
    var wantsTerminal: Bool
    /// Value of TERM.
    var terminal = "xterm-256color"
    /// Variables to ask for.
    var environment: [(String, String)] = []
    /// Whether the stream below watches over the connection itself.
    var isResumable = false
    /// Socket of the user's ssh-agent, when it is to be offered to the workspace.
    var agentSocket: String?
    /// What the workspace should listen on for this side.
    var remoteForwards: [RemoteForward] = []
    /// Descriptors of this side.
    var input: Int32 = 0
    var output: Int32 = 1
    var error: Int32 = 2
}

/// How a session ended.
enum SSHSessionEnd: Sendable, Hashable {
    /// The remote program ended with this status; 128 and more for signals, as shells say it.
    case exited(Int32)
    /// The connection went away under it.
    case lost(String)
    /// This side was told to stop by a signal, or its output was closed.
    case stopped(signal: Int32)
    /// The other side refused to run it.
    case refused(String)
}

/// One SSH session over a descriptor that the mesh handed out: a poll loop in a thread of its own that moves bytes
/// between the terminal and the connection. Back-pressure by the channel's window; the terminal's settings are
/// restored however it ends.
struct SSHSession: ~Copyable {
    /// A probe after this silence, and the end after four times as long: a dead agent shows within 16 seconds.
    private static let keepaliveNanoseconds: UInt64 = 4_000_000_000

    private let socket: OwnedDescriptor
    let request: SSHSessionRequest
    private let signals: SignalWatch
    var connection: ClientConnection
    private(set) var channel: ChannelID?
    private var output: OutputQueue
    private var error: OutputQueue
    private var raw: RawTerminal?
    private var escape = EscapeFilter()
    private var isRunning = false
    private var hasInputEnded = false
    private var status: Int32?
    var end: SSHSessionEnd?
    private var isChannelClosed = false
    private var toldSize: WindowSize?
    /// Channels that the workspace opened.
    var relays: [ChannelID: ClientRelay] = [:]
    /// Forwards whose answer is awaited, oldest first; and those that work, by the port that the workspace chose.
    var askedForwards: [RemoteForward] = []
    var forwards: [RemoteForward] = []

    /// Runs a session in a new thread, and waits for its end without holding one of the tasks' threads.
    static func run(
        over socket: consuming OwnedDescriptor, _ request: SSHSessionRequest
    ) async throws -> SSHSessionEnd {
        let number = socket.release()
        let signals = try SignalWatch([SIGWINCH, SIGINT, SIGTERM, SIGHUP])
        return await withCheckedContinuation { continuation in
            do {
                try DedicatedThread(name: "ssh") {
                    var session = SSHSession(OwnedDescriptor(taking: number), request, signals)
                    continuation.resume(returning: session.loop())
                }.detach()
            } catch {
                close(number)
                continuation.resume(returning: .lost("\(error)"))
            }
        }
    }

    private init(_ socket: consuming OwnedDescriptor, _ request: SSHSessionRequest, _ signals: SignalWatch) {
        self.socket = socket
        self.request = request
        self.signals = signals
        var generator = SystemRandomNumberGenerator()
        connection = ClientConnection(clientNamed: "coder", seed: EntropySeed(using: &generator))
        if request.isResumable {
            connection.opensSessionEarly = true
        } else {
            connection.setKeepalive(intervalNanoseconds: Self.keepaliveNanoseconds)
        }
        output = OutputQueue(number: request.output)
        error = OutputQueue(number: request.error)
    }

    private mutating func loop() -> SSHSessionEnd {
        defer { finish() }
        do {
            try Descriptor.setNonBlocking(socket.number)
            while true {
                try step()
                if let end, output.isEmpty && error.isEmpty { return end }
                try wait()
            }
        } catch let error as SSHError {
            return end ?? describe(error)
        } catch {
            return end ?? .lost("\(error)")
        }
    }

    private mutating func finish() {
        connection.disconnect()
        flushSocket()
        raw?.restore()
        output.restore()
        error.restore()
    }

    private func describe(_ error: SSHError) -> SSHSessionEnd {
        switch error {
        case .peerSilent: return .lost("no answer from the workspace for 16 seconds")
        case .disconnected(_, let description):
            return .lost(
                "the workspace ended it" + (description.isEmpty ? "" : ": \(Table.clean(description))"))
        default: return .lost("\(error)")
        }
    }

    // MARK: Events

    private mutating func step() throws {
        try connection.handleTimeout(nowNanoseconds: Clock.monotonicNanoseconds())
        while let event = try connection.nextEvent() { handle(event) }
        settleRelays()
        flushSocket()
        if isChannelClosed, end == nil {
            end = status.map { .exited($0) } ?? .lost("the session was closed without an exit status")
        }
    }

    private mutating func handle(_ event: SSHEvent) {
        switch event {
        case .authenticated:
            channel = connection.earlySession ?? connection.openChannel(.session)
            askForForwards()
        case .opened(let id): begin(id)
        case .openFailed(let id, _, let message) where id == channel:
            end = .refused(message.isEmpty ? "the workspace refused the session" : Table.clean(message))
        case .data(let id, let stream, _):
            if let relay = relays[id] {
                relay.received(connection.withData { Array($0) }, &connection)
            } else {
                receive(id, stream)
            }
        case .endOfData(let id): relays[id]?.endOfData(&connection)
        case .request(let id, .exitStatus(let code), _):
            status = Int32(truncatingIfNeeded: code)
            if id == channel { flushInput() }
        case .request(_, .exitSignal(let name, _, _), _): status = 128 + Self.number(ofSignal: name)
        case .reply(_, success: false) where !isRunning:
            end = .refused("the workspace cannot run the command")
        case .reply(_, success: true): isRunning = true
        case .closed(let id):
            if id == channel { isChannelClosed = true } else { relays[id] = nil }
        case .channelRequested(let id, let type): open(id, type)
        case .globalReply(let success, let port): forwardAnswered(success, port)
        default: break
        }
    }

    /// Terminal, variables and command go out in one flight; only the command's answer is waited for.
    private mutating func begin(_ id: ChannelID) {
        if request.agentSocket != nil { connection.request(id, .agentForwarding) }
        for (name, value) in request.environment {
            connection.request(id, .environment(name: ByteString(name), value: ByteString(value)))
        }
        if request.wantsTerminal {
            let modes = TerminalModes.read(request.input).map {
                PTYRequest.Mode(opcode: $0.opcode, value: $0.value)
            }
            let size = windowSize()
            toldSize = size
            let pty = PTYRequest(terminal: request.terminal, size: size, modes: modes)
            connection.request(id, .pty(pty))
            raw = RawTerminal(descriptor: request.input)
        }
        if let command = request.command {
            connection.request(id, .exec(ByteString(command)), wantsReply: true)
        } else {
            connection.request(id, .shell, wantsReply: true)
        }
    }

    private func windowSize() -> WindowSize {
        guard let size = TerminalSize(descriptor: request.output) ?? TerminalSize(descriptor: request.input)
        else {
            return WindowSize(columns: 128, rows: 128)
        }
        return WindowSize(
            columns: size.columns, rows: size.rows, pixelWidth: size.width, pixelHeight: size.height)
    }

    private mutating func receive(_ id: ChannelID, _ stream: DataStream) {
        // Borrowing the bytes and writing them may not overlap with the queues, which are parts of `self` too.
        let bytes = connection.withData { Array($0) }
        switch stream {
        case .standard: output.append(bytes)
        case .error: error.append(bytes)
        }
        release(id)
    }

    /// Widens the window by what has left memory.
    private mutating func release(_ id: ChannelID) {
        let count = output.takeWritten() + error.takeWritten()
        if count > 0, !isChannelClosed { connection.consumed(id, count) }
    }

    private mutating func flushInput() { hasInputEnded = true }

    // MARK: Waiting

    private mutating func wait() throws {
        let wantsInput =
            isRunning && !hasInputEnded && channel.map { connection.writableCount($0) > 0 } == true
        var polls = [
            pollfd(fd: socket.number, events: 0, revents: 0),
            pollfd(fd: signals.number, events: Int16(POLLIN), revents: 0),
            pollfd(fd: wantsInput ? request.input : -1, events: Int16(POLLIN), revents: 0),
            pollfd(fd: output.isEmpty ? -1 : output.number, events: Int16(POLLOUT), revents: 0),
            pollfd(fd: error.isEmpty ? -1 : error.number, events: Int16(POLLOUT), revents: 0),
        ]
        if connection.wantsInput { polls[0].events |= Int16(POLLIN) }
        if connection.outgoingCount > 0 { polls[0].events |= Int16(POLLOUT) }
        let behind = Array(relays.values)
        for relay in behind {
            let events = relay.events(connection)
            polls.append(
                pollfd(fd: events == 0 ? -1 : relay.number ?? -1, events: events, revents: 0))
        }
        let count = poll(&polls, nfds_t(polls.count), timeout())
        guard count >= 0 || errno == EINTR else { throw SystemError(call: "poll") }
        guard count > 0 else { return }
        if polls[1].revents != 0 { handleSignals() }
        if polls[2].revents != 0 { readInput() }
        if polls[3].revents != 0 { output.flush() }
        if polls[4].revents != 0 { error.flush() }
        if let channel, polls[3].revents != 0 || polls[4].revents != 0 { release(channel) }
        if output.isBroken || error.isBroken, end == nil { end = .stopped(signal: SIGPIPE) }
        for (index, relay) in behind.enumerated() where polls[5 + index].revents != 0 {
            if !relay.ready(&connection) { relays[relay.channel] = nil }
        }
        if polls[0].revents != 0 { try readSocket() }
    }

    private func timeout() -> Int32 {
        guard let deadline = connection.nextDeadlineNanoseconds else { return -1 }
        let now = Clock.monotonicNanoseconds()
        return deadline <= now ? 0 : Int32(clamping: (deadline - now) / 1_000_000 + 1)
    }

    private mutating func readSocket() throws {
        let number = socket.number
        // A few reads per turn: enough for speed, few enough to keep the terminal alive.
        for _ in 0..<8 {
            guard connection.wantsInput else { return }
            let count = connection.receive(upTo: 65_536) { recv(number, $0.baseAddress, $0.count, 0) }
            if count > 0 { continue }
            if count < 0, errno == EAGAIN || errno == EINTR { return }
            // What came before the end may hold the exit status.
            while let event = try connection.nextEvent() { handle(event) }
            if isChannelClosed || status != nil {
                isChannelClosed = true
                return
            }
            throw SessionLost()
        }
    }

    private struct SessionLost: Error, CustomStringConvertible {
        var description: String { "the workspace closed it" }
    }

    private mutating func flushSocket() {
        while connection.outgoingCount > 0 {
            let bytes = connection.outgoing
            let count = send(socket.number, bytes.baseAddress, bytes.count, Int32(MSG_NOSIGNAL))
            guard count > 0 else { return }
            connection.consumeOutgoing(count)
        }
    }

    // MARK: Input

    private mutating func readInput() {
        guard let channel else { return }
        guard raw == nil else { return readTerminal(channel) }
        let number = request.input
        var result = 0
        // One packet at a time, straight from the descriptor into the outgoing buffer.
        let count = connection.write(channel, upTo: 65_536) { space in
            result = read(number, space.baseAddress, space.count)
            return result
        }
        if count > 0 { return }
        if result < 0, errno == EAGAIN || errno == EINTR { return }
        hasInputEnded = true
        connection.sendEOF(channel)
    }

    private mutating func readTerminal(_ channel: ChannelID) {
        var buffer = [UInt8](repeating: 0, count: 4_096)
        let limit = min(buffer.count, connection.writableCount(channel))
        let count = read(request.input, &buffer, limit)
        if count < 0, errno == EAGAIN || errno == EINTR { return }
        guard count > 0 else {
            hasInputEnded = true
            end = .stopped(signal: SIGHUP)
            return
        }
        for action in escape.filter(buffer[..<count]) {
            switch action {
            case .pass(let bytes): _ = connection.write(channel, bytes)
            case .disconnect: end = .stopped(signal: SIGINT)
            case .help: tell(EscapeFilter.helpText)
            case .list: tell(relayList)
            case .suspend: suspend()
            }
        }
    }

    /// Text of ours between the program's, for a raw terminal.
    private mutating func tell(_ text: String) {
        let lines = text.split(separator: "\n", omittingEmptySubsequences: false).joined(separator: "\r\n")
        error.appendOwn(Array(("\r\n" + lines).utf8))
    }

    /// Gives the terminal back and stops this program, until it is continued.
    private mutating func suspend() {
        raw?.restore()
        kill(getpid(), SIGTSTP)
        raw = RawTerminal(descriptor: request.input)
        if let channel { connection.request(channel, .windowChange(windowSize())) }
    }

    private mutating func handleSignals() {
        while let signal = signals.next() {
            guard signal == SIGWINCH else {
                if end == nil { end = .stopped(signal: signal) }
                continue
            }
            resize()
        }
    }

    /// Tells the terminal's size. The same size again asks for a redraw: programs only hear of changes.
    private mutating func resize() {
        guard let channel, request.wantsTerminal else { return }
        let size = windowSize()
        if size == toldSize, size.rows > 1 {
            var other = size
            other.rows -= 1
            connection.request(channel, .windowChange(other))
        }
        toldSize = size
        connection.request(channel, .windowChange(size))
    }

    private static func number(ofSignal name: String) -> Int32 {
        let numbers: [String: Int32] = [
            "HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "BUS": 7, "FPE": 8, "KILL": 9,
            "USR1": 10,
            "SEGV": 11, "USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15,
        ]
        return numbers[name] ?? 127
    }
}

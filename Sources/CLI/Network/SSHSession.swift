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
    /// Tells about a lost connection on the terminal.
    var notice: LossNotice?
    /// Wakes the session up, for the notice.
    var wakeUp: WakeUp?
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
    /// 2 s for a reader to take what is left of a session that was lost or refused.
    private static let lastWordsNanoseconds: UInt64 = 2_000_000_000

    let socket: OwnedDescriptor
    let request: SSHSessionRequest
    let signals: SignalWatch
    var connection: ClientConnection
    private(set) var channel: ChannelID?
    var output: OutputQueue
    var error: OutputQueue
    var raw: RawTerminal?
    var escape = EscapeFilter()
    var isRunning = false
    var hasInputEnded = false
    private var status: Int32?
    var end: SSHSessionEnd? {
        didSet { if oldValue == nil { endedAt = Clock.monotonicNanoseconds() } }
    }
    private var endedAt: UInt64 = 0
    /// A signal or the user ends it, whether or not anybody takes the output.
    var isStopped = false
    /// The terminal was given back: what is left is to serve the relays.
    var isInBackground = false
    var logLevel = SessionLogLevel.info
    /// What was typed and has not been sent.
    var typed: [UInt8] = []
    private var scanner = TerminalScanner()
    let wakeUp: WakeUp
    private var isChannelClosed = false
    var toldSize: WindowSize?
    /// Channels that the workspace opened.
    var relays = ClientRelays()
    /// Forwards whose answer is awaited, oldest first; and those that work, by the port that the workspace chose.
    var askedForwards: [AskedForward] = []
    var forwards: [RemoteForward] = []
    /// Forwards in the other direction, from the session's own command line.
    var listeners: [LocalListener] = []

    /// Runs a session in a new thread, and waits for its end without holding one of the tasks' threads.
    static func run(
        over socket: consuming OwnedDescriptor, _ request: SSHSessionRequest
    ) async throws -> SSHSessionEnd {
        let wakeUp = try request.wakeUp ?? WakeUp()
        let signals = try SignalWatch([SIGWINCH, SIGINT, SIGTERM, SIGHUP])
        let number = socket.release()
        return await withCheckedContinuation { continuation in
            do {
                try DedicatedThread(name: "ssh") {
                    var session = SSHSession(OwnedDescriptor(taking: number), request, signals, wakeUp)
                    continuation.resume(returning: session.loop())
                }.detach()
            } catch {
                close(number)
                continuation.resume(returning: .lost("\(error)"))
            }
        }
    }

    private init(
        _ socket: consuming OwnedDescriptor, _ request: SSHSessionRequest, _ signals: SignalWatch,
        _ wakeUp: WakeUp
    ) {
        self.socket = socket
        self.wakeUp = wakeUp
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
                if let end, mayLeave(end) { return end }
                try wait()
            }
        } catch let error as SSHError {
            return end ?? describe(error)
        } catch {
            return end ?? .lost("\(error)")
        }
    }

    /// What the workspace said is written first; but only a session that ended by itself waits for a slow reader.
    private func mayLeave(_ end: SSHSessionEnd) -> Bool {
        if isStopped || output.isEmpty && error.isEmpty { return true }
        guard let deadline = leavingDeadline(end) else { return false }
        return Clock.monotonicNanoseconds() >= deadline
    }

    private func leavingDeadline(_ end: SSHSessionEnd?) -> UInt64? {
        switch end {
        case .exited?, nil: nil
        case .stopped?: endedAt
        case .lost?, .refused?: endedAt + Self.lastWordsNanoseconds
        }
    }

    private mutating func finish() {
        connection.disconnect()
        _ = connection.writeSocket(socket.number)
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
        relays.settle(&connection)
        sendTyped()
        drawNotice()
        _ = connection.writeSocket(socket.number)
        if isChannelClosed, end == nil, !isInBackground || relays.isEmpty {
            end = status.map { .exited($0) } ?? .lost("the session was closed without an exit status")
        }
    }

    private mutating func handle(_ event: SSHEvent) {
        log(event)
        if relays.handle(event, &connection) { return }
        switch event {
        case .authenticated:
            channel = connection.earlySession ?? connection.openChannel(.session)
            askForForwards()
        case .opened(let id): if id == channel { begin(id) }
        case .openFailed(let id, _, let message) where id == channel:
            end = .refused(message.isEmpty ? "the workspace refused the session" : Table.clean(message))
        case .openFailed(let id, _, _): relays.remove(id)
        case .data(let id, let stream, _) where id == channel: receive(id, stream)
        case .data(let id, _, let count): connection.consumed(id, count)
        case .request(let id, .exitStatus(let code), _):
            status = Int32(truncatingIfNeeded: code)
            if id == channel { flushInput() }
        case .request(_, .exitSignal(let name, _, _), _): status = 128 + Self.number(ofSignal: name)
        case .reply(_, success: false) where !isRunning:
            end = .refused("the workspace cannot run the command")
        case .reply(_, success: true): isRunning = true
        case .closed(let id):
            if id == channel { isChannelClosed = true }
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

    func windowSize() -> WindowSize {
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
        case .standard:
            if request.notice != nil { scanner.scan(bytes) }
            output.append(bytes)
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

    /// Between the program's own output; or the notice has to wait.
    private var isNoticeSafe: Bool { output.isEmpty && scanner.isSafe }

    /// The first line of the terminal tells about a lost connection. When it is back, programs that use the whole
    /// screen draw it again.
    private mutating func drawNotice() {
        guard let notice = request.notice, raw != nil,
            let text = notice.next(Clock.monotonicNanoseconds(), isSafe: isNoticeSafe)
        else { return }
        let words = text.isBack ? text.words : "\(text.words) (Enter ~. ends it)"
        let line = "\u{1b}7\u{1b}[1;1H\u{1b}[0;\(text.isBack ? 2 : 7)m\(words)\u{1b}[0m\u{1b}[K\u{1b}8"
        output.appendOwn(Array(line.utf8))
        if text.isBack { resize() }
    }

    // MARK: Waiting

    private mutating func wait() throws {
        var polls = [
            connection.socketPoll(socket.number),
            pollfd(fd: signals.number, events: Int16(POLLIN), revents: 0),
            pollfd(fd: wantsInput ? request.input : -1, events: Int16(POLLIN), revents: 0),
            pollfd(fd: output.isEmpty ? -1 : output.number, events: Int16(POLLOUT), revents: 0),
            pollfd(fd: error.isEmpty ? -1 : error.number, events: Int16(POLLOUT), revents: 0),
            pollfd(fd: wakeUp.number, events: Int16(POLLIN), revents: 0),
        ]
        let behind = relays.waiting(connection), listeners = listeners
        polls += behind.polls
        polls += listeners.map { pollfd(fd: $0.number, events: Int16(POLLIN), revents: 0) }
        let count = poll(&polls, nfds_t(polls.count), timeout())
        guard count >= 0 || errno == EINTR else { throw SystemError(call: "poll") }
        guard count > 0 else { return }
        if polls[1].revents != 0 { handleSignals() }
        if polls[5].revents != 0 { wakeUp.drain() }
        if polls[2].revents != 0 { readInput() }
        if polls[3].revents != 0 { output.flush() }
        if polls[4].revents != 0 { error.flush() }
        if let channel, polls[3].revents != 0 || polls[4].revents != 0 { release(channel) }
        if output.isBroken || error.isBroken, end == nil, !isInBackground { end = .stopped(signal: SIGPIPE) }
        relays.ready(behind.relays, polls[6...], &connection)
        for (listener, poll) in zip(listeners, polls.suffix(listeners.count)) where poll.revents != 0 {
            accept(listener)
        }
        if polls[0].revents != 0 { try readSocket() }
    }

    private func timeout() -> Int32 {
        let deadlines = [
            connection.nextDeadlineNanoseconds, leavingDeadline(end),
            raw == nil ? nil : request.notice?.deadline(isSafe: isNoticeSafe),
        ]
        return Clock.pollTimeout(until: deadlines.compactMap({ $0 }).min())
    }

    private mutating func readSocket() throws {
        guard !connection.readSocket(socket.number) else { return }
        // What came before the end may hold the exit status.
        while let event = try connection.nextEvent() { handle(event) }
        guard isChannelClosed || status != nil else { throw SessionLost() }
        isChannelClosed = true
        // Nor will the relays hear anything any more.
        relays = ClientRelays()
    }

    private struct SessionLost: Error, CustomStringConvertible {
        var description: String { "the workspace closed it" }
    }
}

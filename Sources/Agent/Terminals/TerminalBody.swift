// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import SSH

/// The thread of a `ReconnectingTerminal`: one `poll(2)` loop over the terminal, its program and the viewers. The
/// program is only held back by a viewer that is there and slow, and never for long.
final class TerminalBody {
    /// 256 KiB: what may wait for a viewer, and for the program, before the other side has to wait.
    private static let queueLimit = 256 * 1024
    /// 2 s for the last words after the program's end.
    private static let farewellNanoseconds: UInt64 = 2_000_000_000
    /// 100 ms between the two changes of size that make a program draw anew.
    private static let redrawNanoseconds: UInt64 = 100_000_000

    private final class Viewer {
        let socket: OwnedDescriptor
        /// Of its report.
        let number = SSHSessionReport.nextNumber()
        let address: String
        var output = InputQueue()
        var waitingCount = 0
        var messages = TerminalMessages()
        var movedAt: UInt64
        var isOver = false

        init(_ socket: consuming OwnedDescriptor, address: String, now: UInt64) {
            self.socket = socket
            self.address = address
            movedAt = now
        }
    }

    private let owner: ReconnectingTerminal
    private var terminal: PseudoTerminal?
    private var child: ChildProcess?
    private var exit: ChildProcess.Exit?
    private var viewers: [Viewer] = []
    private var replay = ReplayBuffer()
    private var input = InputQueue()
    private var inputCount = 0
    private var size: (rows: UInt16, columns: UInt16) = (24, 80)
    private var redrawAt: UInt64?
    private var desertedAt: UInt64
    private var buffer = [UInt8](repeating: 0, count: 64 * 1024)

    init(_ owner: ReconnectingTerminal) {
        self.owner = owner
        desertedAt = Clock.monotonicNanoseconds()
    }

    /// Runs the program to its end, or until nobody has looked for long enough.
    func run() {
        ChildProcess.blockBrokenPipeSignal()
        do {
            try spawn()
        } catch {
            replay.append(Array("\(error)\r\n".utf8)[...])
        }
        while !isOver() {
            takeArrivals()
            moveInput()
            readTerminal()
            release()
            wait()
        }
        takeArrivals()
        drainTerminal()
        bidFarewell()
        if exit == nil, let running = child.take() { owner.orphans.adopt(running, ends: true) }
        terminal = nil
        for viewer in viewers { report(viewer, exitStatus) }
        viewers = []
    }

    private func spawn() throws(SystemError) {
        let environment = owner.plan.environment
        let shell = Array(environment.account.shell.utf8)
        let command = owner.plan.command
        let terminal = try PseudoTerminal()
        terminal.resize(rows: UInt32(size.rows), columns: UInt32(size.columns), pixelWidth: 0, pixelHeight: 0)
        let variables = environment.variables(extra: [
            ("TERM", "xterm-256color"), ("SSH_CLIENT", "0.0.0.0 0 0"),
            ("SSH_CONNECTION", "0.0.0.0 0 0.0.0.0 0"),
        ])
        child = try ChildProcess(
            path: shell,
            arguments: [shell]
                + (command.isEmpty ? [Array("-l".utf8)] : [Array("-c".utf8), Array(command.utf8)]),
            environment: variables.map { $0.name.bytes + [0x3d] + $0.value.bytes },
            directory: Array(environment.workDirectory.utf8), streams: .terminal(path: terminal.path))
        self.terminal = consume terminal
    }

    /// Whether there is nothing more to do than to say goodbye.
    private func isOver() -> Bool {
        if owner.isStopped || terminal == nil || exit != nil { return true }
        guard viewers.isEmpty else { return false }
        let now = Clock.monotonicNanoseconds()
        return now >= desertedAt &+ owner.plan.idleNanoseconds && owner.closeIfDeserted()
    }

    private var exitStatus: Int32 {
        switch exit {
        case .code(let code): code
        case .signal: 255
        case nil: 0
        }
    }

    // MARK: Viewers

    private func takeArrivals() {
        for arrival in owner.takeArrivals() {
            let socket = OwnedDescriptor(taking: arrival.socket)
            guard viewers.count < owner.plan.viewerLimit else { continue }
            let viewer = Viewer(
                consume socket, address: arrival.address, now: Clock.monotonicNanoseconds())
            viewers.append(viewer)
            report(viewer, nil)
            let playback = replay.playback()
            send(playback.bytes[...], to: viewer)
            if let size = arrival.size { resize(size) }
            if playback.isAlternateScreen { redraw() }
        }
    }

    /// A program hears of changes only: one line less for a moment makes it draw all again.
    private func redraw() {
        guard size.rows > 1 else { return }
        apply((size.rows - 1, size.columns))
        redrawAt = Clock.monotonicNanoseconds() + Self.redrawNanoseconds
    }

    private func resize(_ size: (rows: UInt16, columns: UInt16)) {
        self.size = size
        apply(size)
    }

    private func apply(_ size: (rows: UInt16, columns: UInt16)) {
        terminal?.resize(
            rows: UInt32(size.rows), columns: UInt32(size.columns), pixelWidth: 0, pixelHeight: 0)
    }

    private func send(_ bytes: ArraySlice<UInt8>, to viewer: Viewer) {
        guard !bytes.isEmpty else { return }
        let taken = bytes.withUnsafeBytes {
            viewer.output.take($0, into: viewer.socket.number, isSocket: true)
        }
        if viewer.waitingCount == 0 || taken > 0 { viewer.movedAt = Clock.monotonicNanoseconds() }
        viewer.waitingCount += bytes.count - taken
        if viewer.output.isBroken { viewer.isOver = true }
    }

    private func flush(_ viewer: Viewer) {
        guard viewer.waitingCount > 0 else { return }
        let count = viewer.output.flush(into: viewer.socket.number, isSocket: true)
        if count > 0 { viewer.movedAt = Clock.monotonicNanoseconds() }
        viewer.waitingCount -= count
        if viewer.output.isBroken { viewer.isOver = true }
    }

    /// Lets go of those who hung up, broke the rules, or hold everybody else up.
    private func release() {
        let now = Clock.monotonicNanoseconds()
        for viewer in viewers
        where viewer.waitingCount > Self.queueLimit && now >= viewer.movedAt &+ owner.plan.stallNanoseconds {
            viewer.isOver = true
        }
        guard viewers.contains(where: \.isOver) else { return }
        for viewer in viewers where viewer.isOver { report(viewer, 0) }
        viewers.removeAll { $0.isOver }
        if viewers.isEmpty { desertedAt = now }
    }

    private func report(_ viewer: Viewer, _ status: Int32?) {
        owner.plan.report(
            SSHSessionReport(
                number: viewer.number, kind: .reconnectingTerminal, remoteAddress: viewer.address,
                exitStatus: status))
    }

    // MARK: Bytes

    /// From the viewers to the program: typed text first, then the size.
    private func moveInput() {
        if inputCount > 0, let number = terminal?.master.number {
            inputCount -= input.flush(into: number, isSocket: false)
        }
        for viewer in viewers where !viewer.isOver {
            flush(viewer)
            while inputCount < Self.queueLimit, !viewer.isOver {
                let result = buffer.withUnsafeMutableBytes {
                    Descriptor.read(viewer.socket.number, into: $0)
                }
                guard case .moved(let count) = result else {
                    if result != .wouldBlock { viewer.isOver = true }
                    break
                }
                do {
                    for message in try viewer.messages.take(buffer[..<count]) { take(message) }
                } catch {
                    viewer.isOver = true  // agent.md §5.1: hung up on, without a word
                }
            }
        }
    }

    private func take(_ message: TerminalMessages.Message) {
        if !message.text.isEmpty, let number = terminal?.master.number {
            let taken = message.text.withUnsafeBytes { input.take($0, into: number, isSocket: false) }
            inputCount += message.text.count - taken
        }
        if let size = message.size { resize(size) }
    }

    private var isHeldUp: Bool { viewers.contains { $0.waitingCount > Self.queueLimit } }

    /// From the program to all viewers.
    private func readTerminal() {
        for _ in 0..<4 where !isHeldUp {
            guard readOnce() else { return }
        }
    }

    private func readOnce() -> Bool {
        guard let number = terminal?.master.number else { return false }
        let result = buffer.withUnsafeMutableBytes { Descriptor.read(number, into: $0) }
        switch result {
        case .moved(let count):
            replay.append(buffer[..<count])
            for viewer in viewers { send(buffer[..<count], to: viewer) }
            return true
        case .wouldBlock: return false
        case .end, .failed:
            // Everybody closed it. The program itself may go on: then it is reaped later.
            terminal = nil
            return false
        }
    }

    // MARK: The end

    /// What the program left in the terminal; a background process that holds it open is not waited for.
    private func drainTerminal() {
        // A program that closed its terminal is about to end.
        if exit == nil, terminal == nil, let number = child?.ended.number {
            _ = Descriptor.waitReadable(number, nanoseconds: Self.farewellNanoseconds)
        }
        if exit == nil { exit = child?.reap() }
        for _ in 0..<1_024 {
            guard readOnce() else { break }
        }
    }

    private func bidFarewell() {
        let deadline = Clock.monotonicNanoseconds() + Self.farewellNanoseconds
        while Clock.monotonicNanoseconds() < deadline {
            for viewer in viewers { flush(viewer) }
            let slow = viewers.filter { $0.waitingCount > 0 && !$0.isOver }
            guard !slow.isEmpty else { return }
            var polls = slow.map { pollfd(fd: $0.socket.number, events: Int16(POLLOUT), revents: 0) }
            _ = poll(&polls, nfds_t(polls.count), 100)
        }
    }

    // MARK: Waiting

    private func wait() {
        if isOver() { return }
        let master = (isHeldUp ? 0 : POLLIN) | (inputCount > 0 ? POLLOUT : 0)
        var polls = [
            pollfd(fd: owner.wakeUp.number, events: Int16(POLLIN), revents: 0),
            pollfd(fd: master == 0 ? -1 : terminal?.master.number ?? -1, events: Int16(master), revents: 0),
            pollfd(fd: child?.ended.number ?? -1, events: Int16(POLLIN), revents: 0),
        ]
        for viewer in viewers {
            let events =
                (inputCount < Self.queueLimit ? POLLIN : 0) | (viewer.waitingCount > 0 ? POLLOUT : 0)
            polls.append(
                pollfd(fd: events == 0 ? -1 : viewer.socket.number, events: Int16(events), revents: 0))
        }
        _ = poll(&polls, nfds_t(polls.count), timeout())
        if polls[0].revents != 0 { owner.wakeUp.drain() }
        if polls[2].revents != 0 { exit = child?.reap() }
        if let at = redrawAt, Clock.monotonicNanoseconds() >= at {
            redrawAt = nil
            apply(size)
        }
    }

    private func timeout() -> Int32 {
        var deadline = redrawAt ?? .max
        if viewers.isEmpty { deadline = min(deadline, desertedAt &+ owner.plan.idleNanoseconds) }
        for viewer in viewers where viewer.waitingCount > Self.queueLimit {
            deadline = min(deadline, viewer.movedAt &+ owner.plan.stallNanoseconds)
        }
        return Clock.pollTimeout(until: deadline)
    }
}

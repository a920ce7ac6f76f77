// SPDX-License-Identifier: Apache-2.0

internal import Glibc
package import LinuxIO
internal import RPC
internal import Synchronization

/// Port 2: terminals that outlive their viewers, one for each id that a viewer names. The web terminal uses them. Any
/// thread may call it. agent.md §5.1.
package final class TerminalService: Sendable {
    /// What the service needs and whom it tells.
    package struct Configuration: Sendable {
        /// Asked for the current values when a terminal starts.
        package var environment: @Sendable () -> SSHEnvironment
        /// A viewer has come or gone.
        package var report: @Sendable (SSHSessionReport) -> Void = { _ in }
        /// One line for the agent's log.
        package var log: @Sendable (String) -> Void = { _ in }
        /// 5 min without a viewer.
        package var idleNanoseconds: UInt64 = 300_000_000_000
        /// 30 s for the first message.
        package var greetingNanoseconds: UInt64 = 30_000_000_000
        /// 10 s without taking a byte while others wait, and a viewer is let go.
        package var stallNanoseconds: UInt64 = 10_000_000_000
        /// Terminals at once, viewers of each, and viewers that have not said which one they want.
        package var terminalLimit = 128, viewerLimit = 32, greeterLimit = 32

        /// Only what has no default.
        package init(environment: @escaping @Sendable () -> SSHEnvironment) {
            self.environment = environment
        }
    }

    private struct State {
        var terminals: [RawUUID: ReconnectingTerminal] = [:]
        var greeterCount = 0
        var isStopped = false
    }

    private let configuration: Configuration
    private let state = Mutex(State())
    private let orphans = OrphanReaper()

    /// A service without terminals.
    package init(_ configuration: Configuration) { self.configuration = configuration }

    /// Number of terminals now, those without viewers included.
    package var count: Int { state.withLock { $0.terminals.count } }

    /// Serves one viewer. Returns at once; closes the descriptor in any case.
    package func serve(_ socket: consuming OwnedDescriptor, remoteAddress: String) {
        let limit = configuration.greeterLimit
        let isWelcome = state.withLock { state in
            guard !state.isStopped, state.greeterCount < limit else { return false }
            state.greeterCount += 1
            return true
        }
        guard isWelcome else { return configuration.log("terminal: refused: too many, or stopping") }
        let number = socket.release()
        do {
            try DedicatedThread(name: "terminal-greet") { [self] in
                greet(OwnedDescriptor(taking: number), remoteAddress)
                state.withLock { $0.greeterCount -= 1 }
            }.detach()
        } catch {
            OwnedDescriptor(taking: number).close()
            state.withLock { $0.greeterCount -= 1 }
            configuration.log("terminal: \(error)")
        }
    }

    /// Hangs up all terminals. Returns at once; `count` falls to zero soon after.
    package func stop() {
        let terminals = state.withLock { state in
            state.isStopped = true
            return Array(state.terminals.values)
        }
        for terminal in terminals { terminal.stop() }
        orphans.killAll()
    }

    // MARK: First message

    private func greet(_ socket: consuming OwnedDescriptor, _ address: String) {
        let deadline = Clock.monotonicNanoseconds() &+ configuration.greetingNanoseconds
        guard let length = Self.read(2, from: socket.number, until: deadline),
            let json = Self.read(Int(length[0]) | Int(length[1]) << 8, from: socket.number, until: deadline),
            let greeting = TerminalGreeting.parse(json), let id = RawUUID(greeting.ID)
        else { return configuration.log("terminal: \(address): malformed first message") }
        guard (greeting.Container ?? "").isEmpty, (greeting.ContainerUser ?? "").isEmpty else {
            Self.write("Terminals in containers are not available in this version.\r\n", to: socket.number)
            return
        }
        var arrival = ReconnectingTerminal.Arrival(socket: -1, size: nil, address: address)
        if let rows = greeting.Height, let columns = greeting.Width, rows > 0, columns > 0 {
            arrival.size = (rows, columns)
        }
        do {
            try Descriptor.setNonBlocking(socket.number)
            // The second time: it ended between look-up and arrival, and a new one takes its name.
            for _ in 0..<2 {
                guard let terminal = try find(id, command: greeting.Command ?? "") else { break }
                arrival.socket = socket.number
                if terminal.join(arrival) {
                    _ = socket.release()
                    return
                }
                forget(id, terminal)
            }
            Self.write("The agent has no room for another terminal.\r\n", to: socket.number)
        } catch {
            configuration.log("terminal: \(error)")
        }
    }

    /// The terminal of this name, a new one if there is none; nil when there are too many.
    private func find(_ id: RawUUID, command: String) throws(SystemError) -> ReconnectingTerminal? {
        let configuration = configuration
        if let known = state.withLock({ $0.terminals[id] }) { return known }
        let fresh = try ReconnectingTerminal(
            .init(
                environment: configuration.environment(), command: command,
                idleNanoseconds: configuration.idleNanoseconds,
                stallNanoseconds: configuration.stallNanoseconds, viewerLimit: configuration.viewerLimit,
                report: configuration.report), orphans: orphans)
        let (chosen, isNew): (ReconnectingTerminal?, Bool) = state.withLock { state in
            if let known = state.terminals[id] { return (known, false) }
            guard !state.isStopped, state.terminals.count < configuration.terminalLimit else {
                return (nil, false)
            }
            state.terminals[id] = fresh
            return (fresh, true)
        }
        guard isNew else { return chosen }
        do {
            try fresh.start { [self] in forget(id, fresh) }
        } catch {
            forget(id, fresh)
            throw error
        }
        return fresh
    }

    private func forget(_ id: RawUUID, _ terminal: ReconnectingTerminal) {
        state.withLock { state in
            if state.terminals[id] === terminal { state.terminals[id] = nil }
        }
    }

    private static func read(_ count: Int, from number: Int32, until deadline: UInt64) -> [UInt8]? {
        var bytes: [UInt8] = []
        while bytes.count < count {
            let now = Clock.monotonicNanoseconds()
            guard now < deadline, Descriptor.waitReadable(number, nanoseconds: deadline - now) else {
                return nil
            }
            var piece = [UInt8](repeating: 0, count: count - bytes.count)
            switch piece.withUnsafeMutableBytes({ Descriptor.read(number, into: $0) }) {
            case .moved(let count): bytes += piece[..<count]
            case .wouldBlock: continue
            case .end, .failed: return nil
            }
        }
        return bytes
    }

    private static func write(_ text: String, to number: Int32) {
        // A fresh socket takes a line whole; whoever hung up does not need it.
        _ = Array(text.utf8).withUnsafeBytes { Descriptor.write(number, $0, isSocket: true) }
    }
}

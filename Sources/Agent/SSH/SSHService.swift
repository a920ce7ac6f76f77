// SPDX-License-Identifier: Apache-2.0

public import LinuxIO
public import SSH
internal import Synchronization

/// The agent's SSH server: takes connected descriptors, one thread for each. Any thread may call it.
///
/// Whoever reaches a descriptor has been let in by the mesh already, so `none` authentication is accepted.
public final class SSHService: Sendable {
    /// What the service needs and whom it tells.
    public struct Configuration: Sendable {
        /// Host key of this agent.
        public var hostKey: HostKey
        /// Asked for the current values at the start of each session.
        public var environment: @Sendable () -> SSHEnvironment
        /// A session of a kind that is counted has started or ended.
        public var report: @Sendable (SSHSessionReport) -> Void = { _ in }
        /// One line for the agent's log.
        public var log: @Sendable (String) -> Void = { _ in }
        /// A silent peer is probed three times in this time, then dropped. 0: never.
        /// CODER_AGENT_SSH_MAX_TIMEOUT.
        public var silenceLimitNanoseconds: UInt64 = 72 * 3_600_000_000_000
        /// Connections at once.
        public var connectionLimit = 512
        /// Bounds of each connection.
        public var limits = SSHLimits()

        /// Only what has no default.
        public init(hostKey: HostKey, environment: @escaping @Sendable () -> SSHEnvironment) {
            self.hostKey = hostKey
            self.environment = environment
        }
    }

    private struct State {
        var connections: [UInt64: (control: ConnectionControl, remoteAddress: String)] = [:]
        var nextNumber: UInt64 = 1
        var isStopped = false
        var counters = Counters()
    }

    /// What came and went.
    public struct Counters: Hashable, Sendable {
        /// Connections that were served.
        public var accepted: UInt64 = 0
        /// Connections that were closed at once: too many, or stopping.
        public var refused: UInt64 = 0
        /// Connections that ended by a fault of the peer, e.g. bytes that are not SSH.
        public var failed: UInt64 = 0

        /// All zero.
        public init() {}
    }

    private let configuration: Configuration
    private let state = Mutex(State())
    private let orphans = OrphanReaper()
    private let forwards = ForwardOwners()
    private let jetBrains = JetBrainsPorts()

    /// A service without connections.
    public init(_ configuration: Configuration) { self.configuration = configuration }

    /// Number of connections now.
    public var connectionCount: Int { state.withLock { $0.connections.count } }

    /// Counters since the start.
    public var counters: Counters { state.withLock { $0.counters } }

    /// Serves one connection on a thread of its own until either side ends it. Closes the descriptor in any
    /// case.
    ///
    /// - Parameters:
    ///   - isReachable: whether the client can be reached now; not so during an outage that the descriptor outlives.
    public func serve(
        _ descriptor: consuming OwnedDescriptor, remoteAddress: String,
        isReachable: @escaping @Sendable () -> Bool = { true }
    ) {
        let limit = configuration.connectionLimit
        guard let control = try? ConnectionControl(isReachable: isReachable) else {
            return configuration.log("ssh: no descriptors left")
        }
        let number: UInt64? = state.withLock { state in
            // One peer has at most half of the places: another one gets in, too.
            let own = state.connections.values.count { $0.remoteAddress == remoteAddress }
            guard !state.isStopped, state.connections.count < limit, own < max(1, limit / 2) else {
                state.counters.refused += 1
                return nil
            }
            defer { state.nextNumber += 1 }
            state.counters.accepted += 1
            state.connections[state.nextNumber] = (control, remoteAddress)
            return state.nextNumber
        }
        guard let number else { return configuration.log("ssh: connection refused: too many, or stopping") }
        let socket = descriptor.release()
        do {
            let thread = try DedicatedThread(name: "ssh") { [self, configuration, orphans] in
                let loop = SSHConnectionLoop(
                    OwnedDescriptor(taking: socket), configuration, control, orphans, forwards, jetBrains,
                    remoteAddress)
                remove(number, failed: !loop.run())
            }
            thread.detach()
        } catch {
            OwnedDescriptor(taking: socket).close()
            remove(number)
            configuration.log("ssh: \(error)")
        }
    }

    /// Ends all connections without exit status and kills what their sessions left running. Returns at once;
    /// `connectionCount` falls to zero soon after.
    public func stop() {
        let controls = state.withLock { state in
            state.isStopped = true
            return state.connections.values.map(\.control)
        }
        for control in controls { control.stop() }
        orphans.killAll()
    }

    private func remove(_ number: UInt64, failed: Bool = false) {
        let isLast = state.withLock { state in
            state.connections[number] = nil
            if failed { state.counters.failed += 1 }
            return state.connections.isEmpty
        }
        // The threads that are gone leave their free memory behind: an idle agent has no use for it.
        if isLast { ProgramMemory.releaseFree() }
    }
}

/// What kind of program opened a session.
public enum SSHSessionKind: Hashable, Sendable {
    /// A terminal, or no kind given.
    case ssh
    case vscode
    case jetbrains
    /// A viewer of a reconnecting terminal.
    case reconnectingTerminal
    /// A name that is not known.
    case unknown

    init(_ name: String) {
        switch name.lowercased() {
        case "", "ssh": self = .ssh
        case "vscode": self = .vscode
        case "jetbrains": self = .jetbrains
        default: self = .unknown
        }
    }
}

/// The start or the end of a session.
public struct SSHSessionReport: Hashable, Sendable {
    /// The same number at start and end.
    public var number: UInt64
    /// What kind of session.
    public var kind: SSHSessionKind
    /// Address of the peer inside the mesh.
    public var remoteAddress: String
    /// nil at the start; at the end its exit status, 0 when there is none.
    public var exitStatus: Int32?

    private static let lastNumber = Atomic<UInt64>(0)

    /// A number that no other session of this process has.
    static func nextNumber() -> UInt64 { lastNumber.add(1, ordering: .relaxed).newValue }
}

/// How other threads reach a connection's thread.
final class ConnectionControl: Sendable {
    let wakeUp: WakeUp
    /// Whether its client can be reached now.
    let isReachable: @Sendable () -> Bool
    private struct State {
        var isStopped = false
        var lookups: [UInt64: [KernelAddress]] = [:]
        var reclaimed: [UInt32] = []
        var jetBrains: [ChannelID] = []
    }
    private let state = Mutex(State())

    init(isReachable: @escaping @Sendable () -> Bool) throws(SystemError) {
        self.isReachable = isReachable
        wakeUp = try WakeUp()
    }

    var isStopped: Bool { state.withLock { $0.isStopped } }

    func stop() {
        state.withLock { $0.isStopped = true }
        wakeUp.signal()
    }

    /// Another client wants a port on which this one listens.
    func reclaim(_ port: UInt32) {
        state.withLock { $0.reclaimed.append(port) }
        wakeUp.signal()
    }

    func takeReclaimed() -> [UInt32] {
        state.withLock { state in
            defer { state.reclaimed = [] }
            return state.reclaimed
        }
    }

    /// A forward turned out to lead to a JetBrains back end.
    func deliver(jetBrains channel: ChannelID) {
        state.withLock { $0.jetBrains.append(channel) }
        wakeUp.signal()
    }

    func takeJetBrains() -> [ChannelID] {
        state.withLock { state in
            defer { state.jetBrains = [] }
            return state.jetBrains
        }
    }

    /// Delivers the outcome of a name look-up.
    func deliver(_ number: UInt64, _ addresses: [KernelAddress]) {
        state.withLock { $0.lookups[number] = addresses }
        wakeUp.signal()
    }

    func takeLookups() -> [UInt64: [KernelAddress]] {
        state.withLock { state in
            defer { state.lookups = [:] }
            return state.lookups
        }
    }
}

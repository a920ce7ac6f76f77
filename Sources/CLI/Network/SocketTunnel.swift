// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import SSH
internal import Synchronization

/// Leads local connections to unix sockets of the workspace: channels of one SSH connection, which is made for the
/// first and made again when it was lost. Any thread may call it.
final class SocketTunnel: Sendable {
    /// Connections that wait for their turn; more are refused.
    private static let queueLimit = 256

    fileprivate struct Call: Sendable {
        /// Owned by the call.
        var number: Int32
        var path: String
    }

    private struct State {
        var calls: [Call] = []
        /// Whether an SSH connection is there, or on its way, that will take the calls.
        var isRunning = false
        var isStopped = false
    }

    private let link: AgentLink
    private let console: Console
    fileprivate let wakeUp: WakeUp
    private let state = Mutex(State())

    init(_ link: AgentLink, _ console: Console) throws {
        self.link = link
        self.console = console
        wakeUp = try WakeUp()
    }

    /// Takes over a connected socket and leads it to `path`.
    func dial(_ number: Int32, to path: String) {
        let (isTaken, isFirst) = state.withLock { state -> (Bool, Bool) in
            guard !state.isStopped, state.calls.count < Self.queueLimit else { return (false, false) }
            state.calls.append(Call(number: number, path: path))
            defer { state.isRunning = true }
            return (true, !state.isRunning)
        }
        guard isTaken else {
            close(number)
            return
        }
        if isFirst { Task { await run() } }
        wakeUp.signal()
    }

    /// Ends the connection, and all that it carries.
    func stop() {
        state.withLock { $0.isStopped = true }
        wakeUp.signal()
        for call in takeCalls() { close(call.number) }
    }

    fileprivate var isStopped: Bool { state.withLock { $0.isStopped } }

    fileprivate func takeCalls() -> [Call] {
        state.withLock { state in
            defer { state.calls = [] }
            return state.calls
        }
    }

    fileprivate func failed(_ path: String, _ reason: String) {
        console.note("Failed to dial 'unix://\(path)' in workspace: \(reason)")
    }

    /// One SSH connection after the other while there is something to carry.
    private func run() async {
        repeat {
            do {
                try await carry()
            } catch {
                for call in takeCalls() {
                    close(call.number)
                    failed(call.path, "\(error)")
                }
            }
        } while mustGoOn()
    }

    private func mustGoOn() -> Bool {
        state.withLock { state in
            state.isRunning = !state.calls.isEmpty && !state.isStopped
            return state.isRunning
        }
    }

    private func carry() async throws {
        let (mine, theirs) = try Descriptor.socketPair(nonBlocking: true).release()
        let socket = OwnedDescriptor(taking: mine)
        let stream = try await link.stream(to: 1, local: [theirs])
        let number = socket.release()
        let reason = try await withCheckedThrowingContinuation {
            (continuation: CheckedContinuation<String?, any Error>) in
            do {
                try DedicatedThread(name: "unix-forward") {
                    var loop = SocketTunnelLoop(
                        OwnedDescriptor(taking: number), self, isResumable: stream.isResuming)
                    continuation.resume(returning: loop.run())
                }.detach()
            } catch {
                close(number)
                continuation.resume(throwing: error)
            }
        }
        stream.stop()
        if let reason { console.note("The connection for unix sockets ended: \(reason)") }
    }
}

/// The thread of one connection: moves bytes between local sockets and channels.
private struct SocketTunnelLoop: ~Copyable {
    /// A probe after this silence where no resumable stream watches over the connection.
    private static let keepaliveNanoseconds: UInt64 = 4_000_000_000

    private let socket: OwnedDescriptor
    private let tunnel: SocketTunnel
    private var connection: ClientConnection
    private var isReady = false
    private var relays: [ChannelID: ClientRelay] = [:]
    private var paths: [ChannelID: String] = [:]

    init(_ socket: consuming OwnedDescriptor, _ tunnel: SocketTunnel, isResumable: Bool) {
        self.socket = socket
        self.tunnel = tunnel
        var generator = SystemRandomNumberGenerator()
        connection = ClientConnection(clientNamed: "coder", seed: EntropySeed(using: &generator))
        if !isResumable { connection.setKeepalive(intervalNanoseconds: Self.keepaliveNanoseconds) }
    }

    /// Returns why it was lost; nil when the tunnel was stopped.
    mutating func run() -> String? {
        do {
            while !tunnel.isStopped {
                try connection.handleTimeout(nowNanoseconds: Clock.monotonicNanoseconds())
                while let event = try connection.nextEvent() { handle(event) }
                if isReady { openChannels() }
                for (id, relay) in relays where paths[id] == nil && !relay.settle(&connection) {
                    relays[id] = nil
                }
                try flush()
                try wait()
            }
            connection.disconnect()
            try flush()
            return nil
        } catch let error as TunnelLost {
            return error.description
        } catch {
            return "\(error)"
        }
    }

    private struct TunnelLost: Error {
        var description: String { "the workspace closed it" }
    }

    private mutating func openChannels() {
        for call in tunnel.takeCalls() {
            guard let id = connection.openChannel(.directStreamLocal(path: ByteString(call.path))) else {
                close(call.number)
                tunnel.failed(call.path, "too many connections")
                continue
            }
            do {
                try Descriptor.setNonBlocking(call.number)
            } catch {
                tunnel.failed(call.path, "\(error)")
            }
            relays[id] = ClientRelay(id, OwnedDescriptor(taking: call.number))
            paths[id] = call.path
        }
    }

    private mutating func handle(_ event: SSHEvent) {
        switch event {
        case .authenticated: isReady = true
        case .opened(let id): paths[id] = nil
        case .openFailed(let id, _, let message):
            tunnel.failed(paths.removeValue(forKey: id) ?? "", Table.clean(message))
            relays[id] = nil
        case .data(let id, _, let count):
            guard let relay = relays[id] else { return connection.consumed(id, count) }
            relay.received(connection.withData { Array($0) }, &connection)
        case .endOfData(let id): relays[id]?.endOfData(&connection)
        case .closed(let id): relays[id] = nil
        case .channelRequested(let id, _): connection.refuse(id, .administrativelyProhibited)
        default: break
        }
    }

    private mutating func wait() throws {
        var polls = [
            pollfd(fd: socket.number, events: 0, revents: 0),
            pollfd(fd: tunnel.wakeUp.number, events: Int16(POLLIN), revents: 0),
        ]
        if connection.wantsInput { polls[0].events |= Int16(POLLIN) }
        if connection.outgoingCount > 0 { polls[0].events |= Int16(POLLOUT) }
        let behind = relays.values.filter { paths[$0.channel] == nil }
        for relay in behind {
            let events = relay.events(connection)
            polls.append(pollfd(fd: events == 0 ? -1 : relay.number ?? -1, events: events, revents: 0))
        }
        var timeout: Int32 = -1
        if let deadline = connection.nextDeadlineNanoseconds {
            let now = Clock.monotonicNanoseconds()
            timeout = deadline <= now ? 0 : Int32(clamping: (deadline - now) / 1_000_000 + 1)
        }
        let count = poll(&polls, nfds_t(polls.count), timeout)
        guard count >= 0 || errno == EINTR else { throw SystemError(call: "poll") }
        guard count > 0 else { return }
        if polls[1].revents != 0 { tunnel.wakeUp.drain() }
        for (index, relay) in behind.enumerated() where polls[2 + index].revents != 0 {
            if !relay.ready(&connection) { relays[relay.channel] = nil }
        }
        if polls[0].revents != 0 { try readSocket() }
    }

    private mutating func readSocket() throws {
        let number = socket.number
        for _ in 0..<8 {
            guard connection.wantsInput else { return }
            let count = connection.receive(upTo: 65_536) { recv(number, $0.baseAddress, $0.count, 0) }
            if count > 0 { continue }
            if count < 0, errno == EAGAIN || errno == EINTR { return }
            while let event = try connection.nextEvent() { handle(event) }
            throw TunnelLost()
        }
    }

    private mutating func flush() throws {
        while connection.outgoingCount > 0 {
            let bytes = connection.outgoing
            let count = send(socket.number, bytes.baseAddress, bytes.count, Int32(MSG_NOSIGNAL))
            if count < 0, errno != EAGAIN, errno != EINTR { throw TunnelLost() }
            guard count > 0 else { return }
            connection.consumeOutgoing(count)
        }
    }
}

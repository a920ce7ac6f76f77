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
    private var relays = ClientRelays()
    /// Of channels that are not open yet.
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
                relays.settle(&connection)
                guard connection.writeSocket(socket.number) else { throw TunnelLost() }
                try wait()
            }
            connection.disconnect()
            _ = connection.writeSocket(socket.number)
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
            relays.add(ClientRelay(id, OwnedDescriptor(taking: call.number)))
            paths[id] = call.path
        }
    }

    private mutating func handle(_ event: SSHEvent) {
        if relays.handle(event, &connection) { return }
        switch event {
        case .authenticated: isReady = true
        case .opened(let id): paths[id] = nil
        case .openFailed(let id, _, let message):
            tunnel.failed(paths.removeValue(forKey: id) ?? "", Table.clean(message))
            relays.remove(id)
        case .data(let id, _, let count): connection.consumed(id, count)
        case .channelRequested(let id, _): connection.refuse(id, .administrativelyProhibited)
        default: break
        }
    }

    private mutating func wait() throws {
        let behind = relays.waiting(connection)
        var polls = [
            connection.socketPoll(socket.number),
            pollfd(fd: tunnel.wakeUp.number, events: Int16(POLLIN), revents: 0),
        ]
        polls += behind.polls
        let timeout = Clock.pollTimeout(until: connection.nextDeadlineNanoseconds)
        let count = poll(&polls, nfds_t(polls.count), timeout)
        guard count >= 0 || errno == EINTR else { throw SystemError(call: "poll") }
        guard count > 0 else { return }
        if polls[1].revents != 0 { tunnel.wakeUp.drain() }
        relays.ready(behind.relays, polls[2...], &connection)
        guard polls[0].revents != 0, !connection.readSocket(socket.number) else { return }
        while let event = try connection.nextEvent() { handle(event) }
        throw TunnelLost()
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
internal import Mesh
internal import Resume
internal import Synchronization
internal import Tailnet

/// The agent's ends of resumable streams (docs/RESUME.md): reads greetings on the mesh port for them, connects new
/// streams to what they want, and hands carriers to the streams that they belong to.
final class ResumeStreams: Sendable {
    /// Streams at once; carriers that have not greeted yet, of all peers and of one; and time to greet.
    private static let streamLimit = 1_024, greeterLimit = 64, greeterLimitOfOne = 16
    private static let greetingLimit: UInt64 = 10_000_000_000

    private struct Entry {
        let loop: ResumeLoop
        /// Node key.
        let client: [UInt8]
        let isSession: Bool
    }

    private struct State {
        var streams: [ResumeID: Entry] = [:]
        /// How many have not greeted yet, by address.
        var greeters: [IPAddress: Int] = [:]

        mutating func mayGreet(_ address: IPAddress) -> Bool {
            let own = greeters[address] ?? 0
            guard own < greeterLimitOfOne, greeters.values.reduce(0, +) < greeterLimit else { return false }
            greeters[address] = own + 1
            return true
        }

        mutating func hasGreeted(_ address: IPAddress) {
            let left = (greeters[address] ?? 1) - 1
            greeters[address] = left > 0 ? left : nil
        }
    }

    private let node: Node
    private let ssh: SSHService
    private let terminals: TerminalService
    private let quota = ResumeQuota()
    private let patience: ResumeLoop.Patience
    private let log: @Sendable (String) -> Void
    /// Lives as long as this process: tokens of an earlier one are worth nothing.
    private let secret: [UInt8]
    private let state = Mutex(State())

    init(
        node: Node, ssh: SSHService, terminals: TerminalService, patience: ResumeLoop.Patience = .init(),
        log: @escaping @Sendable (String) -> Void
    ) {
        self.node = node
        self.ssh = ssh
        self.terminals = terminals
        self.patience = patience
        self.log = log
        var random = SystemRandomNumberGenerator()
        secret = (0..<32).map { _ in UInt8.random(in: 0...255, using: &random) }
    }

    /// Number of streams, waiting ones included.
    var count: Int { state.withLock { $0.streams.count } }

    /// Serves carriers until the listener ends.
    func run(_ carriers: AsyncStream<IncomingStream>) async {
        await withDiscardingTaskGroup { group in
            for await carrier in carriers {
                let address = carrier.remote.ip
                guard state.withLock({ $0.mayGreet(address) }) else {
                    carrier.reject()
                    continue
                }
                group.addTask {
                    await self.serve(carrier)
                    self.state.withLock { $0.hasGreeted(address) }
                }
            }
        }
        for stream in state.withLock({ Array($0.streams.values) }) { stream.loop.stop() }
    }

    /// Ends the streams of clients that said goodbye: they will not come back for them.
    func follow(_ departures: AsyncStream<NodePublicKey>) async {
        for await key in departures {
            let bytes = key.bytes
            for stream in state.withLock({ Array($0.streams.values) }) where stream.client == bytes {
                stream.loop.stop()
            }
        }
    }

    /// Looks once a minute for streams that nobody will come back for, or that are too many.
    func keepWithinQuota() async {
        while true {
            do { try await Task.sleep(for: .seconds(60)) } catch { return }
            var known: Set<[UInt8]>?
            do {
                known = Set(try await node.status().peers.map { $0.key.bytes })
            } catch {
                known = nil  // the node closes: only what needs no knowledge of peers is looked at
            }
            end(quota.excess(standing(), known: known, now: Clock.monotonicNanoseconds()))
        }
    }

    /// All streams as they stand.
    private func standing() -> [ResumeQuota.Stream] {
        state.withLock { $0.streams }.map { id, entry in
            let rest = entry.loop.rest
            return ResumeQuota.Stream(
                id: id, client: entry.client, isSession: entry.isSession, detachedAt: rest.detachedAt,
                heldBytes: rest.heldBytes)
        }
    }

    private func end(_ ids: [ResumeID]) {
        for id in ids {
            log("resume: a stream that lost its client is given up")
            state.withLock { $0.streams[id]?.loop }?.stop()
        }
    }

    private func serve(_ carrier: IncomingStream) async {
        do {
            let descriptor = try carrier.descriptor()
            guard let greeting = await Greeter.read(from: descriptor.number, within: Self.greetingLimit)
            else { return }
            let keys = try await keys(of: carrier.remote.ip)
            switch greeting.kind {
            case .new: await begin(greeting, descriptor, keys, carrier.remote)
            default: resume(greeting, descriptor, keys)
            }
        } catch {
            log("resume: carrier lost: \(error)")
        }
    }

    /// Node keys of the peer that has this address, and our own.
    private func keys(of address: IPAddress) async throws(NodeError) -> (client: [UInt8], agent: [UInt8]) {
        let status = try await node.status()
        guard let peer = status.peers.first(where: { $0.addresses.contains(address) }) else {
            throw .noRoute(address)
        }
        return (peer.key.bytes, status.ownNode.key.bytes)
    }

    // MARK: New streams

    private func begin(
        _ greeting: ResumeGreeting, _ carrier: consuming OwnedDescriptor,
        _ keys: (client: [UInt8], agent: [UInt8]), _ remote: SocketAddress
    ) async {
        switch quota.roomFor(keys.client, among: standing()) {
        case .free: break
        case .instead(let oldest): end([oldest])
        case .none: return refuse(carrier, .busy)
        }
        guard count < Self.streamLimit else { return refuse(carrier, .busy) }
        var random = SystemRandomNumberGenerator()
        let id = ResumeID.random(using: &random)
        let token = StreamToken(secret: secret, id: id, clientKey: keys.client, agentKey: keys.agent)
        // Registered below, before the client can ask for anything.
        let isReachable: @Sendable () -> Bool = { [self] in
            state.withLock { $0.streams[id]?.loop }?.rest.detachedAt == nil
        }
        guard let local = await connect(greeting.port, remote, isReachable) else {
            return refuse(carrier, .connectFailed)
        }
        do {
            let loop = try ResumeLoop(.agent(id: id, token: token), patience: patience) { [self] event in
                if case .ended = event { state.withLock { _ = $0.streams.removeValue(forKey: id) } }
            }
            let isSession = greeting.port < ResumingStream.port || greeting.port == 22
            state.withLock {
                $0.streams[id] = Entry(loop: loop, client: keys.client, isSession: isSession)
            }
            loop.give(carrier, greeting: greeting)
            do {
                try loop.start(reading: consume local)
            } catch {
                state.withLock { _ = $0.streams.removeValue(forKey: id) }
                throw error
            }
        } catch {
            log("resume: \(error)")
        }
    }

    /// SSH and terminals are served by this process, everything else by the workspace.
    private func connect(
        _ port: UInt16, _ remote: SocketAddress, _ isReachable: @escaping @Sendable () -> Bool
    ) async -> OwnedDescriptor? {
        guard [1, 2, 22].contains(port) else {
            guard port > ResumingStream.port, let socket = await LocalRelay.connect(port: port) else {
                return nil
            }
            Descriptor.setNoDelay(socket.number)
            return consume socket
        }
        do {
            let pair = try Descriptor.socketPair(nonBlocking: true)
            let (mine, theirs) = pair.release()
            let socket = OwnedDescriptor(taking: theirs)
            if port == 2 {
                terminals.serve(consume socket, remoteAddress: remote.ip.description)
            } else {
                ssh.serve(
                    consume socket, remoteAddress: remote.ip.description, isReachable: isReachable)
            }
            return OwnedDescriptor(taking: mine)
        } catch {
            log("resume: \(error)")
            return nil
        }
    }

    // MARK: Known streams

    private func resume(
        _ greeting: ResumeGreeting, _ carrier: consuming OwnedDescriptor,
        _ keys: (client: [UInt8], agent: [UInt8])
    ) {
        let token = StreamToken(
            secret: secret, id: greeting.id, clientKey: keys.client, agentKey: keys.agent)
        let stream = state.withLock { $0.streams[greeting.id]?.loop }
        guard token.matches(greeting.token), let stream, !stream.hasEnded else {
            return refuse(carrier, .unknownStream)
        }
        stream.give(carrier, greeting: greeting)
    }

    /// Says why not, and hangs up.
    private func refuse(_ carrier: consuming OwnedDescriptor, _ kind: ResumeGreeting.Kind) {
        let bytes = ResumeGreeting(kind).bytes
        bytes.withUnsafeBytes { _ = Descriptor.write(carrier.number, $0, isSocket: true) }
    }
}

/// Reads the 80 bytes of a client's greeting without holding one of the tasks' threads.
enum Greeter {
    static func read(from number: Int32, within limit: UInt64) async -> ResumeGreeting? {
        await withCheckedContinuation { continuation in
            do {
                try DedicatedThread(name: "greeting") {
                    continuation.resume(returning: readNow(number, Clock.monotonicNanoseconds() &+ limit))
                }.detach()
            } catch {
                continuation.resume(returning: nil)
            }
        }
    }

    private static func readNow(_ number: Int32, _ deadline: UInt64) -> ResumeGreeting? {
        var bytes: [UInt8] = []
        while bytes.count < ResumeGreeting.size {
            let now = Clock.monotonicNanoseconds()
            guard now < deadline, Descriptor.waitReadable(number, nanoseconds: deadline - now) else {
                return nil
            }
            var buffer = [UInt8](repeating: 0, count: ResumeGreeting.size - bytes.count)
            let result = buffer.withUnsafeMutableBytes { Descriptor.read(number, into: $0) }
            guard case .moved(let count) = result else { return nil }
            bytes += buffer[..<count]
        }
        do {
            let greeting = try ResumeGreeting(parsing: bytes, isAnswer: false)
            return greeting
        } catch {
            return nil  // not one of ours: it is hung up on
        }
    }
}

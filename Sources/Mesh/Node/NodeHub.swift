// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
internal import Synchronization

/// Everything between the engine's thread and Swift's tasks: who listens, who subscribed, which relay is being
/// dialled. The engine holds it; it holds neither the engine nor the `Node`, so that a forgotten node goes away.
final class NodeHub: Sendable {
    /// Who gets what a listener accepts.
    enum Sink: Sendable {
        case streams(AsyncStream<IncomingStream>.Continuation)
        case flows(AsyncStream<IncomingFlow>.Continuation)
    }

    private struct State {
        var derpMap: DERPMap
        var sinks: [UInt64: Sink] = [:]
        var relayTasks: [Int: Task<Void, Never>] = [:]
        var latencyTask: Task<Void, Never>?
        var thread: DedicatedThread?
        var isClosed = false
        var hasStopped = false
        var waitingForStop: [CheckedContinuation<Void, Never>] = []
    }

    let configuration: NodeConfiguration
    let queue: CommandQueue
    let replies: Replies
    let ownNodes = Broadcast<OwnNode>(keepsLatest: true, depth: 1)
    let pathEvents: Broadcast<NodePathEvent>
    private let state: Mutex<State>
    /// STUN servers of the map that were found.
    private let stunServers = Mutex<[DERPMap.STUNServer: [ResolvedServer]]>([:])
    private let lookups = NameLookups()

    init(configuration: NodeConfiguration, queue: CommandQueue, replies: Replies) {
        self.configuration = configuration
        self.queue = queue
        self.replies = replies
        pathEvents = Broadcast(keepsLatest: false, depth: configuration.limits.pathEvents)
        state = Mutex(State(derpMap: configuration.derpMap))
    }

    // MARK: Life

    /// Opens the engine's sockets on this thread, then runs it on its own.
    func start() throws(SystemError) {
        // Buffers of streams are megabytes while the streams are busy.
        ProgramMemory.returnLargeBlocks()
        let box = EngineBox(try Engine(configuration: configuration, queue: queue, hub: self))
        let thread = try DedicatedThread(name: "mesh-engine") {
            // Beside busy programs a keystroke otherwise waits milliseconds for the processor.
            DedicatedThread.takeShortTurns(nanoseconds: 100_000)
            box.run()
        }
        state.withLock { $0.thread = thread }
    }

    /// Asks the engine to end, without waiting.
    func stop() {
        let thread = state.withLock { state in
            let result = state.thread
            state.thread = nil
            state.isClosed = true
            return result
        }
        cancelTasks()
        queue.post(.stop)
        thread?.detach()
    }

    /// Asks the engine to end and waits for its thread.
    func close() async {
        let thread = state.withLock { state in
            let result = state.thread
            state.thread = nil
            state.isClosed = true
            return result
        }
        cancelTasks()
        queue.post(.stop)
        await withCheckedContinuation { continuation in
            let isOver = state.withLock { state in
                if !state.hasStopped { state.waitingForStop.append(continuation) }
                return state.hasStopped
            }
            if isOver { continuation.resume() }
        }
        thread?.join()  // the engine's last act was to say so: this returns within microseconds
    }

    private func cancelTasks() {
        let tasks = state.withLock { state in
            let result = Array(state.relayTasks.values) + [state.latencyTask].compactMap { $0 }
            state.relayTasks = [:]
            state.latencyTask = nil
            return result
        }
        for task in tasks { task.cancel() }
    }

    // MARK: What the engine says

    /// Called on the engine's thread. Must not block.
    func notify(_ notice: EngineNotice) {
        switch notice {
        case .reply(let token, let reply): replies.resolve(token, reply)
        case .accepted(let listener, let token, let local, let remote, let isUDP):
            accepted(listener, token, local, remote, isUDP: isUDP)
        case .ended(let token, let end): replies.streamEnded(token, end)
        case .ownNode(let node): ownNodes.send(node)
        case .pathEvent(let event, let peer): pathEvents.send(NodePathEvent(peer: peer, event: event))
        case .dialRelay(let region, let attempt): dialRelay(region, attempt)
        case .cancelRelay(let region):
            state.withLock { $0.relayTasks.removeValue(forKey: region) }?.cancel()
        case .measureLatencies: measureLatencies()
        case .networkChanged: configuration.relayDialer?.networkChanged()
        case .resolveStunServers: resolveStunServers()
        case .askGateway(let id, let address, let request): askGateway(id, address, request)
        case .stopped: engineStopped()
        }
    }

    private func accepted(
        _ listener: UInt64, _ token: UInt64, _ local: SocketAddress, _ remote: SocketAddress, isUDP: Bool
    ) {
        let sink = state.withLock { $0.sinks[listener] }
        replies.streamBegan(token)
        // A stream that is not yielded, or a flow dropped from a full buffer, rejects itself when it goes away.
        switch sink {
        case .streams(let continuation):
            let stream = IncomingStream(hub: self, token: token, local: local, remote: remote)
            if case .dropped(let surplus) = continuation.yield(stream) { surplus.postpone() }
        case .flows(let continuation):
            continuation.yield(IncomingFlow(hub: self, token: token, local: local, remote: remote))
        case nil: queue.post(.abort(token: token))
        }
    }

    private func engineStopped() {
        queue.close()
        replies.close()
        ownNodes.finish()
        pathEvents.finish()
        let (sinks, waiting) = state.withLock { state in
            state.hasStopped = true
            let result = (Array(state.sinks.values), state.waitingForStop)
            state.sinks = [:]
            state.waitingForStop = []
            return result
        }
        for sink in sinks {
            switch sink {
            case .streams(let continuation): continuation.finish()
            case .flows(let continuation): continuation.finish()
            }
        }
        for continuation in waiting { continuation.resume() }
    }

    // MARK: Listeners

    /// Registers a listener and its sequence; the sequence's end unregisters it.
    func listen(port: UInt16?, streams: AsyncStream<IncomingStream>.Continuation) async throws(NodeError) {
        let listener = replies.makeToken()
        state.withLock { $0.sinks[listener] = .streams(streams) }
        streams.onTermination = { [weak self] _ in self?.unlisten(listener) }
        try await register(listener, port: port, isUDP: false)
    }

    /// The same for UDP flows.
    func listen(port: UInt16?, flows: AsyncStream<IncomingFlow>.Continuation) async throws(NodeError) {
        let listener = replies.makeToken()
        state.withLock { $0.sinks[listener] = .flows(flows) }
        flows.onTermination = { [weak self] _ in self?.unlisten(listener) }
        try await register(listener, port: port, isUDP: true)
    }

    private func register(_ listener: UInt64, port: UInt16?, isUDP: Bool) async throws(NodeError) {
        let reply = await replies.reply(to: listener) {
            queue.post(.listen(listener: listener, port: port, isUDP: isUDP))
        }
        if case .failed(let error) = reply {
            state.withLock { $0.sinks[listener] = nil }
            throw error
        }
    }

    private func unlisten(_ listener: UInt64) {
        state.withLock { $0.sinks[listener] = nil }
        queue.post(.unlisten(listener: listener))
    }

    // MARK: Relays

    /// The map that regions are looked up in.
    func setDERPMap(_ map: DERPMap) { state.withLock { $0.derpMap = map } }

    private func dialRelay(_ number: Int, _ attempt: UInt64) {
        let queue = queue
        let region = state.withLock { $0.derpMap.regions[number] }
        guard let dialer = configuration.relayDialer, let region else {
            queue.post(.relayFailed(region: number, attempt: attempt, reason: "no such region"))
            return
        }
        let task = Task {
            do {
                let descriptor = try await dialer.connect(region: region)
                queue.post(
                    .relayConnected(region: number, attempt: attempt, descriptor: descriptor.release()))
            } catch {
                queue.post(.relayFailed(region: number, attempt: attempt, reason: "\(error)"))
            }
        }
        let old = state.withLock { state in
            state.isClosed ? task : state.relayTasks.updateValue(task, forKey: number)
        }
        old?.cancel()
    }

    /// Upstream gives a whole report two seconds. `stun-netcheck.md` §2.2.
    private static let latencyGrace = Duration.seconds(2)
    private static let graceMark = -1

    private func measureLatencies() {
        let queue = queue
        guard let dialer = configuration.relayDialer else { return }
        let regions = state.withLock { $0.derpMap.regions }
        let task = Task {
            let latencies = await withTaskGroup(of: (Int, RelayLatency?).self) { group in
                for (number, region) in regions where region.hasRelay {
                    group.addTask { (number, try? await dialer.measureLatency(region: region)) }
                }
                // One dead relay must not hold up the choice among the others.
                group.addTask {
                    try? await Task.sleep(for: Self.latencyGrace)
                    return (Self.graceMark, nil)
                }
                var result: [Int: RelayLatency] = [:]
                var isGraceOver = false
                var left = group.isEmpty ? 0 : regions.values.count(where: \.hasRelay)
                for await (number, latency) in group {
                    if number == Self.graceMark { isGraceOver = true } else { left -= 1 }
                    result[number] = latency
                    if left == 0 || isGraceOver && !result.isEmpty { break }
                }
                group.cancelAll()
                return result
            }
            // Another measurement took its place: this one says nothing.
            guard !Task.isCancelled else { return }
            queue.post(.latencies(latencies, forcedWebSocket: dialer.forcedWebSocketReasons()))
        }
        let old = state.withLock { state in
            let old = state.isClosed ? task : state.latencyTask
            state.latencyTask = task
            return old
        }
        old?.cancel()
    }

    private func askGateway(_ id: UInt64, _ address: SocketAddress, _ request: [UInt8]) {
        let queue = queue
        let thread = try? DedicatedThread(name: "mesh-gateway") {
            queue.post(
                .gatewayAnswer(id: id, GatewayHTTP.exchange(address, request, limit: GatewayHTTP.limit)))
        }
        thread?.detach()
    }

    /// Tells the engine at once of what needs no looking up or is known from before, and then of each name that is
    /// found: a dead one holds up nobody.
    private func resolveStunServers() {
        let servers = state.withLock { $0.derpMap }.stunServers
        let isKnown = stunServers.withLock { known in
            known = known.filter { servers.contains($0.key) }
            for server in servers where known[server] == nil && !server.addresses.isEmpty {
                known[server] = ResolvedServer.all(of: server)
            }
            return !known.isEmpty
        }
        let names = servers.map(\.hostName).filter { !$0.isEmpty }
        if isKnown || names.isEmpty { postStunServers(servers) }
        lookups.start(names) { [self] name, found in
            // The map may have changed meanwhile.
            let servers = state.withLock { $0.derpMap }.stunServers
            stunServers.withLock { known in
                for server in servers where server.hostName == name && !found.isEmpty {
                    known[server] = ResolvedServer.all(of: server, adding: found)
                }
            }
            postStunServers(servers)
        }
    }

    private func postStunServers(_ servers: [DERPMap.STUNServer]) {
        let known = stunServers.withLock { $0 }
        queue.post(.stunServers(servers.flatMap { known[$0] ?? [] }))
    }
}

/// Hands one value to many readers, each with its own bounded buffer.
final class Broadcast<Element: Sendable>: Sendable {
    private struct State {
        var next = 0
        var readers: [Int: AsyncStream<Element>.Continuation] = [:]
        var latest: Element?
        var isFinished = false
    }

    private let state = Mutex(State())
    private let keepsLatest: Bool
    private let depth: Int

    /// `keepsLatest`: a new reader gets the last value at once. `depth`: what a slow reader keeps, the newest win.
    init(keepsLatest: Bool, depth: Int) {
        self.keepsLatest = keepsLatest
        self.depth = depth
    }

    /// Whether anybody reads.
    var hasReaders: Bool { state.withLock { !$0.readers.isEmpty } }

    /// A sequence of all values from now on.
    func subscribe() -> AsyncStream<Element> {
        let (stream, continuation) = AsyncStream.makeStream(
            of: Element.self, bufferingPolicy: .bufferingNewest(depth))
        let number: Int? = state.withLock { state in
            guard !state.isFinished else { return nil }
            state.next += 1
            state.readers[state.next] = continuation
            if let latest = state.latest { continuation.yield(latest) }
            return state.next
        }
        if let number {
            continuation.onTermination = { [weak self] _ in
                _ = self?.state.withLock { $0.readers.removeValue(forKey: number) }
            }
        } else {
            continuation.finish()
        }
        return stream
    }

    /// Gives a value to everyone.
    func send(_ value: Element) {
        let readers = state.withLock { state in
            if keepsLatest { state.latest = value }
            return Array(state.readers.values)
        }
        for reader in readers { reader.yield(value) }
    }

    /// Ends all sequences.
    func finish() {
        let readers = state.withLock { state in
            state.isFinished = true
            let result = Array(state.readers.values)
            state.readers = [:]
            return result
        }
        for reader in readers { reader.finish() }
    }
}

/// Carries an engine from the thread that made it to the one that runs it.
final class EngineBox: @unchecked Sendable {  // taken exactly once, by the engine's thread
    private var engine: Engine?

    init(_ engine: consuming Engine) { self.engine = consume engine }

    func run() {
        guard var engine = engine.take() else { return }
        engine.run()
    }
}

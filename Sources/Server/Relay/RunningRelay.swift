// SPDX-License-Identifier: Apache-2.0

internal import DERPRelay
internal import HTTPTransport
internal import LinuxIO
internal import Logging
internal import Mesh
internal import NIOCore
internal import NIOPosix
internal import Synchronization

/// A relay process that has started: listeners, relay, STUN, mesh, registration. Made by `start`, ended by `stop`.
final class RunningRelay: RunningProgram {
    private let group: MultiThreadedEventLoopGroup
    private let http: HTTPClient
    let relay: Relay
    private let responder: RelayResponder
    let stun: STUNListener?
    private let dialer: MeshDialer
    private let registration: RelayRegistration?
    private let registering = Mutex<Task<Void, Never>?>(nil)
    /// Whether the server knows this relay.
    private let isRegistered = Atomic<Bool>(false)
    private let meshWith: [HTTPURL]
    private let primaryURL: String
    private let say: @Sendable (String) -> Void
    private let doors: [FrontDoor]
    private let listeners: [Task<Void, Never>]
    private let failures: AsyncStream<String>
    private let failing: AsyncStream<String>.Continuation
    private let isFailed = Atomic<Bool>(false)
    private let logger: Logger
    private let drainSeconds: Int64
    /// Ports that were bound: HTTP first.
    let ports: [Int]

    /// Whether it ended for another reason than being asked to.
    var hasFailed: Bool { isFailed.load(ordering: .relaxed) }
    /// Clients that are logged in.
    var counters: Relay.Counters { relay.counters }

    /// Begins to serve.
    init(
        _ parts: Parts, options: RelayOptions, logger: Logger, say: @escaping @Sendable (String) -> Void
    ) async throws {
        (group, http, relay, stun, registration) = (
            parts.group, parts.http, parts.relay, parts.stun, parts.registration
        )
        self.logger = logger
        drainSeconds = options.drainSeconds
        ports = parts.fronts.map(\.port)
        let upgrades = RelayDoor(relay: parts.relay, logger: logger)
        let responder = RelayResponder(
            door: upgrades, stun: parts.stun, http: parts.counters, certificates: parts.certificates,
            verifier: parts.verifier, version: options.version)
        self.responder = responder
        let (stream, continuation) = AsyncStream.makeStream(
            of: String.self, bufferingPolicy: .bufferingNewest(1))
        (failures, failing) = (stream, continuation)
        let (strangers, queue) = AsyncStream.makeStream(
            of: FrontDoor.Stranger.self, bufferingPolicy: .bufferingOldest(1_024))
        var (doors, listeners) = ([FrontDoor](), [Task<Void, Never>]())
        for front in parts.fronts {
            switch front {
            case .door(let listener):
                let door = try FrontDoor(listener, relay: parts.relay, logger: logger) { stranger in
                    if case .enqueued = queue.yield(stranger) { return }
                    parts.counters.add(\.refused)
                    OwnedDescriptor(taking: stranger.number).close()
                }
                doors.append(door)
            case .server(let server):
                listeners.append(
                    Task {
                        do {
                            try await server.run { await Self.answer($0, responder, logger) }
                        } catch is CancellationError {
                            return
                        } catch {
                            continuation.yield("a listener failed: \(error)")
                        }
                    })
            }
        }
        responder.watch(doors)
        let group = parts.group
        listeners.append(Task { await Self.serve(strangers, group, responder, logger) })
        (self.doors, self.listeners) = (doors, listeners)
        dialer = MeshDialer(
            relay: parts.relay, http: parts.http, siblingName: HTTPURL(options.accessURL)?.host,
            logger: logger)
        meshWith = parts.meshWith
        primaryURL = options.primaryURL
        self.say = say
        await dialer.connect(to: parts.meshWith, siblings: [])
    }

    /// Registers with the server, now and from now on: it serves already, because clients may come before the server
    /// does, and because the server asks whether it is well. Throws when the server refuses it.
    func register() async throws {
        guard let registration else { return }
        let first = try await registration.first()
        await heard(first.map { RelayRegistration.Event.registered($0) } ?? .failed(1))
        let task = Task {
            await registration.keep(after: first) {
                await self.dialer.trouble
            } tell: { event in
                await self.heard(event)
            }
        }
        registering.withLock { $0 = task }
    }

    private func heard(_ event: RelayRegistration.Event) async {
        switch event {
        case .registered(let answer):
            if !isRegistered.exchange(true, ordering: .acquiringAndReleasing) {
                relay.setMeshKey(answer.meshKey)
                say("Registered with \(primaryURL) as region \(answer.regionID)")
            }
            responder.report([])
            relay.report(problem: nil)
            await dialer.connect(to: meshWith, siblings: answer.siblings)
        case .failed(let failures):
            responder.report(["Registrations with the server that failed in a row: \(failures)."])
            // One that restarts is no news for clients.
            if failures > 3 { relay.report(problem: "this relay cannot reach its server") }
        case .over(let reason): failing.yield(reason)
        }
    }

    private static func answer(_ stream: ByteStream, _ responder: RelayResponder, _ logger: Logger) async {
        await Connection(
            stream: stream, responder: responder, logger: logger, commonFields: [],
            counters: responder.http, firstHeadTimeout: headTimeout
        ).run()
    }

    /// From the connection to its request, TLS included: as for a login.
    private static let headTimeout = TimeAmount.seconds(10)

    /// Answers what is no relay connection.
    private static func serve(
        _ strangers: AsyncStream<FrontDoor.Stranger>, _ group: MultiThreadedEventLoopGroup,
        _ responder: RelayResponder, _ logger: Logger
    ) async {
        let active = ConnectionCount(limit: maximumConnections)
        await withDiscardingTaskGroup { tasks in
            for await stranger in strangers {
                guard active.enter() else {
                    responder.http.add(\.refused)
                    OwnedDescriptor(taking: stranger.number).close()
                    continue
                }
                tasks.addTask { await serve(stranger, active, group, responder, logger) }
            }
            tasks.cancelAll()
        }
    }

    private static func serve(
        _ stranger: FrontDoor.Stranger, _ active: ConnectionCount, _ group: MultiThreadedEventLoopGroup,
        _ responder: RelayResponder, _ logger: Logger
    ) async {
        do {
            let stream = try await ClientBootstrap(group: group)
                .channelOption(.autoRead, value: false)
                .withConnectedSocket(stranger.number) { channel in
                    channel.eventLoop.makeCompletedFuture {
                        try ByteStream(
                            wrapping: channel, session: stranger.session, early: stranger.early)
                    }
                }
            stream.occupy(active)
            await answer(stream, responder, logger)
            stream.leavePlace()
        } catch {
            active.leave()
            logger.debug("connection not served", metadata: ["error": "\(error)"])
        }
    }

    /// Returns when it cannot go on, or the task is cancelled.
    func failed() async {
        var iterator = failures.makeAsyncIterator()
        guard let reason = await iterator.next() else { return }
        logger.critical("\(reason)")
        isFailed.store(true, ordering: .relaxed)
    }

    /// Tells the server and the clients, waits for them to leave within the drain time, and ends.
    func stop() async {
        responder.drain()
        for door in doors { door.drain() }
        let task = registering.withLock { $0 }
        task?.cancel()
        await task?.value
        if isRegistered.load(ordering: .acquiring) { await registration?.deregister() }
        let (relay, stun, doors, seconds) = (relay, stun, doors, drainSeconds)
        // Waits for the relay's thread.
        try? await DedicatedThread.run(name: "relay-end") {
            relay.drain(nanoseconds: UInt64(max(0, seconds)) * 1_000_000_000, waitsForClients: true)
            stun?.close()
            for door in doors { door.stop() }
        }
        await dialer.stop()
        for listener in listeners { listener.cancel() }
        for listener in listeners { await listener.value }
        await http.shutDown()
        do {
            try await group.shutdownGracefully()
        } catch {
            logger.warning("event loops did not end", metadata: ["error": "\(error)"])
        }
    }
}

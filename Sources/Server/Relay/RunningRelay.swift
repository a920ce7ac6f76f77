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
final class RunningRelay: Sendable {
    private let group: MultiThreadedEventLoopGroup
    private let http: HTTPClient
    private let relay: Relay
    private let responder: RelayResponder
    private let stun: STUNListener?
    private let dialer: MeshDialer
    private let registration: RelayRegistration?
    private let registering: Task<Void, Never>?
    private let door: PlainDoor?
    private let listeners: [Task<Void, Never>]
    private let failures: AsyncStream<String>
    private let isFailed = Atomic<Bool>(false)
    private let logger: Logger
    private let drainSeconds: Int64
    /// Ports that were bound: HTTP first.
    let ports: [Int]

    /// Whether it ended for another reason than being asked to.
    var hasFailed: Bool { isFailed.load(ordering: .relaxed) }
    /// Clients that are logged in.
    var counters: Relay.Counters { relay.counters }

    private init(
        _ parts: Parts, options: RelayOptions, logger: Logger, registered: RelayRegistration.Answer?
    ) async throws {
        (group, http, relay, stun, registration) = (
            parts.group, parts.http, parts.relay, parts.stun, parts.registration
        )
        self.logger = logger
        drainSeconds = options.drainSeconds
        ports = (parts.plain.map { [$0.port] } ?? []) + parts.servers.map(\.port)
        let upgrades = RelayDoor(relay: parts.relay, logger: logger)
        let responder = RelayResponder(door: upgrades, stun: parts.stun, version: options.version)
        self.responder = responder
        let (stream, continuation) = AsyncStream.makeStream(
            of: String.self, bufferingPolicy: .bufferingNewest(1))
        failures = stream
        let servers = parts.servers.map { server in
            Task {
                do {
                    try await server.run { stream in
                        await Connection(
                            stream: stream, responder: responder, logger: logger, commonFields: []
                        ).run()
                    }
                } catch is CancellationError {
                    return
                } catch {
                    continuation.yield("a listener failed: \(error)")
                }
            }
        }
        if let plain = parts.plain {
            let (sockets, queue) = AsyncStream.makeStream(
                of: Int32.self, bufferingPolicy: .bufferingOldest(1_024))
            self.door = try PlainDoor(plain, relay: parts.relay) { number in
                if case .enqueued = queue.yield(number) { return }
                OwnedDescriptor(taking: number).close()
            }
            let group = parts.group
            listeners = servers + [Task { await Self.serve(sockets, group, responder, logger) }]
        } else {
            self.door = nil
            listeners = servers
        }
        let dialer = MeshDialer(relay: parts.relay, http: parts.http, logger: logger)
        self.dialer = dialer
        await dialer.connect(to: parts.meshWith + (registered?.siblings ?? []))
        if let registration = parts.registration, let registered {
            let relay = parts.relay
            registering = Task {
                await registration.keep(since: registered) { answer in
                    await dialer.connect(to: parts.meshWith + answer.siblings)
                } trouble: { failures in
                    responder.report(
                        failures == 0
                            ? [] : ["Registrations with the server that failed in a row: \(failures)."])
                    // One that restarts is no news for clients.
                    relay.report(
                        problem: failures > 3 ? "this relay cannot reach its server" : nil)
                } changed: { reason in
                    continuation.yield(reason)
                }
            }
        } else {
            registering = nil
        }
    }

    /// Answers what is no relay connection.
    private static func serve(
        _ sockets: AsyncStream<Int32>, _ group: MultiThreadedEventLoopGroup, _ responder: RelayResponder,
        _ logger: Logger
    ) async {
        await withDiscardingTaskGroup { tasks in
            for await number in sockets {
                tasks.addTask {
                    do {
                        let stream = try await ClientBootstrap(group: group)
                            .channelOption(.autoRead, value: false)
                            .withConnectedSocket(number) { channel in
                                channel.eventLoop.makeCompletedFuture {
                                    try ByteStream(wrapping: channel, isEncrypted: false)
                                }
                            }
                        await Connection(
                            stream: stream, responder: responder, logger: logger, commonFields: []
                        ).run()
                    } catch {
                        logger.debug("connection not served", metadata: ["error": "\(error)"])
                    }
                }
            }
            tasks.cancelAll()
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
        door?.drain()
        registering?.cancel()
        await registering?.value
        await registration?.deregister()
        let (relay, stun, door, seconds) = (relay, stun, door, drainSeconds)
        // Waits for the relay's thread.
        try? await DedicatedThread.run(name: "relay-end") {
            relay.drain(nanoseconds: UInt64(max(0, seconds)) * 1_000_000_000, waitsForClients: true)
            stun?.close()
            door?.stop()
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

// MARK: Start

extension RunningRelay {
    private struct Parts {
        var group: MultiThreadedEventLoopGroup
        var http: HTTPClient
        var plain: PlainDoor.Listener?
        var servers: [HTTPServer]
        var relay: Relay
        var stun: STUNListener?
        var registration: RelayRegistration?
        var meshWith: [HTTPURL]
    }

    /// Most connections of one listener; those without TLS leave it when they are upgraded.
    private static let maximumConnections = 65_536

    /// Starts everything, or throws one describable error and leaves nothing behind.
    static func start(
        _ options: RelayOptions, logger: Logger, say: @escaping @Sendable (String) -> Void
    ) async throws -> RunningRelay {
        let group = MultiThreadedEventLoopGroup(numberOfThreads: max(2, min(8, System.coreCount)))
        var configuration = HTTPClient.Configuration()
        configuration.headers = ["User-Agent": "coder-relay/\(options.version)"]
        let http = HTTPClient(configuration: configuration)
        do {
            let urls = try options.meshWith.map(url)
            let (plain, servers) = try await bind(options, group: group, logger: logger)
            var meshKey = try self.meshKey(options)
            var registered: RelayRegistration.Answer?
            var registration: RelayRegistration?
            if !options.isStandalone {
                let made = try RelayRegistration(
                    options, port: plain?.port ?? servers.first?.port, http: http, logger: logger)
                let answer = try await made.first()
                meshKey = answer.meshKey
                (registration, registered) = (made, answer)
            }
            let stun = STUNListener.open(options.stunAddress, logger: logger)
            let relay = try makeRelay(options, meshKey: meshKey, http: http, logger: logger)
            let parts = Parts(
                group: group, http: http, plain: plain, servers: servers, relay: relay, stun: stun,
                registration: registration, meshWith: urls)
            let running = try await RunningRelay(
                parts, options: options, logger: logger, registered: registered)
            announce(running, options, registered, say)
            return running
        } catch {
            await http.shutDown()
            // The first error is the one to tell.
            try? await group.shutdownGracefully()
            throw error
        }
    }

    private static func announce(
        _ running: RunningRelay, _ options: RelayOptions, _ registered: RelayRegistration.Answer?,
        _ say: (String) -> Void
    ) {
        for (address, scheme, port) in zip3(options, running.ports) {
            let host = HostPort.split(address)?.host ?? ""
            let name = ["", "0.0.0.0", "::"].contains(host) ? "127.0.0.1" : host
            say("Relay at: \(scheme)://\(name.contains(":") ? "[\(name)]" : name):\(port)/derp")
        }
        if let stun = running.stun { say("STUN on UDP port \(stun.port)") }
        if let registered {
            say("Registered with \(options.primaryURL) as region \(registered.regionID)")
        }
        say("Key: \(running.relay.publicKey.hex)")
    }

    /// Addresses that were asked for, with the ports that were bound.
    private static func zip3(_ options: RelayOptions, _ ports: [Int]) -> [(String, String, Int)] {
        let asked = [(options.httpAddress, "http"), (options.tlsAddress, "https")].filter { !$0.0.isEmpty }
        return zip(asked, ports).map { ($0.0.0, $0.0.1, $0.1) }
    }

    private static func makeRelay(
        _ options: RelayOptions, meshKey: String, http: HTTPClient, logger: Logger
    ) throws -> Relay {
        var generator = SystemRandomNumberGenerator()
        var configuration = Relay.Configuration(privateKey: PrivateKey(using: &generator))
        configuration.meshKey = meshKey
        configuration.limits.bytesPerSecond = max(0, options.clientRate)
        // A packet of the largest size must fit, or it would never be sent.
        configuration.limits.burstBytes = max(65_573, options.clientBurst)
        if !options.verifyURL.isEmpty {
            let verifier = RelayVerifier(
                url: try url(options.verifyURL), failsOpen: options.verifyFailsOpen, http: http,
                logger: logger)
            configuration.verify = verifier.hook
        }
        return try Relay(configuration, generator: &generator)
    }

    private static func meshKey(_ options: RelayOptions) throws -> String {
        guard !options.meshKeyFile.isEmpty else {
            guard options.meshWith.isEmpty || !options.isStandalone else {
                throw RelayStartError(description: "--mesh-with needs --mesh-key-file")
            }
            return ""
        }
        var reader = try FileReader(path: options.meshKeyFile, offset: 0)
        let bytes = try reader.read(upTo: 4_096)
        let key = String(decoding: bytes, as: UTF8.self).split(whereSeparator: \.isWhitespace)
        guard key.count == 1, key[0].utf8.count >= 16 else {
            throw RelayStartError(
                description:
                    "\(options.meshKeyFile) holds no mesh key: one word of 16 characters or more, such as that of"
                    + " `openssl rand -hex 32`")
        }
        return String(key[0])
    }

    private static func url(_ text: String) throws -> HTTPURL {
        guard let url = HTTPURL(text) else {
            throw RelayStartError(description: "\"\(text)\" is not an http or https URL")
        }
        return url
    }

    private static func bind(
        _ options: RelayOptions, group: MultiThreadedEventLoopGroup, logger: Logger
    ) async throws -> (PlainDoor.Listener?, [HTTPServer]) {
        var servers: [HTTPServer] = []
        var plain: PlainDoor.Listener?
        func listen(_ text: String, _ tls: Certificates?) async throws {
            guard let (host, port) = HostPort.split(text), let port else {
                throw RelayStartError(description: "\"\(text)\" is not an address of the form host:port")
            }
            let name = host.isEmpty ? "0.0.0.0" : host
            if tls == nil {
                do {
                    plain = try PlainDoor.Listener(host: name, port: port)
                } catch {
                    throw RelayStartError(description: "cannot listen on \(text): \(error)")
                }
                if plain != nil { return }
            }
            servers.append(
                try await HTTPServer(
                    host: name, port: port, tls: tls, group: group, logger: logger,
                    maximumConnections: maximumConnections))
        }
        if !options.httpAddress.isEmpty { try await listen(options.httpAddress, nil) }
        if !options.tlsAddress.isEmpty {
            let certificates = try Certificates.load(
                chains: options.certificateFiles, keys: options.keyFiles, logger: logger)
            try await listen(options.tlsAddress, certificates)
        }
        guard plain != nil || !servers.isEmpty else {
            throw RelayStartError(
                description: "neither --http-address nor --tls-address: nothing to listen on")
        }
        return (plain, servers)
    }
}

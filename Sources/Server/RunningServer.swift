// SPDX-License-Identifier: Apache-2.0

internal import DERPRelay
internal import Glibc
internal import LinuxIO
internal import Logging
internal import Mesh
internal import NIOCore
internal import NIOPosix
internal import NIOSSL
internal import Synchronization

/// A server that has started: listeners, database, mesh services. Made by `start`, ended by `stop`.
final class RunningServer: RunningProgram {
    /// A socket, and what answers there.
    private struct Listener: Sendable {
        var server: HTTPServer
        var responder: any Connection.Responder
        var counters: HTTPCounters
    }

    private let cluster: PrivateCluster?
    private let pool: ConnectionPool
    private let group: MultiThreadedEventLoopGroup
    private let logger: Logger
    private let listeners: [Task<Void, Never>]
    private let retention: Task<Void, Never>
    private let isFailed: Atomic<Bool>
    private let failures: AsyncStream<Void>
    private let services: Services
    /// Held until everything else has stopped.
    private let lock = Mutex<ServerLock?>(nil)
    /// Ports that were bound: HTTP first, then HTTPS, then that of the metrics.
    let ports: [Int]

    private init(
        cluster: PrivateCluster?, pool: ConnectionPool, group: MultiThreadedEventLoopGroup, logger: Logger,
        services: Services, servers: [Listener]
    ) {
        self.cluster = cluster
        self.pool = pool
        self.group = group
        self.logger = logger
        self.services = services
        ports = servers.map(\.server.port)
        retention = Task { await Retention.run(pool, logger) }
        let (stream, continuation) = AsyncStream.makeStream(
            of: Void.self, bufferingPolicy: .bufferingNewest(1))
        failures = stream
        isFailed = Atomic(false)
        let fields = [
            (name: "X-Coder-Build-Version", value: services.options.version),
            ("X-Content-Type-Options", "nosniff"),
        ]
        listeners = servers.map { listener in
            Task {
                do {
                    try await listener.server.run { stream in
                        let connection = Connection(
                            stream: stream, responder: listener.responder, logger: logger,
                            commonFields: fields, counters: listener.counters)
                        await connection.run()
                    }
                } catch is CancellationError {
                    return
                } catch {
                    logger.critical("a listener failed", metadata: ["error": "\(error)"])
                    continuation.yield()
                }
            }
        }
    }

    /// Where users reach it.
    var accessURL: String { services.accessURL.text }
    /// Whether it ended for another reason than being asked to.
    var hasFailed: Bool { isFailed.load(ordering: .relaxed) }

    /// For tests.
    func execute(_ sql: String) async throws { try await pool.script(sql) }
    /// For tests: asks all edge relays now.
    func checkRelays() async { await services.proxies.checkAll() }
    /// For tests: deletes what is old now.
    func purge() async throws { try await Retention.purge(pool) }
    /// Relayed clients, and connections that were closed for breaking the protocol.
    var relayState: (clients: Int, refused: UInt64) {
        let counters = services.mesh.relay?.counters ?? .init()
        return (counters.clients, counters.protocolErrors + counters.loginsRefused + counters.loginTimeouts)
    }
    /// Open RPC sessions.
    var sessionCount: Int { services.mesh.sessions.count }

    /// Returns when a listener fails, or the task is cancelled.
    func failed() async {
        var iterator = failures.makeAsyncIterator()
        if await iterator.next() != nil { isFailed.store(true, ordering: .relaxed) }
    }

    /// Takes no more connections, ends those that are open, stops the database. Returns within 10 s.
    func stop() async {
        await services.proxies.stop()
        await services.mesh.stop()
        retention.cancel()
        for listener in listeners { listener.cancel() }
        for listener in listeners { await listener.value }
        await retention.value
        await pool.close()
        if let cluster { await cluster.stop() }
        do {
            try await group.shutdownGracefully()
        } catch {
            logger.warning("event loops did not end", metadata: ["error": "\(error)"])
        }
        lock.withLock { $0 = nil }
    }
}

// MARK: Start

extension RunningServer {
    /// Starts everything, or throws one describable error and leaves nothing behind.
    static func start(
        _ options: ServerOptions, logger: Logger, say: @Sendable (String) -> Void
    ) async throws -> RunningServer {
        try Directory.make(options.configDirectory, mode: getuid() == 0 ? 0o711 : 0o700)
        let lock = try ServerLock(directory: options.configDirectory)
        let group = MultiThreadedEventLoopGroup(numberOfThreads: max(2, min(8, System.coreCount)))
        var cluster: PrivateCluster?
        do {
            // Ports first: a server that cannot listen must not touch the database.
            let counters = HTTPCounters()
            let certificates = try loadCertificates(options, logger: logger)
            let servers = try await bind(
                options, certificates, group: group, counters: counters, logger: logger)
            let accessURL = try chooseAccessURL(options, port: servers.api.first?.port)
            if options.postgresURL == nil {
                let started = try await PrivateCluster.start(
                    configDirectory: options.configDirectory, logger: logger)
                say("Using built-in PostgreSQL (\(started.directory))")
                cluster = started
            }
            let conninfo = options.postgresURL ?? cluster?.conninfo ?? ""
            let pool = ConnectionPool(conninfo: conninfo, limit: options.postgresConnections)
            try await Migrator.migrate(pool)
            try await Seed.deployment(pool, now: .now())
            let services = try await makeServices(
                options, accessURL: accessURL, pool: pool, logger: logger)
            let api = try makeResponder(services)
            let metrics = MetricsResponder(mesh: services.mesh, http: counters, certificates: certificates)
            let listeners =
                servers.api.map { Listener(server: $0, responder: api, counters: counters) }
                + servers.metrics.map { Listener(server: $0, responder: metrics, counters: HTTPCounters()) }
            let server = RunningServer(
                cluster: cluster, pool: pool, group: group, logger: logger, services: services,
                servers: listeners)
            await services.proxies.start()
            server.lock.withLock { $0 = lock }
            if accessURL.isLoopback, !servesThisMachineOnly(options) {
                logger.warning(
                    "users and agents on other machines cannot reach the access URL: give --access-url",
                    metadata: ["url": "\(accessURL.text)"])
            }
            return server
        } catch {
            if let cluster { await cluster.stop() }
            // The first error is the one to tell.
            try? await group.shutdownGracefully()
            throw error
        }
    }

    private static func makeServices(
        _ options: ServerOptions, accessURL: AccessURL, pool: ConnectionPool, logger: Logger
    ) async throws -> Services {
        var generator = SystemRandomNumberGenerator()
        let stun = STUNListener.open(options, logger: logger)
        let key = try PrivateKey(
            bytes: try Hex.bytes(try await Seed.value("derp_private_key", pool), count: 32))
        let map = try await DERPMapBuilder.map(
            options, accessURL: accessURL, stunPort: stun?.port, secondPort: stun?.secondPort)
        var configuration = Relay.Configuration(privateKey: key)
        configuration.limits.connections = LifeCycle.relayConnections
        let relay = options.derpEnable ? try Relay(configuration, generator: &generator) : nil
        let mesh = try MeshServices(
            map: map, blocksDirect: options.blockDirect, relay: relay, stun: stun,
            resumeTokens: try await ResumeTokens.load(pool))
        let services = Services(
            options: options, accessURL: accessURL, deploymentID: try await Seed.value("deployment_id", pool),
            store: Store(database: pool), mesh: mesh, logger: logger)
        try await services.proxies.load()
        return services
    }

    private static func makeResponder(_ services: Services) throws -> any Connection.Responder {
        let options = services.options
        let authenticator = Authenticator(
            store: services.store, apiLimitPerMinute: options.disableRateLimits ? 0 : options.apiRateLimit,
            refreshesSessions: !options.disableSessionExpiryRefresh)
        let proxies = try TrustedProxies(
            origins: options.trustedProxyOrigins, headers: options.trustedProxyHeaders)
        let table = RouteTable(authenticator: authenticator, proxies: proxies, logger: services.logger)
        DeploymentRoutes(services: services).register(table)
        DownloadRoutes(services: services).register(table)
        UserRoutes(services: services).register(table)
        OrganizationRoutes(services: services).register(table)
        TemplateRoutes(services: services).register(table)
        WorkspaceRoutes(services: services).register(table)
        BuildRoutes(services: services).register(table)
        AgentRoutes(services: services).register(table)
        AgentSideRoutes(services: services).register(table)
        GitKeyRoutes(services: services).register(table)
        TailnetRoutes(services: services).register(table)
        RelayRoutes(services: services).register(table)
        WorkspaceProxyRoutes(services: services).register(table)
        ProxySideRoutes(services: services).register(table)
        LoginPage.register(table)
        return table.makeResponder { call in
            guard call.head.method == "GET" || call.head.method == "HEAD" else {
                throw APIError.routeNotFound
            }
            let path = call.head.target.prefix { $0 != "?" }
            if path.allSatisfy({ $0 == "/" }) {
                return LandingPage.page(url: services.publicURL(for: call), version: options.version).reply
            }
            // Programs look here for what a server may have, and take any success for a yes.
            guard call.head.first("accept")?.contains("text/html") == true, !path.hasPrefix("/api") else {
                throw APIError.routeNotFound
            }
            return LandingPage.nowhere.reply
        }
    }

    private static func loadCertificates(_ options: ServerOptions, logger: Logger) throws -> Certificates? {
        guard options.tlsEnable else { return nil }
        return try Certificates.load(
            chains: options.tlsCertificateFiles, keys: options.tlsKeyFiles, logger: logger)
    }

    private static func bind(
        _ options: ServerOptions, _ certificates: Certificates?, group: MultiThreadedEventLoopGroup,
        counters: HTTPCounters, logger: Logger
    ) async throws -> (api: [HTTPServer], metrics: [HTTPServer]) {
        func listen(_ text: String, standard: Int, tls: Certificates? = nil) async throws -> HTTPServer {
            let (host, port) = try address(text, standard: standard)
            return try await HTTPServer(
                host: host, port: port, tls: tls, group: group, logger: logger, counters: counters)
        }
        var servers: [HTTPServer] = []
        if !options.httpAddress.isEmpty {
            servers.append(try await listen(options.httpAddress, standard: 3000))
        }
        if let certificates {
            servers.append(try await listen(options.tlsAddress, standard: 3443, tls: certificates))
        }
        guard !servers.isEmpty else {
            throw PrivateCluster.StartError(
                description: "neither --http-address nor --tls-enable: nothing to listen on")
        }
        guard options.prometheusEnable else { return (servers, []) }
        return (servers, [try await listen(options.prometheusAddress, standard: 2112)])
    }

    private static func servesThisMachineOnly(_ options: ServerOptions) -> Bool {
        let addresses = [options.httpAddress, options.tlsEnable ? options.tlsAddress : ""]
        return addresses.allSatisfy { text in
            guard !text.isEmpty, let (host, _) = try? address(text, standard: 0) else { return true }
            return AccessURL(isSecure: false, host: host, port: nil).isLoopback
        }
    }

    private static func address(_ text: String, standard: Int) throws -> (String, Int) {
        guard let (host, port) = HostPort.split(text) else {
            throw PrivateCluster.StartError(
                description: "\"\(text)\" is not an address of the form host:port")
        }
        return (host.isEmpty ? "0.0.0.0" : host, port ?? standard)
    }

    private static func chooseAccessURL(_ options: ServerOptions, port: Int?) throws -> AccessURL {
        if let text = options.accessURL, !text.isEmpty {
            guard let url = AccessURL(text) else {
                throw PrivateCluster.StartError(
                    description:
                        "--access-url \"\(text)\" is not an http or https URL, such as https://coder.example.org"
                )
            }
            return url
        }
        let isSecure = options.httpAddress.isEmpty
        let (host, _) = try address(isSecure ? options.tlsAddress : options.httpAddress, standard: 3000)
        let name = ["0.0.0.0", "::", ""].contains(host) ? "127.0.0.1" : host
        return AccessURL(isSecure: isSecure, host: name, port: port)
    }
}

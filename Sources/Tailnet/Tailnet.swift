// SPDX-License-Identifier: Apache-2.0

public import HTTPTransport
internal import LinuxIO
public import Logging
public import Mesh
public import RPC

/// One program's place in the tailnet: its mesh node, and what keeps it in touch with the coordinator. It outlives
/// control connections: while there is none, configured peers stay and packets flow.
///
/// Owns the node, the peers' book and the relay connector. Run `run()` for as long as it is used; for each control
/// connection run `coordinate(on:)` and `followDERPMaps(on:)`, which end with it. Call `close()` at the end.
public actor Tailnet {
    /// What a tailnet is made from.
    public struct Configuration: Sendable {
        /// For relays; its proxies and headers hold for them, too.
        public var client: HTTPClient
        /// How this program reaches the server: where the embedded relay is.
        public var serverURL: HTTPURL
        /// Own addresses.
        public var addresses: [IPAddress]
        /// The number of `Node.id`.
        public var nodeID: Int64
        /// Whether this is an agent: answers nodes with ready_for_handshake.
        public var confirmsPeers: Bool
        /// Relays as the server publishes them.
        public var derpMap = DERPMap()
        /// WebSocket for all relays.
        public var forcesWebSockets = false
        /// No direct paths.
        public var blocksDirect = false
        /// Fixed UDP port, or 0.
        public var listenPort: UInt16 = 0
        /// `NodeConfiguration.packetTap`.
        public var packetTap: (@Sendable (_ packet: RawSpan) -> Void)?
        /// Where to say what happens.
        public var logger: Logger

        /// An agent's: addresses and node id follow from its id.
        public static func agent(
            _ id: RawUUID, client: HTTPClient, serverURL: HTTPURL, logger: Logger
        ) -> Self {
            Configuration(
                client: client, serverURL: serverURL, addresses: [id.tailnetAddress, id.coderAddress],
                nodeID: id.nodeID, confirmsPeers: true, logger: logger)
        }

        /// A client's: a random address, a random number.
        public static func client(_ client: HTTPClient, serverURL: HTTPURL, logger: Logger) -> Self {
            var generator = SystemRandomNumberGenerator()
            return Configuration(
                client: client, serverURL: serverURL,
                addresses: [RawUUID.random(using: &generator).tailnetAddress],
                nodeID: Int64.random(in: 1...Int64.max, using: &generator), confirmsPeers: false,
                logger: logger)
        }
    }

    /// 1 s: how long the coordinator may take to hang up after our goodbye. coordinator.md §7.
    public static let goodbyeTimeout = Duration.seconds(1)
    /// Requests that wait for the connection; far more than peers and changes of our node in a second.
    private static let outgoingLimit = 4_096

    /// The mesh node.
    public nonisolated let node: Node
    /// Node keys of peers that said goodbye. For one reader; bounded.
    public nonisolated let departures: AsyncStream<NodePublicKey>
    private nonisolated let departed: AsyncStream<NodePublicKey>.Continuation
    private nonisolated let relays: RelayConnector
    private nonisolated let serverURL: HTTPURL
    private nonisolated let logger: Logger
    private let nodeID: Int64
    private let confirmsPeers: Bool
    private var book = PeerBook()
    private var own: OwnNode?
    private var outgoing: AsyncStream<TailnetCoordinateRequest>.Continuation?
    private var coordination = 0
    private var isLeaving = false
    /// Finished when the coordinator hangs up after our goodbye.
    private var goodbye: AsyncStream<Void>.Continuation?
    private var watchers: [Int: AsyncStream<RawUUID>.Continuation] = [:]
    private var nextWatcher = 0

    /// Starts the mesh node.
    public init(_ configuration: Configuration) throws(NodeError) {
        var generator = SystemRandomNumberGenerator()
        let logger = configuration.logger
        (departures, departed) = AsyncStream.makeStream(
            of: NodePublicKey.self, bufferingPolicy: .bufferingNewest(1_024))
        relays = RelayConnector(
            client: configuration.client, forcesWebSockets: configuration.forcesWebSockets)
        serverURL = configuration.serverURL
        nodeID = configuration.nodeID
        confirmsPeers = configuration.confirmsPeers
        self.logger = logger
        var mesh = NodeConfiguration(
            privateKey: PrivateKey(using: &generator), discoKey: PrivateKey(using: &generator),
            addresses: configuration.addresses)
        mesh.listenPort = configuration.listenPort
        mesh.directBlocked = configuration.blocksDirect
        mesh.packetTap = configuration.packetTap
        mesh.relayDialer = relays
        mesh.derpMap = Self.rewrite(configuration.derpMap, for: configuration.serverURL)
        mesh.log = { message, metadata in
            logger.debug(
                "mesh",
                metadata: [
                    "what": "\(message)",
                    "details": .dictionary(Dictionary(metadata.map { ($0.0, "\($0.1)") }) { $1 }),
                ])
        }
        node = try Node(mesh)
    }

    private static func rewrite(_ map: DERPMap, for url: HTTPURL) -> DERPMap {
        map.rewritingEmbeddedRelay(host: url.host, port: url.port, isTLS: url.scheme == .https)
    }

    // MARK: - Life

    /// Publishes the own node and keeps the peers' time limits, until cancelled.
    public func run() async {
        await withDiscardingTaskGroup { group in
            group.addTask {
                for await own in self.node.ownNodeUpdates() { await self.publish(own) }
            }
            // All deadlines are at least 5 s away when they appear, so naps of 4 s miss none.
            while !Task.isCancelled {
                let now = Self.now()
                let left = book.nextDeadline.map { $0.since(now) } ?? .seconds(4)
                let nap = min(max(left, .milliseconds(10)), .seconds(4))
                do { try await Task.sleep(for: .nanoseconds(Int64(nap.nanoseconds))) } catch { break }
                await handleTimeout()
            }
            group.cancelAll()
        }
    }

    /// Ends the mesh node and all its streams.
    public func close() async {
        for watcher in watchers.values { watcher.finish() }
        watchers = [:]
        await node.close()
    }

    /// Says goodbye to the coordinator, so that peers drop us at once, and waits for its answer, but no longer than
    /// `limit`.
    public func leave(within limit: Duration = goodbyeTimeout) async {
        guard let outgoing, !isLeaving else { return isLeaving = true }
        isLeaving = true
        var request = TailnetCoordinateRequest()
        request.disconnect = TailnetCoordinateRequest.Disconnect()
        let (answers, answer) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingOldest(1))
        goodbye = answer
        outgoing.yield(request)
        await withTaskGroup(of: Void.self) { group in
            group.addTask { for await _ in answers { return } }
            group.addTask {
                do { try await Task.sleep(for: limit) } catch { return }
            }
            await group.next()
            group.cancelAll()
        }
        goodbye = nil
    }

    // MARK: - On a control connection

    /// Takes part in the coordination until the connection or the call ends. All peers are then marked lost, and
    /// go on working. Returns normally only after `leave()`.
    public func coordinate(on connection: RPCConnection) async throws {
        let (requests, continuation) = AsyncStream.makeStream(
            of: TailnetCoordinateRequest.self, bufferingPolicy: .bufferingOldest(Self.outgoingLimit))
        outgoing?.finish()
        outgoing = continuation
        coordination += 1
        let number = coordination
        defer { coordinationEnded(number) }
        sendOwnNode()
        for tunnel in book.tunnels { sendTunnel(tunnel) }
        try await connection.bidirectional(TailnetMethods.coordinate) { call in
            try await withThrowingTaskGroup(of: Void.self) { group in
                group.addTask {
                    for await request in requests { try await call.send(request) }
                }
                group.addTask {
                    while let response = try await call.next() { await self.receive(response) }
                }
                try await group.next()
                group.cancelAll()
            }
        }
        if !isLeaving { throw RPCError.connectionClosed("the coordinator ended the call") }
    }

    /// Follows the server's list of relays until the connection ends.
    public func followDERPMaps(on connection: RPCConnection) async throws {
        try await connection.serverStream(TailnetMethods.streamDERPMaps) { stream in
            while let map = try await stream.next() { setDERPMap(DERPMap(map)) }
        }
        throw RPCError.connectionClosed("the server ended the stream of relay maps")
    }

    /// Uses these relays; relays inside the server are reached as the server is.
    public nonisolated func setDERPMap(_ map: DERPMap) { node.setDERPMap(Self.rewrite(map, for: serverURL)) }

    /// WebSocket for all relays from now on.
    public nonisolated func setForcesWebSockets(_ isForced: Bool) { relays.setForcesWebSockets(isForced) }

    // MARK: - Tunnels

    /// Asks for a tunnel to this peer, now and on every later connection.
    public func addTunnel(_ id: RawUUID) {
        book.addDestination(id)
        sendTunnel(id)
    }

    /// Gives the tunnel up.
    public func removeTunnel(_ id: RawUUID) {
        apply(book.removeDestination(id))
        var request = TailnetCoordinateRequest()
        request.removeTunnel.id = id.bytes()
        outgoing?.yield(request)
    }

    /// Waits until the peer is known and configured.
    public func waitForPeer(_ id: RawUUID) async throws(CancellationError) {
        guard !book.isConfigured(id) else { return }
        let (stream, continuation) = AsyncStream.makeStream(
            of: RawUUID.self, bufferingPolicy: .bufferingOldest(PeerBook.limit))
        let watcher = nextWatcher
        nextWatcher += 1
        watchers[watcher] = continuation
        defer { watchers[watcher] = nil }
        for await configured in stream where configured == id { return }
        throw CancellationError()
    }

    // MARK: - Details

    private static func now() -> Instant { Instant(nanoseconds: Clock.monotonicNanoseconds()) }

    private func publish(_ own: OwnNode) {
        self.own = own
        sendOwnNode()
    }

    private func sendOwnNode() {
        guard let own, own.homeRegion != 0 else { return }
        var request = TailnetCoordinateRequest()
        request.updateSelf.node = TailnetNode(own, id: nodeID)
        outgoing?.yield(request)
    }

    private func sendTunnel(_ id: RawUUID) {
        var request = TailnetCoordinateRequest()
        request.addTunnel.id = id.bytes()
        outgoing?.yield(request)
    }

    private func receive(_ response: TailnetCoordinateResponse) {
        if !response.error.isEmpty {
            logger.warning("the coordinator reports an error", metadata: ["error": "\(response.error)"])
        }
        for update in response.peerUpdates where update.kind == .disconnected {
            if let key = RawUUID(update.id).flatMap({ book.key(of: $0) }) { departed.yield(key) }
        }
        let (outputs, confirm) = book.apply(response.peerUpdates, now: Self.now())
        apply(outputs)
        guard confirmsPeers, !confirm.isEmpty else { return }
        var request = TailnetCoordinateRequest()
        request.readyForHandshake = confirm.map { id in
            var ready = TailnetCoordinateRequest.ReadyForHandshake()
            ready.id = id.bytes()
            return ready
        }
        outgoing?.yield(request)
    }

    private func apply(_ outputs: [PeerBook.Output]) {
        for output in outputs {
            switch output {
            case .configure(let peer):
                logger.debug(
                    "peer configured",
                    metadata: ["peer": "\(peer.id)", "relay": "\(peer.homeRegion)"])
                node.updatePeer(peer)
                for watcher in watchers.values { watcher.yield(RawUUID(peer.id)) }
            case .remove(let id):
                logger.debug("peer removed", metadata: ["peer": "\(id)"])
                node.removePeer(id)
            }
        }
    }

    private func coordinationEnded(_ number: Int) {
        guard number == coordination else { return }
        outgoing?.finish()
        outgoing = nil
        goodbye?.finish()
        book.loseAll(now: Self.now())
    }

    private func handleTimeout() async {
        guard let due = book.nextDeadline, Self.now() >= due else { return }
        var ages: [MeshPeerID: Interval] = [:]
        do {
            for peer in try await node.status().peers { ages[peer.id] = peer.sinceHandshake }
        } catch {
            return  // the node is closed
        }
        apply(book.handleTimeout(now: Self.now(), sinceHandshake: ages))
    }
}

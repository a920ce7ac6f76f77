// SPDX-License-Identifier: Apache-2.0

public import LinuxIO
internal import Synchronization

/// A node on the mesh: one WireGuard identity, its peers, and the TCP/IP that ends inside it.
///
/// Owns one engine thread, which owns the UDP sockets, the relay connections and every stream. All methods may be
/// called from any task or thread; they hand a command over and never block. Streams leave as file descriptors:
///
/// ```swift
/// let node = try Node(configuration)
/// node.updatePeer(agent)
/// try await node.reachable(agentAddress)
/// let descriptor = try await node.dial(SocketAddress(agentAddress, port: 22))
/// …
/// await node.close()
/// ```
public final class Node: Sendable {
    /// The node's WireGuard key.
    public let publicKey: NodePublicKey
    /// The node's discovery key.
    public let discoKey: DiscoPublicKey
    /// Own addresses in the tunnel.
    public let addresses: [IPAddress]

    private let hub: NodeHub
    private var queue: CommandQueue { hub.queue }
    private var replies: Replies { hub.replies }

    /// Opens the sockets and starts the engine.
    public init(_ configuration: NodeConfiguration) throws(NodeError) {
        publicKey = configuration.privateKey.nodePublicKey
        discoKey = configuration.discoKey.discoPublicKey
        addresses = configuration.addresses
        do {
            hub = NodeHub(configuration: configuration, queue: try CommandQueue(), replies: Replies())
            try hub.start()
        } catch {
            throw .system("\(error)")
        }
    }

    deinit { hub.stop() }

    /// Ends all streams, closes all sockets, and waits for the engine's thread. Everything that waits fails with
    /// `closed`. May be called more than once.
    public func close() async { await hub.close() }

    // MARK: Peers and surroundings

    /// Adds or replaces one peer.
    public func updatePeer(_ peer: MeshPeer) { queue.post(.updatePeer(peer)) }

    /// Removes a peer; its streams end with time-outs or resets.
    public func removePeer(_ id: MeshPeerID) { queue.post(.removePeer(id)) }

    /// Makes `peers` the complete list.
    public func setPeers(_ peers: [MeshPeer]) { queue.post(.setPeers(peers)) }

    /// Replaces the list of relays. Connections to regions that changed are made anew.
    public func setDERPMap(_ map: DERPMap) {
        hub.setDERPMap(map)
        queue.post(.setDERPMap(map))
    }

    /// Forbids or allows direct paths. `path-selection.md` §6.
    public func setDirectBlocked(_ isBlocked: Bool) { queue.post(.setDirectBlocked(isBlocked)) }

    /// Says that the network changed, where the node cannot hear of it by itself.
    public func linkChanged() { queue.post(.linkChanged) }

    /// What the node would publish about itself: the newest value at once, then each change. Each call makes a
    /// stream of its own, which holds only the newest value.
    public func ownNodeUpdates() -> AsyncStream<OwnNode> { hub.ownNodes.subscribe() }

    /// Every decision about paths, as it is made. Each call makes a stream of its own; when the reader is slow the
    /// newest `Limits.pathEvents` stay.
    public func pathEvents() -> AsyncStream<NodePathEvent> { hub.pathEvents.subscribe() }

    /// Peers, paths, traffic and counters at this moment.
    public func status() async throws(NodeError) -> NodeStatus {
        let reply = await request { .status(token: $0) }
        guard case .status(let status) = reply else { throw Self.error(of: reply) }
        return status
    }

    // MARK: Reaching peers

    /// One discovery ping, over the path that packets take now. Throws `timedOut` after five seconds.
    public func ping(_ peer: MeshPeerID) async throws(NodeError) -> PingResult {
        let reply = await request { .ping(token: $0, peer) }
        guard case .ping(let result) = reply else { throw Self.error(of: reply) }
        return result
    }

    /// Waits until the peer behind `address` answers inside the tunnel (TSMP), pinging at once and then with
    /// growing pauses from 50 ms (`wireguard-integration.md` §8.3). Returns the round trip of the answered ping.
    @discardableResult
    public func reachable(
        _ address: IPAddress, within limit: Interval = .seconds(60)
    ) async throws(NodeError) -> Interval {
        let reply = await request { .reach(token: $0, address, limit: limit) }
        guard case .reached(let latency) = reply else { throw Self.error(of: reply) }
        return latency
    }

    // MARK: TCP

    /// Connects to a peer's TCP port. The descriptor is one end of a unix socket pair: half-close works, a reset
    /// shows as end of file or `EPIPE`: where bytes do not say themselves that they are complete, bridge a pair and ask
    /// the `MeshStream` how it ended.
    public func dial(_ address: SocketAddress) async throws(NodeError) -> OwnedDescriptor {
        let (mine, theirs) = try Self.socketPair().release()
        let owned = OwnedDescriptor(taking: mine)
        _ = try await connect(address, theirs, theirs)
        return owned
    }

    /// Connects to a peer's TCP port and moves bytes between it and the given descriptors: a connected socket, or
    /// one descriptor to read from and one to write to (pipes, terminals, files). Takes them over even on failure.
    public func dial(
        _ address: SocketAddress, bridging reading: consuming OwnedDescriptor,
        writing: consuming OwnedDescriptor? = nil
    ) async throws(NodeError) -> MeshStream {
        let read = reading.release()
        let write = writing.take()?.release() ?? read
        return try await connect(address, read, write)
    }

    /// Streams that peers open to `port`, on every own address. Ends the listening when the sequence is dropped.
    public func listen(port: UInt16) async throws(NodeError) -> AsyncStream<IncomingStream> {
        let (stream, continuation) = AsyncStream.makeStream(
            of: IncomingStream.self, bufferingPolicy: .bufferingOldest(hub.configuration.limits.acceptQueue))
        try await hub.listen(port: port, streams: continuation)
        return stream
    }

    /// Streams that peers open to any port without a listener of its own.
    public func listenAny() async throws(NodeError) -> AsyncStream<IncomingStream> {
        let (stream, continuation) = AsyncStream.makeStream(
            of: IncomingStream.self, bufferingPolicy: .bufferingOldest(hub.configuration.limits.acceptQueue))
        try await hub.listen(port: nil, streams: continuation)
        return stream
    }

    // MARK: UDP

    /// A flow of datagrams to a peer's UDP port. The descriptor is one end of a `SOCK_SEQPACKET` pair.
    public func dialUDP(_ address: SocketAddress) async throws(NodeError) -> OwnedDescriptor {
        let (mine, theirs) = try Self.datagramPair().release()
        let owned = OwnedDescriptor(taking: mine)
        _ = try await openFlow(address, theirs)
        return owned
    }

    /// A flow of datagrams to a peer's UDP port, moved to and from a connected datagram socket.
    public func dialUDP(
        _ address: SocketAddress, bridging socket: consuming OwnedDescriptor
    ) async throws(NodeError) -> MeshStream {
        try await openFlow(address, socket.release())
    }

    /// UDP flows that peers begin towards `port`.
    public func listenUDP(port: UInt16) async throws(NodeError) -> AsyncStream<IncomingFlow> {
        let (stream, continuation) = AsyncStream.makeStream(
            of: IncomingFlow.self, bufferingPolicy: .bufferingOldest(hub.configuration.limits.acceptQueue))
        try await hub.listen(port: port, flows: continuation)
        return stream
    }

    /// UDP flows that peers begin towards any port without a listener of its own.
    public func listenAnyUDP() async throws(NodeError) -> AsyncStream<IncomingFlow> {
        let (stream, continuation) = AsyncStream.makeStream(
            of: IncomingFlow.self, bufferingPolicy: .bufferingOldest(hub.configuration.limits.acceptQueue))
        try await hub.listen(port: nil, flows: continuation)
        return stream
    }

    /// Hook of tests: UDP neither leaves nor arrives, as behind a firewall that drops, or data does not arrive.
    package func dropUDP(_ loss: UDPLoss) { queue.post(.dropUDP(loss)) }

    // MARK: Details

    private func connect(
        _ address: SocketAddress, _ reading: Int32, _ writing: Int32
    ) async throws(NodeError) -> MeshStream {
        try await begin(address) { .dial(token: $0, to: address, reading: reading, writing: writing) }
    }

    private func openFlow(_ address: SocketAddress, _ number: Int32) async throws(NodeError) -> MeshStream {
        try await begin(address) { .openFlow(token: $0, to: address, descriptor: number) }
    }

    private func begin(
        _ address: SocketAddress, _ command: (UInt64) -> Command
    ) async throws(NodeError) -> MeshStream {
        let token = replies.makeToken()
        replies.streamBegan(token)
        let reply = await request(token, command)
        guard case .connected(let local) = reply else {
            replies.streamEnded(token, .closed)
            throw Self.error(of: reply)
        }
        return MeshStream(hub: hub, token: token, local: local, remote: address)
    }

    func request(_ command: (UInt64) -> Command) async -> Reply {
        await request(replies.makeToken(), command)
    }

    /// Posts a command and waits for its answer; cancelling the task cancels the command.
    private func request(_ token: UInt64, _ command: (UInt64) -> Command) async -> Reply {
        let (queue, replies) = (queue, replies)
        guard !Task.isCancelled else {
            command(token).discard()
            return .failed(.cancelled)
        }
        return await withTaskCancellationHandler {
            await replies.reply(to: token) { queue.post(command(token)) }
        } onCancel: {
            queue.post(.cancel(token: token))
        }
    }

    static func error(of reply: Reply) -> NodeError {
        if case .failed(let error) = reply { error } else { .closed }
    }

    static func socketPair() throws(NodeError) -> DescriptorPair {
        do {
            return try Descriptor.socketPair()
        } catch {
            throw .system("\(error)")
        }
    }

    static func datagramPair() throws(NodeError) -> DescriptorPair {
        do {
            return try Descriptor.packetPair()
        } catch {
            throw .system("\(error)")
        }
    }
}

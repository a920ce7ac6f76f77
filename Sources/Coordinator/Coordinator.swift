// SPDX-License-Identifier: Apache-2.0

public import RPC

/// Who is there, who may meet whom, and who has heard what of whom. In memory; no I/O, no clock.
///
/// Drive it like this: `connect`, then `handle` for each request that the peer sends, then `disconnect` or `lose`;
/// after each of them send what `takeOutputs()` gives, in order. A peer that is cut appears there as `.close`.
/// Source: coordinator.md §3–4. Linear in the number of tunnels of the peers concerned.
public struct Coordinator: Sendable {
    /// One connection of a peer: a newer one of the same peer id replaces it.
    public struct ConnectionID: Hashable, Sendable {
        let number: UInt64
    }

    /// What to do towards a connection, in order.
    public enum Output: Sendable {
        /// Send this.
        case send(ConnectionID, TailnetCoordinateResponse)
        /// Send what is queued, then hang up.
        case close(ConnectionID)
    }

    /// Bounds on what peers can grow.
    public struct Limits: Sendable {
        /// Peers that are connected.
        public var peers = 100_000
        /// Tunnels that one peer may open; a dashboard user with all of a large deployment's agents stays below.
        public var tunnelsPerSource = 16_384
        /// Defaults.
        public init() {}
    }

    struct Peer: Sendable {
        var connection: ConnectionID
        var role: PeerRole
        var name: String
        var node: TailnetNode?
        /// The latest node of each other peer that this peer was told.
        var told: [RawUUID: TailnetNode] = [:]
    }

    private let limits: Limits
    private var peers: [RawUUID: Peer] = [:]
    private var connections: [ConnectionID: RawUUID] = [:]
    private var tunnels = TunnelTable()
    private var nextConnection: UInt64 = 1
    private var outputs: [Output] = []
    private var isClosed = false

    /// An empty coordinator.
    public init(limits: Limits = Limits()) { self.limits = limits }

    /// Peers that are connected.
    public var peerCount: Int { peers.count }
    /// Tunnels, whether their ends are connected or not.
    public var tunnelCount: Int { tunnels.count }

    /// The latest node of a connected peer.
    public func node(of id: RawUUID) -> TailnetNode? { peers[id]?.node }

    /// Whether the peer is connected.
    public func isConnected(_ id: RawUUID) -> Bool { peers[id] != nil }

    /// Everything to do since the last call, in order.
    public mutating func takeOutputs() -> [Output] {
        defer { outputs = [] }
        return outputs
    }

    // MARK: - Events

    /// A peer opened a Coordinate call. When it is refused there is nothing to do but to hang up with the text.
    public mutating func connect(_ id: RawUUID, role: PeerRole, name: String) throws(Refusal) -> ConnectionID
    {
        guard !isClosed else { throw Refusal("coordinator closed") }
        guard peers[id] != nil || peers.count < limits.peers else { throw Refusal("too many peers") }
        // An agent's id is its own: a client that bore it could claim addresses towards the agent's tunnels.
        if let old = peers[id], old.role != role, old.role == .agent || role == .agent {
            throw .authorization("peer ID belongs to another kind of peer")
        }
        let connection = ConnectionID(number: nextConnection)
        nextConnection += 1
        if let old = peers[id] {
            connections[old.connection] = nil
            sendError("peer ID overwritten by new connection", to: old.connection)
            outputs.append(.close(old.connection))
        }
        // The old node does not carry over: a restarted peer has new keys, and sends its node at once.
        var peer = Peer(connection: connection, role: role, name: name)
        connections[connection] = id
        var batch = TailnetCoordinateResponse()
        for other in tunnels.partners(of: id) {
            guard let node = peers[other]?.node else { continue }
            batch.peerUpdates.append(.about(other, .node, node: node, reason: "coordinate"))
            peer.told[other] = node
        }
        peers[id] = peer
        if !batch.peerUpdates.isEmpty { outputs.append(.send(connection, batch)) }
        return connection
    }

    /// Checks and acts on one request. A refusal ends the connection: the peer gets its text and is lost.
    public mutating func handle(
        _ request: TailnetCoordinateRequest, from connection: ConnectionID
    ) throws(Refusal) {
        guard let id = connections[connection], let role = peers[id]?.role else { return }
        do throws(Refusal) {
            try RequestCheck.check(request, from: id, role: role)
        } catch {
            refuse(error, connection)
            throw error
        }
        if request.hasUpdateSelf { update(id, request.updateSelf.node) }
        if request.hasAddTunnel, let target = RawUUID(request.addTunnel.id) {
            guard tunnels.add(from: id, to: target, limit: limits.tunnelsPerSource) else {
                let error = Refusal("too many tunnels")
                refuse(error, connection)
                throw error
            }
            if let node = peers[target]?.node {
                tell(id, about: target, .node, node: node, reason: "add tunnel")
            }
            if let node = peers[id]?.node { tell(target, about: id, .node, node: node, reason: "add tunnel") }
        }
        if request.hasRemoveTunnel, let target = RawUUID(request.removeTunnel.id) {
            removeTunnel(from: id, to: target)
        }
        if request.hasDisconnect {
            leave(connection, .disconnected, reason: "graceful disconnect")
            outputs.append(.close(connection))
            return
        }
        for ready in request.readyForHandshake {
            guard let target = RawUUID(ready.id) else { continue }
            confirm(from: id, to: target, connection)
        }
    }

    /// The peer's stream broke, or it was too slow to read.
    public mutating func lose(_ connection: ConnectionID, reason: String = "lost") {
        leave(connection, .lost, reason: reason)
    }

    /// The peer is cut because it does not read: for its partners it has left.
    public mutating func drop(_ connection: ConnectionID) {
        leave(connection, .disconnected, reason: "failed update")
    }

    /// The server refused a request by its own rules: the peer gets `authorization: <cause>` and is lost.
    public mutating func refuseTunnel(_ connection: ConnectionID, cause: String) {
        guard connections[connection] != nil else { return }
        refuse(.authorization(cause), connection)
    }

    /// The server stops: everybody is told and cut.
    public mutating func close() {
        isClosed = true
        let all = peers.keys.sorted()
        for id in all {
            for other in tunnels.partners(of: id) {
                tell(other, about: id, .lost, node: nil, reason: "coordinator closed")
            }
        }
        for case let peer? in all.map({ peers[$0] }) {
            sendError("coordinator closed", to: peer.connection)
            outputs.append(.close(peer.connection))
        }
        peers = [:]
        connections = [:]
        tunnels = TunnelTable()
    }

    // MARK: - Details

    private mutating func update(_ id: RawUUID, _ node: TailnetNode) {
        peers[id]?.node = node
        for other in tunnels.partners(of: id) {
            tell(other, about: id, .node, node: node, reason: "node update")
        }
    }

    private mutating func removeTunnel(from id: RawUUID, to target: RawUUID) {
        guard tunnels.remove(from: id, to: target) else { return }
        // Still partners when the other side has a tunnel, too: then nobody has left.
        guard !tunnels.arePartners(id, target) else { return }
        tell(id, about: target, .disconnected, node: nil, reason: "tunnel removed")
        tell(target, about: id, .disconnected, node: nil, reason: "tunnel removed")
    }

    private mutating func confirm(from id: RawUUID, to target: RawUUID, _ connection: ConnectionID) {
        guard tunnels.arePartners(id, target) else {
            let text = "ready for handshake error: you do not share a tunnel with \"\(target)\""
            return sendError(text, to: connection)
        }
        guard let peer = peers[target] else { return }
        var response = TailnetCoordinateResponse()
        response.peerUpdates = [.about(id, .readyForHandshake, node: nil, reason: "ready for handshake")]
        outputs.append(.send(peer.connection, response))
    }

    private mutating func refuse(_ error: Refusal, _ connection: ConnectionID) {
        sendError(error.text, to: connection)
        leave(connection, .lost, reason: "lost")
        outputs.append(.close(connection))
    }

    private mutating func leave(
        _ connection: ConnectionID, _ kind: TailnetCoordinateResponse.PeerUpdate.Kind, reason: String
    ) {
        guard let id = connections.removeValue(forKey: connection) else { return }
        let partners = tunnels.partners(of: id)
        peers[id] = nil
        for other in partners { tell(other, about: id, kind, node: nil, reason: reason) }
        tunnels.removeAll(from: id)
    }

    /// Tells `id` about `other`, unless that is no news. coordinator.md §4, deduplication.
    private mutating func tell(
        _ id: RawUUID, about other: RawUUID, _ kind: TailnetCoordinateResponse.PeerUpdate.Kind,
        node: TailnetNode?,
        reason: String
    ) {
        guard let peer = peers[id] else { return }
        let known = peer.told[other]
        if kind == .node {
            guard known != node else { return }
            peers[id]?.told[other] = node
        } else {
            guard known != nil else { return }
            peers[id]?.told[other] = nil
        }
        var response = TailnetCoordinateResponse()
        response.peerUpdates = [.about(other, kind, node: node, reason: reason)]
        outputs.append(.send(peer.connection, response))
    }

    private mutating func sendError(_ text: String, to connection: ConnectionID) {
        var response = TailnetCoordinateResponse()
        response.error = text
        outputs.append(.send(connection, response))
    }
}

extension TailnetCoordinateResponse.PeerUpdate {
    fileprivate static func about(_ id: RawUUID, _ kind: Kind, node: TailnetNode?, reason: String) -> Self {
        var update = Self()
        update.id = id.bytes()
        update.kind = kind
        if let node { update.node = node }
        update.reason = reason
        return update
    }
}

// SPDX-License-Identifier: Apache-2.0

public import Mesh
public import RPC

/// What the coordinator said about other peers, and when each of them may be a WireGuard peer. Pure.
///
/// A peer that we opened a tunnel to (a *destination*) is configured when it says READY_FOR_HANDSHAKE, or 5 s after
/// its node: before, it would not know us and the first handshake would be lost, which costs 5 s as well. Others
/// are configured at once. Source: coordinator.md §7, wireguard-integration §8.2.
public struct PeerBook: Sendable {
    /// What to do to the node, in order.
    public enum Output: Hashable, Sendable {
        /// Add or replace.
        case configure(MeshPeer)
        /// Remove.
        case remove(MeshPeerID)
    }

    /// 5 s after a node, a destination counts as ready.
    public static let readyTimeout = Interval.seconds(5)
    /// 15 min without a handshake, and a lost peer is forgotten.
    public static let lostTimeout = Interval.seconds(15 * 60)
    /// 25 s: persistent keepalive of a ready destination.
    public static let keepaliveSeconds: UInt16 = 25
    /// Peers that are kept; the coordinator of a large deployment shows an agent far fewer.
    public static let limit = 16_384

    private struct Entry: Sendable {
        /// Its name in the node: that of its first peer id, see `takeOver`.
        var meshID: MeshPeerID
        var peer: MeshPeer?
        var isReady = false
        var isConfigured = false
        var readyAt: Instant?
        var lostAt: Instant?
    }

    private var entries: [RawUUID: Entry] = [:]
    private var destinations: Set<RawUUID> = []
    private var byKey: [NodePublicKey: RawUUID] = [:]

    /// Updates that were ignored: no home relay, malformed, or too many peers.
    public private(set) var ignored = 0

    /// Knows nobody.
    public init() {}

    /// Peers of which a node is known.
    public var count: Int { entries.values.count { $0.peer != nil } }

    /// Whether the peer is in the node's table.
    public func isConfigured(_ id: RawUUID) -> Bool { entries[id]?.isConfigured == true }

    /// Node key of a peer whose node is known.
    public func key(of id: RawUUID) -> NodePublicKey? { entries[id]?.peer?.key }

    /// Our tunnels, in ascending order.
    public var tunnels: [RawUUID] { destinations.sorted() }

    /// We opened a tunnel to this peer.
    public mutating func addDestination(_ id: RawUUID) { destinations.insert(id) }

    /// We gave the tunnel up.
    public mutating func removeDestination(_ id: RawUUID) -> [Output] {
        destinations.remove(id)
        return forget(id)
    }

    /// Acts on one response. `confirm` lists the peers whose nodes came with it: agents answer with
    /// ready_for_handshake once they are configured.
    public mutating func apply(
        _ updates: [TailnetCoordinateResponse.PeerUpdate], now: Instant
    ) -> (outputs: [Output], confirm: [RawUUID]) {
        var outputs: [Output] = []
        var confirm: [RawUUID] = []
        for update in updates {
            guard let id = RawUUID(update.id) else {
                ignored += 1
                continue
            }
            switch update.kind {
            case .node:
                guard let peer = accept(id, update.node, now: now) else { continue }
                outputs += peer
                confirm.append(id)
            case .readyForHandshake: outputs += ready(id)
            case .disconnected: outputs += forget(id)
            case .lost: entries[id]?.lostAt = now + Self.lostTimeout
            case .unspecified, .UNRECOGNIZED: ignored += 1
            }
        }
        return (outputs, confirm)
    }

    /// The coordinator is gone: peers go on by themselves, for a while.
    public mutating func loseAll(now: Instant) {
        for id in entries.keys where entries[id]?.lostAt == nil {
            entries[id]?.lostAt = now + Self.lostTimeout
        }
    }

    /// When `handleTimeout` is due.
    public var nextDeadline: Instant? {
        entries.values.flatMap { [$0.readyAt, $0.lostAt].compactMap { $0 } }.min()
    }

    /// Configures destinations that did not say that they are ready, and forgets lost peers whose last handshake
    /// is old. `sinceHandshake` says how old, by the node's names; nil for never.
    public mutating func handleTimeout(now: Instant, sinceHandshake: [MeshPeerID: Interval]) -> [Output] {
        var outputs: [Output] = []
        for id in entries.keys.sorted() {
            if let at = entries[id]?.readyAt, now >= at { outputs += ready(id) }
            guard let at = entries[id]?.lostAt, now >= at else { continue }
            let age = entries[id].flatMap { sinceHandshake[$0.meshID] } ?? Self.lostTimeout
            if age >= Self.lostTimeout {
                outputs += forget(id)
            } else {
                let left = Self.lostTimeout.nanoseconds - age.nanoseconds
                entries[id]?.lostAt = now + Interval(nanoseconds: left)
            }
        }
        return outputs
    }

    // MARK: - Details

    private mutating func accept(_ id: RawUUID, _ node: TailnetNode, now: Instant) -> [Output]? {
        guard node.preferredDerp != 0, entries[id] != nil || entries.count < Self.limit,
            var peer = MeshPeer(id: id, node: node), takeOver(id, peer)
        else {
            ignored += 1
            return nil
        }
        var entry = entries[id] ?? Entry(meshID: id.meshID)
        peer.id = entry.meshID
        entry.lostAt = nil
        let isDestination = destinations.contains(id)
        // Another key is another process, which has yet to learn of us.
        if let known = entry.peer, known.key != peer.key {
            entry.isReady = false
            byKey[known.key] = nil
        }
        byKey[peer.key] = id
        peer.keepaliveSeconds = isDestination && entry.isReady ? Self.keepaliveSeconds : 0
        entry.peer = peer
        defer { entries[id] = entry }
        guard !isDestination || entry.isReady else {
            entry.readyAt = now + Self.readyTimeout
            return []
        }
        entry.isConfigured = true
        return [.configure(peer)]
    }

    /// A program that connected anew without its resume token has another peer id but the same key: it inherits what
    /// is known, so that its session goes on. False when the key is somebody else's, who is there.
    private mutating func takeOver(_ id: RawUUID, _ peer: MeshPeer) -> Bool {
        guard let other = byKey[peer.key], other != id, let known = entries[other] else { return true }
        guard known.lostAt != nil || known.peer?.addresses == peer.addresses, entries[id]?.peer == nil,
            !destinations.contains(id), !destinations.contains(other)
        else { return false }
        entries[other] = nil
        entries[id] = known
        return true
    }

    private mutating func ready(_ id: RawUUID) -> [Output] {
        guard entries[id] != nil || (destinations.contains(id) && entries.count < Self.limit) else {
            ignored += 1
            return []
        }
        entries[id, default: Entry(meshID: id.meshID)].isReady = true
        entries[id]?.readyAt = nil
        guard var peer = entries[id]?.peer else { return [] }
        if destinations.contains(id) { peer.keepaliveSeconds = Self.keepaliveSeconds }
        guard entries[id]?.isConfigured != true || entries[id]?.peer != peer else { return [] }
        entries[id]?.peer = peer
        entries[id]?.isConfigured = true
        return [.configure(peer)]
    }

    private mutating func forget(_ id: RawUUID) -> [Output] {
        guard let entry = entries.removeValue(forKey: id) else { return [] }
        if let key = entry.peer?.key { byKey[key] = nil }
        return entry.isConfigured ? [.remove(entry.meshID)] : []
    }
}

// SPDX-License-Identifier: Apache-2.0

/// What a node tells the coordinator about itself. Published on each change; never before `homeRegion` is known
/// unless there are no relays at all.
public struct OwnNode: Hashable, Sendable {
    /// The WireGuard key.
    public var key: NodePublicKey
    /// The key of discovery messages.
    public var discoKey: DiscoPublicKey
    /// The relay region where this node listens; 0 while unknown.
    public var homeRegion: Int
    /// Round trips in seconds by `<region>-v4` and `<region>-v6`.
    public var latencies: [String: Double]
    /// Regions that were only reachable by WebSocket, and why.
    public var forcedWebSocket: [Int: String]
    /// Own addresses in the tunnel.
    public var addresses: [IPAddress]
    /// UDP addresses where peers may try; empty when direct paths are blocked.
    public var endpoints: [SocketAddress]
}

/// What carries a peer's packets now.
public enum PeerPath: Hashable, Sendable, CustomStringConvertible {
    /// UDP to this address.
    case direct(SocketAddress)
    /// The relay region.
    case relay(Int)
    /// Neither address nor relay is known.
    case none

    public var description: String {
        switch self {
        case .direct(let address): "direct \(address)"
        case .relay(let region): "relay \(region)"
        case .none: "none"
        }
    }
}

/// One peer at one moment.
public struct PeerStatus: Hashable, Sendable {
    /// The peer.
    public var id: MeshPeerID
    /// Its key.
    public var key: NodePublicKey
    /// Its addresses in the tunnel.
    public var addresses: [IPAddress]
    /// What carries packets to it.
    public var path: PeerPath
    /// Its home relay region; 0 for none.
    public var homeRegion: Int
    /// Sent bytes of whole WireGuard datagrams.
    public var sentBytes: UInt64
    /// Received bytes of whole, authenticated WireGuard datagrams.
    public var receivedBytes: UInt64
    /// Time since the last completed handshake; nil before the first.
    public var sinceHandshake: Interval?
    /// Whether something was sent within the last 45 seconds. `path-selection.md` §2.
    public var isActive: Bool
}

/// Counters of a node since its start.
public struct NodeCounters: Hashable, Sendable {
    /// Datagrams that came by UDP.
    public var receivedDatagrams: UInt64 = 0
    /// Bytes that came by UDP.
    public var receivedBytes: UInt64 = 0
    /// Datagrams that left by UDP.
    public var sentDatagrams: UInt64 = 0
    /// Bytes that left by UDP.
    public var sentBytes: UInt64 = 0
    /// Datagrams that the kernel refused, or that had no socket of their family.
    public var lostDatagrams: UInt64 = 0
    /// Times that the kernel refused a destination: no route, forbidden, too big.
    public var sendFailures: UInt64 = 0
    /// Times that TCP made no progress, so that the path was doubted.
    public var stalls: UInt64 = 0
    /// System calls that moved UDP.
    public var socketCalls: UInt64 = 0
    /// Packets that came from relays.
    public var relayReceived: UInt64 = 0
    /// Packets given to relays.
    public var relaySent: UInt64 = 0
    /// Packets for a relay that were dropped because it takes them too slowly or is not connected.
    public var relayDropped: UInt64 = 0
    /// Datagrams and relayed packets that are neither WireGuard, discovery nor STUN.
    public var garbage: UInt64 = 0
    /// WireGuard datagrams that were dropped, for whatever reason.
    public var wireGuardDropped: UInt64 = 0
    /// Discovery messages that were dropped.
    public var discoDropped: UInt64 = 0
    /// Initiations that were sent a second time because nothing came back.
    public var repeatedHandshakes: UInt64 = 0
    /// Inner packets for which no peer was found, or which waited too long for a handshake.
    public var unroutable: UInt64 = 0
    /// Streams and flows refused because a table was full.
    public var refused: UInt64 = 0
}

/// A node at one moment.
public struct NodeStatus: Hashable, Sendable {
    /// What is published.
    public var ownNode: OwnNode
    /// Its peers, ordered by name.
    public var peers: [PeerStatus]
    /// Counters since the start.
    public var counters: NodeCounters
    /// Counters of the TCP/IP stack since the start.
    public var stack = StackCounters()
    /// Bytes that all streams hold between descriptors and peers.
    public var bufferBytes = 0
    /// Local UDP ports: IPv4 and IPv6, 0 where there is no socket.
    public var ports: (v4: UInt16, v6: UInt16) { (portV4, portV6) }
    /// The address that the router forwards to this node, and by which protocol it was asked (`pcp`, `nat-pmp`,
    /// `upnp`); nil without such a router.
    public var portMapping: (address: SocketAddress, service: String)? {
        mappedAddress.map { ($0, mappedBy) }
    }
    /// What this node knows of its own network.
    public var network: PathExplanation.PeerNetwork
    /// Own IPv4 address as a STUN server sees it.
    public var globalV4: SocketAddress?
    /// Open streams and UDP flows.
    public var streams: Int
    /// Relay regions with an open connection.
    public var openRelays: [Int]
    /// Whether the kernel cuts what is sent and glues what arrives (`UDP_SEGMENT`, `UDP_GRO`).
    public var segmentation: Bool
    /// See `segmentation`.
    public var coalescing: Bool
    /// Socket buffer in bytes, as the kernel reports it.
    public var socketBufferBytes: Int
    var portV4: UInt16
    var portV6: UInt16
    var mappedAddress: SocketAddress?
    var mappedBy = ""
}

/// A decision about paths, with the name that the node's user gave to the peer.
public struct NodePathEvent: Hashable, Sendable {
    /// Whose path; nil for what concerns all.
    public var peer: MeshPeerID?
    /// What was decided or seen, and when.
    public var event: PathEvent
}

/// Outcome of a discovery ping.
public struct PingResult: Hashable, Sendable {
    /// Round trip.
    public var latency: Interval
    /// What carried the answer.
    public var path: PeerPath
}

/// Why something that a node was asked for did not happen.
public enum NodeError: Error, Hashable, Sendable, CustomStringConvertible {
    /// The node was closed.
    case closed
    /// The task that asked was cancelled.
    case cancelled
    /// No peer has this address.
    case noRoute(IPAddress)
    /// No peer has this name.
    case unknownPeer
    /// The peer answered with a reset: nobody listens there.
    case refused
    /// No answer in time.
    case timedOut
    /// The stream was reset by the peer.
    case reset
    /// A table is full; see `NodeConfiguration.Limits`.
    case tooMany(String)
    /// The port is taken by another listener of this node.
    case portInUse(UInt16)
    /// The node was made without a user-space stack (`tunName`).
    case noStack
    /// A descriptor cannot be used: neither a stream nor a file.
    case badDescriptor(String)
    /// A call to the system failed.
    case system(String)

    public var description: String {
        switch self {
        case .closed: "the node is closed"
        case .cancelled: "cancelled"
        case .noRoute(let address): "no peer has the address \(address)"
        case .unknownPeer: "no such peer"
        case .refused: "connection refused"
        case .timedOut: "timed out"
        case .reset: "connection reset"
        case .tooMany(let what): "too many \(what)"
        case .portInUse(let port): "port \(port) is in use"
        case .noStack: "this node has no TCP/IP stack"
        case .badDescriptor(let why): "unusable descriptor: \(why)"
        case .system(let text): text
        }
    }
}

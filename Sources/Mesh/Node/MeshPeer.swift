// SPDX-License-Identifier: Apache-2.0

/// Names a peer towards the node: the 16 bytes of the coordinator's UUID, or any number that the caller likes.
public struct MeshPeerID: Hashable, Sendable, Comparable, CustomStringConvertible {
    /// Bytes 0...7 as a big-endian number.
    public let high: UInt64
    /// Bytes 8...15 as a big-endian number.
    public let low: UInt64

    /// A name from two numbers.
    public init(high: UInt64 = 0, low: UInt64) {
        self.high = high
        self.low = low
    }

    /// A name from exactly 16 bytes, as in the coordinator's messages.
    public init?(bytes: some Collection<UInt8>) {
        guard bytes.count == 16 else { return nil }
        let join = { (part: ArraySlice<UInt8>) in part.reduce(UInt64(0)) { $0 << 8 | UInt64($1) } }
        let bytes = Array(bytes)
        self.init(high: join(bytes[..<8]), low: join(bytes[8...]))
    }

    /// The 16 bytes.
    public var bytes: [UInt8] {
        [high, low].flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> UInt64(56 - $0 * 8)) } }
    }

    public static func < (a: MeshPeerID, b: MeshPeerID) -> Bool { (a.high, a.low) < (b.high, b.low) }

    /// A UUID's text.
    public var description: String {
        let digits = Array(Hex.text(bytes))
        return [0..<8, 8..<12, 12..<16, 16..<20, 20..<32].map { String(digits[$0]) }.joined(separator: "-")
    }
}

/// Another node that this one may talk to, as the coordinator (or a static file) describes it.
public struct MeshPeer: Hashable, Sendable {
    /// Names the peer; an update with the same name replaces what is known of it.
    public var id: MeshPeerID
    /// The WireGuard key. A changed key replaces the peer: the other program was restarted.
    public var key: NodePublicKey
    /// The key of its discovery messages; zero for a plain WireGuard peer that knows no discovery.
    public var discoKey: DiscoPublicKey
    /// Relay region where it listens; 0 for none.
    public var homeRegion: Int
    /// Its addresses in the tunnel, most important first. Used for `reachable` and shown in the status.
    public var addresses: [IPAddress]
    /// What it may send from and what is routed to it. Moves here from another peer that had it.
    public var allowedIPs: [IPPrefix]
    /// UDP addresses to try.
    public var endpoints: [SocketAddress]
    /// Persistent keepalive in seconds; 0 for none. `wireguard-integration.md` §8.2 says when Coder sets 25.
    public var keepaliveSeconds: UInt16
    /// An additional shared secret of 32 bytes, or nil.
    public var presharedKey: [UInt8]?
    /// A plain WireGuard peer: no discovery, no relay. Packets go to the last address that an authenticated
    /// packet came from, at first to the first of `endpoints`.
    public var isStatic: Bool

    /// A peer; see the properties.
    public init(
        id: MeshPeerID, key: NodePublicKey, discoKey: DiscoPublicKey = .zero, homeRegion: Int = 0,
        addresses: [IPAddress] = [], allowedIPs: [IPPrefix] = [], endpoints: [SocketAddress] = [],
        keepaliveSeconds: UInt16 = 0, presharedKey: [UInt8]? = nil, isStatic: Bool = false
    ) {
        self.id = id
        self.key = key
        self.discoKey = discoKey
        self.homeRegion = homeRegion
        self.addresses = addresses
        self.allowedIPs = allowedIPs
        self.endpoints = endpoints
        self.keepaliveSeconds = keepaliveSeconds
        self.presharedKey = presharedKey
        self.isStatic = isStatic
    }
}

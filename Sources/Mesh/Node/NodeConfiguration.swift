// SPDX-License-Identifier: Apache-2.0

/// Everything that a node must know before it starts. What may change later has a setter on `Node` too.
public struct NodeConfiguration: Sendable {
    /// To which addresses the UDP sockets are bound.
    public enum Binding: Hashable, Sendable {
        /// `0.0.0.0` and `::`.
        case any
        /// `127.0.0.1` and `::1`: tests within one machine.
        case loopback
        /// No UDP at all: relays only.
        case none
    }

    /// Numbers that bound what peers and users can make a node hold.
    public struct Limits: Hashable, Sendable {
        /// Peers, of any kind.
        public var peers = 65_536
        /// Mesh streams at once. Each holds one or two descriptors; an idle one 2 KB.
        public var streams = 16_384
        /// Bytes that all streams together hold between descriptors and peers. Windows stop growing above three
        /// quarters of it.
        public var bufferMemory = 16 << 20
        /// UDP flows at once; the least recently used one goes first.
        public var flows = 1_024
        /// A UDP flow without traffic ends after this. RFC 4787 §4.3 asks for two minutes or more.
        public var flowIdle = Interval.seconds(120)
        /// Accepted streams that nobody took yet, per listener. More are refused; by `listenAny`, whose SYNs are not
        /// answered before somebody takes them, left to ask again a second later.
        public var acceptQueue = 1_024
        /// Bytes that wait for one relay connection; more are dropped. Above a quarter of a MiB no new packets are
        /// fetched anyway while everything is relayed.
        public var relayBacklogBytes = 1 << 20
        /// Packets are no longer held back for a relay that took nothing for so long.
        public var relayBacklogTime = Interval.seconds(2)
        /// Events kept for each reader of `pathEvents`, the newest win.
        public var pathEvents = 1_024

        /// The defaults.
        public init() {}
    }

    /// The WireGuard key: the node's identity towards peers and relays.
    public var privateKey: PrivateKey
    /// The key of discovery messages. New per process.
    public var discoKey: PrivateKey
    /// Own addresses inside the tunnel.
    public var addresses: [IPAddress]
    /// UDP port, 0 for any. IPv4 and IPv6 try to share it.
    public var listenPort: UInt16 = 0
    /// Where UDP is bound.
    public var binding = Binding.any
    /// Largest IP packet inside the tunnel. `path-selection.md` §7.
    public var mtuBytes = 1280
    /// Whether to ask the router of the network to forward a port (PCP, NAT-PMP, UPnP). `path-selection.md` §10.
    public var mapsPorts = true
    /// Only relays: no UDP paths are offered, tried or accepted. `path-selection.md` §6.
    public var directBlocked = false
    /// Connects to relays; nil for a node without relays.
    public var relayDialer: (any RelayDialer)?
    /// The relays.
    public var derpMap = DERPMap()
    /// Whether to answer and make IP traffic through the built-in stack (else: `tunName`).
    public var tunName: String?
    /// Overrides the address list that is offered to peers, for tests and odd networks.
    public var fixedEndpoints: [SocketAddress]?
    /// Bounds.
    public var limits = Limits()
    /// WireGuard's times and bounds; tests shorten them.
    package var wireGuardLimits = WireGuard.Limits()
    /// Shown each packet that the built-in stack sends or gets, in the clear, from the engine's thread. Must return at
    /// once.
    public var packetTap: (@Sendable (_ packet: RawSpan) -> Void)?
    /// Called from the engine's thread with rare, human-readable events. Must return at once.
    public var log: (@Sendable (_ message: String, _ metadata: [(String, String)]) -> Void)?

    /// A node with these keys and addresses; the rest has defaults.
    public init(privateKey: PrivateKey, discoKey: PrivateKey, addresses: [IPAddress]) {
        self.privateKey = privateKey
        self.discoKey = discoKey
        self.addresses = addresses
    }
}

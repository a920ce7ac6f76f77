// SPDX-License-Identifier: Apache-2.0

internal import Mesh

/// A node: the real path machines and a shell that moves their messages through the simulated net.
final class SimHost {
    let index: Int
    let name: String
    let id: PeerID
    let nodeKey: NodePublicKey
    let nodePrivateKey: PrivateKey
    var discoKey: PrivateKey
    var paths: Paths
    var discovery: EndpointDiscovery
    var homeRegion: HomeRegion
    /// Relay connections by region, also those that are being made.
    var links: [Int: Int] = [:]
    /// Packets that wait for a relay connection.
    var waiting: [Int: [(to: Int, Packet.Content)]] = [:]
    var router: Int?
    var addresses: [IPAddress]
    var link: Scenario.Host
    var hasUDP = true
    /// Since when packets to a host go directly only.
    var directSince: [Int: Instant] = [:]
    /// When the relays' latencies were measured last, and when they will be again. The net's time.
    var measuredAt = World.start
    var measureAt = Instant.never
    var dataDies = false
    var isAsleep = false
    var loss = 0.0
    /// How far its monotonic clock is ahead.
    var clockAhead = Interval.zero
    /// When its timer event is due, in the net's time.
    var timerAt = Instant.never
    var known: Set<Int> = []
    var published: [SocketAddress] = []
    var isPublished = false
    var portMapped: [SocketAddress] = []
    /// Sessions by index in which it takes part.
    var sessions: [Int] = []
    /// Processes that ended before, and networks that it left.
    var generation = 0
    var moves = 0
    /// Largest sizes that were seen of everything that peers can make grow.
    var most = Paths.Sizes()

    static let port: UInt16 = 41_641

    init(index: Int, scenario: Scenario.Host, router: Int?, addresses: [IPAddress], seed: UInt64) {
        self.index = index
        name = scenario.name
        link = scenario
        self.router = router
        self.addresses = addresses
        id = PeerID(rawValue: UInt32(index))
        nodePrivateKey = Self.key(seed, index, 0)
        nodeKey = nodePrivateKey.nodePublicKey
        discoKey = Self.key(seed, index, 1)
        paths = Paths(
            nodeKey: nodeKey, discoKey: Self.key(seed, index, 1), random: Self.random(seed, index, 2))
        discovery = EndpointDiscovery(random: Self.random(seed, index, 3))
        homeRegion = HomeRegion(random: Self.random(seed, index, 4))
    }

    private static func source(_ seed: UInt64, _ index: Int, _ purpose: UInt64) -> SeededGenerator {
        SeededGenerator(seed: seed &* 0x9e37_79b9_7f4a_7c15 &+ UInt64(index) &* 64 &+ purpose)
    }

    static func key(_ seed: UInt64, _ index: Int, _ purpose: UInt64) -> PrivateKey {
        var source = source(seed, index, purpose)
        return PrivateKey(using: &source)
    }

    static func random(_ seed: UInt64, _ index: Int, _ purpose: UInt64) -> SecureGenerator {
        var source = source(seed, index, purpose)
        return SecureGenerator(seededBy: &source)
    }

    /// Time on its own clock.
    func time(_ now: Instant) -> Instant { now + clockAhead }

    /// A process that starts anew: same node, other keys, nothing remembered.
    func restart(seed: UInt64) {
        generation += 1
        let purpose = UInt64(8 + generation * 4)
        discoKey = Self.key(seed, index, purpose)
        paths = Paths(
            nodeKey: nodeKey, discoKey: Self.key(seed, index, purpose),
            random: Self.random(seed, index, purpose + 1))
        discovery = EndpointDiscovery(random: Self.random(seed, index, purpose + 2))
        links = [:]
        waiting = [:]
        known = []
        published = []
        isPublished = false
        timerAt = .never
    }

    var configuration: Paths.PeerConfiguration {
        Paths.PeerConfiguration(
            nodeKey: nodeKey, discoKey: discoKey.discoPublicKey, home: homeRegion.current,
            endpoints: link.blocksDirect ? [] : published)
    }
}

/// What travels.
struct Packet {
    enum Content: Hashable {
        /// A discovery message, or STUN.
        case bytes([UInt8])
        /// A WireGuard packet of the tunnel.
        case data(SimStream.Segment)
    }

    /// A full packet of the tunnel, UDP payload bytes.
    static let dataBytes = 1_312
    /// An acknowledgement, UDP payload bytes.
    static let smallBytes = 128

    var source: SocketAddress
    var destination: SocketAddress
    var content: Content

    static func size(_ content: Content) -> Int {
        switch content {
        case .bytes(let bytes): bytes.count
        case .data(let segment): segment.acknowledges == nil ? dataBytes : smallBytes
        }
    }
}

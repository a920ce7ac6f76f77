// SPDX-License-Identifier: Apache-2.0

import FoundationEssentials
import Mesh

/// `Tests/Vectors/wireguard.json`. Its origin is told in `Tests/Vectors/README.md`.
struct WireGuardVectors: Decodable, Sendable {
    struct State: Decodable, Sendable {
        let after: String
        let chain_key: String
        let hash: String
        let key: String?
    }
    struct Transport: Decodable, Sendable {
        let name: String
        let counter: String
        let plaintext: String
        let padded: String
        let wire: String
    }
    struct Handshake: Decodable, Sendable {
        let name: String
        let psk: String
        let states: [State]
        let initiation: String
        let response: String
        let key_initiator_to_responder: String
        let key_responder_to_initiator: String
        let transport: [Transport]
    }
    struct CookieCase: Decodable, Sendable {
        let secret: String
        let source_bytes: String
        let cookie: String
        let cookie_key: String
        let nonce: String
        let ad_mac1_of_initiation: String
        let cookie_reply: String
        let initiation_repeated_with_mac2: String
    }
    struct ReplayStep: Decodable, Sendable {
        let counter: String
        let accept: Bool
    }
    struct ReplayTrace: Decodable, Sendable {
        let window: UInt64
        let limit: String
        let steps: [ReplayStep]
    }
    struct Padding: Decodable, Sendable {
        let inner: Int
        let mtu: Int
        let padded: Int
    }
    struct Dropped: Decodable, Sendable {
        let name: String
        let wire: String
    }
    struct Derivation: Decodable, Sendable {
        let key: String
        let input: String
        let t: [String]
    }

    let initiator_static_private: String
    let initiator_static_public: String
    let responder_static_private: String
    let responder_static_public: String
    let initiator_ephemeral_private: String
    let responder_ephemeral_private: String
    let initiator_index: UInt32
    let responder_index: UInt32
    let timestamp: String
    let initial_chain_key: String
    let initial_hash: String
    let handshakes: [Handshake]
    let cookie: CookieCase
    let replay_trace: ReplayTrace
    let padding: [Padding]
    let must_be_dropped_by_responder: [Dropped]
    let kdf: [Derivation]

    static func load() throws -> WireGuardVectors {
        let file = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .deletingLastPathComponent().appending(path: "Vectors/wireguard.json")
        return try JSONDecoder().decode(WireGuardVectors.self, from: Data(contentsOf: file))
    }
}

/// Bytes of hexadecimal text.
func bytes(_ hex: String) throws -> [UInt8] { try Hex.bytes(hex, count: hex.utf8.count / 2) }

extension WireGuard.Bytes32 {
    init(hex: String) throws { try self.init(bytes: Hex.bytes(hex, count: 32)) }

    /// The numbers that a generator must give to make these bytes.
    var script: [UInt64] {
        littleEndianWords(bytes)
    }
}

/// Bytes as little-endian 64-bit numbers.
func littleEndianWords(_ bytes: [UInt8]) -> [UInt64] {
    stride(from: 0, to: bytes.count, by: 8).map { start in
        bytes[start..<(start + 8)].reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
    }
}

/// A device with its buffer and the inner packets that came out of it.
final class WireGuardNode {
    var device: WireGuard.Device
    let address: IPAddress
    let key: NodePublicKey
    var packets: [[UInt8]] = []
    var keepalives = 0
    var drops: [WireGuard.DropReason] = []
    /// Initiations that were sent because no answer came.
    var silences = 0
    /// Seconds by which this node's civil time is wrong.
    var wallOffset: Int64 = 0
    private var buffer = [UInt8](repeating: 0, count: 2048)

    /// A node whose keys, indices and jitter follow from the seed.
    init(
        seed: UInt64, address: String, limits: WireGuard.Limits = .init(),
        backEnd: WireGuard.PacketCipher.BackEnd = WireGuard.PacketCipher.preferred
    ) {
        var generator = SeededGenerator(seed: seed)
        let privateKey = PrivateKey(using: &generator)
        key = privateKey.nodePublicKey
        self.address = IPAddress(address)!
        device = WireGuard.Device(
            privateKey: privateKey, limits: limits, randomness: .seeded(generator), backEnd: backEnd)
    }

    func add(
        _ other: WireGuardNode, keepalive: UInt16 = 0, now: Instant = .start
    ) throws -> WireGuard.PeerIndex {
        try device.addPeer(
            WireGuard.PeerConfiguration(
                publicKey: other.key, allowedIPs: [IPPrefix(host: other.address)],
                persistentKeepalive: keepalive),
            now: now)
    }

    // The test macros cannot look into something that cannot be copied.
    var hasOutput: Bool { device.hasOutput }
    var nextDeadline: Instant { device.nextDeadline }
    var counters: WireGuard.Counters { device.counters }
    var peerCount: Int { device.peerCount }
    var indexCount: Int { device.indexCount }
    func peer(for key: NodePublicKey) -> WireGuard.PeerIndex? { device.peer(for: key) }
    func peer(for address: IPAddress) -> WireGuard.PeerIndex? { device.peer(for: address) }
    func removePeer(_ index: WireGuard.PeerIndex) -> Bool { device.removePeer(index) }
    func setPrivateKey(_ key: PrivateKey, now: Instant) -> WireGuard.PeerIndex? {
        device.setPrivateKey(key, now: now)
    }
    func wakePeers(now: Instant) { device.wakePeers(now: now) }
    func statistics(of index: WireGuard.PeerIndex, now: Instant) -> WireGuard.PeerStatistics? {
        device.statistics(of: index, now: now)
    }

    private func wall(_ now: Instant) -> WireGuard.WallTime {
        var wall = now.wall
        wall.seconds = UInt64(Int64(wall.seconds) + wallOffset)
        return wall
    }

    /// Everything that the device wants to send.
    func output(_ now: Instant) -> [[UInt8]] {
        var result: [[UInt8]] = []
        while let datagram = nextOutput(now) { result.append(datagram) }
        return result
    }

    func nextOutput(_ now: Instant) -> [UInt8]? {
        let output = buffer.withUnsafeMutableBytes {
            device.nextOutput(into: $0, now: now, wallTime: wall(now))
        }
        if output?.followsSilence ?? false { silences += 1 }
        return output.map { Array(buffer[..<$0.length]) }
    }

    /// Feeds a datagram and sorts what it was. Returns also the reply if there is one.
    @discardableResult
    func receive(
        _ datagram: [UInt8], from source: String = "192.0.2.1:51820", now: Instant
    ) -> (result: WireGuard.Received, reply: [UInt8]?) {
        var copy = datagram
        let result = copy.withUnsafeMutableBytes {
            device.receive($0, from: .address(SocketAddress(source)!), now: now)
        }
        switch result {
        case .packet(_, let range): packets.append(Array(copy[range]))
        case .keepalive: keepalives += 1
        case .dropped(let reason), .refused(_, let reason): drops.append(reason)
        case .reply(let length): return (result, Array(copy[..<length]))
        case .handshake, .cookie: break
        }
        return (result, nil)
    }

    /// Seals a packet, or stages it. Returns the datagram if there is one at once.
    func send(_ packet: [UInt8], to peer: WireGuard.PeerIndex, now: Instant) -> [UInt8]? {
        let start = WireGuard.headerSize
        buffer.replaceSubrange(start..<(start + packet.count), with: packet)
        let outcome = buffer.withUnsafeMutableBytes {
            device.seal(peer, in: $0, payloadLength: packet.count, now: now)
        }
        switch outcome {
        case .sealed(let length): return Array(buffer[..<length])
        case .needsHandshake:
            packet.withUnsafeBytes { device.stage(peer, $0, now: now) }
            return nil
        case .unknownPeer: return nil
        }
    }

    /// An inner packet from this node to the other with a number in it.
    func packet(to other: WireGuardNode, number: Int = 0, length: Int = 40) -> [UInt8] {
        innerPacket(from: address, to: other.address, number: number, length: length)
    }
}

/// An IPv4 or IPv6 packet of the given length, at least 48 bytes for IPv6 and 28 for IPv4.
func innerPacket(
    from source: IPAddress, to destination: IPAddress, number: Int = 0, length: Int = 48
) -> [UInt8] {
    var packet: [UInt8]
    let addresses = source.withBytes { Array($0) } + destination.withBytes { Array($0) }
    if source.isV4 {
        packet = [0x45, 0, UInt8(length >> 8), UInt8(length & 255), 0, 0, 0, 0, 64, 17, 0, 0] + addresses
    } else {
        let payload = length - 40
        packet = [0x60, 0, 0, 0, UInt8(payload >> 8), UInt8(payload & 255), 17, 64] + addresses
    }
    packet += withUnsafeBytes(of: UInt64(number).bigEndian) { Array($0) }
    while packet.count < length { packet.append(UInt8(truncatingIfNeeded: packet.count)) }
    return packet
}

/// The number in an inner packet of `innerPacket`.
func number(of packet: [UInt8]) -> Int {
    let start = packet[0] >> 4 == 4 ? 20 : 40
    return packet[start..<(start + 8)].reduce(0) { $0 << 8 | Int($1) }
}

extension Instant {
    /// When simulations begin.
    static let start = Instant(nanoseconds: 1_000_000_000_000)

    static func at(_ seconds: Double) -> Instant {
        Instant(nanoseconds: start.nanoseconds + UInt64(seconds * 1e9))
    }

    /// Seconds since the simulation's start.
    var seconds: Double { (Double(nanoseconds) - Double(Self.start.nanoseconds)) / 1e9 }

    var wall: WireGuard.WallTime {
        WireGuard.WallTime(
            seconds: 1_770_000_000 + nanoseconds / 1_000_000_000,
            nanoseconds: UInt32(nanoseconds % 1_000_000_000))
    }
}

/// Two devices and what is between them, driven by a virtual clock.
final class WireGuardPair {
    let a: WireGuardNode
    let b: WireGuardNode
    let aToB: WireGuard.PeerIndex
    let bToA: WireGuard.PeerIndex

    init(seed: UInt64, limits: WireGuard.Limits = .init(), keepalive: UInt16 = 0) throws {
        a = WireGuardNode(seed: seed, address: "10.0.0.1", limits: limits)
        b = WireGuardNode(seed: seed &+ 0x9e37, address: "10.0.0.2", limits: limits)
        aToB = try a.add(b, keepalive: keepalive)
        bToA = try b.add(a)
    }

    /// Carries everything to and fro without delay or loss until there is nothing more.
    func settle(_ now: Instant) {
        while true {
            let fromA = a.output(now)
            let fromB = b.output(now)
            guard !fromA.isEmpty || !fromB.isEmpty else { return }
            for datagram in fromA { b.receive(datagram, now: now) }
            for datagram in fromB { a.receive(datagram, now: now) }
        }
    }

    /// Makes a session begun by a, and forgets what happened on the way.
    func connect(_ now: Instant = .start) {
        a.device.initiateHandshake(aToB, now: now)
        settle(now)
        a.packets = []
        b.packets = []
    }
}

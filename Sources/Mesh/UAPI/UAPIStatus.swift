// SPDX-License-Identifier: Apache-2.0

extension UAPI {
    /// All that `get` tells: copied from the device in one go, written out elsewhere.
    package struct Status: Sendable {
        /// Our key, if there is one.
        package var privateKey: PrivateKey?
        /// UDP port; 0 before the device is up.
        package var listenPort: UInt16
        /// Mark on outer packets; 0 for none.
        package var firewallMark: UInt32
        /// In the order of their slots.
        package var peers: [PeerStatus]

        /// A status.
        package init(
            privateKey: PrivateKey?, listenPort: UInt16, firewallMark: UInt32, peers: [PeerStatus]
        ) {
            self.privateKey = privateKey
            self.listenPort = listenPort
            self.firewallMark = firewallMark
            self.peers = peers
        }
    }

    /// One peer in a `Status`.
    package struct PeerStatus: Sendable {
        /// The peer's key.
        package var publicKey: NodePublicKey
        /// Nil for none.
        package var presharedKey: WireGuard.PresharedKey?
        /// Where it was last, or is said to be.
        package var endpoint: Endpoint?
        /// When the last handshake was completed.
        package var lastHandshake: WireGuard.WallTime?
        /// Bytes of UDP payload.
        package var sentBytes: UInt64
        /// Bytes of UDP payload, authenticated ones only.
        package var receivedBytes: UInt64
        /// Seconds; 0 for none.
        package var persistentKeepalive: UInt16
        /// In the order in which they were given.
        package var allowedIPs: [IPPrefix]

        /// A peer.
        package init(
            publicKey: NodePublicKey, presharedKey: WireGuard.PresharedKey? = nil, endpoint: Endpoint? = nil,
            lastHandshake: WireGuard.WallTime? = nil, sentBytes: UInt64 = 0, receivedBytes: UInt64 = 0,
            persistentKeepalive: UInt16 = 0, allowedIPs: [IPPrefix] = []
        ) {
            self.publicKey = publicKey
            self.presharedKey = presharedKey
            self.endpoint = endpoint
            self.lastHandshake = lastHandshake
            self.sentBytes = sentBytes
            self.receivedBytes = receivedBytes
            self.persistentKeepalive = persistentKeepalive
            self.allowedIPs = allowedIPs
        }
    }

    /// The answer to a `set` operation.
    package static func answer(_ failure: Failure?) -> [UInt8] {
        Array("errno=\(failure?.errorNumber ?? 0)\n\n".utf8)
    }
}

extension UAPI.Status {
    /// The whole answer to `get`, `errno=0` and the empty line included.
    package var answer: [UInt8] {
        var out = Writer(reserving: 128 + peers.count * 384)
        if let privateKey {
            unsafe privateKey.withUnsafeBytes { unsafe out.key("private_key", $0) }
        }
        if listenPort != 0 { out.number("listen_port", UInt64(listenPort)) }
        if firewallMark != 0 { out.number("fwmark", UInt64(firewallMark)) }
        for peer in peers { out.peer(peer) }
        out.number("errno", 0)
        out.bytes.append(0x0a)
        return out.bytes
    }
}

/// Lines of an answer.
private struct Writer {
    var bytes: [UInt8] = []

    init(reserving count: Int) { bytes.reserveCapacity(count) }

    mutating func peer(_ peer: UAPI.PeerStatus) {
        unsafe peer.publicKey.withUnsafeBytes { unsafe key("public_key", $0) }
        let preshared = peer.presharedKey?.value ?? WireGuard.Bytes32()
        unsafe preshared.withBytes { unsafe key("preshared_key", $0) }
        number("protocol_version", 1)
        if let endpoint = peer.endpoint { line("endpoint", endpoint.description) }
        number("last_handshake_time_sec", peer.lastHandshake?.seconds ?? 0)
        number("last_handshake_time_nsec", UInt64(peer.lastHandshake?.nanoseconds ?? 0))
        number("tx_bytes", peer.sentBytes)
        number("rx_bytes", peer.receivedBytes)
        number("persistent_keepalive_interval", UInt64(peer.persistentKeepalive))
        for prefix in peer.allowedIPs { line("allowed_ip", prefix.description) }
    }

    mutating func line(_ key: StaticString, _ value: String) {
        name(key)
        bytes += value.utf8
        bytes.append(0x0a)
    }

    mutating func number(_ key: StaticString, _ value: UInt64) { line(key, String(value)) }

    mutating func key(_ key: StaticString, _ value: UnsafeRawBufferPointer) {
        name(key)
        for index in value.indices {
            let byte = unsafe value[index]
            bytes.append(Self.digit(byte >> 4))
            bytes.append(Self.digit(byte & 15))
        }
        bytes.append(0x0a)
    }

    private static func digit(_ value: UInt8) -> UInt8 { value < 10 ? 48 + value : 87 + value }

    private mutating func name(_ key: StaticString) {
        unsafe bytes.append(
            contentsOf: UnsafeBufferPointer(start: key.utf8Start, count: key.utf8CodeUnitCount))
        bytes.append(0x3d)
    }
}

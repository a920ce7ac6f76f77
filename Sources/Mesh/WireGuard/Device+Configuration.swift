// SPDX-License-Identifier: Apache-2.0

extension WireGuard {
    /// What is configured and known of a peer, for those who show it.
    package struct PeerDetails: Sendable {
        /// The peer's key.
        package let publicKey: NodePublicKey
        /// Nil for none.
        package let presharedKey: PresharedKey?
        /// In the order in which they were given.
        package let allowedIPs: [IPPrefix]
        /// Seconds; 0 for none.
        package let persistentKeepalive: UInt16
        /// When the last handshake was completed.
        package let lastHandshake: Instant?
        /// Whole UDP payloads sent.
        package let sentBytes: UInt64
        /// Whole UDP payloads received and authenticated.
        package let receivedBytes: UInt64
    }
}

/// Changes and questions of whoever configures a device line by line.
extension WireGuard.Device {
    /// Our long-term key; nil while there is none.
    package var privateKey: PrivateKey? { hasPrivateKey ? identity.privateKey : nil }

    /// Our public key; nil while there is none.
    package var publicKey: NodePublicKey? { hasPrivateKey ? identity.publicKey.nodePublicKey : nil }

    /// Indices in use by handshakes and sessions: at most six per peer.
    package var indexCount: Int { indices.count }

    /// All peers, in the order of their slots.
    package var peerIndices: [WireGuard.PeerIndex] {
        peers.compactMap { $0?.value.index }
    }

    /// What is known of a peer; nil when it is gone.
    package func details(of index: WireGuard.PeerIndex) -> WireGuard.PeerDetails? {
        guard let peer = find(index) else { return nil }
        return Self.details(peer)
    }

    private static func details(_ peer: UnsafeOwned<Peer>) -> WireGuard.PeerDetails {
        let preshared = peer.value.presharedKey
        return WireGuard.PeerDetails(
            publicKey: peer.value.publicKey.nodePublicKey,
            presharedKey: preshared.isZero ? nil : WireGuard.PresharedKey(value: preshared),
            allowedIPs: peer.value.allowedIPs, persistentKeepalive: peer.value.keepaliveInterval,
            lastHandshake: peer.value.lastHandshake, sentBytes: peer.value.sentBytes,
            receivedBytes: peer.value.receivedBytes)
    }

    /// Gives one more prefix to a peer. One that another peer has moves to this one.
    package mutating func addAllowedIP(
        _ prefix: IPPrefix, of index: WireGuard.PeerIndex
    ) throws(WireGuard.ConfigurationError) {
        guard let peer = find(index) else { throw .unknownPeer }
        guard allowedIPs.count < limits.allowedIPs else { throw .tooManyAllowedIPs }
        give(prefix, to: peer)
    }

    /// Takes one prefix away from a peer; nothing happens if it is not this peer's.
    package mutating func removeAllowedIP(_ prefix: IPPrefix, of index: WireGuard.PeerIndex) {
        guard let peer = find(index), let place = peer.value.allowedIPs.firstIndex(of: prefix) else { return }
        peer.value.allowedIPs.remove(at: place)
        allowedIPs.remove(prefix)
    }

    /// Changes the interval and sends nothing: the next packet starts the timer. True: it was off and now is
    /// on, so that a keepalive should follow.
    package mutating func setKeepaliveInterval(_ seconds: UInt16, of index: WireGuard.PeerIndex) -> Bool {
        guard let peer = find(index), peer.value.keepaliveInterval != seconds else { return false }
        let wasOff = peer.value.keepaliveInterval == 0
        peer.value.keepaliveInterval = seconds
        peer.value.timers.persistentKeepalive = .never
        return wasOff && seconds > 0
    }

    /// Sends an empty packet, or what waits for the peer; begins a handshake if there is no session.
    package mutating func sendKeepalive(to index: WireGuard.PeerIndex, now: Instant) {
        guard let peer = find(index) else { return }
        if peer.value.keepaliveInterval > 0 { armPersistentKeepalive(peer, now: now) }
        sendKeepalive(peer, now: now)
    }
}

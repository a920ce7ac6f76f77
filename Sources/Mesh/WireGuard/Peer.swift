// SPDX-License-Identifier: Apache-2.0

internal import DequeModule

extension WireGuard {
    /// One session: two keys, our counter, the peer's window. About 1.2 KB, allocated when a handshake
    /// succeeds.
    struct KeyPair: ~Copyable {
        let keys: SessionKeys
        let peer: UnsafeOwned<Peer>
        /// What the peer writes to reach this session.
        let localIndex: UInt32
        /// What we write.
        let remoteIndex: UInt32
        let created: Instant
        /// We began the handshake, so we renew it.
        let isInitiator: Bool
        /// Age at which we do.
        let rekeyAfter: Interval
        /// Next counter to send with.
        var counter: UInt64 = 0
        var window = ReplayWindow()
    }

    /// What the response message still needs when it is written out: everything else is known.
    struct PendingResponse: BitwiseCopyable {
        /// The first 60 bytes.
        var message = InlineArray<60, UInt8>(repeating: 0)
    }

    /// Deadlines of a peer; `never` when not running.
    struct PeerTimers: BitwiseCopyable {
        var retransmit = Instant.never
        var passiveKeepalive = Instant.never
        var newHandshake = Instant.never
        var wipe = Instant.never
        var persistentKeepalive = Instant.never

        var earliest: Instant {
            min(retransmit, passiveKeepalive, min(newHandshake, wipe, persistentKeepalive))
        }
    }

    /// All that is known of one peer: about 800 bytes before the first session.
    struct Peer: ~Copyable {
        let publicKey: Bytes32
        let index: PeerIndex
        let mac1Key: Bytes32
        let cookieKey: Bytes32
        var presharedKey: Bytes32
        /// DH of both long-term keys; nil after our key was replaced, until it is needed.
        var staticShared: Bytes32?
        var allowedIPs: [IPPrefix] = []

        // Sessions. At most one of a kind; each is in the index table while it is here.
        /// Made by the peer's initiation, not confirmed yet: receives only.
        var next: UnsafeOwned<KeyPair>?
        /// Sends and receives.
        var current: UnsafeOwned<KeyPair>?
        /// Sessions before the current one, newest first: they receive packets that were under way during a
        /// change. The paper keeps one. After both sides began at once each sends with another session, and
        /// when that happens twice in a row, packets on three old ones may be under way.
        var old = InlineArray<3, UnsafeOwned<KeyPair>?>(repeating: nil)

        // Handshake.
        var initiation: InitiatorHandshake?
        var response: PendingResponse?
        var initiationSentAt = Instant(nanoseconds: 0)
        var wantsInitiation = false
        var wantsKeepalive = false
        var wrongResponses: UInt8 = 0
        var attempts = 0
        var sentLastMinute = false
        /// The next initiation is sent because no answer came.
        var wasSilent = false
        /// Last initiation or response sent. Nil: none that counts.
        var lastSentHandshake: Instant?
        var lastInitiation: Instant?
        var greatestTimestamp = Timestamp.none
        var lastHandshake: Instant?

        // Cookies.
        var cookie = Bytes16()
        var cookieAt: Instant?
        var lastMAC1: Bytes16?

        // Timers.
        var timers = PeerTimers()
        var needsAnotherKeepalive = false
        var repeatsKeepalive = false
        var keepaliveInterval: UInt16

        /// Packets that wait for a session, oldest first. Empty costs nothing.
        var staged = Deque<[UInt8]>()

        // Statistics.
        var sentBytes: UInt64 = 0
        var receivedBytes: UInt64 = 0

        /// Inner source address that was last found to be this peer's, and the table's version then.
        var checkedSource = IPAddress(v4: 0)
        var checkedVersion: UInt64 = 0

        init(_ configuration: borrowing PeerConfiguration, index: PeerIndex, staticShared: Bytes32) {
            publicKey = Bytes32(configuration.publicKey)
            self.index = index
            mac1Key = BLAKE2s.hash(label: "mac1----", publicKey)
            cookieKey = BLAKE2s.hash(label: "cookie--", publicKey)
            presharedKey = configuration.presharedKey?.value ?? Bytes32()
            self.staticShared = staticShared
            keepaliveInterval = configuration.persistentKeepalive
        }
    }

    /// Bytes of a peer without prefixes, sessions and waiting packets, and of one session.
    package static var peerMemory: (idle: Int, session: Int) {
        (MemoryLayout<Peer>.stride, MemoryLayout<KeyPair>.stride)
    }

    /// What the caller says of a peer.
    package struct PeerConfiguration: Sendable {
        /// The peer's node key.
        package var publicKey: NodePublicKey
        /// Mixed into the handshake; nil in Coder's use.
        package var presharedKey: PresharedKey?
        /// Inner addresses of the peer: where to send, and what may come from it.
        package var allowedIPs: [IPPrefix]
        /// Seconds between packets that keep a NAT's mapping open; 0 for none.
        package var persistentKeepalive: UInt16

        /// A peer.
        package init(
            publicKey: NodePublicKey, presharedKey: PresharedKey? = nil, allowedIPs: [IPPrefix] = [],
            persistentKeepalive: UInt16 = 0
        ) {
            self.publicKey = publicKey
            self.presharedKey = presharedKey
            self.allowedIPs = allowedIPs
            self.persistentKeepalive = persistentKeepalive
        }
    }

    /// Why a peer could not be set up.
    package enum ConfigurationError: Error, Hashable, Sendable {
        /// There is a peer with this key.
        case duplicatePeer
        /// The key is our own.
        case ownKey
        /// The key is a low-order point: no secret can be shared with it.
        case lowOrderKey
        /// `Limits.peers` reached.
        case tooManyPeers
        /// `Limits.allowedIPs` reached.
        case tooManyAllowedIPs
        /// The peer is gone.
        case unknownPeer
    }

    /// What is known of a peer's traffic.
    package struct PeerStatistics: Hashable, Sendable {
        /// Whole UDP payloads sent, handshakes included.
        package var sentBytes: UInt64
        /// Whole UDP payloads received and authenticated.
        package var receivedBytes: UInt64
        /// When the last handshake was completed.
        package var lastHandshake: Instant?
        /// Whether a packet would be sealed at once.
        package var hasSession: Bool
        /// Packets that wait for a session.
        package var stagedPackets: Int
    }
}

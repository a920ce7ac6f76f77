// SPDX-License-Identifier: Apache-2.0

internal import CSodium
internal import DequeModule

extension WireGuard {
    /// Where secrets and indices come from.
    package enum Randomness: RandomNumberGenerator, Sendable {
        /// The system's generator: for everything but tests.
        case system
        /// A reproducible one: for tests and simulators.
        case seeded(SeededGenerator)
        /// These numbers, one by one: for test vectors.
        case scripted([UInt64])

        package mutating func next() -> UInt64 {
            switch self {
            case .system:
                var generator = SystemRandomNumberGenerator()
                return generator.next()
            case .seeded(var generator):
                let number = generator.next()
                self = .seeded(generator)
                return number
            case .scripted(var numbers):
                precondition(!numbers.isEmpty, "the script has all numbers that are asked for")
                let number = numbers.removeFirst()
                self = .scripted(numbers)
                return number
            }
        }

        mutating func nextBytes32() -> Bytes32 {
            var result = Bytes32()
            result.words = (next(), next(), next(), next())
            return result
        }
    }

    /// All WireGuard peers of one node. No I/O, no clock: the caller passes the time and the packet memory,
    /// in which packets are sealed and opened in place. One owner, one thread.
    ///
    /// Drive it like this: feed one or many inputs (`receive`, `seal`, `stage`, changes of peers); while
    /// `hasOutput`, call `nextOutput` and send what it gives to that peer; sleep until `nextDeadline`, then
    /// call `handleTimeout` and look for output again.
    package struct Device: ~Copyable {
        /// Our long-term key and what follows from it.
        package internal(set) var identity: Identity
        /// Whether that key was given to us. If not, a random one stands in its place, and nothing is begun.
        var hasPrivateKey: Bool
        /// Times and bounds.
        package let limits: Limits
        /// Longest inner packet; packets are not padded beyond it.
        package private(set) var mtu: Int
        /// What was counted so far.
        package internal(set) var counters = Counters()

        var cipher: PacketCipher
        var randomness: Randomness
        /// Not secret: only spreads timers.
        var jitter: SeededGenerator

        // Peers by slot. A free slot has a generation that no living index has.
        var peers: [UnsafeOwned<Peer>?] = []
        var generations: [UInt32] = []
        var freeSlots: [UInt32] = []
        var slots: [NodePublicKey: UInt32] = [:]
        var allowedIPs = AllowedIPs()
        var indices = IndexTable()
        var timers = TimerHeap()

        /// Slots that may have something to send, each at most once.
        var ready = Deque<UInt32>()
        var isReady: [Bool] = []
        var stagedBytes = 0
        /// Where room was last taken for another peer's packet.
        var displacedSlot = 0

        var load = LoadMeter()
        var sources = SourceLimiter()
        var cookieSecret = Bytes32()
        var cookieSecretAt: Instant?
        /// Timestamp of our last initiation: the next one is greater even if the wall clock stands still.
        var lastTimestamp = Timestamp.none

        /// A device without peers. `backEnd` is for tests and measurements. Without a key it does nothing until
        /// it gets one.
        package init(
            privateKey: PrivateKey?, mtu: Int = 1280, limits: Limits = Limits(),
            randomness: Randomness = .system,
            backEnd: PacketCipher.BackEnd = PacketCipher.preferred
        ) {
            precondition(mtu >= 0 && mtu <= 65_535 - overhead, "an MTU that fits into UDP")
            var randomness = randomness
            identity = Identity(privateKey ?? PrivateKey(using: &randomness))
            hasPrivateKey = privateKey != nil
            self.limits = limits
            self.mtu = mtu
            self.randomness = randomness
            jitter = SeededGenerator(seed: self.randomness.next())
            cipher = PacketCipher(backEnd)
        }

        deinit {
            for case let peer? in peers {
                let (next, current, old) = (peer.value.next, peer.value.current, peer.value.old)
                for case let pair? in [next, current, old[0], old[1], old[2]] { pair.free() }
                peer.free()
            }
        }

        /// Size of buffer that holds everything `nextOutput` writes.
        package var outputSize: Int {
            max(WireGuard.initiationSize, WireGuard.paddedLength(mtu, mtu: mtu) + WireGuard.overhead)
        }

        /// Changes the longest inner packet.
        package mutating func setMTU(_ bytes: Int) {
            precondition(bytes >= 0 && bytes <= 65_535 - overhead, "an MTU that fits into UDP")
            mtu = bytes
        }

        // MARK: Peers

        /// How many peers there are.
        package var peerCount: Int { slots.count }

        /// Adds a peer; a prefix that another peer has moves to this one. Costs one DH (about 40 µs).
        package mutating func addPeer(
            _ configuration: PeerConfiguration, now: Instant
        ) throws(ConfigurationError) -> PeerIndex {
            let key = Bytes32(configuration.publicKey)
            guard key != identity.publicKey else { throw .ownKey }
            guard slots[configuration.publicKey] == nil else { throw .duplicatePeer }
            guard slots.count < limits.peers else { throw .tooManyPeers }
            guard allowedIPs.count + configuration.allowedIPs.count <= limits.allowedIPs else {
                throw .tooManyAllowedIPs
            }
            guard let shared = identity.staticShared(with: key) else { throw .lowOrderKey }
            let slot: UInt32
            if let free = freeSlots.popLast() {
                slot = free
            } else {
                slot = UInt32(peers.count)
                peers.append(nil)
                generations.append(0)
                isReady.append(false)
            }
            let index = PeerIndex(slot: slot, generation: generations[Int(slot)])
            let peer = UnsafeOwned(Peer(configuration, index: index, staticShared: shared))
            peers[Int(slot)] = peer
            slots[configuration.publicKey] = slot
            for prefix in configuration.allowedIPs { give(prefix, to: peer) }
            if configuration.persistentKeepalive > 0 { sendKeepalive(peer, now: now) }
            return index
        }

        /// Removes a peer with its sessions, prefixes and waiting packets. False: it was gone already.
        @discardableResult
        package mutating func removePeer(_ index: PeerIndex) -> Bool {
            guard let peer = find(index) else { return false }
            closeSessions(of: peer)
            _ = dropStaged(peer)
            for prefix in peer.value.allowedIPs { allowedIPs.remove(prefix) }
            slots[peer.value.publicKey.nodePublicKey] = nil
            timers.set(index.slot, to: .never)
            peers[Int(index.slot)] = nil
            generations[Int(index.slot)] &+= 1
            freeSlots.append(index.slot)
            peer.free()
            return true
        }

        /// Replaces the peer's prefixes. One that another peer has moves to this one.
        package mutating func setAllowedIPs(
            _ prefixes: [IPPrefix], of index: PeerIndex
        ) throws(ConfigurationError) {
            guard let peer = find(index) else { throw .unknownPeer }
            let old = peer.value.allowedIPs
            guard allowedIPs.count - old.count + prefixes.count <= limits.allowedIPs else {
                throw .tooManyAllowedIPs
            }
            for prefix in old { allowedIPs.remove(prefix) }
            peer.value.allowedIPs = []
            for prefix in prefixes { give(prefix, to: peer) }
        }

        mutating func give(_ prefix: IPPrefix, to peer: UnsafeOwned<Peer>) {
            let slot = peer.value.index.slot
            if let before = allowedIPs.insert(prefix, owner: slot) {
                guard before != slot else { return }
                peers[Int(before)]?.value.allowedIPs.removeAll { $0 == prefix }
            }
            peer.value.allowedIPs.append(prefix)
        }

        /// Changes the interval; turning it on sends a keepalive at once. 0 turns it off.
        package mutating func setPersistentKeepalive(_ seconds: UInt16, of index: PeerIndex, now: Instant) {
            let isTurnedOn = setKeepaliveInterval(seconds, of: index)
            guard let peer = find(index), seconds > 0 else { return }
            armPersistentKeepalive(peer, now: now)
            if isTurnedOn { sendKeepalive(peer, now: now) }
        }

        /// Changes the preshared key for all later handshakes.
        package mutating func setPresharedKey(_ key: PresharedKey?, of index: PeerIndex) {
            find(index)?.value.presharedKey = key?.value ?? Bytes32()
        }

        /// Replaces our long-term key, or takes it away. Sessions still receive, but no longer send: the next
        /// packet starts a handshake with the new key. A peer with that very key is removed and returned. The
        /// same key again changes nothing. Handshakes that were under way begin anew.
        @discardableResult
        package mutating func setPrivateKey(_ key: PrivateKey?, now: Instant) -> PeerIndex? {
            let new = Identity(key ?? PrivateKey(using: &randomness))
            guard new.publicKey != identity.publicKey || hasPrivateKey != (key != nil) else { return nil }
            identity = new
            hasPrivateKey = key != nil
            var removed: PeerIndex?
            if let slot = slots[new.publicKey.nodePublicKey], let peer = peers[Int(slot)] {
                removed = peer.value.index
                removePeer(peer.value.index)
            }
            for case let peer? in peers {
                let wasSought =
                    peer.value.wantsInitiation || peer.value.timers.retransmit != .never
                    || !peer.value.staged.isEmpty
                peer.value.staticShared = nil
                peer.value.response = nil
                peer.value.lastSentHandshake = nil
                closeInitiation(of: peer)
                peer.value.timers.retransmit = .never
                peer.value.attempts = 0
                peer.value.wantsInitiation = false
                peer.value.current?.value.counter = limits.rejectAfterMessages
                peer.value.next?.value.counter = limits.rejectAfterMessages
                if wasSought { requestInitiation(peer, isRetry: false, now: now) }
            }
            return removed
        }

        /// The peer with this key.
        package func peer(for key: NodePublicKey) -> PeerIndex? {
            guard let slot = slots[key] else { return nil }
            return index(of: slot)
        }

        /// The peer that packets for this inner address go to.
        @inline(__always)
        package func peer(for destination: IPAddress) -> PeerIndex? {
            guard let slot = allowedIPs.owner(of: destination) else { return nil }
            return index(of: slot)
        }

        /// Traffic of a peer; nil when it is gone.
        package func statistics(of index: PeerIndex, now: Instant) -> PeerStatistics? {
            guard let peer = find(index) else { return nil }
            return PeerStatistics(
                sentBytes: peer.value.sentBytes, receivedBytes: peer.value.receivedBytes,
                lastHandshake: peer.value.lastHandshake,
                hasSession: usablePair(of: peer, packets: 1, now: now) != nil,
                stagedPackets: peer.value.staged.count)
        }

        @inline(__always)
        private func index(of slot: UInt32) -> PeerIndex {
            PeerIndex(slot: slot, generation: generations[Int(slot)])
        }

        @inline(__always)
        func find(_ index: PeerIndex) -> UnsafeOwned<Peer>? {
            let slot = Int(index.slot)
            guard slot < peers.count, generations[slot] == index.generation else { return nil }
            return peers[slot]
        }

        // MARK: Time

        /// When `handleTimeout` must be called at the latest; `never` when nothing is due. May be early: then
        /// nothing happens.
        package var nextDeadline: Instant { timers.first?.at ?? .never }
    }
}

extension WireGuard.Device: @unchecked Sendable {}  // everything it points to is its own; see UnsafeOwned

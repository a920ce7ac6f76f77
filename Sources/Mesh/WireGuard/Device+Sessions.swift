// SPDX-License-Identifier: Apache-2.0

internal import DequeModule

extension WireGuard.Device {
    // MARK: Sessions

    /// A random index that no handshake and no session has.
    mutating func freshIndex() -> UInt32 {
        while true {
            let index = UInt32(truncatingIfNeeded: randomness.next())
            if indices.find(index) == nil { return index }
        }
    }

    /// Our initiation was answered: the session sends at once.
    mutating func beginAsInitiator(
        _ peer: UnsafeOwned<Peer>, keys: WireGuard.SessionKeys, local: UInt32, remote: UInt32, now: Instant
    ) {
        closeInitiation(of: peer)
        // The peer began as well: both sessions are good and each side sends with its own. Without this, both
        // would renew at the same moment again, for ever; so one waits a little, and finds the other's
        // session in place.
        let isGlare = peer.value.next != nil || isCurrentCrossing(peer)
        let isLater = isGlare && peer.value.publicKey.nodePublicKey < identity.publicKey.nodePublicKey
        if isGlare { counters.glares &+= 1 }
        let rekeyAfter = isLater ? limits.rekeyAfterTime + limits.glareDelay : limits.rekeyAfterTime
        let pair = UnsafeOwned(
            KeyPair(
                keys: keys, peer: peer, localIndex: local, remoteIndex: remote, created: now,
                isInitiator: true,
                rekeyAfter: rekeyAfter))
        indices.insert(local, slot: peer.value.index.slot, pair: pair)
        retire(&peer.value.current, of: peer)
        retire(&peer.value.next, of: peer)
        peer.value.current = pair
        sessionDerived(peer, now: now)
    }

    /// Whether the peer began the current session after we sent our initiation.
    private func isCurrentCrossing(_ peer: UnsafeOwned<Peer>) -> Bool {
        guard let pair = peer.value.current else { return false }
        return !pair.value.isInitiator && pair.value.created >= peer.value.initiationSentAt
    }

    /// Puts a session in front of the old ones; the oldest goes.
    private mutating func retire(_ slot: inout UnsafeOwned<KeyPair>?, of peer: UnsafeOwned<Peer>) {
        guard let pair = slot else { return }
        slot = nil
        close(&peer.value.old[2])
        peer.value.old[2] = peer.value.old[1]
        peer.value.old[1] = peer.value.old[0]
        peer.value.old[0] = pair
    }

    /// We answered an initiation: the session receives, and sends once the peer has shown that it has the
    /// keys.
    mutating func beginAsResponder(
        _ peer: UnsafeOwned<Peer>, keys: WireGuard.SessionKeys, local: UInt32, remote: UInt32, now: Instant
    ) {
        let pair = UnsafeOwned(
            KeyPair(
                keys: keys, peer: peer, localIndex: local, remoteIndex: remote, created: now,
                isInitiator: false,
                rekeyAfter: limits.rekeyAfterTime))
        indices.insert(local, slot: peer.value.index.slot, pair: pair)
        close(&peer.value.next)
        peer.value.next = pair
        sessionDerived(peer, now: now)
    }

    /// First valid packet on a session that the peer began.
    @inline(never)
    mutating func confirmNext(of peer: UnsafeOwned<Peer>, now: Instant) {
        retire(&peer.value.current, of: peer)
        peer.value.current = peer.value.next
        peer.value.next = nil
        handshakeCompleted(peer, now: now)
        makeReady(peer)
    }

    private mutating func close(_ slot: inout UnsafeOwned<KeyPair>?) {
        guard let pair = slot else { return }
        slot = nil
        indices.remove(pair.value.localIndex)
        cipher.forget(pair.value.keys.send)
        cipher.forget(pair.value.keys.receive)
        pair.free()
    }

    /// Ends the wait for a response.
    mutating func closeInitiation(of peer: UnsafeOwned<Peer>) {
        guard let initiation = peer.value.initiation else { return }
        indices.remove(initiation.index)
        peer.value.initiation?.wipe()
        peer.value.initiation = nil
        peer.value.wrongResponses = 0
    }

    /// Forgets all keys of a peer.
    mutating func closeSessions(of peer: UnsafeOwned<Peer>) {
        close(&peer.value.next)
        close(&peer.value.current)
        for place in 0..<3 { close(&peer.value.old[place]) }
        closeInitiation(of: peer)
        peer.value.response = nil
    }

    /// Throws away the packets that wait for a session, and counts them.
    mutating func dropStaged(_ peer: UnsafeOwned<Peer>) -> Int {
        let count = peer.value.staged.count
        for packet in peer.value.staged { stagedBytes -= packet.count }
        peer.value.staged = []
        counters[.handshakeAbandoned] &+= UInt64(count)
        return count
    }

    // MARK: Events that start and stop timers (named as in wireguard-go)

    mutating func armPersistentKeepalive(_ peer: UnsafeOwned<Peer>, now: Instant) {
        peer.value.timers.persistentKeepalive = now + .seconds(UInt64(peer.value.keepaliveInterval))
        wake(peer, at: peer.value.timers.persistentKeepalive)
    }

    /// Makes sure that the peer's timers are looked at by then. Later deadlines stay: they are sorted out
    /// when they come, so that a packet seldom touches the heap.
    @inline(__always)
    mutating func wake(_ peer: UnsafeOwned<Peer>, at: Instant) {
        let slot = peer.value.index.slot
        if at < timers.deadline(of: slot) { timers.set(slot, to: at) }
    }

    @inline(__always)
    mutating func authenticatedPacketReceived(_ peer: UnsafeOwned<Peer>, now: Instant) {
        peer.value.timers.newHandshake = .never
        if peer.value.keepaliveInterval > 0 { armPersistentKeepalive(peer, now: now) }
    }

    @inline(__always)
    mutating func authenticatedPacketSent(_ peer: UnsafeOwned<Peer>, now: Instant) {
        peer.value.timers.passiveKeepalive = .never
        if peer.value.keepaliveInterval > 0 { armPersistentKeepalive(peer, now: now) }
    }

    @inline(__always)
    mutating func dataReceived(_ peer: UnsafeOwned<Peer>, now: Instant) {
        if peer.value.timers.passiveKeepalive == .never {
            peer.value.timers.passiveKeepalive = now + limits.keepaliveTimeout
            wake(peer, at: peer.value.timers.passiveKeepalive)
        } else {
            peer.value.needsAnotherKeepalive = true
        }
    }

    @inline(__always)
    mutating func dataSent(_ peer: UnsafeOwned<Peer>, now: Instant) {
        guard peer.value.timers.newHandshake == .never else { return }
        peer.value.timers.newHandshake = now + limits.keepaliveTimeout + limits.rekeyTimeout + nextJitter()
        wake(peer, at: peer.value.timers.newHandshake)
    }

    private mutating func sessionDerived(_ peer: UnsafeOwned<Peer>, now: Instant) {
        peer.value.timers.wipe = now + limits.rejectAfterTime * 3
        wake(peer, at: peer.value.timers.wipe)
    }

    mutating func handshakeCompleted(_ peer: UnsafeOwned<Peer>, now: Instant) {
        peer.value.timers.retransmit = .never
        peer.value.attempts = 0
        peer.value.sentLastMinute = false
        peer.value.wasSilent = false
        peer.value.wantsInitiation = false
        peer.value.lastHandshake = now
    }

    func jitterRange() -> UInt64 { max(limits.jitter.nanoseconds, 1) }

    mutating func nextJitter() -> Interval { Interval(nanoseconds: jitter.next() % jitterRange()) }

    /// Data came in on a session of ours that is near its end: renew it, once.
    @inline(__always)
    mutating func renewBeforeLastMinute(_ peer: UnsafeOwned<Peer>, now: Instant) {
        guard !peer.value.sentLastMinute, let pair = peer.value.current, pair.value.isInitiator,
            now.since(pair.value.created) > limits.lastMinute
        else { return }
        peer.value.sentLastMinute = true
        requestInitiation(peer, isRetry: false, now: now)
    }

    /// Asks for an initiation to be sent, unless one of our handshake messages went out too recently.
    mutating func requestInitiation(_ peer: UnsafeOwned<Peer>, isRetry: Bool, now: Instant) {
        if !isRetry { peer.value.attempts = 0 }
        guard !peer.value.wantsInitiation, hasPrivateKey else { return }
        if let last = peer.value.lastSentHandshake, now.since(last) < limits.rekeyTimeout {
            // We answered the peer a moment ago and wait for its confirmation; if that got lost, try
            // ourselves.
            if peer.value.timers.retransmit == .never, usablePair(of: peer, packets: 1, now: now) == nil {
                peer.value.timers.retransmit = last + limits.rekeyTimeout + nextJitter()
                wake(peer, at: peer.value.timers.retransmit)
            }
            return
        }
        peer.value.lastSentHandshake = now
        peer.value.wantsInitiation = true
        makeReady(peer)
    }

    /// Sends an empty packet, or the packets that wait; begins a handshake if there is no session.
    mutating func sendKeepalive(_ peer: UnsafeOwned<Peer>, now: Instant) {
        if peer.value.staged.isEmpty { peer.value.wantsKeepalive = true }
        if usablePair(of: peer, packets: 1, now: now) != nil {
            makeReady(peer)
        } else {
            requestInitiation(peer, isRetry: false, now: now)
        }
    }

    // MARK: Timeouts

    /// Does what is due. There may be output afterwards.
    package mutating func handleTimeout(now: Instant) {
        while let first = timers.first, first.at <= now {
            guard let peer = peers[Int(first.slot)] else {
                timers.set(first.slot, to: .never)
                continue
            }
            handleTimeout(of: peer, now: now)
            timers.set(first.slot, to: peer.value.timers.earliest)
        }
    }

    private mutating func handleTimeout(of peer: UnsafeOwned<Peer>, now: Instant) {
        if peer.value.timers.retransmit <= now {
            peer.value.timers.retransmit = .never
            retransmit(peer, now: now)
        }
        if peer.value.timers.passiveKeepalive <= now {
            peer.value.timers.passiveKeepalive = .never
            sendKeepalive(peer, now: now)
            if peer.value.needsAnotherKeepalive {
                peer.value.needsAnotherKeepalive = false
                peer.value.repeatsKeepalive = true
            }
        }
        if peer.value.timers.newHandshake <= now {
            peer.value.timers.newHandshake = .never
            peer.value.wasSilent = true
            requestInitiation(peer, isRetry: false, now: now)
        }
        if peer.value.timers.wipe <= now {
            peer.value.timers.wipe = .never
            closeSessions(of: peer)
            _ = dropStaged(peer)
        }
        if peer.value.timers.persistentKeepalive <= now {
            peer.value.timers.persistentKeepalive = .never
            if peer.value.keepaliveInterval > 0 {
                armPersistentKeepalive(peer, now: now)
                sendKeepalive(peer, now: now)
            }
        }
    }

    /// The initiation was not answered: another one, with new ephemeral key and timestamp, or give up.
    private mutating func retransmit(_ peer: UnsafeOwned<Peer>, now: Instant) {
        guard peer.value.attempts < limits.retransmissions else {
            counters.handshakesAbandoned &+= 1
            peer.value.timers.passiveKeepalive = .never
            peer.value.wantsKeepalive = false
            _ = dropStaged(peer)
            if peer.value.timers.wipe == .never { sessionDerived(peer, now: now) }
            return
        }
        peer.value.attempts += 1
        peer.value.wasSilent = true
        requestInitiation(peer, isRetry: true, now: now)
    }
}

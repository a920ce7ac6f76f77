// SPDX-License-Identifier: Apache-2.0

internal import DequeModule

extension WireGuard {
    /// What became of packets to seal.
    package enum SealOutcome: Hashable, Sendable {
        /// The datagrams take this many bytes from the start of the buffer.
        case sealed(length: Int)
        /// There is no session. One is being sought: hand the packets to `stage`, or drop them.
        case needsHandshake
        /// The peer was removed.
        case unknownPeer
    }

    /// A datagram that a device wants to be sent.
    package struct Output: Hashable, Sendable {
        /// To whom.
        package let peer: PeerIndex
        /// Length from the start of the buffer.
        package let length: Int
        /// Whether it carries an inner packet, as opposed to handshakes and keepalives.
        package let isData: Bool
        /// Whether it is an initiation because the peer was silent: the way to it may be another one now.
        package var followsSilence = false
    }
}

extension WireGuard.Device {
    // MARK: Data path

    /// The session that packets to this peer are sealed with.
    @inline(__always)
    func usablePair(of peer: UnsafeOwned<Peer>, packets: Int, now: Instant) -> UnsafeOwned<KeyPair>? {
        guard let pair = peer.value.current, now.since(pair.value.created) < limits.rejectAfterTime,
            pair.value.counter < limits.rejectAfterMessages,
            limits.rejectAfterMessages - pair.value.counter >= UInt64(packets)
        else { return nil }
        return pair
    }

    /// Seals one inner packet in place. The packet begins `headerSize` bytes into the buffer; behind it must
    /// be room for padding and tag (`paddedLength` + 16).
    @inline(__always)
    package mutating func seal(
        _ index: WireGuard.PeerIndex, in buffer: UnsafeMutableRawBufferPointer, payloadLength: Int,
        now: Instant
    ) -> WireGuard.SealOutcome {
        guard let peer = find(index) else { return .unknownPeer }
        guard let pair = usablePair(of: peer, packets: 1, now: now) else {
            requestInitiation(peer, isRetry: false, now: now)
            return .needsHandshake
        }
        cipher.load(pair.value.keys.send)
        let length = unsafe seal(pair, in: buffer, at: 0, payloadLength: payloadLength)
        packetsSent(peer, pair, bytes: length, hasData: payloadLength > 0, now: now)
        return .sealed(length: length)
    }

    /// Seals a burst of inner packets to one peer, laid out so that the datagrams lie one behind the other as
    /// one UDP_SEGMENT send wants them: packet i begins `headerSize` bytes behind the end of datagram i − 1,
    /// and datagram i is `paddedLength(length i) + overhead` long. The session is looked up once.
    package mutating func sealBurst(
        _ index: WireGuard.PeerIndex, in buffer: UnsafeMutableRawBufferPointer, payloadLengths: Span<Int>,
        now: Instant
    ) -> WireGuard.SealOutcome {
        guard let peer = find(index) else { return .unknownPeer }
        guard let pair = usablePair(of: peer, packets: payloadLengths.count, now: now) else {
            requestInitiation(peer, isRetry: false, now: now)
            return .needsHandshake
        }
        cipher.load(pair.value.keys.send)
        var offset = 0
        for place in payloadLengths.indices {
            offset += unsafe seal(pair, in: buffer, at: offset, payloadLength: payloadLengths[place])
        }
        packetsSent(peer, pair, bytes: offset, hasData: true, now: now)
        return .sealed(length: offset)
    }

    /// Header, padding, tag. The cipher has the session's key.
    @inline(__always)
    private func seal(
        _ pair: UnsafeOwned<KeyPair>, in buffer: UnsafeMutableRawBufferPointer, at offset: Int,
        payloadLength: Int
    ) -> Int {
        let padded = WireGuard.paddedLength(payloadLength, mtu: mtu)
        let length = padded + WireGuard.overhead
        precondition(
            payloadLength >= 0 && offset <= buffer.count - length, "room for header, padding and tag")
        let base = unsafe buffer.baseAddress! + offset
        let text = unsafe base + WireGuard.headerSize
        unsafe base.store32(WireGuard.MessageType.data, at: 0)
        unsafe base.store32(pair.value.remoteIndex, at: 4)
        unsafe base.store64(pair.value.counter, at: 8)
        var end = payloadLength
        while end < padded {
            unsafe text.storeBytes(of: 0, toByteOffset: end, as: UInt8.self)
            end += 1
        }
        unsafe cipher.seal(text, length: padded, counter: pair.value.counter)
        pair.value.counter += 1  // below the limit, which is below the type's end
        return length
    }

    /// Statistics and timers after a burst, and the next handshake when the session is old.
    @inline(__always)
    mutating func packetsSent(
        _ peer: UnsafeOwned<Peer>, _ pair: UnsafeOwned<KeyPair>, bytes: Int, hasData: Bool, now: Instant
    ) {
        peer.value.sentBytes &+= UInt64(bytes)
        authenticatedPacketSent(peer, now: now)
        if hasData { dataSent(peer, now: now) }
        // Keepalives renew too, or an idle peer would be without a session every now and then.
        if pair.value.counter > limits.rekeyAfterMessages
            || pair.value.isInitiator && now.since(pair.value.created) >= pair.value.rekeyAfter
        {
            requestInitiation(peer, isRetry: false, now: now)
        }
    }

    /// Keeps a copy of an inner packet until there is a session, and asks for one. The oldest packets give
    /// way.
    package mutating func stage(_ index: WireGuard.PeerIndex, _ packet: UnsafeRawBufferPointer, now: Instant)
    {
        guard let peer = find(index) else { return }
        // The MTU may have become smaller since the packet was made.
        guard mtu == 0 || packet.count <= mtu else {
            counters[.longerThanMTU] &+= 1
            return
        }
        if peer.value.staged.count >= limits.stagedPackets { displaceStaged(of: peer) }
        while stagedBytes + packet.count > limits.stagedBytes {
            guard displaceStaged(of: peer) || displaceStagedOfAnyPeer() else {
                counters[.stagedOverflow] &+= 1
                return
            }
        }
        stagedBytes += packet.count
        unsafe peer.value.staged.append(Array(packet))
        if usablePair(of: peer, packets: 1, now: now) != nil {
            makeReady(peer)
        } else {
            requestInitiation(peer, isRetry: false, now: now)
        }
    }

    /// Throws away the oldest packet that waits for the peer's session; false when none does.
    @discardableResult
    private mutating func displaceStaged(of peer: UnsafeOwned<Peer>) -> Bool {
        guard let oldest = peer.value.staged.popFirst() else { return false }
        stagedBytes -= oldest.count
        counters[.stagedOverflow] &+= 1
        return true
    }

    /// Makes room for a peer for which nothing waits: peers that cannot be reached must not use up all room.
    /// They give in turn, those first that have more than their share. Costs a look at each peer at worst, and
    /// that once per peer until its packets are gone.
    private mutating func displaceStagedOfAnyPeer() -> Bool {
        for share in [limits.stagedShare, 0] {
            for _ in peers.indices {
                displacedSlot = displacedSlot + 1 < peers.count ? displacedSlot + 1 : 0
                if let peer = peers[displacedSlot], peer.value.staged.count > share {
                    return displaceStaged(of: peer)
                }
            }
        }
        return false
    }

    /// Begins a handshake now, unless one of our handshake messages went out within the last 5 s.
    package mutating func initiateHandshake(_ index: WireGuard.PeerIndex, now: Instant) {
        guard let peer = find(index) else { return }
        requestInitiation(peer, isRetry: false, now: now)
    }

    /// Begins a handshake now although one of our initiations was made lately: it never left this machine.
    package mutating func repeatInitiation(_ index: WireGuard.PeerIndex, now: Instant) {
        guard let peer = find(index), usablePair(of: peer, packets: 1, now: now) == nil else { return }
        peer.value.lastSentHandshake = nil
        requestInitiation(peer, isRetry: false, now: now)
    }

    // MARK: Output

    /// Whether `nextOutput` may have something.
    @inline(__always)
    package var hasOutput: Bool { !ready.isEmpty }

    mutating func makeReady(_ peer: UnsafeOwned<Peer>) {
        let slot = peer.value.index.slot
        guard !isReady[Int(slot)] else { return }
        isReady[Int(slot)] = true
        ready.append(slot)
    }

    /// Writes the next datagram to the start of the buffer, which has `outputSize` bytes; nil when there is
    /// none. `wallTime` goes into timestamps of initiations.
    package mutating func nextOutput(
        into buffer: UnsafeMutableRawBufferPointer, now: Instant, wallTime: WireGuard.WallTime
    ) -> WireGuard.Output? {
        precondition(buffer.count >= outputSize, "room for the longest datagram")
        while let slot = ready.first {
            if let peer = peers[Int(slot)],
                let output = unsafe nextOutput(of: peer, into: buffer, now: now, wallTime: wallTime)
            {
                return output
            }
            ready.removeFirst()
            isReady[Int(slot)] = false
        }
        return nil
    }

    private mutating func nextOutput(
        of peer: UnsafeOwned<Peer>, into buffer: UnsafeMutableRawBufferPointer, now: Instant,
        wallTime: WireGuard.WallTime
    ) -> WireGuard.Output? {
        let index = peer.value.index
        if let response = peer.value.response {
            peer.value.response = nil
            unsafe writeResponse(response, of: peer, into: buffer.baseAddress!, now: now)
            return WireGuard.Output(peer: index, length: WireGuard.responseSize, isData: false)
        }
        if peer.value.wantsInitiation {
            peer.value.wantsInitiation = false
            if unsafe writeInitiation(to: peer, into: buffer.baseAddress!, now: now, wallTime: wallTime) {
                let followsSilence = peer.value.wasSilent
                peer.value.wasSilent = false
                return WireGuard.Output(
                    peer: index, length: WireGuard.initiationSize, isData: false,
                    followsSilence: followsSilence)
            }
        }
        guard peer.value.wantsKeepalive || !peer.value.staged.isEmpty,
            let pair = usablePair(of: peer, packets: 1, now: now)
        else { return nil }
        peer.value.wantsKeepalive = false  // a waiting packet serves as well
        var packet = peer.value.staged.popFirst()
        while let long = packet, mtu > 0, long.count > mtu {
            stagedBytes -= long.count
            counters[.longerThanMTU] &+= 1
            packet = peer.value.staged.popFirst()
        }
        let count = packet?.count ?? 0
        if let packet {
            stagedBytes -= count
            unsafe packet.withUnsafeBytes {
                unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[WireGuard.headerSize...]).copyMemory(
                    from: $0)
            }
        }
        cipher.load(pair.value.keys.send)
        let length = unsafe seal(pair, in: buffer, at: 0, payloadLength: count)
        packetsSent(peer, pair, bytes: length, hasData: packet != nil, now: now)
        if packet == nil, peer.value.repeatsKeepalive {
            peer.value.repeatsKeepalive = false
            peer.value.timers.passiveKeepalive = now + limits.keepaliveTimeout
            wake(peer, at: peer.value.timers.passiveKeepalive)
        }
        return WireGuard.Output(peer: index, length: length, isData: packet != nil)
    }

    private mutating func writeInitiation(
        to peer: UnsafeOwned<Peer>, into message: UnsafeMutableRawPointer, now: Instant,
        wallTime: WireGuard.WallTime
    ) -> Bool {
        closeInitiation(of: peer)
        guard let shared = staticShared(with: peer) else { return false }
        let timestamp = max(WireGuard.Timestamp(wallTime), lastTimestamp.successor)
        var ephemeral = randomness.nextBytes32()
        let initiation = unsafe WireGuard.InitiatorHandshake(
            writing: message, as: identity, to: peer.value.publicKey, staticShared: shared,
            index: freshIndex(),
            ephemeral: ephemeral, timestamp: timestamp)
        ephemeral.wipe()
        guard let initiation else { return false }
        lastTimestamp = timestamp
        indices.insert(initiation.index, slot: peer.value.index.slot, pair: nil)
        peer.value.initiation = initiation
        peer.value.initiationSentAt = now
        unsafe writeMACs(message, size: WireGuard.initiationSize, peer, now: now)
        counters.initiationsSent &+= 1
        peer.value.sentBytes &+= UInt64(WireGuard.initiationSize)
        peer.value.lastSentHandshake = now
        authenticatedPacketSent(peer, now: now)
        peer.value.timers.retransmit = now + limits.rekeyTimeout + nextJitter()
        wake(peer, at: peer.value.timers.retransmit)
        return true
    }

    private mutating func writeResponse(
        _ response: WireGuard.PendingResponse, of peer: UnsafeOwned<Peer>,
        into message: UnsafeMutableRawPointer,
        now: Instant
    ) {
        unsafe withUnsafeBytes(of: response.message) {
            unsafe message.copyMemory(from: $0.baseAddress!, byteCount: 60)
        }
        unsafe writeMACs(message, size: WireGuard.responseSize, peer, now: now)
        counters.responsesSent &+= 1
        peer.value.sentBytes &+= UInt64(WireGuard.responseSize)
        authenticatedPacketSent(peer, now: now)
    }

    /// MAC1, and MAC2 if we hold a fresh cookie of the peer. Whitepaper §5.4.4.
    private func writeMACs(
        _ message: UnsafeMutableRawPointer, size: Int, _ peer: UnsafeOwned<Peer>, now: Instant
    ) {
        let mac1 = unsafe peer.value.mac1Key.withBytes {
            unsafe WireGuard.Cookie.mac(key: $0, message, size - 32)
        }
        peer.value.lastMAC1 = mac1
        unsafe mac1.withBytes {
            unsafe message.advanced(by: size - 32).copyMemory(from: $0.baseAddress!, byteCount: 16)
        }
        var mac2 = Bytes16()
        if let at = peer.value.cookieAt, now.since(at) < limits.cookieLifetime {
            mac2 = unsafe peer.value.cookie.withBytes {
                unsafe WireGuard.Cookie.mac(key: $0, message, size - 16)
            }
        }
        unsafe mac2.withBytes {
            unsafe message.advanced(by: size - 16).copyMemory(from: $0.baseAddress!, byteCount: 16)
        }
    }
}

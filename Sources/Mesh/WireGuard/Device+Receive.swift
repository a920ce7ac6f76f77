// SPDX-License-Identifier: Apache-2.0

extension WireGuard {
    /// What a datagram turned out to be.
    package enum Received: Hashable, Sendable {
        /// An inner packet of the peer, at this range of the datagram. The peer is really at the datagram's
        /// source.
        case packet(PeerIndex, Range<Int>)
        /// An empty packet of the peer.
        case keepalive(PeerIndex)
        /// A valid initiation or response of the peer. There may be output.
        case handshake(PeerIndex)
        /// A cookie of the peer, used with the next handshake message.
        case cookie(PeerIndex)
        /// We are under load. The first bytes of the datagram were overwritten with a reply that should go
        /// back to its source.
        case reply(length: Int)
        /// An authentic packet of the peer, which is really at the datagram's source; but its content was dropped
        /// and counted.
        case refused(PeerIndex, DropReason)
        /// Dropped and counted.
        case dropped(DropReason)
    }
}

extension WireGuard.Device {
    typealias Bytes16 = WireGuard.Bytes16
    typealias Bytes32 = WireGuard.Bytes32
    typealias Peer = WireGuard.Peer
    typealias KeyPair = WireGuard.KeyPair

    /// Takes one datagram and opens it in place. Never allocates for data. `source` serves cookies and rate
    /// limits; that the peer moved is for the caller to notice and judge.
    package mutating func receive(
        _ datagram: UnsafeMutableRawBufferPointer, from source: WireGuard.Source, now: Instant
    ) -> WireGuard.Received {
        guard datagram.count >= 4, let bytes = datagram.baseAddress else { return drop(.wrongSize) }
        switch unsafe bytes.load32(0) {
        case WireGuard.MessageType.data:
            return unsafe receiveData(bytes, count: datagram.count, now: now)
        case WireGuard.MessageType.initiation:
            guard datagram.count == WireGuard.initiationSize else { return drop(.wrongSize) }
            return unsafe receiveInitiation(bytes, from: source, now: now)
        case WireGuard.MessageType.response:
            guard datagram.count == WireGuard.responseSize else { return drop(.wrongSize) }
            return unsafe receiveResponse(bytes, from: source, now: now)
        case WireGuard.MessageType.cookieReply:
            guard datagram.count == WireGuard.cookieReplySize else { return drop(.wrongSize) }
            return unsafe receiveCookieReply(bytes, now: now)
        default:
            return drop(.unknownType)
        }
    }

    mutating func drop(_ reason: WireGuard.DropReason) -> WireGuard.Received {
        counters[reason] &+= 1
        return .dropped(reason)
    }

    @inline(never)
    private mutating func refuse(
        _ reason: WireGuard.DropReason, of peer: UnsafeOwned<Peer>
    ) -> WireGuard.Received {
        counters[reason] &+= 1
        return .refused(peer.value.index, reason)
    }

    // MARK: Data

    @inline(__always)
    private mutating func receiveData(
        _ bytes: UnsafeMutableRawPointer, count: Int, now: Instant
    ) -> WireGuard.Received {
        guard count >= WireGuard.overhead else { return drop(.wrongSize) }
        guard let entry = unsafe indices.find(bytes.load32(4)), let pair = entry.pair else {
            return drop(.unknownIndex)
        }
        let counter = unsafe bytes.load64(8)
        guard counter < limits.rejectAfterMessages else { return drop(.counterLimit) }
        guard now.since(pair.value.created) < limits.rejectAfterTime else { return drop(.expiredSession) }
        let length = count - WireGuard.overhead
        let text = unsafe bytes + WireGuard.headerSize
        cipher.load(pair.value.keys.receive)
        guard unsafe cipher.open(text, length: length, counter: counter) else { return drop(.badTag) }
        guard pair.value.window.accept(counter) else { return drop(.replay) }

        let peer = pair.value.peer
        peer.value.receivedBytes &+= UInt64(count)
        if peer.value.next == pair { confirmNext(of: peer, now: now) }
        authenticatedPacketReceived(peer, now: now)
        renewBeforeLastMinute(peer, now: now)
        guard length > 0 else { return .keepalive(peer.value.index) }
        dataReceived(peer, now: now)
        guard let inner = unsafe innerPacket(text, length: length) else {
            return refuse(.malformedPacket, of: peer)
        }
        guard owns(peer, inner.source) else { return refuse(.wrongSource, of: peer) }
        return .packet(
            peer.value.index, WireGuard.headerSize..<(WireGuard.headerSize + inner.length))
    }

    /// Length without padding, and source address; nil when the packet is not one.
    @inline(__always)
    private func innerPacket(
        _ text: UnsafeMutableRawPointer, length: Int
    ) -> (source: IPAddress, length: Int)? {
        func number16(_ offset: Int) -> Int {
            unsafe Int(UInt16(bigEndian: text.loadUnaligned(fromByteOffset: offset, as: UInt16.self)))
        }
        switch unsafe text.load(as: UInt8.self) >> 4 {
        case 4 where length >= 20:
            let total = number16(2)
            guard total >= 20, total <= length else { return nil }
            let source = unsafe UInt32(bigEndian: text.loadUnaligned(fromByteOffset: 12, as: UInt32.self))
            return (IPAddress(v4: source), total)
        case 6 where length >= 40:
            let total = number16(4) + 40
            guard total <= length else { return nil }
            let high = unsafe UInt64(bigEndian: text.loadUnaligned(fromByteOffset: 8, as: UInt64.self))
            let low = unsafe UInt64(bigEndian: text.loadUnaligned(fromByteOffset: 16, as: UInt64.self))
            return (IPAddress(high: high, low: low), total)
        default:
            return nil
        }
    }

    /// Whether the address belongs to the peer. Remembers the last answer: most packets have one source.
    @inline(__always)
    private func owns(_ peer: UnsafeOwned<Peer>, _ source: IPAddress) -> Bool {
        if peer.value.checkedVersion == allowedIPs.version, peer.value.checkedSource == source { return true }
        guard allowedIPs.owner(of: source) == peer.value.index.slot else { return false }
        peer.value.checkedVersion = allowedIPs.version
        peer.value.checkedSource = source
        return true
    }

    // MARK: Handshake

    private mutating func receiveInitiation(
        _ bytes: UnsafeMutableRawPointer, from source: WireGuard.Source, now: Instant
    ) -> WireGuard.Received {
        guard unsafe hasRightMAC1(bytes, size: WireGuard.initiationSize) else { return drop(.wrongMAC1) }
        if load.isUnderLoad(now: now, limits: limits),
            let refusal = unsafe refuse(bytes, size: WireGuard.initiationSize, from: source, now: now)
        {
            return refusal
        }
        guard var handshake = unsafe WireGuard.ResponderHandshake(opening: bytes, as: identity) else {
            return drop(.badInitiation)
        }
        guard let slot = slots[handshake.peer.nodePublicKey], let peer = peers[Int(slot)] else {
            return drop(.unknownPeer)
        }
        guard let shared = staticShared(with: peer),
            let timestamp = unsafe handshake.openTimestamp(bytes, staticShared: shared)
        else { return drop(.badInitiation) }
        // Whitepaper §5.1: the timestamp must be greater than any before, or the message is a replay.
        guard timestamp > peer.value.greatestTimestamp else { return drop(.oldTimestamp) }
        if let last = peer.value.lastInitiation, now.since(last) < limits.initiationInterval {
            return drop(.initiationRate)
        }
        var response = WireGuard.PendingResponse()
        let index = freshIndex()
        var ephemeral = randomness.nextBytes32()
        let keys = unsafe withUnsafeMutableBytes(of: &response.message) {
            unsafe handshake.respond(
                into: $0.baseAddress!, index: index, ephemeral: ephemeral,
                presharedKey: peer.value.presharedKey)
        }
        ephemeral.wipe()
        guard let keys else { return drop(.badInitiation) }
        peer.value.greatestTimestamp = timestamp
        peer.value.lastInitiation = now
        peer.value.receivedBytes &+= UInt64(WireGuard.initiationSize)
        counters.initiationsAccepted &+= 1
        authenticatedPacketReceived(peer, now: now)
        beginAsResponder(
            peer, keys: keys, local: index, remote: handshake.peerIndex, now: now)
        peer.value.response = response
        peer.value.lastSentHandshake = now
        makeReady(peer)
        return .handshake(peer.value.index)
    }

    private mutating func receiveResponse(
        _ bytes: UnsafeMutableRawPointer, from source: WireGuard.Source, now: Instant
    ) -> WireGuard.Received {
        guard unsafe hasRightMAC1(bytes, size: WireGuard.responseSize) else { return drop(.wrongMAC1) }
        let index = unsafe bytes.load32(8)
        guard let entry = indices.find(index), entry.pair == nil, let peer = peers[Int(entry.slot)],
            let initiation = peer.value.initiation, initiation.index == index
        else { return drop(.noHandshake) }
        if load.isUnderLoad(now: now, limits: limits), peer.value.wrongResponses >= limits.wrongResponses,
            let refusal = unsafe refuse(bytes, size: WireGuard.responseSize, from: source, now: now)
        {
            return refusal
        }
        let opened = unsafe initiation.open(
            response: bytes, as: identity, presharedKey: peer.value.presharedKey)
        guard let keys = opened else {
            if peer.value.wrongResponses < .max { peer.value.wrongResponses += 1 }
            return drop(.badResponse)
        }
        peer.value.receivedBytes &+= UInt64(WireGuard.responseSize)
        counters.responsesAccepted &+= 1
        authenticatedPacketReceived(peer, now: now)
        unsafe beginAsInitiator(peer, keys: keys, local: index, remote: bytes.load32(4), now: now)
        handshakeCompleted(peer, now: now)
        sendKeepalive(peer, now: now)
        return .handshake(peer.value.index)
    }

    private mutating func receiveCookieReply(
        _ bytes: UnsafeMutableRawPointer, now: Instant
    ) -> WireGuard.Received {
        guard let entry = unsafe indices.find(bytes.load32(4)), let peer = peers[Int(entry.slot)] else {
            return drop(.noHandshake)
        }
        guard let mac1 = peer.value.lastMAC1,
            let cookie = unsafe WireGuard.Cookie.openReply(bytes, mac1: mac1, cookieKey: peer.value.cookieKey)
        else { return drop(.badCookie) }
        peer.value.cookie = cookie
        peer.value.cookieAt = now
        counters.cookieRepliesAccepted &+= 1
        return .cookie(peer.value.index)
    }

    /// DH of both long-term keys, kept per peer.
    func staticShared(with peer: UnsafeOwned<Peer>) -> Bytes32? {
        if let shared = peer.value.staticShared { return shared }
        peer.value.staticShared = identity.staticShared(with: peer.value.publicKey)
        return peer.value.staticShared
    }

    // MARK: MACs and cookies

    private func hasRightMAC1(_ bytes: UnsafeMutableRawPointer, size: Int) -> Bool {
        let mac = unsafe identity.mac1Key.withBytes { unsafe WireGuard.Cookie.mac(key: $0, bytes, size - 32) }
        return unsafe mac == Bytes16(at: bytes + size - 32)
    }

    /// What to do with a handshake message under load; nil: go on. Whitepaper §5.3.
    private mutating func refuse(
        _ bytes: UnsafeMutableRawPointer, size: Int, from source: WireGuard.Source, now: Instant
    ) -> WireGuard.Received? {
        if cookieSecretAt.map({ now.since($0) >= limits.cookieLifetime }) ?? true {
            cookieSecret = randomness.nextBytes32()
            cookieSecretAt = now
        }
        let cookie = WireGuard.Cookie.value(secret: cookieSecret, source: source)
        let mac2 = unsafe cookie.withBytes { unsafe WireGuard.Cookie.mac(key: $0, bytes, size - 16) }
        if unsafe mac2 == Bytes16(at: bytes + size - 16) {
            return sources.allows(source, now: now, limits: limits) ? nil : drop(.sourceRate)
        }
        counters[.cookieRequired] &+= 1
        counters.cookieRepliesSent &+= 1
        let mac1 = unsafe Bytes16(at: bytes + size - 32)
        unsafe WireGuard.Cookie.writeReply(
            into: bytes, receiver: bytes.load32(4),
            nonce: [randomness.next(), randomness.next(), randomness.next()],
            cookie: cookie, mac1: mac1, cookieKey: identity.cookieKey)
        return .reply(length: WireGuard.cookieReplySize)
    }
}

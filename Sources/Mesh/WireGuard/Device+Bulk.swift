// SPDX-License-Identifier: Apache-2.0

// For callers that move packets in bursts: sealing out of one buffer into another, and what configuration
// tools ask.
extension WireGuard {
    /// A session that packets of one burst are sealed with. Void after any other call of its device than
    /// `seal` and `endBurst`.
    struct Burst {
        fileprivate let peer: UnsafeOwned<Peer>
        fileprivate let pair: UnsafeOwned<KeyPair>
    }
}

extension WireGuard.Device {
    /// Begins a burst of up to `packets` packets to a peer. Nil: there is no session; one is being sought,
    /// and the packets may be staged.
    mutating func beginBurst(
        _ index: WireGuard.PeerIndex, packets: Int, now: Instant
    ) -> WireGuard.Burst? {
        guard let peer = find(index) else { return nil }
        guard let pair = usablePair(of: peer, packets: packets, now: now) else {
            requestInitiation(peer, isRetry: false, now: now)
            return nil
        }
        cipher.load(pair.value.keys.send)
        return WireGuard.Burst(peer: peer, pair: pair)
    }

    /// Seals the packet of `length` bytes at `text` into a datagram at `datagram`, which does not overlap;
    /// returns the datagram's length (`paddedLength` + `overhead`). Up to 15 bytes behind the packet are
    /// written to and restored.
    @inline(__always)
    func seal(
        _ burst: WireGuard.Burst, _ text: UnsafeMutableRawPointer, length: Int,
        into datagram: UnsafeMutableRawPointer
    ) -> Int {
        let padded = WireGuard.paddedLength(length, mtu: mtu)
        let pair = burst.pair
        unsafe datagram.store32(WireGuard.MessageType.data, at: 0)
        unsafe datagram.store32(pair.value.remoteIndex, at: 4)
        unsafe datagram.store64(pair.value.counter, at: 8)
        let target = unsafe datagram + WireGuard.headerSize
        if padded == length {
            unsafe cipher.seal(text, into: target, length: length, counter: pair.value.counter)
        } else {
            let behind = unsafe text + length
            let saved = unsafe behind.loadUnaligned(as: (UInt64, UInt64).self)
            var end = 0
            while end < padded - length {
                unsafe behind.storeBytes(of: 0, toByteOffset: end, as: UInt8.self)
                end += 1
            }
            unsafe cipher.seal(text, into: target, length: padded, counter: pair.value.counter)
            unsafe behind.storeBytes(of: saved.0, as: UInt64.self)
            unsafe behind.storeBytes(of: saved.1, toByteOffset: 8, as: UInt64.self)
        }
        pair.value.counter += 1  // below the limit, which is below the type's end
        return padded + WireGuard.overhead
    }

    /// Statistics, timers, and the next handshake when the session is old.
    mutating func endBurst(_ burst: WireGuard.Burst, bytes: Int, now: Instant) {
        packetsSent(burst.peer, burst.pair, bytes: bytes, hasData: true, now: now)
    }

    /// The link came up: what was sent before says nothing of the way now, so nobody waits for an answer to it.
    /// Peers with persistent keepalive, and those with packets waiting, hear of us at once.
    package mutating func wakePeers(now: Instant) {
        for case let peer? in peers {
            peer.value.lastSentHandshake = nil
            peer.value.timers.retransmit = .never
            peer.value.attempts = 0
            if peer.value.keepaliveInterval > 0 { armPersistentKeepalive(peer, now: now) }
            if peer.value.keepaliveInterval > 0 || !peer.value.staged.isEmpty {
                sendKeepalive(peer, now: now)
            }
        }
    }
}

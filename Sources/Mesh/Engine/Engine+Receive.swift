// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO

/// How a datagram came.
enum DatagramSource {
    case udp(SocketAddress)
    case relay(region: Int, NodePublicKey)
}

// From the socket to the TCP/IP stack: told apart by the first bytes, opened in place, handed on.
extension Engine {
    /// Bytes per readiness and turn, about: they fit the caches, and what is answered leaves before more comes in.
    private static let receiveBudget = 384 << 10

    mutating func receiveUDP(isV4: Bool) {
        var budget = Self.receiveBudget
        while budget > 0 {
            // Messages of a bulk transfer are up to 64 KiB each, others a datagram.
            let limit = isBulkReceiving ? 6 : ReceiveBurst.slotCount
            let count =
                (isV4
                    ? v4?.receive(into: &received, limit: limit) : v6?.receive(into: &received, limit: limit))
                ?? 0
            guard count > 0 else { return }
            var bytes = 0
            for index in 0..<count {
                let message = received[index]
                bytes += message.length
                if udpLoss == .all { continue }
                receive(message)
            }
            counters.receivedBytes += UInt64(bytes)
            isBulkReceiving = bytes > count * 8_192
            budget -= bytes
            if count < limit { return }
        }
    }

    /// Datagrams of one sender.
    @inline(__always)
    private mutating func receive(_ message: ReceiveBurst.Message) {
        let source = SocketAddress(message.source)
        var offset = message.offset
        let end = message.offset + message.length
        while offset < end {
            let next = min(offset + message.segment, end)
            counters.receivedDatagrams += 1
            let bytes = unsafe UnsafeMutableRawBufferPointer(rebasing: received.memory[offset..<next])
            unsafe receiveDatagram(bytes, from: .udp(source))
            offset = next
        }
    }

    /// One datagram from UDP, or one packet from a relay. Opened in place.
    mutating func receiveDatagram(_ bytes: UnsafeMutableRawBufferPointer, from source: DatagramSource) {
        guard bytes.count >= 4 else {
            counters.garbage += 1
            return
        }
        let kind = unsafe UInt32(littleEndian: bytes.loadUnaligned(as: UInt32.self))
        if case .udp = source, udpLoss.drops(kind) { return }
        if kind >= 1, kind <= 4 { return unsafe receiveWireGuard(bytes, from: source) }
        let span = unsafe UnsafeRawBufferPointer(bytes).bytes
        if Disco.looksLikeDisco(span) {
            let refusal: DiscoRefusal?
            switch source {
            case .udp(let address): refusal = paths.receive(span, from: .udp(address), now: now)
            case .relay(let region, let key):
                refusal = paths.receive(span, from: .relay(region: region, node: key), now: now)
            }
            if refusal != nil { counters.discoDropped += 1 }
        } else if STUN.looksLikeSTUN(span), case .udp(let address) = source {
            if !discovery.receive(span, from: address, now: now) { counters.garbage += 1 }
        } else {
            counters.garbage += 1
        }
    }

    @inline(__always)
    private mutating func receiveWireGuard(
        _ bytes: UnsafeMutableRawBufferPointer, from source: DatagramSource
    ) {
        let origin: WireGuard.Source
        switch source {
        case .udp(let address): origin = .address(address)
        case .relay(let region, let key):
            origin = .relay(region: UInt16(truncatingIfNeeded: region), key)
        }
        switch unsafe device.receive(bytes, from: origin, now: now) {
        case .packet(let peer, let range):
            noteSource(peer, source)
            let packet = unsafe UnsafeRawBufferPointer(rebasing: bytes[range])
            if tun != nil {
                unsafe tun?.write(packet)
            } else {
                if let tap = configuration.packetTap { unsafe tap(packet.bytes) }
                unsafe stack.receive(packet, isAuthentic: true, now: now)
            }
        case .keepalive(let peer): noteSource(peer, source)
        case .handshake(let peer):
            if case .relay(let region, _) = source { relayedInitiations[peer] = region }
            noteSource(peer, source)
        case .cookie: break
        case .reply(let length):
            unsafe sendReply(UnsafeRawBufferPointer(rebasing: bytes[..<length]), to: source)
        case .refused(let peer, _):
            noteSource(peer, source)
            counters.wireGuardDropped += 1
        case .dropped:
            counters.wireGuardDropped += 1
        }
    }

    @inline(__always)
    private mutating func noteSource(_ peer: WireGuard.PeerIndex, _ source: DatagramSource) {
        if peer != heardFrom { noteReceived(peer, source) }
        guard case .udp(let address) = source else { return }
        peers.noteSource(peer, address)
        if now < dataDoubtUntil, let record = peers.record(peer), record.usesPaths {
            paths.noteDirectData(record.id, from: address, now: now)
        }
    }

    /// Once per burst and peer: the path machine wants to know that something comes back.
    private mutating func noteReceived(_ peer: WireGuard.PeerIndex, _ source: DatagramSource) {
        heardFrom = peer
        guard let record = peers.record(peer), record.usesPaths else { return }
        if case .udp(let address) = source {
            paths.noteReceived(record.id, from: address, now: now)
        } else {
            paths.noteReceived(record.id, now: now)
        }
    }

    /// A cookie reply goes back where the message came from.
    private mutating func sendReply(_ bytes: UnsafeRawBufferPointer, to source: DatagramSource) {
        switch source {
        case .udp(let address): unsafe sendSmall(bytes, to: address)
        case .relay(let region, let key): unsafe sendRelayed(bytes, region: region, to: key)
        }
    }
}

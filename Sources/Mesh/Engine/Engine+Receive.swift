// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO

/// How a datagram came.
enum DatagramSource {
    case udp(SocketAddress)
    case relay(region: Int, NodePublicKey)
}

// From the socket to the TCP/IP stack: told apart by the first bytes, opened in place, handed on.
extension Engine {
    /// System calls per readiness and turn: what is answered must leave before too much more comes in.
    private static let receiveCalls = 4

    mutating func receiveUDP(isV4: Bool) {
        for _ in 0..<Self.receiveCalls {
            let count = (isV4 ? v4?.receive(into: &received) : v6?.receive(into: &received)) ?? 0
            if udpLoss == .all { continue }
            for index in 0..<count {
                let message = received[index]
                let source = SocketAddress(message.source)
                counters.receivedBytes += UInt64(message.length)
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
            if count < ReceiveBurst.slotCount { return }
        }
    }

    /// One datagram from UDP, or one packet from a relay. Opened in place.
    mutating func receiveDatagram(_ bytes: UnsafeMutableRawBufferPointer, from source: DatagramSource) {
        guard bytes.count >= 4 else {
            counters.garbage += 1
            return
        }
        let kind = unsafe UInt32(littleEndian: bytes.loadUnaligned(as: UInt32.self))
        if udpLoss == .data, kind == WireGuard.MessageType.data, case .udp = source { return }
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
                unsafe stack.receive(packet, isAuthentic: true, now: now)
            }
        case .keepalive(let peer), .handshake(let peer):
            noteSource(peer, source)
        case .cookie: break
        case .reply(let length):
            unsafe sendReply(UnsafeRawBufferPointer(rebasing: bytes[..<length]), to: source)
        case .dropped:
            counters.wireGuardDropped += 1
        }
    }

    @inline(__always)
    private mutating func noteSource(_ peer: WireGuard.PeerIndex, _ source: DatagramSource) {
        guard case .udp(let address) = source else { return }
        peers.noteSource(peer, address)
        if now < dataDoubtUntil, let record = peers.record(peer), record.usesPaths {
            paths.noteDirectData(record.id, from: address, now: now)
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

// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO

// From the socket to the TUN device: datagrams are opened where the kernel put them, joined with their
// neighbours, and written out of that memory.
extension TunnelLoop {
    mutating func receive(isV4: Bool) {
        let count =
            (isV4
                ? v4?.receive(into: &received, limit: receiveLimit)
                : v6?.receive(into: &received, limit: receiveLimit)) ?? 0
        counters.receives &+= 1
        var bytes = 0
        for index in 0..<count {
            let message = received[index]
            bytes += message.length
            counters.receivedMessages &+= 1
            let source = SocketAddress(message.source)
            let place = Place(remote: message.source, local: received.localAddress(of: index))
            var offset = message.offset
            let end = message.offset + message.length
            while offset < end {
                let next = min(offset + message.segment, end)
                let datagram = unsafe UnsafeMutableRawBufferPointer(rebasing: received.memory[offset..<next])
                unsafe receive(datagram, from: source, place)
                offset = next
            }
        }
        writeDevice()
        // Few large messages at a time stay in the cache; small ones come many at a time.
        receiveLimit = bytes > 4_096 * count ? 4 : ReceiveBurst.slotCount
    }

    /// One datagram. Nothing is accepted without a key of ours.
    @inline(__always)
    private mutating func receive(
        _ datagram: UnsafeMutableRawBufferPointer, from source: SocketAddress, _ place: Place
    ) {
        counters.receivedDatagrams &+= 1
        guard device.hasPrivateKey else { return }
        switch unsafe device.receive(datagram, from: .address(source), now: now) {
        case .packet(let peer, let range):
            note(peer, at: place)
            if coalescer.isFull { writeDevice() }
            unsafe coalescer.add(datagram.baseAddress! + range.lowerBound, length: range.count)
        case .keepalive(let peer), .handshake(let peer), .refused(let peer, _):
            note(peer, at: place)
        case .reply(let length):
            if burst.isFull(for: length) { flush() }
            unsafe UnsafeMutableRawBufferPointer(rebasing: burst.memory[burst.used...]).copyMemory(
                from: UnsafeRawBufferPointer(rebasing: datagram[..<length]))
            burst.append(length, to: place.remote, from: place.local)
        case .cookie, .dropped: break
        }
    }

    /// An authenticated packet came from there: the peer is there now, and knows us by that address of ours.
    @inline(__always)
    private mutating func note(_ peer: WireGuard.PeerIndex, at place: Place) {
        if whereabouts(of: peer) != place { setPlace(place, of: peer) }
    }

    /// Writes everything that was opened.
    mutating func writeDevice() {
        let head = tun.offload.contains(.header) ? VirtioHeader.size : 0
        let virtio = unsafe scratch.bytes.baseAddress! + Segmenter.headerLimit
        for index in 0..<coalescer.count {
            parts.removeAll()
            if head > 0 { unsafe parts.append(virtio, head) }
            var pieces = 0
            unsafe coalescer.finish(index, virtio: virtio) { start, length in
                unsafe parts.append(start, length)
                pieces += 1
                counters.deviceBytes &+= UInt64(length)
            }
            counters.deviceWrites &+= 1
            counters.deviceWrittenPackets &+= UInt64(pieces)
            if !tun.write(parts) { counters.deviceRefused &+= 1 }
        }
        coalescer.removeAll()
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO

// From the TUN device to the socket: a super-packet is read, each packet that it stands for is completed
// where it lies and sealed into the memory that the next send takes.
extension TunnelLoop {
    /// Reads per turn: what comes in must be looked at in between.
    private static let readsPerTurn = 64
    /// Sealed bytes that leave at once, also when more waits: as much as one `UDP_SEGMENT` send takes.
    private static let sendBytes = 60_000

    mutating func readDevice() {
        let head = tun.offload.contains(.header) ? VirtioHeader.size : 0
        let start = unsafe packet.bytes.baseAddress! + (Self.headRoom - head)
        let place = unsafe UnsafeMutableRawBufferPointer(start: start, count: 65_536 + head)
        var bytes = 0
        var reads = 0
        while reads < Self.readsPerTurn, bytes <= 2 * Self.sendBytes {
            do {
                guard let count = unsafe try tun.read(into: place) else { break }
                reads += 1
                guard count > head else { continue }
                bytes += count
                unsafe take(place, head: head, length: count - head)
            } catch {
                return deviceIsGone()
            }
            if burst.used >= Self.sendBytes { flush() }
        }
        counters.deviceReads &+= UInt64(reads)
        counters.deviceBytes &+= UInt64(bytes)
    }

    /// One read of the device.
    @inline(__always)
    private mutating func take(_ place: UnsafeMutableRawBufferPointer, head: Int, length: Int) {
        let text = unsafe place.baseAddress! + head
        guard let virtio = unsafe head > 0 ? VirtioHeader(at: place.baseAddress!) : VirtioHeader(),
            let destination = unsafe IPAddress(
                destinationOf: UnsafeMutableRawBufferPointer(start: text, count: length), length: length),
            let segmenter = unsafe Segmenter(
                packet: text, length: length, as: virtio, template: scratch.bytes.baseAddress!)
        else {
            counters.malformed &+= 1
            return
        }
        counters.devicePackets &+= UInt64(segmenter.count)
        if destination != lastDestination || lastVersion != device.allowedIPs.version {
            lastPeer = device.peer(for: destination)
            lastDestination = destination
            lastVersion = device.allowedIPs.version
        }
        guard let peer = lastPeer, isUp else {
            counters.unroutable &+= UInt64(segmenter.count)
            return
        }
        guard let place = whereabouts(of: peer) else {
            counters.withoutEndpoint &+= UInt64(segmenter.count)
            return
        }
        guard let session = device.beginBurst(peer, packets: segmenter.count, now: now) else {
            return stage(segmenter, for: peer)
        }
        seal(segmenter, session, to: place)
    }

    @inline(__always)
    private mutating func seal(_ segmenter: Segmenter, _ session: WireGuard.Burst, to place: Place) {
        let template = unsafe scratch.bytes.baseAddress!
        var sealed = 0
        for index in 0..<segmenter.count {
            let segment = unsafe segmenter.segment(index, template: template)
            if unsafe burst.isFull(for: segment.length + WireGuard.overhead + 16) { flush() }
            let length = unsafe device.seal(
                session, segment.start, length: segment.length,
                into: burst.memory.baseAddress! + burst.used)
            burst.append(length, to: place.remote, from: place.local)
            sealed += length
        }
        device.endBurst(session, bytes: sealed, now: now)
    }

    /// Without a session the packets wait in the device, bounded, while it seeks one.
    private mutating func stage(_ segmenter: Segmenter, for peer: WireGuard.PeerIndex) {
        for index in 0..<segmenter.count {
            let segment = unsafe segmenter.segment(index, template: scratch.bytes.baseAddress!)
            unsafe device.stage(
                peer, UnsafeRawBufferPointer(start: segment.start, count: segment.length), now: now)
        }
    }
}

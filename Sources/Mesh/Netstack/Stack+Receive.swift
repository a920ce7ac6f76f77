// SPDX-License-Identifier: Apache-2.0

extension Stack {
    /// Takes in one decrypted inner packet. Bytes behind the packet's own length are padding. Answers wait in
    /// `nextBurst`: feed a whole burst before draining, then each connection acknowledges it once. The checksum of
    /// a TCP segment is not looked at again when the packet `isAuthentic`, that is, when a tag over all of it was
    /// right (as the kernel's WireGuard tells the kernel's TCP).
    package mutating func receive(
        _ packet: UnsafeRawBufferPointer, isAuthentic: Bool = false, now: Instant
    ) {
        context.counters.packetsReceived += 1
        guard let bytes = unsafe PacketBytes(packet) else {
            context.counters.malformed += 1
            return
        }
        if receiveExpected(bytes, isAuthentic: isAuthentic, now) { return }
        let header: IPHeader
        do throws(IPHeaderError) {
            header = try IPHeader.parse(bytes, extensionLimit: context.limits.extensionHeaders)
        } catch {
            count(error)
            return
        }
        let payload = bytes.slice(header.payloadOffset, header.payloadLength)
        if header.kind == IPProtocol.tsmp, !payload.isEmpty, receiveTSMP(header, payload) { return }
        guard addresses.contains(header.destination), isPlausible(header.source) else {
            context.counters.notForUs += 1
            return
        }
        guard !payload.isEmpty else {
            context.counters.malformed += 1
            return
        }
        switch (header.kind, header.source.isV4) {
        case (IPProtocol.tcp, _): receiveTCP(header, payload, isAuthentic: isAuthentic, now)
        case (IPProtocol.udp, _): receiveUDP(header, payload, bytes, now)
        case (IPProtocol.icmp, true), (IPProtocol.icmpV6, false): receiveICMP(header, payload, now)
        case (IPProtocol.tsmp, _): context.counters.malformed += 1
        default:
            context.counters.unknownProtocol += 1
            sendUnreachable(header, bytes, .protocolUnreachable, now)
        }
    }

    /// As above.
    package mutating func receive(_ packet: RawSpan, now: Instant) {
        unsafe packet.withUnsafeBytes { unsafe receive($0, now: now) }
    }

    private func isPlausible(_ source: IPAddress) -> Bool {
        !source.isMulticast && !source.isUnspecified && !source.isLoopback
    }

    private mutating func count(_ error: IPHeaderError) {
        switch error {
        case .malformed: context.counters.malformed += 1
        case .checksum: context.counters.badChecksum += 1
        case .fragment: context.counters.fragments += 1
        case .extensionHeader: context.counters.badExtensionHeader += 1
        }
    }

    /// Whether an unsolicited answer may go out (RFC 4443 §2.4 f).
    mutating func mayReply(_ now: Instant) -> Bool {
        if now.since(repliesWindow) >= .seconds(1) || repliesWindow.nanoseconds == 0 {
            repliesWindow = now
            repliesLeft = context.limits.unsolicitedRepliesPerSecond
        }
        guard repliesLeft > 0 else {
            context.counters.unsolicitedRepliesSuppressed += 1
            return false
        }
        repliesLeft -= 1
        return true
    }

    // MARK: - UDP

    /// Delivers datagrams to this port.
    package mutating func bindUDP(_ port: UInt16) { udpPorts.insert(port) }
    /// Stops delivering datagrams to this port.
    package mutating func unbindUDP(_ port: UInt16) { udpPorts.remove(port) }
    /// Delivers datagrams to all ports.
    package mutating func bindAnyUDP(_ on: Bool = true) { udpAny = on }

    private mutating func receiveUDP(
        _ header: IPHeader, _ payload: PacketBytes, _ packet: PacketBytes, _ now: Instant
    ) {
        guard payload.count >= 8, Int(payload.u16(4)) >= 8, Int(payload.u16(4)) <= payload.count else {
            context.counters.malformed += 1
            return
        }
        let datagram = payload.slice(0, Int(payload.u16(4)))
        // RFC 768: zero means none, which IPv6 forbids (RFC 8200 §8.1).
        if datagram.u16(6) != 0 || !header.source.isV4 {
            let pseudo = Checksum.pseudoHeader(header.source, header.destination, IPProtocol.udp)
            let sum = Checksum.sum(datagram, pseudo &+ Checksum.length(datagram.count))
            guard datagram.u16(6) != 0, Checksum.isValid(sum) else {
                context.counters.badChecksum += 1
                return
            }
        }
        let local = SocketAddress(header.destination, port: datagram.u16(2))
        let remote = SocketAddress(header.source, port: datagram.u16(0))
        guard udpAny || udpPorts.contains(local.port) else {
            sendUnreachable(header, packet, .portUnreachable, now)
            return
        }
        guard datagrams.reserve(datagram.count - 8, &context.pool) else {
            context.counters.datagramsDropped += 1
            return
        }
        datagrams.append(
            PacketQueue.Entry(local: local, remote: remote, length: datagram.count - 8),
            datagram.count > 8 ? datagram.dropFirst(8) : nil)
    }

    /// Moves the oldest waiting datagram to `buffer`; nil when there is none.
    package mutating func readDatagram(into buffer: UnsafeMutableRawBufferPointer) -> DatagramHeader? {
        guard let entry = unsafe datagrams.pop(into: buffer, &context.pool) else {
            saidDatagrams = false
            return nil
        }
        if datagrams.isEmpty { saidDatagrams = false }
        return DatagramHeader(local: entry.local, remote: entry.remote, length: entry.length)
    }

    /// Largest payload of a datagram to this address.
    package func datagramLimit(to destination: IPAddress) -> Int {
        let header = IPHeader.size(isV4: destination.isV4) + 8
        guard !pathMTUs.isEmpty, let path = pathMTUs[destination] else { return context.mtu - header }
        return min(context.mtu, Connection.usablePath(path, isV4: destination.isV4)) - header
    }

    /// Queues a datagram. False when it is too large, the families differ, or the queue is full.
    package mutating func sendUDP(
        from local: SocketAddress, to remote: SocketAddress, _ bytes: UnsafeRawBufferPointer
    ) -> Bool {
        guard local.ip.isV4 == remote.ip.isV4, bytes.count <= datagramLimit(to: remote.ip) else {
            context.counters.datagramsTooLong += 1
            return false
        }
        let ipSize = IPHeader.size(isV4: local.ip.isV4)
        let length = 8 + bytes.count
        return unsafe withUnsafeTemporaryAllocation(byteCount: ipSize + length, alignment: 8) { memory in
            guard let out = unsafe PacketWriter(memory) else { return false }
            IPHeader.write(out, local.ip, remote.ip, kind: IPProtocol.udp, payloadLength: length)
            out.put16(local.port, ipSize)
            out.put16(remote.port, ipSize + 2)
            out.put32(UInt32(truncatingIfNeeded: length) << 16, ipSize + 4)
            if let payload = unsafe PacketBytes(bytes) { out.put(payload, ipSize + 8) }
            guard let datagram = out.bytes(ipSize, length), let all = out.bytes(0, ipSize + length) else {
                return false
            }
            let pseudo = Checksum.pseudoHeader(local.ip, remote.ip, IPProtocol.udp)
            let sum = Checksum.finish(Checksum.sum(datagram, pseudo &+ Checksum.length(length)))
            out.putChecksum(sum == 0 ? 0xffff : sum, ipSize + 6)
            return context.queue(all, local: local, remote: remote)
        }
    }
}

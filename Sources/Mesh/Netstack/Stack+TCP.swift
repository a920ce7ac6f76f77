// SPDX-License-Identifier: Apache-2.0

extension Stack {
    /// First and last port of our own connections (RFC 6335 §6).
    private static let ephemeralPorts: ClosedRange<UInt16> = 49_152...65_535
    private static let initialSequencePurpose: UInt64 = 2
    private static let portPurpose: UInt64 = 3

    // MARK: - Opening

    /// Starts a connection. `connected` or `closed` follows as event.
    package mutating func connect(
        to remote: SocketAddress, from source: IPAddress? = nil, now: Instant
    ) throws(ConnectError) -> ConnectionID {
        guard remote.port != 0, !remote.ip.isUnspecified, !remote.ip.isMulticast else { throw .badAddress }
        guard let ip = source ?? sourceAddress(for: remote.ip), ip.isV4 == remote.ip.isV4 else {
            throw .noLocalAddress
        }
        let (local, after) = try ephemeral(ip, remote, now)
        guard let slot = takeSlot() else { throw .tableFull }
        open(slot, local: local, remote: remote, after: after, now: now)
        connections[slot].state = .synSent
        connections[slot].isOrphan = false
        settle(slot)
        return connections[slot].id
    }

    /// RFC 6056 §3.3.4: a keyed hash of the destination plus a counter, one of several, so that a port comes again as
    /// late as can be. With it the number that a connection in its place must start behind.
    private mutating func ephemeral(
        _ ip: IPAddress, _ remote: SocketAddress, _ now: Instant
    ) throws(ConnectError) -> (SocketAddress, after: SequenceNumber?) {
        let count = UInt64(Self.ephemeralPorts.count)
        let start = hash.hash(SocketAddress(ip, port: 0), remote, purpose: Self.portPurpose)
        let counter = Int(start >> 48) % portCounters.count
        for _ in 0..<count {
            let port = Self.ephemeralPorts.lowerBound + UInt16((start &+ portCounters[counter]) % count)
            portCounters[counter] &+= 1
            let local = SocketAddress(ip, port: port)
            guard let old = flows.find(local, remote) else { return (local, nil) }
            guard isReplaceable(old, now) else { continue }
            let after = connections[old].sendNext + 65_536
            connections[old].state = .closed
            settle(old)
            return (local, after)
        }
        throw .portsExhausted
    }

    /// Whether our own next connection may take the place of one in TIME_WAIT: timestamps tell the peer that it is
    /// newer (the active side of RFC 6191).
    private func isReplaceable(_ slot: UInt32, _ now: Instant) -> Bool {
        connections[slot].state == .timeWait && connections[slot].isOrphan && connections[slot].usesTimestamps
            && connections[slot].lifeDeadline + .seconds(1) <= now + context.limits.timeWait
    }

    /// A slot, if need be that of the oldest connection in TIME_WAIT.
    private mutating func takeSlot() -> UInt32? {
        while connections.used >= connections.limit, let oldest = context.resting.popFirst() {
            guard connections[oldest].state == .timeWait, connections[oldest].isOrphan else { continue }
            connections[oldest].state = .closed
            settle(oldest)
        }
        return connections.take()
    }

    private mutating func open(
        _ slot: UInt32, local: SocketAddress, remote: SocketAddress, after: SequenceNumber? = nil,
        now: Instant
    ) {
        let number = hash.hash(local, remote, purpose: Self.initialSequencePurpose)
        connections[slot].prepare(
            local: local, remote: remote, hash: number, after: after, now: now, &context)
        if !pathMTUs.isEmpty, let size = pathMTUs[remote.ip] {
            connections[slot].setPathMTU(min(size, context.mtu))
        }
        flows.insert(local, remote, slot: slot)
    }

    /// Accepts connections to this port of all own addresses.
    package mutating func listen(_ port: UInt16) { listening.insert(port) }

    /// Stops accepting; open connections stay.
    package mutating func unlisten(_ port: UInt16) { listening.remove(port) }

    /// Accepts connections to all ports that have no listener of their own. `asking`: each is announced by an
    /// `asked` event before its handshake is completed, to be decided by `accept` or `abort`.
    package mutating func listenAny(_ on: Bool = true, asking: Bool = false) {
        listensAny = on
        asksFirst = asking
    }

    /// Completes the handshake of a connection that was `asked` for. `accepted` follows.
    package mutating func accept(_ id: ConnectionID) {
        guard let slot = slot(id) else { return }
        connections[slot].accept(&context)
        settle(slot)
    }

    /// Forgets a connection that was `asked` for as if its SYN had never come: the peer will repeat it. False if it is
    /// past that.
    package mutating func forget(_ id: ConnectionID) -> Bool {
        guard let slot = slot(id), connections[slot].awaitsDecision else { return false }
        context.counters.synDropped += 1
        connections[slot].isOrphan = true
        connections[slot].die(.refused, &context)
        settle(slot)
        return true
    }

    /// A peer with which some connection makes no progress. Nil when there is none (any more).
    package mutating func nextStall() -> Stall? { context.stalls.popLast() }

    // MARK: - Segments

    mutating func receiveTCP(
        _ header: IPHeader, _ bytes: PacketBytes, isAuthentic: Bool, _ now: Instant
    ) {
        guard let segment = Segment.parse(bytes) else {
            context.counters.malformed += 1
            return
        }
        let local = SocketAddress(header.destination, port: segment.destinationPort)
        let remote = SocketAddress(header.source, port: segment.sourcePort)
        guard let slot = flows.find(local, remote) else {
            receiveStray(segment, bytes, local, remote, now)
            return
        }
        if !isAuthentic {
            let sum = Checksum.sum(bytes, connections[slot].pseudoHeader &+ Checksum.length(bytes.count))
            guard Checksum.isValid(sum) else {
                context.counters.badChecksum += 1
                return
            }
        }
        if connections[slot].state == .timeWait, mayReopen(slot, segment) {
            connections[slot].state = .closed
            connections[slot].isOrphan = true
            settle(slot)
            receiveSYN(segment, local, remote, now)
            return
        }
        connections[slot].receive(segment, bytes, now, &context)
        noteHalfOpen(slot)
        expect(slot)
        settle(slot)
    }

    @inline(__always)
    private mutating func noteHalfOpen(_ slot: UInt32) {
        if connections[slot].isHalfOpen, connections[slot].state.isSynchronized { leaveHalfOpen(slot) }
    }

    /// One half-open connection less.
    mutating func leaveHalfOpen(_ slot: UInt32) {
        connections[slot].isHalfOpen = false
        halfOpen -= 1
        let peer = connections[slot].remote.ip
        let left = halfOpenByPeer[peer, default: 1] - 1
        halfOpenByPeer[peer] = left > 0 ? left : nil
    }

    /// RFC 9293 §3.10.7.4 and RFC 6191: a new SYN may end TIME_WAIT early if it is surely newer.
    private func mayReopen(_ slot: UInt32, _ segment: Segment) -> Bool {
        guard segment.flags.contains(.syn), !segment.flags.contains(.ack), !segment.flags.contains(.rst),
            connections[slot].isOrphan
        else { return false }
        if connections[slot].usesTimestamps, segment.hasTimestamp {
            let age = Int32(bitPattern: segment.timestamp &- connections[slot].recentTimestamp)
            // The clock ticks once in a millisecond: within a tick the sequence number decides.
            if age != 0 { return age > 0 }
        }
        return segment.sequence > connections[slot].receiveNext
    }

    /// A segment without a connection: a SYN for a listener, or something to refuse.
    private mutating func receiveStray(
        _ segment: Segment, _ bytes: PacketBytes, _ local: SocketAddress, _ remote: SocketAddress,
        _ now: Instant
    ) {
        let pseudo = Checksum.pseudoHeader(local.ip, remote.ip, IPProtocol.tcp)
        guard Checksum.isValid(Checksum.sum(bytes, pseudo &+ Checksum.length(bytes.count))) else {
            context.counters.badChecksum += 1
            return
        }
        guard !segment.flags.contains(.rst), remote.port != 0, local.port != 0 else { return }
        let isOpen = listening.contains(local.port) || listensAny
        if segment.flags.contains(.syn), !segment.flags.contains(.ack), isOpen {
            receiveSYN(segment, local, remote, now)
            return
        }
        // RFC 9293 §3.10.7.1.
        guard mayReply(now) else { return }
        if segment.flags.contains(.ack) {
            context.sendReset(
                local: local, remote: remote, sequence: segment.acknowledgement, acknowledgement: nil)
        } else {
            context.sendReset(
                local: local, remote: remote, sequence: SequenceNumber(0),
                acknowledgement: segment.sequence + segment.length)
        }
    }

    private mutating func receiveSYN(
        _ segment: Segment, _ local: SocketAddress, _ remote: SocketAddress, _ now: Instant
    ) {
        guard !segment.flags.contains(.fin), !remote.ip.isMulticast, !remote.ip.isUnspecified,
            local != remote
        else {
            context.counters.malformed += 1
            return
        }
        let ofPeer = halfOpenByPeer[remote.ip, default: 0]
        guard halfOpen < context.limits.halfOpenConnections, ofPeer < context.limits.halfOpenPerPeer,
            let slot = takeSlot()
        else {
            context.counters.synDropped += 1
            return
        }
        open(slot, local: local, remote: remote, now: now)
        connections[slot].state = .synReceived
        connections[slot].isPassive = true
        connections[slot].isHalfOpen = true
        halfOpen += 1
        halfOpenByPeer[remote.ip] = ofPeer + 1
        connections[slot].negotiate(segment, now)
        if asksFirst, !listening.contains(local.port) { connections[slot].awaitDecision(now, &context) }
        settle(slot)
    }
}

extension StackContext {
    /// Queues a RST. Without acknowledgement number it carries no ACK bit.
    mutating func sendReset(
        local: SocketAddress, remote: SocketAddress, sequence: SequenceNumber,
        acknowledgement: SequenceNumber?
    ) {
        counters.resetsSent += 1
        let ipSize = IPHeader.size(isV4: local.ip.isV4)
        unsafe withUnsafeTemporaryAllocation(byteCount: ipSize + Segment.headerSize, alignment: 8) { memory in
            guard let out = unsafe PacketWriter(memory) else { return }
            let length = Segment.headerSize
            IPHeader.write(out, local.ip, remote.ip, kind: IPProtocol.tcp, payloadLength: length)
            out.put16(local.port, ipSize)
            out.put16(remote.port, ipSize + 2)
            out.put32(sequence.raw, ipSize + 4)
            out.put32(acknowledgement?.raw ?? 0, ipSize + 8)
            let flags: SegmentFlags = acknowledgement == nil ? .rst : [.rst, .ack]
            out.put32(5 << 28 | UInt32(flags.rawValue) << 16, ipSize + 12)
            out.put32(0, ipSize + 16)
            guard let bytes = out.bytes(ipSize, length), let all = out.bytes(0, ipSize + length) else {
                return
            }
            let pseudo = Checksum.pseudoHeader(local.ip, remote.ip, IPProtocol.tcp)
            out.putChecksum(
                Checksum.finish(Checksum.sum(bytes, pseudo &+ Checksum.length(length))), ipSize + 16)
            queue(all, local: local, remote: remote)
        }
    }

    /// Queues a finished packet for `nextPacket`. False when the queue is full.
    @discardableResult
    mutating func queue(_ packet: PacketBytes, local: SocketAddress, remote: SocketAddress) -> Bool {
        guard packets.reserve(packet.count, &pool) else {
            counters.packetsDropped += 1
            return false
        }
        packets.append(PacketQueue.Entry(local: local, remote: remote, length: packet.count), packet)
        return true
    }
}

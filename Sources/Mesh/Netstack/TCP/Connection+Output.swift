// SPDX-License-Identifier: Apache-2.0

// What leaves: RFC 9293 §3.8 and §3.10. Nothing is queued as packets; each call looks at the state and builds the
// one segment that is due, straight into the caller's memory.
extension Connection {
    /// Bytes of one segment to be.
    private struct Plan {
        var sequence: SequenceNumber
        var flags: SegmentFlags = .ack
        /// Where the payload starts in `send`, and its length.
        var offset = 0
        var length = 0
        var withSACK = false
    }

    /// Builds the next packet, IP header and all. 0 when nothing is due.
    mutating func nextSegment(into out: PacketWriter, _ now: Instant, _ context: inout StackContext) -> Int {
        switch state {
        case .closed: return 0
        case .synSent, .synReceived: return synNeeded ? writeSYN(out, now, &context) : 0
        default: break
        }
        if let size = retransmission(out, now, &context) { return size }
        if let size = newData(out, now, &context) { return size }
        if probeNeeded, let size = tailProbe(out, now, &context) { return size }
        if sendTimer == .off, state != .timeWait { armSendTimer(now) }
        if pokeNeeded {
            pokeNeeded = false
            return write(Plan(sequence: unacknowledged - 1), out, now, &context)
        }
        guard ackNow else { return 0 }
        if duplicatesOwed > 1 {
            duplicatesOwed -= 1
            let size = write(Plan(sequence: sendNext, withSACK: true), out, now, &context)
            ackNow = true
            return size
        }
        duplicatesOwed = 0
        return write(Plan(sequence: sendNext, withSACK: true), out, now, &context)
    }

    private mutating func retransmission(
        _ out: PacketWriter, _ now: Instant, _ context: inout StackContext
    ) -> Int? {
        guard let range = sent.firstLost else { return nil }
        let size = min(segmentSize, range.length)
        guard pipe == 0 || pipe + size <= cubic.window else { return nil }
        if undo == nil, phase == .open { rememberForUndo(now) }
        let plan = repetition(of: range.start, size)
        sent.retransmitted(range.start, size, now: now)
        prrOut += size
        undo?.repeated += 1
        context.counters.retransmissions += 1
        let written = write(plan, out, now, &context)
        armSendTimerUnlessDeciding(now)
        return written
    }

    private func repetition(of start: SequenceNumber, _ size: Int) -> Plan {
        var plan = Plan(sequence: start)
        plan.offset = start - sendBase
        plan.length = min(size, send.count - plan.offset)
        if finSent, start + size > finSequence { plan.flags.insert(.fin) }
        if plan.length > 0, plan.offset + plan.length == send.count { plan.flags.insert(.psh) }
        return plan
    }

    private mutating func newData(_ out: PacketWriter, _ now: Instant, _ context: inout StackContext) -> Int?
    {
        guard !finSent else { return nil }
        let unsent = unsentBytes
        guard unsent > 0 || finQueued else { return nil }
        let room = windowEdge - sendNext
        // Blocks for the peer ride along; a segment that carries them has less room for bytes.
        let withSACK = ackNow && (!outOfOrder.isEmpty || duplicateBlock != nil)
        var size = min(unsent, segmentSize - (withSACK ? sackOptionSize : 0))
        if size > room {
            // RFC 9293 §3.8.6.2.1: no small segments because of a small window, unless it was always small.
            guard room > 0, forcePartial || room >= largestSendWindow / 2 else { return nil }
            size = room
        }
        let closes = finQueued && size == unsent && size < room
        guard size > 0 || closes else { return nil }
        let flight = pipe
        guard flight + size <= cubic.window || flight == 0 || probeNeeded else {
            windowLimited = true
            return nil
        }
        if flight + size + segmentSize <= cubic.window, size == unsent { windowLimited = false }
        slowDownAfterIdle(now)
        return send(size, closes: closes, withSACK: withSACK, out, now, &context)
    }

    mutating func slowDownAfterIdle(_ now: Instant) {
        let idle = now.since(lastSend)
        if sendNext == unacknowledged, lastSend.nanoseconds > 0, idle > trip.base {
            cubic.restart(idle: idle, timeout: trip.base, segmentSize)
        }
        lastSend = now
    }

    private mutating func send(
        _ size: Int, closes: Bool, withSACK: Bool, _ out: PacketWriter, _ now: Instant,
        _ context: inout StackContext
    ) -> Int {
        var plan = Plan(sequence: sendNext, withSACK: withSACK)
        plan.offset = sendNext - sendBase
        plan.length = size
        if size > 0, plan.offset + size == send.count { plan.flags.insert(.psh) }
        if closes {
            plan.flags.insert(.fin)
            finSent = true
            state = state == .closeWait ? .lastAck : .finWait1
        }
        let wasIdle = sendNext == unacknowledged
        let start = sendNext
        sendNext = sendNext + size + (closes ? 1 : 0)
        sent.append(start, sendNext, now: now)
        if wasIdle { retransmitBase = now }
        if phase == .recovery { prrOut += size }
        if probeNeeded {
            probeNeeded = false
            tailProbeEnd = sendNext
            tailProbeRetransmitted = false
        }
        forcePartial = false
        let written = write(plan, out, now, &context)
        armSendTimerUnlessDeciding(now)
        return written
    }

    /// RFC 8985 §7.3: without new data the last segment goes out again.
    private mutating func tailProbe(
        _ out: PacketWriter, _ now: Instant, _ context: inout StackContext
    ) -> Int? {
        probeNeeded = false
        guard let last = sent.last, last.state == .inFlight else { return nil }
        let size = min(segmentSize, last.length)
        let start = last.end - size
        let plan = repetition(of: start, size)
        sent.retransmitted(start, size, now: now)
        tailProbeEnd = sendNext
        tailProbeRetransmitted = true
        context.counters.retransmissions += 1
        return write(plan, out, now, &context)
    }

    mutating func armSendTimerUnlessDeciding(_ now: Instant) {
        if sendTimer != .reorder { armSendTimer(now) }
    }

    // MARK: - Bytes

    private mutating func writeSYN(
        _ out: PacketWriter, _ now: Instant, _ context: inout StackContext
    ) -> Int {
        synNeeded = false
        let ipSize = IPHeader.size(isV4: local.ip.isV4)
        let isReply = state == .synReceived
        var at = ipSize + Segment.headerSize
        let mss = pathMTU - ipSize - Segment.headerSize
        out.put32(0x0204_0000 | UInt32(truncatingIfNeeded: mss), at)
        at += 4
        if !isReply || usesSACK || usesTimestamps {
            // SACK permitted (or NOPs), then the timestamp, in Linux' order.
            out.put16(!isReply || usesSACK ? 0x0402 : 0x0101, at)
            if !isReply || usesTimestamps {
                out.put16(0x080a, at + 2)
                out.put32(timestampNow(now), at + 4)
                out.put32(isReply ? recentTimestamp : 0, at + 8)
                at += 12
            } else {
                out.put16(0x0101, at + 2)
                at += 4
            }
        }
        if !isReply || receiveShift > 0 {
            out.put32(0x0103_0300 | UInt32(receiveShift), at)
            at += 4
        }
        let window = min(offeredWindow(context), 65_535)
        advertisedEdge = .later(advertisedEdge, receiveNext + window)
        let flags: SegmentFlags = isReply ? [.syn, .ack] : .syn
        let sum = writeHeader(out, ipSize, at, 0, initialSend, flags, UInt16(truncatingIfNeeded: window))
        out.putChecksum(Checksum.finish(sum), ipSize + 16)
        if sent.isEmpty {
            sendNext = initialSend + 1
            sent.append(initialSend, sendNext, now: now)
            retransmitBase = now
        } else {
            sent.retransmitted(initialSend, 1, now: now)
        }
        sendTimer = .retransmit
        sendDeadline = now + trip.timeout
        return at
    }

    /// Size of the SACK option that would go out now, padding included.
    private var sackOptionSize: Int {
        let limit = usesTimestamps ? 3 : 4
        let blocks = min(outOfOrder.ranges.count + (duplicateBlock == nil ? 0 : 1), limit)
        return blocks == 0 ? 0 : 4 + 8 * blocks
    }

    /// Builds the planned segment and settles all that its acknowledgement part says.
    private mutating func write(
        _ plan: Plan, _ out: PacketWriter, _ now: Instant, _ context: inout StackContext
    ) -> Int {
        let ipSize = IPHeader.size(isV4: local.ip.isV4)
        var at = ipSize + Segment.headerSize
        if usesTimestamps {
            out.put32(0x0101_080a, at)
            out.put32(timestampNow(now), at + 4)
            out.put32(recentTimestamp, at + 8)
            at += 12
        }
        if plan.withSACK, usesSACK { at = writeSACK(out, at) }
        var payloadSum: UInt64 = 0
        if plan.length > 0 {
            payloadSum = unsafe send.copySumming(plan.offset, plan.length, into: out.region(at, plan.length))
        }
        let window = promiseWindow(context)
        let sum = writeHeader(out, ipSize, at, plan.length, plan.sequence, plan.flags, window)
        out.putChecksum(Checksum.finish(sum &+ payloadSum), ipSize + 16)
        return at + plan.length
    }

    /// The window field of a segment that leaves now, which acknowledges everything up to `receiveNext`.
    @inline(__always)
    mutating func promiseWindow(_ context: borrowing StackContext) -> UInt16 {
        let shift = Int(receiveShift)
        let field = min(offeredWindow(context) >> shift, 65_535)
        advertisedEdge = .later(advertisedEdge, receiveNext + (field << shift))
        ackNow = false
        ackDeadline = .never
        lastAckSent = receiveNext
        return UInt16(truncatingIfNeeded: field)
    }

    private mutating func writeSACK(_ out: PacketWriter, _ start: Int) -> Int {
        let size = sackOptionSize
        guard size > 0 else { return start }
        out.put32(0x0101_0500 | UInt32(truncatingIfNeeded: size - 2), start)
        var at = start + 4
        var limit = (size - 4) / 8
        if let block = duplicateBlock {  // RFC 2883 §4: the duplicate goes first
            out.put32(block.start.raw, at)
            out.put32(block.end.raw, at + 4)
            at += 8
            limit -= 1
            duplicateBlock = nil
        }
        outOfOrder.newest(limit) { start, end in
            out.put32(start.raw, at)
            out.put32(end.raw, at + 4)
            at += 8
        }
        return at
    }

    /// Fixed part of both headers; options must stand already. Returns the sum of everything that the checksum
    /// covers besides the payload.
    @inline(__always)
    func writeHeader(
        _ out: PacketWriter, _ ipSize: Int, _ headerEnd: Int, _ payload: Int, _ sequence: SequenceNumber,
        _ flags: SegmentFlags, _ window: UInt16
    ) -> UInt64 {
        let length = headerEnd - ipSize + payload
        IPHeader.write(out, local.ip, remote.ip, kind: IPProtocol.tcp, payloadLength: length)
        let at = ipSize
        out.put32(UInt32(local.port) << 16 | UInt32(remote.port), at)
        out.put32(sequence.raw, at + 4)
        out.put32(flags.contains(.ack) ? receiveNext.raw : 0, at + 8)
        let words = UInt32(truncatingIfNeeded: (headerEnd - ipSize) / 4)
        out.put32(words << 28 | UInt32(flags.rawValue) << 16 | UInt32(window), at + 12)
        out.put32(0, at + 16)
        guard let bytes = out.bytes(ipSize, headerEnd - ipSize) else { return 0 }
        return Checksum.sum(bytes, pseudoHeader &+ Checksum.length(length))
    }
}

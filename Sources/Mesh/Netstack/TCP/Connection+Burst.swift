// SPDX-License-Identifier: Apache-2.0

// Super-segments: new data of one connection cut into full segments in one go. One header is built and then patched
// for each segment, one decision covers all of them, one entry on the scoreboard remembers them.
extension Connection {
    /// What `superSegment` wrote.
    struct Run {
        var count: Int
        /// Packet length of all but the last.
        var length: Int
        var lastLength: Int
        /// Bytes of payload.
        var payload: Int
    }

    /// Whether nothing but new data is due, so that many segments can be decided on at once.
    private var hasOnlyNewData: Bool {
        (state == .established || state == .closeWait) && sent.lostBytes == 0 && !probeNeeded && !pokeNeeded
            && !forcePartial && duplicatesOwed <= 1 && !finSent
            && !(ackNow && (!outOfOrder.isEmpty || duplicateBlock != nil))
    }

    /// Writes two or more segments of new data with `layout` between them: at most `limit` packets and `budget`
    /// bytes of payload. Nil when that is not what is due; then `nextSegment` decides.
    mutating func superSegment(
        into out: PacketWriter, _ layout: BurstLayout, limit: Int, budget: Int, _ now: Instant,
        _ context: inout StackContext
    ) -> Run? {
        let size = segmentSize
        let unsent = unsentBytes
        guard limit > 1, unsent > size, hasOnlyNewData else { return nil }
        slowDownAfterIdle(now)
        let flight = pipe
        let room = min(windowEdge - sendNext, cubic.window - flight)
        let optionSize = usesTimestamps ? 12 : 0
        let headerEnd = IPHeader.size(isV4: local.ip.isV4) + Segment.headerSize + optionSize
        let stride = layout.stride(headerEnd + size)
        let most = min(limit, min(room, budget + size - 1) / size, out.capacity / stride)
        guard most > 1 else { return nil }
        var payload = min(most * size, unsent)
        // A short last segment only if it ends what there is to say, and never one that carries the FIN.
        if payload == unsent, finQueued { payload = min(payload, (unsent - 1) / size * size) }
        guard payload > size else { return nil }
        let count = (payload + size - 1) / size
        if flight + payload + size <= cubic.window, payload == unsent { windowLimited = false }
        let first = sendNext
        let offset = first - sendBase
        let wasIdle = first == unacknowledged
        sendNext = first + payload
        sent.append(first, sendNext, now: now)
        if wasIdle { retransmitBase = now }
        if phase == .recovery { prrOut += payload }
        writeRun(out, layout, offset: offset, payload: payload, count: count, headerEnd, now, context)
        armSendTimerUnlessDeciding(now)
        let last = payload - (count - 1) * size
        return Run(
            count: count, length: headerEnd + size, lastLength: headerEnd + last, payload: payload)
    }

    private mutating func writeRun(
        _ out: PacketWriter, _ layout: BurstLayout, offset: Int, payload: Int, count: Int, _ headerEnd: Int,
        _ now: Instant, _ context: borrowing StackContext
    ) {
        let size = segmentSize
        let ipSize = IPHeader.size(isV4: local.ip.isV4)
        let stride = layout.stride(headerEnd + size)
        guard let first = unsafe PacketWriter(out.region(layout.head, headerEnd + size)) else { return }
        if usesTimestamps {
            first.put32(0x0101_080a, ipSize + 20)
            first.put32(timestampNow(now), ipSize + 24)
            first.put32(recentTimestamp, ipSize + 28)
        }
        let window = promiseWindow(context)
        let start = sendBase + offset
        var sum = writeHeader(first, ipSize, headerEnd, size, SequenceNumber(0), .ack, window)
        guard let template = first.bytes(0, headerEnd) else { return }
        var done = 0
        for index in 0..<count {
            let length = min(size, payload - done)
            guard
                let packet = unsafe PacketWriter(
                    out.region(layout.head + index * stride, headerEnd + length))
            else { return }
            if index > 0 { packet.put(template, 0) }
            let isLast = index == count - 1
            if isLast, length < size || offset + payload == send.count {
                let flags: SegmentFlags = offset + payload == send.count ? [.ack, .psh] : .ack
                sum = writeHeader(packet, ipSize, headerEnd, length, SequenceNumber(0), flags, window)
            }
            let sequence = start + done
            packet.put32(sequence.raw, ipSize + 4)
            let total =
                unsafe sum &+ UInt64(sequence.raw.bigEndian)
                &+ send.copySumming(offset + done, length, into: packet.region(headerEnd, length))
            packet.putChecksum(Checksum.finish(total), ipSize + 16)
            done += length
        }
    }
}

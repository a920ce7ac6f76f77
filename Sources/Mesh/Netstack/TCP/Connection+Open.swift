// SPDX-License-Identifier: Apache-2.0

// Birth and death: RFC 9293 §3.5 and §3.6.
extension Connection {
    /// Makes a free slot ready for a new connection.
    mutating func prepare(
        local: SocketAddress, remote: SocketAddress, hash: UInt64, after: SequenceNumber? = nil, now: Instant,
        _ context: inout StackContext
    ) {
        let fresh = Connection(slot: slot)
        let next = generation &+ 1
        self = fresh
        generation = next
        self.local = local
        self.remote = remote
        pseudoHeader = Checksum.pseudoHeader(local.ip, remote.ip, IPProtocol.tcp)
        // RFC 6528: a keyed hash plus a clock that ticks every 4 µs.
        let clock = UInt32(truncatingIfNeeded: now.nanoseconds / 4_000)
        initialSend = SequenceNumber(UInt32(truncatingIfNeeded: hash) &+ clock)
        if let after { initialSend = .later(initialSend, after) }
        timestampOffset = UInt32(truncatingIfNeeded: hash >> 32)
        unacknowledged = initialSend
        sendNext = initialSend
        sendBase = initialSend + 1
        rackForward = initialSend
        reorderRoundEnd = initialSend
        pathMTU = context.mtu
        sendTarget = context.limits.initialBuffer
        receiveTarget = min(context.limits.initialBuffer, context.limits.receiveBuffer)
        receiveShift = Self.shift(for: context.limits.receiveBuffer)
        lastReceived = now
        retransmitBase = now
        copiedStart = now
        cubic = Cubic(maximumSegment: segmentSize)
        synNeeded = true
        wantsOutput(&context)
    }

    /// Smallest window scale that can express `bytes`.
    private static func shift(for bytes: Int) -> UInt8 {
        var shift: UInt8 = 0
        while shift < 14, bytes >> Int(shift) > 65_535 { shift += 1 }
        return shift
    }

    /// Takes over the options of the peer's SYN, as far as both sides have them.
    mutating func negotiate(_ segment: Segment, _ now: Instant) {
        initialReceive = segment.sequence
        receiveNext = segment.sequence + 1
        lastAckSent = receiveNext
        advertisedEdge = receiveNext
        // RFC 9293 §3.7.1: 536 (IPv4) or 1220 (IPv6) without the option; never absurdly small.
        peerMaximumSize = max(segment.maximumSize ?? (local.ip.isV4 ? 536 : 1_220), 64)
        usesSACK = segment.sackPermitted
        usesTimestamps = segment.hasTimestamp
        if segment.hasTimestamp {
            recentTimestamp = segment.timestamp
            recentTimestampAt = now
        }
        if let shift = segment.windowShift {
            sendShift = shift
        } else {
            sendShift = 0
            receiveShift = 0
        }
        sendWindow = Int(segment.window)  // RFC 7323 §2.2: never scaled in a SYN
        largestSendWindow = sendWindow
        windowUpdateSequence = segment.sequence
        windowUpdateAck = segment.acknowledgement
        updateSegmentSize()
        cubic = Cubic(maximumSegment: segmentSize)
    }

    /// RFC 9293 §3.10.7.3.
    mutating func receiveInSynSent(
        _ segment: Segment, _ now: Instant, _ context: inout StackContext
    ) {
        let hasAck = segment.flags.contains(.ack)
        if hasAck, segment.acknowledgement <= initialSend || segment.acknowledgement > sendNext {
            if !segment.flags.contains(.rst) {
                context.sendReset(
                    local: local, remote: remote, sequence: segment.acknowledgement, acknowledgement: nil)
            }
            return
        }
        if segment.flags.contains(.rst) {
            // Without an acceptable ACK a RST may be forged or old.
            guard hasAck else { return }
            context.counters.resetsReceived += 1
            die(.refused, &context)
            return
        }
        guard segment.flags.contains(.syn) else { return }
        negotiate(segment, now)
        if hasAck {
            synNeeded = false
            establish(segment, now, &context)
            acknowledgeNow(&context)
        } else {
            state = .synReceived  // both sides open at once
            synNeeded = true
            wantsOutput(&context)
        }
    }

    /// Our SYN was acknowledged.
    mutating func establish(_ segment: Segment, _ now: Instant, _ context: inout StackContext) {
        state = .established
        // Karn: which of several was answered nobody knows.
        if let first = sent.first, !first.retransmitted {
            trip.sample(now.since(first.sentAt))
            receiveTrip = max(now.since(first.sentAt).nanoseconds, 1_000_000)
        }
        sent.acknowledge(segment.acknowledgement) { _ in }
        unacknowledged = segment.acknowledgement
        trip.clearBackOff()
        retries = 0
        synNeeded = false
        sendTimer = .off
        sendDeadline = .never
        lifeDeadline = now + context.limits.keepaliveIdle
        rackForward = unacknowledged
        if isPassive {
            notify(.accepted, &context)
        } else {
            notify(.connected, &context)
        }
        wantsOutput(&context)
    }

    /// The peer's SYN waits until the owner decides.
    mutating func awaitDecision(_ now: Instant, _ context: inout StackContext) {
        wasAsked = true
        awaitsDecision = true
        synNeeded = false
        lifeDeadline = now + context.limits.decision
        notify(.asked, &context)
    }

    /// The owner wants the connection: SYN-ACK.
    mutating func accept(_ context: inout StackContext) {
        guard awaitsDecision else { return }
        awaitsDecision = false
        lifeDeadline = .never
        synNeeded = true
        wantsOutput(&context)
    }

    /// The connection is over at once. The owner hears of it unless it never knew, or let go; after it has read what
    /// came before.
    mutating func die(_ reason: CloseReason, _ context: inout StackContext) {
        let wasKnown = !(isPassive && state == .synReceived) || wasAsked
        state = .closed
        send.release(&context.pool)
        if isOrphan || saidClosed || receive.isEmpty { receive.release(&context.pool) }
        sent.removeAll()
        outOfOrder.removeAll()
        sendTimer = .off
        sendDeadline = .never
        ackDeadline = .never
        lifeDeadline = .never
        ackNow = false
        if !wasKnown { isOrphan = true }
        guard !saidClosed else { return }
        closeReason = reason
        pending.remove(.writable)
        pending.remove(.peerClosed)
        if receive.isEmpty { sayClosed(&context) }
    }

    /// The last that the owner hears.
    mutating func sayClosed(_ context: inout StackContext) {
        saidClosed = true
        receive.release(&context.pool)
        pending.remove(.readable)
        notify(.closed, &context)
    }

    /// RFC 9293 §3.10.5: sends RST where that makes sense, and forgets everything.
    mutating func abort(_ context: inout StackContext) {
        switch state {
        case .closed, .timeWait: break
        case .synSent: break
        default:
            context.sendReset(
                local: local, remote: remote, sequence: sendNext, acknowledgement: receiveNext)
        }
        die(.reset, &context)
    }
}

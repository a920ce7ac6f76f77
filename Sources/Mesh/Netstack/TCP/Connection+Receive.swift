// SPDX-License-Identifier: Apache-2.0

// What arrives: RFC 9293 §3.10.7, with the stricter checks of RFC 5961 and PAWS of RFC 7323.
extension Connection {
    /// A timestamp older than this says nothing (RFC 7323 §5.5: 24 days).
    private static let timestampLife = Interval.seconds(24 * 86_400)

    /// One segment for this connection; its checksum is right.
    mutating func receive(
        _ segment: Segment, _ payload: PacketBytes, _ now: Instant, _ context: inout StackContext
    ) {
        lastReceived = now
        keepaliveCount = 0
        if state == .synSent {
            receiveInSynSent(segment, now, &context)
            return
        }
        if isPredicted(segment) {
            // The common case: the next segment, or an acknowledgement, of an open connection.
            if segment.hasTimestamp { noteTimestamp(segment, now) }
        } else if !isAcceptable(segment, now, &context) {
            return
        }
        guard processAcknowledgement(segment, now, &context) else { return }
        guard state != .closed else { return }
        if segment.payloadLength > 0 || segment.flags.contains(.fin) {
            receiveData(segment, payload, now, &context)
        }
    }

    /// The next bytes in order and nothing new besides: the same acknowledgement, the same window. This is all that
    /// most segments of a stream need. False, with nothing changed, when there is more to it.
    @inline(__always)
    mutating func receiveExpected(
        _ segment: ExpectedSegment, _ payload: PacketBytes, _ now: Instant, _ context: inout StackContext
    ) -> Bool {
        guard state == .established, segment.sequence == receiveNext,
            segment.acknowledgement == unacknowledged, Int(segment.window) << Int(sendShift) == sendWindow,
            payload.count <= advertisedEdge - receiveNext, outOfOrder.isEmpty, finAt == nil, !discardsInput,
            sendTimer != .persist,
            !usesTimestamps || Int32(bitPattern: segment.timestamp &- recentTimestamp) >= 0,
            receive.ensure(receive.count + payload.count, &context.pool)
        else { return false }
        lastReceived = now
        keepaliveCount = 0
        repeatsReceived = 0
        if sendNext == unacknowledged { retries = 0 }
        if usesTimestamps {
            if segment.sequence <= lastAckSent {
                recentTimestamp = segment.timestamp
                recentTimestampAt = now
            }
            sampleReceiveTrip(segment.echo, now)
        }
        windowUpdateSequence = segment.sequence
        windowUpdateAck = segment.acknowledgement
        noteSegmentSize(payload.count)
        receive.place(payload, at: receive.count)
        receive.extend(payload.count)
        receiveNext = receiveNext + payload.count
        arrived(now, &context)
        return true
    }

    /// Bytes came in order: the owner and the peer should know.
    @inline(__always)
    private mutating func arrived(_ now: Instant, _ context: inout StackContext) {
        if advertisedEdge - receiveNext < receiveTarget / 8 { windowUsedUp = true }
        notify(.readable, &context)
        scheduleAcknowledgement(now, &context)
    }

    /// Learns what the peer's full segments look like, also when they become smaller (as Linux' `rcv_mss`).
    @inline(__always)
    private mutating func noteSegmentSize(_ length: Int) {
        if length >= receiveSegmentSize {
            receiveSegmentSize = length
        } else if length >= 536, length == lastSegmentSize {
            receiveSegmentSize = length
        }
        lastSegmentSize = length
    }

    private func isPredicted(_ segment: Segment) -> Bool {
        state == .established && segment.sequence == receiveNext
            && segment.flags.subtracting(.psh) == .ack && segment.hasTimestamp == usesTimestamps
            && segment.payloadLength <= advertisedEdge - receiveNext
            && (!usesTimestamps || Int32(bitPattern: segment.timestamp &- recentTimestamp) >= 0)
    }

    /// The checks before the ACK field. False when the segment is done with.
    private mutating func isAcceptable(
        _ segment: Segment, _ now: Instant, _ context: inout StackContext
    ) -> Bool {
        let isReset = segment.flags.contains(.rst)
        if usesTimestamps, !isReset {
            // RFC 7323 §3.2: a segment without the option is dropped.
            guard segment.hasTimestamp else { return false }
            if Int32(bitPattern: segment.timestamp &- recentTimestamp) < 0,
                now.since(recentTimestampAt) < Self.timestampLife
            {
                context.counters.pawsRejected += 1
                answerUnacceptable(segment, now, &context)
                return false
            }
        }
        let end = segment.sequence + segment.length
        guard end >= lastAckSent, segment.sequence <= SequenceNumber.later(advertisedEdge, receiveNext) else {
            context.counters.outOfWindow += 1
            if !isReset { answerUnacceptable(segment, now, &context) }
            return false
        }
        if isReset {
            receiveReset(segment, now, &context)
            return false
        }
        if segment.flags.contains(.syn), !acceptsSYN(segment, now, &context) { return false }
        guard segment.flags.contains(.ack) else { return false }
        if segment.hasTimestamp { noteTimestamp(segment, now) }
        return true
    }

    private mutating func noteTimestamp(_ segment: Segment, _ now: Instant) {
        // RFC 7323 §4.3: only segments that cover the last acknowledged number.
        guard segment.sequence <= lastAckSent else { return }
        recentTimestamp = segment.timestamp
        recentTimestampAt = now
    }

    /// RFC 9293: an unacceptable segment is answered by an ACK. Data that arrives twice always (the sender
    /// learns from it), everything else at the rate of challenge ACKs.
    private mutating func answerUnacceptable(
        _ segment: Segment, _ now: Instant, _ context: inout StackContext
    ) {
        if segment.payloadLength > 0, segment.sequence + segment.length <= receiveNext {
            context.counters.duplicates += 1
            noteDuplicate(segment.sequence, segment.sequence + segment.payloadLength)
            acknowledgeNow(&context)
            noteRepeat(now, &context)
        } else if segment.length > 0, !segment.flags.contains(.syn) {
            acknowledgeNow(&context)
        } else {
            challenge(now, &context)
        }
    }

    /// Old data again and again, and nothing new: our acknowledgements do not arrive.
    private mutating func noteRepeat(_ now: Instant, _ context: inout StackContext) {
        if repeatsReceived == 0 { repeatsSince = now }
        repeatsReceived = min(repeatsReceived + 1, 1_000)
        guard repeatsReceived >= 3, now.since(repeatsSince) >= context.limits.stallPatience else { return }
        repeatsReceived = 0
        context.noteStall(remote.ip, isCertain: true)
    }

    /// RFC 5961 §3.2: only the exact number resets; others in the window are challenged.
    private mutating func receiveReset(
        _ segment: Segment, _ now: Instant, _ context: inout StackContext
    ) {
        guard segment.sequence == receiveNext else {
            challenge(now, &context)
            return
        }
        context.counters.resetsReceived += 1
        // The peer has said all, and wants no more: what it said stays readable. RFC 1337 asks to ignore RST in
        // TIME_WAIT; freeing it early is what Linux does by default and harmless with timestamps.
        if state == .lastAck || state == .closing { enterTimeWait(now, &context) }
        if state == .timeWait {
            lifeDeadline = now
            return
        }
        die(state == .synReceived && !isPassive ? .refused : .reset, &context)
    }

    /// A SYN on a connection that is past it. False when the segment is done with.
    private mutating func acceptsSYN(
        _ segment: Segment, _ now: Instant, _ context: inout StackContext
    ) -> Bool {
        if state == .synReceived, segment.sequence == initialReceive {
            // The SYN again, or both sides opened at once and this is the peer's SYN-ACK.
            if segment.flags.contains(.ack) { return true }
            if awaitsDecision { return false }
            synNeeded = true
            wantsOutput(&context)
            return false
        }
        challenge(now, &context)  // RFC 5961 §4.2
        return false
    }

    /// An ACK that tells the peer where we stand, at most a few per second (RFC 5961 §5, §7).
    mutating func challenge(_ now: Instant, _ context: inout StackContext) {
        if now.since(challengeWindow) >= .seconds(1) || challengeWindow.nanoseconds == 0 {
            challengeWindow = now
            challengesLeft = context.limits.challengeACKsPerSecond
        }
        guard challengesLeft > 0 else { return }
        challengesLeft -= 1
        context.counters.challengeACKs += 1
        acknowledgeNow(&context)
    }

    @inline(__always)
    mutating func acknowledgeNow(_ context: inout StackContext) {
        ackNow = true
        wantsOutput(&context)
    }

    private mutating func noteDuplicate(_ start: SequenceNumber, _ end: SequenceNumber) {
        if usesSACK { duplicateBlock = SACKBlock(start: start, end: end) }
    }

    // MARK: - Data

    private mutating func receiveData(
        _ segment: Segment, _ payload: PacketBytes, _ now: Instant, _ context: inout StackContext
    ) {
        guard state.mayReceive else {
            // The peer's FIN again: it missed our ACK.
            if segment.sequence + segment.length <= receiveNext { acknowledgeNow(&context) }
            if state == .timeWait { lifeDeadline = now + context.limits.timeWait }
            return
        }
        noteSegmentSize(segment.payloadLength)
        var hasFIN = segment.flags.contains(.fin)
        var start = segment.sequence + (segment.flags.contains(.syn) ? 1 : 0)
        var skip = segment.headerLength
        var length = segment.payloadLength
        if start < receiveNext {
            let old = min(receiveNext - start, length)
            if old > 0 {
                context.counters.duplicates += 1
                noteDuplicate(start, start + old)
                acknowledgeNow(&context)
                if old == segment.payloadLength { noteRepeat(now, &context) }
            }
            start = start + old
            skip += old
            length -= old
        }
        let edge = SequenceNumber.later(advertisedEdge, receiveNext)
        if start + length > edge {
            // Beyond what was offered: a window probe, or a sender that ignores windows.
            length = max(0, edge - start)
            hasFIN = false
            acknowledgeNow(&context)
        }
        if let finAt, start + length > finAt { length = max(0, finAt - start) }
        if hasFIN, finAt == nil, start + length >= receiveNext { finAt = start + length }
        if length > 0 {
            if discardsInput {
                // RFC 9293 §3.10.4 / RFC 2525 §2.17: nobody will read this, so say it, at the latest when what
                // was written has arrived.
                guard resetsWhenSent else { return abort(&context) }
                if start == receiveNext { receiveNext = receiveNext + length }
                acknowledgeNow(&context)
            } else {
                store(start, payload.slice(skip, length), segment, now, &context)
            }
        } else if hasFIN {
            acknowledgeNow(&context)
        }
        if let finAt, finAt == receiveNext { receiveFIN(now, &context) }
    }

    private mutating func store(
        _ start: SequenceNumber, _ bytes: PacketBytes, _ segment: Segment, _ now: Instant,
        _ context: inout StackContext
    ) {
        let gap = start - receiveNext
        guard receive.ensure(receive.count + gap + bytes.count, &context.pool) else {
            context.counters.receiveMemoryDropped += 1
            acknowledgeNow(&context)
            return
        }
        guard gap == 0 else {
            storeOutOfOrder(start, bytes, gap, &context)
            return
        }
        receive.place(bytes, at: receive.count)
        receive.extend(bytes.count)
        receiveNext = receiveNext + bytes.count
        repeatsReceived = 0
        if !outOfOrder.isEmpty {
            let end = outOfOrder.advance(to: receiveNext)
            receive.extend(end - receiveNext)
            receiveNext = end
            acknowledgeNow(&context)  // RFC 5681 §4.2: at once when a gap is filled
        }
        if segment.hasTimestamp { sampleReceiveTrip(segment.timestampEcho, now) }
        arrived(now, &context)
    }

    private mutating func storeOutOfOrder(
        _ start: SequenceNumber, _ bytes: PacketBytes, _ gap: Int, _ context: inout StackContext
    ) {
        acknowledgeNow(&context)
        if !usesSACK { duplicatesOwed = min(duplicatesOwed + 1, 64) }
        let end = start + bytes.count
        if outOfOrder.covers(start, end) {
            context.counters.duplicates += 1
            noteDuplicate(start, end)
        }
        guard outOfOrder.insert(start, end, limit: context.limits.outOfOrderRanges) else {
            context.counters.outOfOrderDropped += 1
            return
        }
        context.counters.outOfOrder += 1
        receive.place(bytes, at: receive.count + gap)
    }

    /// RFC 9293 §3.8.6.3: at least every second full segment at once, else after a short delay. Whatever falls due
    /// while a burst is taken in leaves as one cumulative ACK when the burst is drained.
    private mutating func scheduleAcknowledgement(_ now: Instant, _ context: inout StackContext) {
        if quickACKs > 0 {
            quickACKs -= 1
            acknowledgeNow(&context)
        } else if receiveNext - lastAckSent >= 2 * receiveSegmentSize {
            acknowledgeNow(&context)
        } else if ackDeadline == .never {
            ackDeadline = now + context.limits.acknowledgementDelay
        }
    }

    private mutating func receiveFIN(_ now: Instant, _ context: inout StackContext) {
        finReceived = true
        receiveNext = receiveNext + 1
        outOfOrder.removeAll()
        acknowledgeNow(&context)
        switch state {
        case .established, .synReceived: state = .closeWait
        case .finWait1: state = .closing  // an ACK of our FIN was processed before and made it finWait2
        case .finWait2: enterTimeWait(now, &context)
        default: break
        }
        announceEnd(&context)
    }

    /// Tells the owner, once everything was read, that no more will come, and that all is done.
    mutating func announceEnd(_ context: inout StackContext) {
        guard finReceived, receive.isEmpty else { return }
        receive.release(&context.pool)
        if !saidPeerClosed {
            saidPeerClosed = true
            notify(.peerClosed, &context)
        }
        if state == .timeWait, !saidClosed {
            saidClosed = true
            closeReason = .done
            notify(.closed, &context)
        }
    }

    mutating func enterTimeWait(_ now: Instant, _ context: inout StackContext) {
        state = .timeWait
        sendTimer = .off
        sendDeadline = .never
        sent.removeAll()
        send.release(&context.pool)
        lifeDeadline = now + context.limits.timeWait
        context.resting.append(slot)
        announceEnd(&context)
    }

    // MARK: - Receive window autotuning

    /// How long a round trip takes as seen by a receiver: the age of the timestamp that comes back.
    private mutating func sampleReceiveTrip(_ echo: UInt32, _ now: Instant) {
        let age = timestampNow(now) &- echo
        guard age < 60_000 else { return }
        let sample = UInt64(max(age, 1)) * 1_000_000
        // Smallest wins quickly, growth is slow: data that waited at the sender ages its echo.
        receiveTrip =
            receiveTrip == 0 || sample < receiveTrip ? sample : receiveTrip + (sample - receiveTrip) / 16
    }

    /// The owner took `length` bytes. The buffer limits the sender, and is doubled, if more than half of it was taken
    /// within one round trip (dynamic right-sizing), or if the sender used up the window although the owner left
    /// nothing lying: round trips that include waiting for a processor are longer than the shortest one, and a
    /// window that fits the shortest would halve the rate for good.
    mutating func grewByReading(_ length: Int, _ now: Instant, _ context: inout StackContext) {
        copiedSince += length
        let isKeepingUp = windowUsedUp && receive.isEmpty
        let trip = max(receiveTrip, 1_000_000)
        guard isKeepingUp || now.since(copiedStart).nanoseconds >= trip else { return }
        if isKeepingUp || copiedSince * 2 > receiveTarget, receiveTarget < context.limits.receiveBuffer {
            let wanted = max(receiveTarget * 2, BufferPool.blockSize(copiedSince * 2))
            receiveTarget = min(wanted, context.limits.receiveBuffer)
        }
        windowUsedUp = false
        copiedSince = 0
        copiedStart = now
    }
}

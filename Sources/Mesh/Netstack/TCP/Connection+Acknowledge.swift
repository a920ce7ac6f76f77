// SPDX-License-Identifier: Apache-2.0

/// What one acknowledgement delivered, gathered while the scoreboard is walked.
struct Delivery {
    let now: Instant
    let minimumTrip: UInt64
    /// Echoed timestamp relative to our clock's offset, if the connection has timestamps.
    let echo: UInt32?
    var bytes = 0
    var sentAt: Instant
    var end: SequenceNumber
    var trip: UInt64
    var forward: SequenceNumber
    var sawReordering = false
    /// Round trip of the newest byte that was sent only once.
    var sample: UInt64?
    private var sampleSentAt = Instant(nanoseconds: 0)

    init(_ connection: borrowing Connection, _ segment: Segment, _ now: Instant) {
        self.now = now
        minimumTrip = connection.trip.minimum == .max ? 0 : connection.trip.minimum
        echo =
            connection.usesTimestamps && segment.hasTimestamp
            ? segment.timestampEcho &- connection.timestampOffset : nil
        sentAt = connection.rackSentAt
        end = connection.rackEnd
        trip = connection.rackTrip
        forward = connection.rackForward
    }

    /// How long ago the segment left whose timestamp came back, rounded up to the next millisecond.
    var echoAge: Interval? {
        guard let echo else { return nil }
        let age = UInt32(truncatingIfNeeded: now.nanoseconds / 1_000_000) &- echo
        return age < 60_000 ? .milliseconds(UInt64(age) + 1) : nil
    }

    /// `piece` has arrived (RFC 8985 §6.2 steps 1 to 3).
    @inline(__always)
    mutating func note(_ piece: SentRange) {
        guard piece.state != .sacked else { return }
        bytes += piece.length
        let trip = now.since(piece.sentAt).nanoseconds
        if piece.retransmitted {
            // Which transmission arrived? An older echo, or a time too short: the first one.
            let sentStamp = UInt32(truncatingIfNeeded: piece.sentAt.nanoseconds / 1_000_000)
            if let echo, Int32(bitPattern: echo &- sentStamp) < 0 { return }
            if trip < minimumTrip { return }
        } else {
            if piece.end < forward { sawReordering = true }
            if piece.sentAt >= sampleSentAt {
                sampleSentAt = piece.sentAt
                sample = trip
            }
        }
        forward = .later(forward, piece.end)
        if piece.sentAt > sentAt || piece.sentAt == sentAt && piece.end > end {
            sentAt = piece.sentAt
            end = piece.end
            self.trip = trip
        }
    }
}

// The ACK field: RFC 9293 §3.10.7.4, congestion control and loss recovery around it.
extension Connection {
    /// Takes in acknowledgement, window and SACK blocks. False when the segment must be dropped.
    mutating func processAcknowledgement(
        _ segment: Segment, _ now: Instant, _ context: inout StackContext
    ) -> Bool {
        let ack = segment.acknowledgement
        if state == .synReceived {
            guard ack > unacknowledged, ack <= sendNext else {
                context.sendReset(local: local, remote: remote, sequence: ack, acknowledgement: nil)
                return false
            }
            establish(segment, now, &context)
        }
        // RFC 5961 §5.2: neither from the future nor from a distant past.
        guard ack <= sendNext, ack >= unacknowledged - max(largestSendWindow, 65_535) else {
            challenge(now, &context)
            return false
        }
        if state == .timeWait {
            if segment.length > 0 { lifeDeadline = now + context.limits.timeWait }
            return true
        }
        let windowChanged = updateWindow(segment, &context)
        guard sendNext != unacknowledged else {
            settleIdle(now, &context)
            return true
        }
        acknowledge(segment, windowChanged: windowChanged, now, &context)
        return true
    }

    private mutating func updateWindow(
        _ segment: Segment, _ context: inout StackContext
    ) -> Bool {
        let ack = segment.acknowledgement
        guard ack >= unacknowledged,
            windowUpdateSequence < segment.sequence
                || windowUpdateSequence == segment.sequence && windowUpdateAck <= ack
        else { return false }
        let shift = segment.flags.contains(.syn) ? 0 : Int(sendShift)
        let window = Int(segment.window) << shift
        windowUpdateSequence = segment.sequence
        windowUpdateAck = ack
        // Measured from the acknowledgement that came with it.
        guard window != sendWindow || ack != unacknowledged else { return false }
        let opened = window > sendWindow
        let changed = window != sendWindow
        sendWindow = window
        largestSendWindow = max(largestSendWindow, window)
        if opened || ack != unacknowledged { wantsOutput(&context) }
        return changed
    }

    /// Nothing is outstanding: only the persist timer may run.
    private mutating func settleIdle(_ now: Instant, _ context: inout StackContext) {
        retries = 0
        guard sendTimer == .persist else { return }
        if hasSendableNow {
            sendTimer = .off
            sendDeadline = .never
            trip.clearBackOff()
            wantsOutput(&context)
        }
    }

    private mutating func acknowledge(
        _ segment: Segment, windowChanged: Bool, _ now: Instant, _ context: inout StackContext
    ) {
        let ack = segment.acknowledgement
        var delivery = Delivery(self, segment, now)
        let sawDuplicate = segment.sackCount > 0 && takeSACKs(segment, &delivery, &context)
        let progress = ack > unacknowledged
        let acknowledged = progress ? ack - unacknowledged : 0
        if progress { advance(to: ack, &delivery, now, &context) }
        guard state != .closed, state != .timeWait else { return }
        takeDelivery(delivery, ack, progress: progress)
        if progress { considerUndo(segment, delivery, &context) }
        considerTailProbe(ack, sawDuplicate: sawDuplicate, &context)

        if !usesSACK, !progress, segment.payloadLength == 0, !windowChanged, segment.length == 0 {
            duplicateACKs = min(duplicateACKs + 1, 1_000)
        }
        let lost = usesSACK ? detectLoss(now) : detectLossByDuplicates(progress: progress, ack)
        react(delivered: delivery.bytes, acknowledged: acknowledged, lost: lost, ack, now, &context)
        if progress || delivery.bytes > 0 || lost > 0 || !usesSACK { wantsOutput(&context) }
        if sendTimer != .reorder { armSendTimer(now) }
    }

    /// Marks what SACK reports. Returns whether the peer got something twice (RFC 2883).
    private mutating func takeSACKs(
        _ segment: Segment, _ delivery: inout Delivery, _ context: inout StackContext
    ) -> Bool {
        let limit = context.limits.sentRanges
        guard usesSACK else { return false }
        var sawDuplicate = false
        for index in 0..<segment.sackCount {
            let block = segment.sack(index)
            guard block.start < block.end, block.end <= sendNext else { continue }
            if index == 0, isDuplicate(block, segment) {
                sawDuplicate = true
                countDuplicate(block, &context)
                continue
            }
            guard block.start >= unacknowledged, block.end > segment.acknowledgement else { continue }
            sent.sack(block.start, block.end, limit: limit) { delivery.note($0) }
        }
        if sawDuplicate, unacknowledged >= reorderRoundEnd {
            // RFC 8985 §6.2 step 4: it was reordering, be more patient; at most once per round trip.
            reorderRoundEnd = sendNext
            reorderWindowFactor = min(reorderWindowFactor + 1, 20)
            reorderWindowRounds = 16
        }
        return sawDuplicate
    }

    private func isDuplicate(_ block: SACKBlock, _ segment: Segment) -> Bool {
        if block.end <= segment.acknowledgement { return true }
        guard segment.sackCount > 1 else { return false }
        let second = segment.sack(1)
        return block.start >= second.start && block.end <= second.end
    }

    /// The cumulative acknowledgement moved.
    private mutating func advance(
        to ack: SequenceNumber, _ delivery: inout Delivery, _ now: Instant, _ context: inout StackContext
    ) {
        sent.acknowledge(ack) { delivery.note($0) }
        let finAcked = finSent && ack > finSequence
        let bytes = min(max(ack - sendBase, 0), send.count)
        send.consume(bytes)
        sendBase = sendBase + bytes
        if send.isEmpty {
            send.rewind()
            keepBuffersAWhile(now, &context)
        }
        // The window was measured from the old edge; `updateWindow` already stored the new one if it is newer.
        if windowUpdateAck != ack { sendWindow = max(0, sendWindow - (ack - unacknowledged)) }
        unacknowledged = ack
        retries = 0
        duplicateACKs = 0
        retransmitBase = now
        // Not left behind by 2 GiB, from where it would look like the future.
        reorderRoundEnd = .later(reorderRoundEnd, ack)
        if resetsWhenSent, isOrphan, send.isEmpty { return abort(&context) }
        if wantsWritable, bytes > 0, hasWriteRoom(context) {
            wantsWritable = false
            notify(.writable, &context)
        }
        if finAcked { finishSending(now, &context) }
    }

    /// Our FIN was acknowledged.
    private mutating func finishSending(_ now: Instant, _ context: inout StackContext) {
        switch state {
        case .finWait1:
            state = .finWait2
            if isOrphan { lifeDeadline = now + context.limits.orphanWait }
        case .closing: enterTimeWait(now, &context)
        case .lastAck:
            // Everything is done. The owner may still have bytes to read: the slot waits for that.
            state = .timeWait
            enterTimeWait(now, &context)
            lifeDeadline = now  // no need to wait: the peer closed first
        default: break
        }
    }

    private mutating func takeDelivery(_ delivery: Delivery, _ ack: SequenceNumber, progress: Bool) {
        rackSentAt = delivery.sentAt
        rackEnd = delivery.end
        rackTrip = delivery.trip
        rackForward = delivery.forward
        if delivery.sawReordering { reorderingSeen = true }
        if let sample = delivery.sample {
            trip.sample(Interval(nanoseconds: sample))
            cubic.roundTrip(sample, acknowledged: ack, sent: sendNext)
        } else if progress, let age = delivery.echoAge {
            // RFC 7323 §4: which transmission it was the timestamp tells, else a longer round trip is never learnt.
            trip.sample(age)
        } else {
            return
        }
        // RFC 6298 §5.7 and Karn: the back-off stays until there is a sample.
        trip.clearBackOff()
    }

    private mutating func react(
        delivered: Int, acknowledged: Int, lost: Int, _ ack: SequenceNumber, _ now: Instant,
        _ context: inout StackContext
    ) {
        if phase != .open, unacknowledged >= recoveryPoint { endRecovery() }
        if phase == .open, lost > 0 { enterRecovery(now, &context) }
        if phase == .recovery {
            reduceProportionally(delivered: max(delivered, usesSACK ? 0 : segmentSize), acknowledged, lost)
        } else if delivered > 0,
            windowLimited || cubic.isSlowStart && cubic.window < 2 * flightAtAck(delivered)
        {
            cubic.acknowledged(delivered, segmentSize, trip, now)
        }
        sendTarget = max(sendTarget, min(2 * cubic.window, context.limits.sendBuffer))
    }

    private func flightAtAck(_ delivered: Int) -> Int { sendNext - unacknowledged + delivered }
}

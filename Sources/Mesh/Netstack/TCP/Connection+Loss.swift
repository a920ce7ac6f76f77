// SPDX-License-Identifier: Apache-2.0

// Finding and repairing loss: RACK-TLP (RFC 8985), NewReno without SACK (RFC 6582), PRR (RFC 6937/9937).
extension Connection {
    /// RFC 8985 §6.2 step 4: how long a segment may be overtaken before it counts as lost.
    private var reorderWindow: UInt64 {
        if !reorderingSeen, phase != .open || sent.sackedBytes >= 3 * segmentSize { return 0 }
        let minimum = trip.minimum == .max ? trip.smoothed : trip.minimum
        return min(minimum / 4 &* reorderWindowFactor, trip.smoothed)
    }

    /// RFC 8985 §6.2 step 5. Returns newly lost bytes; arms the reordering timer for undecided ones.
    mutating func detectLoss(_ now: Instant) -> Int {
        if sendTimer == .reorder {
            sendTimer = .off
            sendDeadline = .never
        }
        // In order and nothing repeated: whatever is still out was sent after what arrived.
        if sent.sackedBytes == 0, sent.lostBytes == 0, phase == .open { return 0 }
        guard rackSentAt.nanoseconds > 0 else { return 0 }
        let newest = rackSentAt
        let newestEnd = rackEnd
        let patience = Interval(nanoseconds: rackTrip &+ reorderWindow)
        var decision = Instant.never
        let lost = sent.markLost { range in
            guard range.sentAt < newest || range.sentAt == newest && range.end < newestEnd else {
                return false
            }
            let due = range.sentAt + patience
            if due <= now { return true }
            decision = min(decision, due)
            return false
        }
        if decision != .never {
            sendTimer = .reorder
            sendDeadline = decision
        }
        return lost
    }

    /// Three duplicates, or a partial acknowledgement during recovery, mean that the first segment is lost.
    mutating func detectLossByDuplicates(progress: Bool, _ ack: SequenceNumber) -> Int {
        if phase == .open, duplicateACKs >= 3 { return sent.markFirstLost(segmentSize) }
        if phase == .recovery, progress, ack < recoveryPoint { return sent.markFirstLost(segmentSize) }
        return 0
    }

    /// Bytes believed to be in the network (RFC 6675 "pipe").
    var pipe: Int {
        usesSACK ? sent.inFlightBytes : max(0, sent.inFlightBytes - duplicateACKs * segmentSize)
    }

    mutating func enterRecovery(_ now: Instant, _ context: inout StackContext) {
        context.counters.recoveries += 1
        rememberForUndo(now)
        prrFlightAtStart = max(sendNext - unacknowledged, segmentSize)
        prrDelivered = 0
        prrOut = 0
        cubic.reduce(segmentSize)
        phase = .recovery
        recoveryPoint = sendNext
    }

    mutating func rememberForUndo(_ now: Instant) {
        guard usesTimestamps || usesSACK else { return }
        let stamp = usesTimestamps ? timestampNow(now) : nil
        undo = Undo(cubic: cubic, timestamp: stamp, start: unacknowledged)
    }

    /// RFC 9937 §6: as much leaves as is delivered, in proportion to the reduction.
    mutating func reduceProportionally(delivered: Int, _ acknowledged: Int, _ lost: Int) {
        prrDelivered += delivered
        let flight = pipe
        let target = cubic.threshold
        var allowance: Int
        if flight > target {
            let (product, overflow) = prrDelivered.multipliedReportingOverflow(by: target)
            allowance = (overflow ? Int.max : product) / prrFlightAtStart + 1 - prrOut
        } else {
            allowance = max(prrDelivered - prrOut, delivered)
            if acknowledged > 0, lost == 0 { allowance += segmentSize }
            allowance = min(allowance, target - flight)
        }
        // The first retransmission leaves at once.
        if prrOut == 0 { allowance = max(allowance, segmentSize) }
        cubic.setWindow(flight + max(allowance, 0), segmentSize)
    }

    /// Everything on its way counts as lost.
    mutating func beginLoss() {
        phase = .loss
        recoveryPoint = sendNext
        tailProbeEnd = nil
        probeNeeded = false
        duplicateACKs = 0
        // The oldest byte reported as arrived but never acknowledged: the receiver threw it away.
        if let first = sent.first, first.state == .sacked { sent.forgetSacks() }
        _ = sent.markLost { _ in true }
    }

    mutating func endRecovery() {
        if phase == .recovery { cubic.setWindow(cubic.threshold, segmentSize) }
        phase = .open
        // Reports of duplicates may still come.
        if !usesSACK || undo?.repeated == 0 { undo = nil }
        duplicateACKs = 0
        if reorderWindowRounds > 0 {
            reorderWindowRounds -= 1
            if reorderWindowRounds == 0 { reorderWindowFactor = 1 }
        }
    }

    /// Eifel (RFC 3522): the acknowledgement echoes a segment older than our first retransmission, so the
    /// original had arrived and the loss was imagined.
    mutating func considerUndo(_ segment: Segment, _ delivery: Delivery, _ context: inout StackContext) {
        guard phase != .open, let undo, let stamp = undo.timestamp, segment.hasTimestamp,
            Int32(bitPattern: segment.timestampEcho &- stamp) < 0
        else { return }
        if phase == .loss, !undo.wasTold, let age = delivery.echoAge { trip.adapt(age) }
        takeBack(undo, &context)
    }

    /// D-SACK (RFC 3708): when everything that was repeated turns out to have arrived twice, nothing was lost.
    mutating func countDuplicate(_ block: SACKBlock, _ context: inout StackContext) {
        guard let undo, undo.repeated > 0, block.end > undo.start, block.end <= sendNext else { return }
        let segments = (max(block.end - block.start, 1) + segmentSize - 1) / segmentSize
        self.undo?.repeated = max(undo.repeated - segments, 0)
        if segments >= undo.repeated { takeBack(undo, &context) }
    }

    private mutating func takeBack(_ undo: Undo, _ context: inout StackContext) {
        context.counters.undoneRecoveries += 1
        if undo.cubic.window > cubic.window { cubic = undo.cubic }
        self.undo = nil
        phase = .open
        if !undo.wasTold { reorderingSeen = true }
        sent.unmarkLost()
    }

    // MARK: - Tail loss probe

    /// RFC 8985 §7.2: probing makes sense only in good order.
    var mayProbeTail: Bool {
        usesSACK && phase == .open && sent.sackedBytes == 0 && tailProbeEnd == nil && state.isSynchronized
    }

    /// RFC 8985 §7.2: PTO.
    var tailProbeDelay: Interval {
        guard trip.hasSample else { return RoundTrip.initialTimeout }
        var delay = Interval(nanoseconds: trip.smoothed &* 2 &+ 2_000_000)
        // A lone segment may wait for the peer's delayed ACK.
        if sendNext - unacknowledged <= segmentSize { delay = delay + .milliseconds(200) }
        return delay
    }

    /// RFC 8985 §7.4.2.
    mutating func considerTailProbe(
        _ ack: SequenceNumber, sawDuplicate: Bool, _ context: inout StackContext
    ) {
        guard let end = tailProbeEnd, ack >= end else { return }
        if tailProbeRetransmitted, !sawDuplicate, ack > end, phase == .open {
            // The probe repaired a loss that nobody would have noticed.
            cubic.reduce(segmentSize)
            cubic.setWindow(cubic.threshold, segmentSize)
        }
        tailProbeEnd = nil
    }
}

// SPDX-License-Identifier: Apache-2.0

// Timers: retransmission (RFC 6298), tail probe and reordering (RFC 8985), persist, delayed ACK, keepalive
// (RFC 9293 §3.8.4), TIME_WAIT.
extension Connection {
    /// Chooses the send timer after anything was sent or acknowledged.
    mutating func armSendTimer(_ now: Instant) {
        guard sendNext != unacknowledged else {
            armPersistTimer(now)
            return
        }
        let timeout = retransmitBase + trip.timeout
        if mayProbeTail {
            sendTimer = .tailProbe
            sendDeadline = min(now + tailProbeDelay, timeout)
        } else {
            sendTimer = .retransmit
            sendDeadline = timeout
        }
    }

    /// Whether the window lets something out right now.
    var hasSendableNow: Bool {
        guard unsentBytes > 0 || finQueued && !finSent else { return false }
        let room = windowEdge - sendNext
        return room > 0 && (room >= min(segmentSize, unsentBytes) || room >= largestSendWindow / 2)
    }

    private mutating func armPersistTimer(_ now: Instant) {
        let waits = state.isSynchronized && (unsentBytes > 0 || finQueued && !finSent) && !hasSendableNow
        guard waits else {
            sendTimer = .off
            sendDeadline = .never
            return
        }
        guard sendTimer != .persist else { return }
        sendTimer = .persist
        sendDeadline = now + trip.timeout
    }

    /// Some timer of this connection may be due.
    mutating func handleTimeout(_ now: Instant, _ context: inout StackContext) {
        if ackDeadline <= now {
            ackDeadline = .never
            acknowledgeNow(&context)
        }
        if sendDeadline <= now { sendTimerFired(now, &context) }
        if lifeDeadline <= now { lifeTimerFired(now, &context) }
    }

    private mutating func sendTimerFired(_ now: Instant, _ context: inout StackContext) {
        let timer = sendTimer
        sendTimer = .off
        sendDeadline = .never
        switch timer {
        case .off: break
        case .retransmit: retransmissionTimedOut(now, &context)
        case .tailProbe:
            if retransmitBase + trip.timeout <= now {
                retransmissionTimedOut(now, &context)
            } else {
                context.counters.tailProbes += 1
                probeNeeded = true
                wantsOutput(&context)
                sendTimer = .retransmit
                sendDeadline = retransmitBase + trip.timeout
            }
        case .reorder:
            let lost = detectLoss(now)
            if lost > 0, phase == .open { enterRecovery(now, &context) }
            if lost > 0, phase == .recovery { reduceProportionally(delivered: 0, 0, lost) }
            if sendTimer == .off { armSendTimer(now) }
            wantsOutput(&context)
        case .persist: persistFired(now, &context)
        }
    }

    /// Times that the pause before a probe doubles until a connection that nobody holds is given up although its peer
    /// is alive and only never opens its window: some minutes at least, as Linux' `tcp_orphan_retries`.
    private static let orphanBackOffs = 8

    private var isGivenUp: Bool { (isOrphan || resetsWhenSent) && trip.backoff >= Self.orphanBackOffs }

    private mutating func retransmissionTimedOut(_ now: Instant, _ context: inout StackContext) {
        // A peer that closed its window over data on the way, and says so, is alive: RFC 9293 §3.8.6.1.
        if state.isSynchronized, sendWindow == 0,
            now.since(lastReceived).nanoseconds < RoundTrip.longestTimeout
        {
            if isGivenUp { return abort(&context) }
            retries = 0
        }
        guard countRetry(&context) else { return }
        context.counters.timeouts += 1
        context.noteStall(remote.ip, isCertain: retries >= 2)
        retransmitBase = now
        guard state.isSynchronized else {
            trip.backOff()
            synNeeded = true
            sendTimer = .retransmit
            sendDeadline = now + trip.timeout
            wantsOutput(&context)
            return
        }
        if phase != .loss {
            rememberForUndo(now)
            cubic.reduce(segmentSize)
        }
        undo?.wasTold = false
        trip.backOff()
        beginLoss()
        cubic.setWindow(segmentSize, segmentSize)
        sendTimer = .retransmit
        sendDeadline = now + trip.timeout
        wantsOutput(&context)
    }

    /// False when the connection died of too many repetitions.
    private mutating func countRetry(_ context: inout StackContext) -> Bool {
        retries += 1
        let limit = state.isSynchronized ? context.limits.dataRetries : context.limits.synRetries
        guard retries <= limit else {
            die(.timeout, &context)
            return false
        }
        return true
    }

    private mutating func persistFired(_ now: Instant, _ context: inout StackContext) {
        if isGivenUp { return abort(&context) }
        guard countRetry(&context) else { return }
        trip.backOff()
        context.counters.windowProbes += 1
        if windowEdge - sendNext > 0 {
            forcePartial = true  // RFC 9293 §3.8.6.2.1: the override of silly-window avoidance
        } else {
            pokeNeeded = true
        }
        wantsOutput(&context)
        sendTimer = .persist
        sendDeadline = now + trip.timeout
    }

    private mutating func lifeTimerFired(_ now: Instant, _ context: inout StackContext) {
        lifeDeadline = .never
        if awaitsDecision {
            abort(&context)
        } else if state == .timeWait {
            expire(&context)
        } else if isOrphan, state == .finWait2 {
            die(.done, &context)
        } else if state.isSynchronized {
            let buffersDeadline = letGoOfIdleBuffers(now, &context)
            keepAlive(now, &context)
            lifeDeadline = min(lifeDeadline, buffersDeadline)
        }
    }

    /// When to look again.
    private mutating func letGoOfIdleBuffers(_ now: Instant, _ context: inout StackContext) -> Instant {
        if now.since(max(lastReceived, lastSend)) >= Self.bufferLinger { releaseEmptyBuffers(&context) }
        return send.capacity > 0 || receive.capacity > 0 ? now + Self.bufferLinger : .never
    }

    /// TIME_WAIT is over. If the owner has not read everything yet, the slot waits for that.
    private mutating func expire(_ context: inout StackContext) {
        guard isOrphan || receive.isEmpty && !pending.contains(.closed) else {
            lifeDeadline = .never
            return
        }
        state = .closed
    }

    private mutating func keepAlive(_ now: Instant, _ context: inout StackContext) {
        let due = lastReceived + context.limits.keepaliveIdle
        guard due <= now || keepaliveCount > 0 else {
            lifeDeadline = due
            return
        }
        guard keepaliveCount < context.limits.keepaliveProbes else {
            die(.timeout, &context)
            return
        }
        keepaliveCount += 1
        context.counters.keepaliveProbes += 1
        pokeNeeded = true
        wantsOutput(&context)
        lifeDeadline = now + context.limits.keepaliveInterval
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import DequeModule
internal import HeapModule

// When pings and CallMeMaybes are sent, and what their absence means.
extension Paths {
    /// Whether sending now has consequences beyond a note that the session is in use.
    func wantsUse(_ slot: Int, now: Instant) -> Bool {
        // Field by field: a copy of the whole would count references for each burst.
        guard let last = peers[slot]!.lastSend, now.since(last) < limits.useResolution else { return true }
        guard !isDirectBlocked else { return false }
        if peers[slot]!.heartbeatAt == .never { return true }
        if let best = peers[slot]!.best {
            if best.isTrusted(at: now) { return false }
            if best.doubtedSince == nil { return true }
        }
        guard let round = peers[slot]!.lastRound else { return true }
        return now.since(round) >= roundPause(slot, limits.discovery)
    }

    /// `eager`, or longer when the search has been in vain for long.
    private func roundPause(_ slot: Int, _ eager: Interval) -> Interval {
        peers[slot]!.fruitlessRounds < 2 * limits.eagerRounds ? eager : limits.patientDiscovery
    }

    /// The session is in use: heartbeats go on, and a direct path is looked for.
    mutating func handleUse(_ slot: Int, now: Instant) {
        noteActive(slot, now: now)
        if !(peers[slot]!.best?.isTrusted(at: now) ?? false) { seekDirectPath(slot, now: now) }
    }

    /// The session is in use: heartbeats go on.
    mutating func noteActive(_ slot: Int, now: Instant) {
        peers[slot]!.lastSend = now
        guard peers[slot]!.heartbeatAt == .never, !isDirectBlocked else { return }
        peers[slot]!.heartbeatAt = now + limits.heartbeat
        arm(slot)
    }

    /// Starts a round unless one ran lately.
    mutating func seekDirectPath(_ slot: Int, now: Instant) {
        guard !isDirectBlocked else { return }
        if let best = peers[slot]!.best, best.doubtedSince == nil, now > best.trustUntil {
            doubtBest(slot, .expired, now: now)
            return
        }
        let pause = roundPause(slot, limits.discovery)
        guard peers[slot]!.lastRound.map({ now.since($0) >= pause }) ?? true else {
            // The round was the peer's wish. It should still hear our addresses once, from ourselves.
            if peers[slot]!.lastCallMeMaybe == nil { offerEndpoints(slot, now: now) }
            return
        }
        startRound(slot, callMeMaybe: true, now: now)
    }

    /// Pings every candidate that was not pinged lately, and asks the peer to do the same. §4.2
    mutating func startRound(_ slot: Int, callMeMaybe: Bool, now: Instant) {
        guard !isDirectBlocked else { return }
        peers[slot]!.lastRound = now
        dropDeadCandidates(slot, now: now)
        // Longest not pinged first, so that the budget reaches all of many in turn.
        let candidates = peers[slot]!.candidates
        let due = candidates.indices
            .filter { index in candidates[index].probedAt.map { now.since($0) >= limits.discovery } ?? true }
            .sorted { a, b in
                let (first, second) = (candidates[a].probedAt, candidates[b].probedAt)
                return first == second ? a < b : (first?.nanoseconds ?? 0) < (second?.nanoseconds ?? 0)
            }
        for index in due { probe(slot, index, now: now) }
        // §4.2: a peer whose addresses were all pinged just now heard from us a moment ago.
        if callMeMaybe, !due.isEmpty || candidates.isEmpty { offerEndpoints(slot, now: now) }
        if !(peers[slot]!.best?.isTrusted(at: now) ?? false) { peers[slot]!.fruitlessRounds += 1 }
        scheduleResend(slot, now: now)
        arm(slot)
    }

    private mutating func scheduleResend(_ slot: Int, now: Instant) {
        guard let first = limits.resend.first, !(peers[slot]!.best?.isTrusted(at: now) ?? false) else {
            return
        }
        let isPatient = peers[slot]!.fruitlessRounds > limits.eagerRounds
        peers[slot]!.resendStep = isPatient ? limits.resend.count - 1 : 0
        peers[slot]!.resendAt = now + first
    }

    /// New addresses of a peer that waits for a path are tried at once.
    mutating func probeNewCandidates(_ slot: Int, now: Instant) {
        guard peers[slot]!.isActive(at: now, within: limits.sessionActive),
            !(peers[slot]!.best?.isTrusted(at: now) ?? false)
        else { return }
        for index in peers[slot]!.candidates.indices where peers[slot]!.candidates[index].probedAt == nil {
            probe(slot, index, now: now)
        }
        scheduleResend(slot, now: now)
        arm(slot)
    }

    mutating func probe(_ slot: Int, _ index: Int, now: Instant) {
        let address = peers[slot]!.candidates[index].address
        guard sendPing(slot, .udp(address), .discovery, now: now) else { return }
        peers[slot]!.candidates[index].probedAt = now
    }

    /// False: the budget of this peer is used up.
    @discardableResult
    mutating func sendPing(
        _ slot: Int, _ via: PathVia, _ purpose: ProbePurpose, bytes: Int = Disco.paddedBytes, now: Instant
    ) -> Bool {
        // What keeps the chosen address alive is paced by timers and must not starve behind the search.
        var isPaced = purpose == .heartbeat || purpose == .liveness
        if case (.user, .relay) = (purpose, via) { isPaced = true }
        guard isPaced || peers[slot]!.pingBudget.take(now: now) else {
            counters.pingsWithheld += 1
            return false
        }
        let id = TransactionID(using: &random)
        guard enqueue(.ping(peers[slot]!.id, via, id, bytes: bytes)) else { return false }
        peers[slot]!.pingCount += 1
        peers[slot]!.sentPings.append(
            PathPeer.SentPing(
                id: id, number: peers[slot]!.pingCount, via: via, at: now, purpose: purpose, bytes: bytes))
        if case .udp(let address) = via, let index = peers[slot]!.candidateIndex(address) {
            peers[slot]!.candidates[index].probes += 1
        }
        if case .user(let token) = purpose { userPings[token]?.outstanding += 1 }
        report(.probed(via, purpose, bytes: bytes), slot, now: now)
        arm(slot)
        return true
    }

    mutating func enqueue(_ output: Pending) -> Bool {
        guard outputs.count < limits.outputs else {
            counters.outputsDropped += 1
            return false
        }
        outputs.append(output)
        return true
    }

    // MARK: CallMeMaybe

    /// Sends our addresses through the relay, now or when they are fresh.
    mutating func offerEndpoints(_ slot: Int, now: Instant) {
        guard let region = relayRegion(slot) else { return }
        if let at = ownEndpointsAt, now.since(at) <= limits.endpointsFresh {
            sendCallMeMaybe(slot, region: region, now: now)
        } else if peers[slot]!.callMeMaybeAt == .never {
            needsFreshEndpoints = true
            peers[slot]!.callMeMaybeAt = now + limits.endpointsWait
            arm(slot)
        }
    }

    mutating func sendCallMeMaybe(_ slot: Int, region: Int, now: Instant) {
        peers[slot]!.callMeMaybeAt = .never
        guard enqueue(.callMeMaybe(peers[slot]!.id, region: region)) else { return }
        peers[slot]!.lastCallMeMaybe = now
        let count = isDirectBlocked ? 0 : min(ownEndpoints.count, Disco.callMeMaybeLimit)
        report(.callMeMaybeSent(region: region, addresses: count), slot, now: now)
    }

    /// Tells the machine its own addresses; also when they did not change, since they are fresh then.
    package mutating func setOwnEndpoints(_ endpoints: [SocketAddress], now: Instant) {
        handle(.ownEndpoints(endpoints), now: now)
    }

    mutating func handleOwnEndpoints(_ endpoints: [SocketAddress], now: Instant) {
        let isChanged = Set(endpoints) != Set(ownEndpoints)
        ownEndpoints = endpoints
        ownEndpointsAt = now
        needsFreshEndpoints = false
        for slot in peers.indices where peers[slot] != nil {
            guard let region = relayRegion(slot), !isDirectBlocked else { continue }
            let peer = peers[slot]!
            let isSeeking =
                peer.isActive(at: now, within: limits.sessionActive)
                && !(peer.best?.isTrusted(at: now) ?? false)
            let isPaced = peer.lastCallMeMaybe.map { now.since($0) >= .milliseconds(500) } ?? true
            if peer.callMeMaybeAt != .never || isChanged && isSeeking && isPaced {
                sendCallMeMaybe(slot, region: region, now: now)
            }
        }
    }

    private mutating func handleHeartbeat(_ slot: Int, now: Instant) {
        peers[slot]!.heartbeatAt = .never
        guard !isDirectBlocked, peers[slot]!.isActive(at: now, within: limits.sessionActive) else {
            peers[slot]!.resendAt = .never
            return
        }
        peers[slot]!.heartbeatAt = now + limits.heartbeat
        if let best = peers[slot]!.best, best.doubtedSince == nil {
            sendPing(slot, .udp(best.measured.address), .heartbeat, now: now)
            if best.unanswered == 0 {
                peers[slot]!.best!.unansweredSince = now
                peers[slot]!.best!.unanswered = 1
                peers[slot]!.best!.checkAt = now + patience(slot)
            }
        }
        if wantsRound(slot, now: now) { startRound(slot, callMeMaybe: true, now: now) }
    }

    private func wantsRound(_ slot: Int, now: Instant) -> Bool {
        guard let last = peers[slot]!.lastRound else { return true }
        guard let best = peers[slot]!.best, best.isTrusted(at: now) else {
            return now.since(last) >= roundPause(slot, .zero)
        }
        return best.measured.latency > limits.goodEnough && now.since(last) >= limits.upgrade
    }

    private mutating func handleResend(_ slot: Int, now: Instant) {
        peers[slot]!.resendAt = .never
        guard !isDirectBlocked, !(peers[slot]!.best?.isTrusted(at: now) ?? false) else { return }
        for index in peers[slot]!.candidates.indices where peers[slot]!.candidates[index].isUnanswered {
            guard let at = peers[slot]!.candidates[index].probedAt, now.since(at) <= limits.discovery else {
                continue
            }
            probe(slot, index, now: now)
        }
        peers[slot]!.resendStep += 1
        guard peers[slot]!.resendStep < limits.resend.count else {
            sendSmallPings(slot, now: now)
            return
        }
        peers[slot]!.resendAt = now + limits.resend[peers[slot]!.resendStep]
    }

    private mutating func handlePingTimeouts(_ slot: Int, now: Instant) {
        while let first = peers[slot]!.sentPings.first, now >= first.at + limits.pingTimeout {
            peers[slot]!.sentPings.removeFirst()
            report(.unanswered(first.via, first.purpose), slot, now: now)
            settleUserPing(first.purpose, isAnswered: false, slot, now: now)
        }
    }

    // MARK: Timers

    /// Puts the peer's next deadline into the heap when it is earlier than what is there.
    mutating func arm(_ slot: Int) {
        let deadline = peers[slot]!.deadline(limits)
        guard deadline < peers[slot]!.timerAt else { return }
        peers[slot]!.timerAt = deadline
        timers.insert(PathTimer(at: deadline, slot: slot))
    }

    /// When `handleTimeout` must be called at the latest; `never` when nothing is planned.
    package var nextDeadline: Instant { timers.min?.at ?? .never }

    /// Does what is due.
    package mutating func handleTimeout(now: Instant) {
        while let timer = timers.min, timer.at <= now {
            timers.removeMin()
            let slot = timer.slot
            // The slot may have another owner by now; looking is cheap.
            guard peers[slot] != nil else { continue }
            if timer.at >= peers[slot]!.timerAt { peers[slot]!.timerAt = .never }
            checkSilence(slot, now: now)
            // A stale timer is no input.
            if peers[slot]!.deadline(limits) <= now { handle(.timeout, slot, now: now) }
            arm(slot)
        }
    }

    mutating func handleTimeout(_ slot: Int, now: Instant) {
        handlePingTimeouts(slot, now: now)
        if now >= peers[slot]!.callMeMaybeAt {
            peers[slot]!.callMeMaybeAt = .never
            if let region = relayRegion(slot) { sendCallMeMaybe(slot, region: region, now: now) }
        }
        if let best = peers[slot]!.best, now >= best.checkAt {
            peers[slot]!.best!.checkAt = .never
            handleUnanswered(slot, now: now)
        }
        if now >= peers[slot]!.heartbeatAt { handleHeartbeat(slot, now: now) }
        if now >= peers[slot]!.resendAt { handleResend(slot, now: now) }
    }

    // MARK: User pings

    /// Pings a peer for somebody who waits: at its direct address, or else everywhere and through the relay. Answers
    /// are `pong` events with the returned token; nil when there is no way at all, or too many wait already.
    package mutating func ping(_ id: PeerID, now: Instant) -> UInt64? {
        guard let slot = slotOfID[id], userPings.count < limits.userPings else { return nil }
        let token = nextToken
        nextToken += 1
        userPings[token] = UserPing(peer: id)
        handle(.userPing(token: token), slot, now: now)
        guard userPings[token]?.outstanding ?? 0 > 0 else {
            userPings[token] = nil
            return nil
        }
        return token
    }

    mutating func handleUserPing(_ token: UInt64, _ slot: Int, now: Instant) {
        noteActive(slot, now: now)
        if let best = peers[slot]!.best, best.isTrusted(at: now) {
            sendPing(slot, .udp(best.measured.address), .user(token: token), now: now)
        } else {
            if let region = relayRegion(slot) {
                sendPing(slot, .relay(region: region), .user(token: token), now: now)
            }
            if !isDirectBlocked {
                for candidate in peers[slot]!.candidates {
                    sendPing(slot, .udp(candidate.address), .user(token: token), now: now)
                }
            }
            seekDirectPath(slot, now: now)
        }
    }

    mutating func settleUserPing(_ purpose: ProbePurpose, isAnswered: Bool, _ slot: Int, now: Instant) {
        guard case .user(let token) = purpose, var ping = userPings[token] else { return }
        ping.outstanding -= 1
        ping.isAnswered = ping.isAnswered || isAnswered
        userPings[token] = ping.outstanding > 0 ? ping : nil
        if ping.outstanding <= 0, !ping.isAnswered { report(.pingTimedOut(token: token), slot, now: now) }
    }
}

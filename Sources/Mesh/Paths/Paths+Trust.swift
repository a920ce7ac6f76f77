// SPDX-License-Identifier: Apache-2.0

// When the chosen address is believed, doubted, left, and chosen. `path-selection.md` §4.
extension Paths {
    /// Packets go both ways until the address answers.
    mutating func doubtBest(_ slot: Int, _ reason: DoubtReason, now: Instant) {
        guard let best = peers[slot]!.best, best.doubtedSince == nil else { return }
        peers[slot]!.best!.doubtedSince = now
        report(.doubted(best.measured.address, reason), slot, now: now)
        if peers[slot]!.best!.unanswered == 0 { peers[slot]!.best!.unansweredSince = now }
        peers[slot]!.best!.unanswered += 1
        peers[slot]!.best!.checkAt = now + patience(slot)
        sendPing(slot, .udp(best.measured.address), .liveness, now: now)
        startRound(slot, callMeMaybe: true, now: now)
    }

    mutating func loseBest(_ slot: Int, _ reason: PathLoss, now: Instant) {
        guard let best = peers[slot]!.best else { return }
        peers[slot]!.best = nil
        peers[slot]!.silentSince = .never
        report(.lost(best.measured.address, reason), slot, now: now)
    }

    /// How long an answer of the chosen address may take.
    func patience(_ slot: Int) -> Interval {
        guard let best = peers[slot]!.best else { return limits.patience.least }
        if best.isSilent { return limits.silence(best) }
        return min(max(best.measured.latency * 4, limits.patience.least), limits.patience.most)
    }

    /// Pings of the chosen address are not answered.
    mutating func handleUnanswered(_ slot: Int, now: Instant) {
        guard let best = peers[slot]!.best else { return }
        if endDataDoubt(slot, now: now) { return }
        if let since = best.doubtedSince, now.since(since) >= limits.doubt {
            loseBest(slot, .unanswered, now: now)
            chooseNext(slot, instead: best.measured.address, now: now)
            return
        }
        if best.doubtedSince == nil, best.unanswered >= 2 || best.isSilent {
            doubtBest(slot, best.isSilent ? .silent : .unanswered, now: now)
            return
        }
        peers[slot]!.best!.unanswered += 1
        peers[slot]!.best!.answeredSince = nil
        peers[slot]!.best!.checkAt = now + patience(slot)
        if let since = best.doubtedSince {
            peers[slot]!.best!.checkAt = min(now + patience(slot) * 2, since + limits.doubt)
        }
        sendPing(slot, .udp(best.measured.address), .liveness, now: now)
    }

    // MARK: Choice

    /// The pinged address works; `actual` is where the answer came from, which a NAT may have changed.
    mutating func credit(
        _ slot: Int, _ ping: PathPeer.SentPing, seenFrom actual: SocketAddress, latency: Interval,
        now: Instant
    ) {
        guard case .udp(let pinged) = ping.via, let index = peers[slot]!.candidateIndex(pinged) else {
            return
        }
        map(actual, to: slot)
        let wasNarrow = peers[slot]!.candidates[index].isNarrow
        peers[slot]!.candidates[index].answers += 1
        peers[slot]!.candidates[index].passedBytes = max(
            peers[slot]!.candidates[index].passedBytes, ping.bytes)
        guard ping.bytes >= Disco.leastUsefulBytes else {
            // Says only that a small datagram gets through.
            if peers[slot]!.candidates[index].isNarrow, !wasNarrow {
                report(.narrow(pinged, bytes: ping.bytes), slot, now: now)
            }
            return
        }
        peers[slot]!.candidates[index].answeredAt = now
        peers[slot]!.candidates[index].latency = latency
        peers[slot]!.candidates[index].sendFailure = nil
        let measured = MeasuredAddress(address: pinged, latency: latency)
        let best = peers[slot]!.best
        if let best, best.awaitsData {
            // No other address takes over by a pong alone: data decides.
            if best.measured.address == pinged { creditWhileAwaitingData(slot, measured, now: now) }
        } else if best?.measured.address == pinged {
            let wasDoubted = best?.doubtedSince != nil
            peers[slot]!.best = PathPeer.Best(measured: measured, trustUntil: now + limits.trust)
            if wasDoubted { report(.trustedAgain(pinged), slot, now: now) }
        } else if isShunned(slot, index, now: now) {
            report(.passedOver(pinged, .dataDead), slot, now: now)
        } else if best.map({ !$0.isTrusted(at: now) }) ?? true || measured.isBetter(than: best?.measured) {
            // An address that answers beats one that does not, whatever their figures.
            choose(slot, measured, trustUntil: now + limits.trust, now: now)
        }
        arm(slot)
    }

    private mutating func choose(
        _ slot: Int, _ measured: MeasuredAddress, trustUntil: Instant, now: Instant
    ) {
        let previous = peers[slot]!.best?.measured.address
        peers[slot]!.best = begin(measured, slot, trustUntil: trustUntil, now: now)
        peers[slot]!.silentSince = .never
        peers[slot]!.directHeardAt = nil
        peers[slot]!.relayedSince = nil
        peers[slot]!.fruitlessRounds = 0
        report(.chosen(measured.address, latency: measured.latency, previous: previous), slot, now: now)
    }

    /// The best of the other addresses that answered lately, so that a lost path costs no detour.
    mutating func chooseNext(_ slot: Int, instead lost: SocketAddress, now: Instant) {
        guard !isDirectBlocked else { return }
        var next: (measured: MeasuredAddress, until: Instant)?
        for (index, candidate) in peers[slot]!.candidates.enumerated() where candidate.address != lost {
            guard let at = candidate.answeredAt, let latency = candidate.latency, now <= at + limits.trust,
                !candidate.isUnanswered, !isShunned(slot, index, now: now)
            else { continue }
            let measured = MeasuredAddress(address: candidate.address, latency: latency)
            if measured.isBetter(than: next?.measured) { next = (measured, at + limits.trust) }
        }
        guard let next else { return }
        choose(slot, next.measured, trustUntil: next.until, now: now)
        sendPing(slot, .udp(next.measured.address), .heartbeat, now: now)
        arm(slot)
    }

    // MARK: Failures

    mutating func handleSendFailure(
        _ address: SocketAddress, _ failure: SendFailure, _ slot: Int, now: Instant
    ) {
        guard let index = peers[slot]!.candidateIndex(address) else { return }
        if peers[slot]!.candidates[index].sendFailure != failure {
            peers[slot]!.candidates[index].sendFailure = failure
            report(.sendFailed(address, failure), slot, now: now)
        }
        if peers[slot]!.best?.measured.address == address { doubtBest(slot, .sendFailed, now: now) }
    }

    /// WireGuard proved that the peer sends from there: try it at once, and doubt what is in use when the new address
    /// is the old one with another port, or everything the peer sends comes from there now.
    mutating func handleMove(_ address: SocketAddress, _ slot: Int, now: Instant) {
        guard let index = addCandidate(slot, address, .data, now: now) else { return }
        peers[slot]!.candidates[index].pingedUsAt = now
        map(address, to: slot)
        probe(slot, index, now: now)
        if let best = peers[slot]!.best?.measured.address, best.ip == address.ip, best != address {
            doubtBest(slot, .moved, now: now)
        }
        arm(slot)
    }

    // MARK: Silence

    mutating func beginSilence(_ slot: Int, now: Instant) {
        peers[slot]!.silentSince = now
        arm(slot)
    }

    /// Looks whether packets have left for long enough without one coming back.
    mutating func checkSilence(_ slot: Int, now: Instant) {
        guard let best = peers[slot]!.best, peers[slot]!.silentSince != .never,
            now >= peers[slot]!.silentSince + limits.silence(best), now >= peers[slot]!.silenceHeldUntil
        else { return }
        // Traffic may be one way: then this is a ping per second.
        peers[slot]!.silenceHeldUntil = now + .seconds(1)
        peers[slot]!.silentSince = .never
        guard best.isTrusted(at: now) else { return }
        handle(.silence, slot, now: now)
    }

    mutating func handleSilence(_ slot: Int, now: Instant) {
        guard let best = peers[slot]!.best, best.isTrusted(at: now), best.unanswered == 0 else { return }
        peers[slot]!.best!.isSilent = true
        peers[slot]!.best!.unanswered = 1
        peers[slot]!.best!.unansweredSince = now
        peers[slot]!.best!.checkAt = now + patience(slot)
        sendPing(slot, .udp(best.measured.address), .liveness, now: now)
        arm(slot)
    }

    // MARK: Size

    /// Full pings are not answered: do small ones get through? Their answers choose nothing, they explain.
    mutating func sendSmallPings(_ slot: Int, now: Instant) {
        guard peers[slot]!.lastSizing.map({ now.since($0) >= limits.sizing.period }) ?? true else { return }
        let silent = peers[slot]!.candidates.filter { $0.isUnanswered && $0.answeredAt == nil }
        guard !silent.isEmpty else { return }
        peers[slot]!.lastSizing = now
        // The newest first: what the peer just named is likelier than what the coordinator remembers.
        for candidate in silent.suffix(limits.sizing.addresses).reversed() {
            for bytes in limits.smallSizes {
                sendPing(slot, .udp(candidate.address), .sizing, bytes: bytes, now: now)
            }
        }
    }

    // MARK: Policy and link

    /// Switches direct paths off or on. §6
    package mutating func setDirectBlocked(_ isBlocked: Bool, now: Instant) {
        guard isBlocked != isDirectBlocked else { return }
        handle(.directBlocked(isBlocked), now: now)
    }

    mutating func handleDirectBlocked(_ isBlocked: Bool, now: Instant) {
        isDirectBlocked = isBlocked
        report(.directBlocked(isBlocked), now: now)
        guard isBlocked else { return }
        for slot in peers.indices where peers[slot] != nil {
            for index in peers[slot]!.candidates.indices.reversed() {
                removeCandidate(slot, index, .policy, now: now)
            }
            loseBest(slot, .policy, now: now)
            peers[slot]!.heartbeatAt = .never
            peers[slot]!.resendAt = .never
            peers[slot]!.callMeMaybeAt = .never
            // An empty CallMeMaybe makes the peer forget ours.
            if peers[slot]!.isActive(at: now, within: limits.sessionActive), let region = relayRegion(slot) {
                sendCallMeMaybe(slot, region: region, now: now)
            }
        }
    }

    /// The addresses or routes of this machine changed: nothing that worked before is trusted. §8
    package mutating func linkChanged(now: Instant) { handle(.linkChanged, now: now) }

    mutating func handleLinkChange(now: Instant) {
        report(.linkChanged, now: now)
        ownEndpointsAt = nil
        for slot in peers.indices where peers[slot] != nil {
            for index in peers[slot]!.candidates.indices {
                peers[slot]!.candidates[index].probedAt = nil
                // Data died in another network.
                peers[slot]!.candidates[index].shunnedUntil = nil
                peers[slot]!.candidates[index].sendFailure = nil
            }
            peers[slot]!.lastRound = nil
            peers[slot]!.lastSizing = nil
            peers[slot]!.fruitlessRounds = 0
            guard peers[slot]!.isActive(at: now, within: limits.sessionActive) else {
                peers[slot]!.best?.trustUntil = Instant(nanoseconds: 0)
                continue
            }
            if peers[slot]!.best?.isTrusted(at: now) ?? false {
                doubtBest(slot, .linkChanged, now: now)
            } else {
                startRound(slot, callMeMaybe: true, now: now)
            }
        }
    }
}

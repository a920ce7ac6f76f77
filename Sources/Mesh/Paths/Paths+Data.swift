// SPDX-License-Identifier: Apache-2.0

// Whether data gets through, which pings cannot tell: they are fewer, smaller, and treated better on the way.
extension Paths {
    /// Data to this peer is not answered. The path is doubted, so that data goes through the relay as well, until
    /// data comes directly (`noteDirectData`). If only pongs come it carries nothing but small talk: it is left, and
    /// not chosen again for a while. `isCertain`: more than one accident; the second time of late that is enough.
    package mutating func noteDataDead(_ id: PeerID, isCertain: Bool, now: Instant) {
        guard let slot = slotOfID[id], let best = peers[slot]!.best, best.doubtedSince == nil else { return }
        handle(.dataDead(isCertain: isCertain), slot, now: now)
    }

    /// An authenticated packet of the peer came through a relay. While its address is trusted that is news: the peer
    /// gave the path up before we did, or data dies on it in one direction.
    mutating func noteRelayed(_ slot: Int, now: Instant) {
        guard let best = peers[slot]!.best, best.isTrusted(at: now) else {
            peers[slot]!.silentSince = .never
            return
        }
        // What was sent before the peer took the direct path may still be on its way.
        if let heard = peers[slot]!.directHeardAt, now.since(heard) < limits.silence(best) { return }
        guard let since = peers[slot]!.relayedSince else {
            peers[slot]!.relayedSince = now
            if peers[slot]!.directHeardAt != nil { handle(.relayedAgain, slot, now: now) }
            return
        }
        let limit =
            peers[slot]!.directHeardAt == nil ? limits.relayedData.unheard : limits.relayedData.heard
        guard now.since(since) > limit else { return }
        // Once, until it is heard directly again.
        peers[slot]!.relayedSince = now + limits.shun
        handle(.dataDead(isCertain: false), slot, now: now)
    }

    /// An authenticated packet of the peer came from this address.
    package mutating func noteDirectData(_ id: PeerID, from address: SocketAddress, now: Instant) {
        guard let slot = slotOfID[id] else { return }
        noteDirectData(slot, from: address, now: now)
    }

    /// The same; only what has consequences becomes an input.
    mutating func noteDirectData(_ slot: Int, from address: SocketAddress, now: Instant) {
        if let best = peers[slot]!.best {
            guard best.awaitsData, best.measured.address == address else { return }
        } else {
            guard peers[slot]!.dataDeadAt != nil, let index = peers[slot]!.candidateIndex(address),
                isShunned(slot, index, now: now), mayUnshun(slot, index, now: now)
            else { return }
        }
        handle(.directData(address), slot, now: now)
    }

    /// That the peer's data comes here says little about ours: it may be one direction that is dead. So this counts
    /// once, and not at once.
    private func mayUnshun(_ slot: Int, _ index: Int, now: Instant) -> Bool {
        let candidate = peers[slot]!.candidates[index]
        guard candidate.timesShunned <= 1, let until = candidate.shunnedUntil else { return false }
        return now + limits.shun >= until && until.since(now) * 2 <= limits.shun
    }

    mutating func handleDataDead(_ slot: Int, isCertain: Bool, now: Instant) {
        guard let best = peers[slot]!.best, best.doubtedSince == nil else { return }
        let last = peers[slot]!.dataDeadAt
        if isCertain, let last, now.since(last) < limits.deadTwice, shun(slot, now: now) { return }
        peers[slot]!.dataDeadAt = now
        doubtBest(slot, .dataDead, now: now)
        peers[slot]!.best?.awaitsData = true
        arm(slot)
    }

    mutating func handleDirectData(_ address: SocketAddress, _ slot: Int, now: Instant) {
        guard let index = peers[slot]!.candidateIndex(address) else { return }
        if let best = peers[slot]!.best, best.awaitsData {
            peers[slot]!.best = PathPeer.Best(measured: best.measured, trustUntil: now + limits.trust)
            report(.trustedAgain(address), slot, now: now)
        } else if peers[slot]!.best == nil, mayUnshun(slot, index, now: now) {
            // The peer tries this path again: so do we, and it learns from our data that the path works.
            peers[slot]!.candidates[index].shunnedUntil = nil
            sendPing(slot, .udp(address), .liveness, now: now)
        }
        arm(slot)
    }

    /// A newly chosen address that lost data before, or follows one that did, has to prove itself by data, which
    /// takes the relay as well meanwhile.
    func begin(
        _ measured: MeasuredAddress, _ slot: Int, trustUntil: Instant, now: Instant
    ) -> PathPeer.Best {
        var best = PathPeer.Best(measured: measured, trustUntil: trustUntil)
        let isSuspect = peers[slot]!.dataDeadAt.map { now.since($0) < limits.deadTwice } ?? false
        let index = peers[slot]!.candidateIndex(measured.address)
        let wasShunned = index.map { peers[slot]!.candidates[$0].timesShunned > 0 } ?? false
        if isSuspect || wasShunned, hasRelay(slot) {
            best.doubtedSince = now
            best.awaitsData = true
            best.answeredSince = now
            best.checkAt = now + limits.dataDoubt
        }
        return best
    }

    /// The chosen address answered a ping while data is awaited.
    mutating func creditWhileAwaitingData(_ slot: Int, _ measured: MeasuredAddress, now: Instant) {
        guard let best = peers[slot]!.best, best.doubtedSince != nil else { return }
        // A path that was dead altogether and comes back has its time from now on.
        let since = best.answeredSince ?? now
        peers[slot]!.best!.answeredSince = since
        peers[slot]!.best!.measured = measured
        peers[slot]!.best!.unanswered = 0
        peers[slot]!.best!.unansweredSince = nil
        peers[slot]!.best!.checkAt = since + limits.dataDoubt
    }

    /// Pings were answered and data was awaited in vain. False when there is something else the matter.
    mutating func endDataDoubt(_ slot: Int, now: Instant) -> Bool {
        guard let best = peers[slot]!.best, best.awaitsData, best.unanswered == 0 else { return false }
        // Without a packet of ours there is nothing to conclude.
        let wasUsed = peers[slot]!.lastSend.map { $0 > (best.doubtedSince ?? now) } ?? false
        if !wasUsed || !shun(slot, now: now) {
            peers[slot]!.best = PathPeer.Best(measured: best.measured, trustUntil: now + limits.trust)
        }
        return true
    }

    /// Leaves the chosen address for the relay, or the next best one. False when there is no relay.
    private mutating func shun(_ slot: Int, now: Instant) -> Bool {
        guard let best = peers[slot]!.best, hasRelay(slot),
            let index = peers[slot]!.candidateIndex(best.measured.address)
        else { return false }
        // One that worked for long since then begins anew.
        let old = peers[slot]!.candidates[index]
        let isOld = old.shunnedUntil.map { now.since($0) > limits.shun * 32 } ?? true
        let times = isOld ? 0 : min(old.timesShunned, 5)
        peers[slot]!.candidates[index].timesShunned = times + 1
        peers[slot]!.candidates[index].shunnedUntil = now + limits.shun * (1 << UInt64(times))
        peers[slot]!.dataDeadAt = now
        loseBest(slot, .dataDead, now: now)
        chooseNext(slot, instead: best.measured.address, now: now)
        if peers[slot]!.best == nil { startRound(slot, callMeMaybe: true, now: now) }
        return true
    }

    /// Data died there lately, and there is another way.
    func isShunned(_ slot: Int, _ index: Int, now: Instant) -> Bool {
        guard let until = peers[slot]!.candidates[index].shunnedUntil, now < until else { return false }
        return hasRelay(slot)
    }

    /// Whether packets could go through a relay right now.
    func hasRelay(_ slot: Int) -> Bool { relayRegion(slot).map(openRegions.contains) ?? false }
}

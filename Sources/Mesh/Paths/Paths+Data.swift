// SPDX-License-Identifier: Apache-2.0

// Whether data gets through, which pings cannot tell: they are fewer, smaller, and treated better on the way.
extension Paths {
    /// Data to this peer is not answered. The path is doubted, so that data goes through the relay as well, until
    /// data comes directly (`noteDirectData`). If only pongs come it carries nothing but small talk: it is left, and
    /// not chosen again for a while. `isCertain`: more than one accident; the second time of late that is enough.
    package mutating func noteDataDead(_ id: PeerID, isCertain: Bool, now: Instant) {
        guard let slot = slotOfID[id], let best = peers[slot]!.best, best.doubtedSince == nil else { return }
        let last = peers[slot]!.dataDeadAt
        if isCertain, let last, now.since(last) < limits.deadTwice, shun(slot, now: now) { return }
        peers[slot]!.dataDeadAt = now
        doubtBest(slot, .dataDead, now: now)
        peers[slot]!.best!.awaitsData = true
        arm(slot)
    }

    /// An authenticated packet of the peer came from this address.
    package mutating func noteDirectData(_ id: PeerID, from address: SocketAddress, now: Instant) {
        guard let slot = slotOfID[id] else { return }
        if let best = peers[slot]!.best {
            guard best.awaitsData, best.measured.address == address else { return }
            peers[slot]!.best = PathPeer.Best(measured: best.measured, trustUntil: now + limits.trust)
            report(.trustedAgain(address), slot, now: now)
            if let index = peers[slot]!.candidateIndex(address) {
                peers[slot]!.candidates[index].timesShunned = 0
            }
        } else if let index = peers[slot]!.candidateIndex(address),
            peers[slot]!.candidates[index].shunnedUntil.map({ now < $0 }) ?? false
        {
            // The peer tries this path again: so do we, and it learns from our data that the path works.
            peers[slot]!.candidates[index].shunnedUntil = nil
            sendPing(slot, .udp(address), .liveness, now: now)
        }
    }

    /// A newly chosen address that lost data before, or follows one that did, has to prove itself by data, which
    /// takes the relay as well meanwhile.
    func begin(_ measured: MeasuredAddress, _ slot: Int, _ candidate: Int, now: Instant) -> PathPeer.Best {
        var best = PathPeer.Best(measured: measured, trustUntil: now + limits.trust)
        let isSuspect = peers[slot]!.dataDeadAt.map { now.since($0) < limits.deadTwice } ?? false
        if isSuspect || peers[slot]!.candidates[candidate].timesShunned > 0, relayRegion(slot) != nil {
            best.doubtedSince = now
            best.awaitsData = true
            best.checkAt = now + limits.dataDoubt
        }
        return best
    }

    /// The chosen address answered a ping while data is awaited.
    mutating func creditWhileAwaitingData(_ slot: Int, _ measured: MeasuredAddress, now: Instant) {
        guard let since = peers[slot]!.best?.doubtedSince else { return }
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

    /// Leaves the chosen address for the relay. False when there is none.
    private mutating func shun(_ slot: Int, now: Instant) -> Bool {
        guard let best = peers[slot]!.best, relayRegion(slot) != nil,
            let index = peers[slot]!.candidateIndex(best.measured.address)
        else { return false }
        let times = min(peers[slot]!.candidates[index].timesShunned, 5)
        peers[slot]!.candidates[index].timesShunned = times + 1
        peers[slot]!.candidates[index].shunnedUntil = now + limits.shun * (1 << times)
        peers[slot]!.dataDeadAt = now
        loseBest(slot, .dataDead, now: now)
        return true
    }
}

// SPDX-License-Identifier: Apache-2.0

extension Paths {
    /// Adds a peer, or takes in what changed. Returns nil, and changes nothing, when the discovery key is of low
    /// order or the node key belongs to another peer. `path-selection.md` §4.7.
    @discardableResult
    package mutating func setPeer(
        _ id: PeerID, _ configuration: PeerConfiguration, now: Instant
    ) -> PeerChange? {
        guard let slot = slotOfID[id] else { return addPeer(id, configuration, now: now) ? .added : nil }
        var box = peers[slot]!.box
        if peers[slot]!.discoKey != configuration.discoKey {
            guard let other = BoxKey(ours: discoKey, theirs: configuration.discoKey) else { return nil }
            box = other
        }
        if peers[slot]!.nodeKey != configuration.nodeKey {
            guard slotOfNode[configuration.nodeKey] == nil else { return nil }
            slotOfNode[peers[slot]!.nodeKey] = nil
            slotOfNode[configuration.nodeKey] = slot
            peers[slot]!.nodeKey = configuration.nodeKey
        }
        var change = PeerChange.updated
        if peers[slot]!.discoKey != configuration.discoKey {
            forgetDisco(slot)
            peers[slot]!.discoKey = configuration.discoKey
            peers[slot]!.box = box
            peers[slot]!.lastRelayTransaction = nil
            rememberDisco(slot)
            change = .restarted
        }
        let endpoints = Array(configuration.endpoints.prefix(limits.candidates))
        handle(
            .peer(home: configuration.home, endpoints: endpoints, isRestarted: change == .restarted), slot,
            now: now)
        return change
    }

    /// Forgets a peer.
    package mutating func removePeer(_ id: PeerID, now: Instant) {
        guard let slot = slotOfID[id] else { return }
        reset(slot, now: now)
        let peer = peers[slot]!
        slotOfID[id] = nil
        slotOfNode[peer.nodeKey] = nil
        forgetDisco(slot)
        peers[slot] = nil
        recorder?.forget(slot)
        freeSlots.append(slot)
    }

    private mutating func addPeer(_ id: PeerID, _ configuration: PeerConfiguration, now: Instant) -> Bool {
        guard slotOfNode[configuration.nodeKey] == nil,
            let box = BoxKey(ours: discoKey, theirs: configuration.discoKey)
        else { return false }
        let slot = freeSlots.popLast() ?? peers.count
        if slot == peers.count { peers.append(nil) }
        peers[slot] = PathPeer(
            id: id, nodeKey: configuration.nodeKey, discoKey: configuration.discoKey, box: box,
            home: 0,
            pingBudget: Budget(burst: limits.pingBurst, perSecond: limits.pingsPerSecond),
            pongBudget: Budget(burst: limits.pongBurst, perSecond: limits.pongsPerSecond),
            openBudget: Budget(burst: limits.failedOpensPerSecond, perSecond: limits.failedOpensPerSecond),
            offerBudget: Budget(burst: limits.offerBurst, perSecond: limits.offersPerSecond))
        slotOfID[id] = slot
        slotOfNode[configuration.nodeKey] = slot
        rememberDisco(slot)
        let endpoints = Array(configuration.endpoints.prefix(limits.candidates))
        handle(
            .peer(home: configuration.home, endpoints: endpoints, isRestarted: false), slot, now: now)
        return true
    }

    mutating func handleRestart(_ slot: Int, now: Instant) {
        reset(slot, now: now)
        peers[slot]!.lastRound = nil
        peers[slot]!.lastCallMeMaybe = nil
        peers[slot]!.relayRoute = nil
        peers[slot]!.offeredAt = nil
        peers[slot]!.relayAnsweredAt = nil
        peers[slot]!.lastMove = nil
        peers[slot]!.refused = []
        peers[slot]!.fruitlessRounds = 0
        report(.peerRestarted, slot, now: now)
    }

    /// Drops the chosen address, the candidates and the pings under way.
    private mutating func reset(_ slot: Int, now: Instant) {
        loseBest(slot, .peerReset, now: now)
        for candidate in peers[slot]!.candidates { unmap(candidate.address, slot) }
        for address in peers[slot]!.extraAddresses { unmap(address, slot) }
        peers[slot]!.candidates = []
        peers[slot]!.extraAddresses = []
        for ping in peers[slot]!.sentPings { settleUserPing(ping.purpose, isAnswered: false, slot, now: now) }
        peers[slot]!.sentPings = []
        peers[slot]!.resendAt = .never
        peers[slot]!.callMeMaybeAt = .never
    }

    private mutating func rememberDisco(_ slot: Int) {
        slotsOfDisco[peers[slot]!.discoKey, default: []].append(slot)
        slotsOfDisco[peers[slot]!.discoKey]?.sort()
    }

    private mutating func forgetDisco(_ slot: Int) {
        let key = peers[slot]!.discoKey
        slotsOfDisco[key]?.removeAll { $0 == slot }
        if slotsOfDisco[key]?.isEmpty == true { slotsOfDisco[key] = nil }
    }

    // MARK: Candidates

    mutating func setNodeList(_ slot: Int, _ endpoints: [SocketAddress], now: Instant) {
        guard !isDirectBlocked else { return }
        for index in peers[slot]!.candidates.indices { peers[slot]!.candidates[index].isInNodeList = false }
        for address in endpoints.prefix(limits.candidates) {
            guard let index = addCandidate(slot, address, .nodeList, now: now) else { continue }
            peers[slot]!.candidates[index].isInNodeList = true
        }
        dropDeadCandidates(slot, now: now)
        probeNewCandidates(slot, now: now)
    }

    /// Index of the candidate, which is made when it is new and acceptable.
    mutating func addCandidate(
        _ slot: Int, _ address: SocketAddress, _ source: CandidateSource, now: Instant
    ) -> Int? {
        if let index = peers[slot]!.candidateIndex(address) { return index }
        if let refusal = refusal(address, source) {
            noteRefused(slot, address, source, refusal, now: now)
            return nil
        }
        if peers[slot]!.candidates.count >= limits.candidates, !displaceCandidate(slot, for: source, now: now)
        {
            noteRefused(slot, address, source, .tableFull, now: now)
            return nil
        }
        peers[slot]!.candidates.append(Candidate(address, now: now))
        peers[slot]!.fruitlessRounds = 0
        report(.candidateAdded(address, source), slot, now: now)
        return peers[slot]!.candidates.count - 1
    }

    private mutating func noteRefused(
        _ slot: Int, _ address: SocketAddress, _ source: CandidateSource, _ reason: CandidateRefusal,
        now: Instant
    ) {
        let isKnown = peers[slot]!.refused.contains { $0.address == address && $0.reason == reason }
        guard !isKnown else { return }
        if peers[slot]!.refused.count >= limits.refusedAddresses { peers[slot]!.refused.removeFirst() }
        peers[slot]!.refused.append(
            PathPeer.Refused(address: address, source: source, reason: reason, at: now))
        report(.candidateRefused(address, source, reason), slot, now: now)
    }

    private func refusal(_ address: SocketAddress, _ source: CandidateSource) -> CandidateRefusal? {
        if isDirectBlocked { return .policy }
        if address.port == 0 { return .unspecified }
        if let refusal = address.ip.refusalAsCandidate(tunnels: tunnelPrefixes) { return refusal }
        // A peer that names our loopback aims us at our own services. One that pinged us from there is real, and a
        // machine without any other address offers it itself.
        let isOffered = ownEndpoints.contains { $0.ip.isLoopback }
        return address.ip.isLoopback && source != .ping && !isOffered ? .loopback : nil
    }

    /// Makes room by dropping the candidate that is known only by a ping, and longest ago.
    private mutating func displaceCandidate(_ slot: Int, for source: CandidateSource, now: Instant) -> Bool {
        let best = peers[slot]!.best?.measured.address
        let candidates = peers[slot]!.candidates
        let victim = candidates.indices
            .filter {
                !candidates[$0].isInNodeList && candidates[$0].callMeMaybeAt == nil
                    && candidates[$0].address != best
            }
            .min { (candidates[$0].pingedUsAt ?? .never) < (candidates[$1].pingedUsAt ?? .never) }
        guard let victim else { return false }
        removeCandidate(slot, victim, .displaced, now: now)
        return true
    }

    mutating func removeCandidate(_ slot: Int, _ index: Int, _ reason: CandidateRemoval, now: Instant) {
        let address = peers[slot]!.candidates.remove(at: index).address
        unmap(address, slot)
        report(.candidateRemoved(address, reason), slot, now: now)
        guard peers[slot]!.best?.measured.address == address else { return }
        loseBest(slot, reason == .policy ? .policy : .candidateGone, now: now)
    }

    /// `path-selection.md` §4.2: a candidate of a CallMeMaybe stays, one of a ping lives as long as a session, one of
    /// the node list as long as it is in there.
    mutating func dropDeadCandidates(_ slot: Int, now: Instant) {
        for index in peers[slot]!.candidates.indices.reversed() {
            let candidate = peers[slot]!.candidates[index]
            if candidate.isInNodeList || candidate.callMeMaybeAt != nil { continue }
            if let pinged = candidate.pingedUsAt {
                guard now.since(pinged) > limits.sessionActive else { continue }
                removeCandidate(slot, index, .silent, now: now)
            } else {
                removeCandidate(slot, index, .noLongerNamed, now: now)
            }
        }
    }

    // MARK: Addresses of the receive path

    mutating func map(_ address: SocketAddress, to slot: Int) {
        if slotOfAddress[address] != slot { slotOfAddress[address] = slot }
        guard peers[slot]!.candidateIndex(address) == nil, !peers[slot]!.extraAddresses.contains(address)
        else {
            return
        }
        peers[slot]!.extraAddresses.append(address)
        if peers[slot]!.extraAddresses.count > 8 { unmap(peers[slot]!.extraAddresses.removeFirst(), slot) }
    }

    private mutating func unmap(_ address: SocketAddress, _ slot: Int) {
        if slotOfAddress[address] == slot { slotOfAddress[address] = nil }
    }

    // MARK: Relay choice

    /// An open connection to the peer's home, else where it was heard, else its home. `derp.md` §7.2.
    func relayRegion(_ slot: Int) -> Int? {
        let peer = peers[slot]!
        if peer.home != 0, openRegions.contains(peer.home) { return peer.home }
        if let region = peer.relayRoute, openRegions.contains(region) { return region }
        return peer.home == 0 ? nil : peer.home
    }

    mutating func noteRelayRoute(_ slot: Int, region: Int, now: Instant) {
        if peers[slot]!.relayRoute != region { handle(.heard(region: region), slot, now: now) }
    }

    mutating func handleRelayPeerGone(_ slot: Int, region: Int, now: Instant) {
        guard peers[slot]!.relayRoute == region else { return }
        peers[slot]!.relayRoute = nil
        noteRelayChange(slot, now: now)
    }

    /// The peer that has this address as a candidate. Slow: for rare failures.
    func slotOfCandidate(_ address: SocketAddress) -> Int? {
        peers.indices.first { peers[$0]?.candidateIndex(address) != nil }
    }

    mutating func noteRelayChange(_ slot: Int, now: Instant) {
        let region = relayRegion(slot)
        guard region != peers[slot]!.reportedRelay else { return }
        peers[slot]!.reportedRelay = region
        report(.relayChanged(region: region), slot, now: now)
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import DequeModule

extension Paths {
    /// Handles one discovery message. Returns why it was dropped, or nil. `disco.md` §4.
    @discardableResult
    package mutating func receive(_ bytes: RawSpan, from source: Source, now: Instant) -> DiscoRefusal? {
        guard Disco.looksLikeDisco(bytes) else {
            counters.malformed += 1
            return .malformed
        }
        if isDirectBlocked, case .udp = source { return .policy }
        // An unknown key costs one look-up: no cryptography, no state, no event.
        guard let slots = slotsOfDisco[Disco.sender(of: bytes)], let first = slots.first else {
            counters.unknownSenders += 1
            return .unknownSender
        }
        guard peers[first]!.openBudget.isOpen(now: now) || isFamiliar(source, first) else {
            counters.rateLimited += 1
            return .rateLimited
        }
        let message: DiscoMessage
        do {
            message = try Disco.open(bytes, with: peers[first]!.box)
        } catch .cannotOpen {
            counters.failedOpens += 1
            _ = peers[first]!.openBudget.take(now: now)
            return refuse(.cannotOpen, source, first, now: now)
        } catch {
            counters.malformed += 1
            return refuse(.malformed, source, first, now: now)
        }
        switch message {
        case .ping(let id, let nodeKey):
            return receivePing(id, claimedBy: nodeKey, slots, source, now: now)
        case .pong(let id, let seenAs):
            return receivePong(id, seenAs: seenAs, slots, source, now: now)
        case .callMeMaybe(let addresses):
            return receiveCallMeMaybe(addresses, slots, source, now: now)
        }
    }

    private func isFamiliar(_ source: Source, _ slot: Int) -> Bool {
        switch source {
        case .udp(let address): slotOfAddress[address] == slot
        case .relay(_, let node): peers[slot]!.nodeKey == node
        }
    }

    private mutating func refuse(
        _ reason: DiscoRefusal, _ source: Source, _ slot: Int, now: Instant
    ) -> DiscoRefusal {
        report(.refused(Self.via(source), reason), slot, now: now)
        return reason
    }

    private static func via(_ source: Source) -> PathVia {
        switch source {
        case .udp(let address): .udp(address)
        case .relay(let region, _): .relay(region: region)
        }
    }

    // MARK: Ping

    private mutating func receivePing(
        _ id: TransactionID, claimedBy nodeKey: NodePublicKey?, _ slots: [Int], _ source: Source, now: Instant
    ) -> DiscoRefusal? {
        switch source {
        case .relay(let region, let node):
            guard let slot = slots.first(where: { peers[$0]!.nodeKey == node }) else {
                return refuse(.wrongWay, source, slots[0], now: now)
            }
            noteRelayRoute(slot, region: region)
            guard peers[slot]!.lastRelayTransaction != id else { return .duplicate }
            peers[slot]!.lastRelayTransaction = id
            answer(id, source, slot, now: now)
        case .udp(let address):
            // A claimed node key is believed only when it is one of those that have this discovery key.
            let claimed = nodeKey.flatMap { key in slots.first { peers[$0]!.nodeKey == key } }
            let slot = claimed ?? slots[0]
            guard let index = addCandidate(slot, address, .ping, now: now) else {
                return .policy
            }
            guard peers[slot]!.candidates[index].lastTransaction != id else { return .duplicate }
            peers[slot]!.candidates[index].lastTransaction = id
            peers[slot]!.candidates[index].pingedUsAt = now
            if claimed != nil || slots.count == 1 { map(address, to: slot) }
            answer(id, source, slot, now: now)
            pingBack(slot, index, now: now)
        }
        return nil
    }

    private mutating func answer(_ id: TransactionID, _ source: Source, _ slot: Int, now: Instant) {
        report(.pinged(Self.via(source)), slot, now: now)
        guard peers[slot]!.pongBudget.take(now: now) else {
            counters.rateLimited += 1
            return
        }
        _ = enqueue(.pong(peers[slot]!.id, source, id))
    }

    /// A peer that reaches us is probably reachable there: ask at once instead of at the next round.
    private mutating func pingBack(_ slot: Int, _ index: Int, now: Instant) {
        let candidate = peers[slot]!.candidates[index]
        guard !(peers[slot]!.best?.isTrusted(at: now) ?? false),
            peers[slot]!.isActive(at: now, within: limits.sessionActive),
            candidate.probedAt.map({ now.since($0) >= .milliseconds(250) }) ?? true
                || !candidate.isUnanswered
        else { return }
        probe(slot, index, now: now)
        arm(slot)
    }

    // MARK: Pong

    private mutating func receivePong(
        _ id: TransactionID, seenAs: SocketAddress, _ slots: [Int], _ source: Source, now: Instant
    ) -> DiscoRefusal? {
        for slot in slots {
            guard let index = peers[slot]!.sentPings.firstIndex(where: { $0.id == id }) else { continue }
            let ping = peers[slot]!.sentPings[index]
            guard Self.isSameWay(ping.via, source, node: peers[slot]!.nodeKey) else { break }
            peers[slot]!.sentPings.remove(at: index)
            let latency = now.since(ping.at)
            report(.answered(ping.via, ping.purpose, latency: latency, seenAs: seenAs), slot, now: now)
            if case .user(let token) = ping.purpose {
                report(.pong(token: token, ping.via, latency: latency), slot, now: now)
                settleUserPing(ping.purpose, isAnswered: true, slot, now: now)
            }
            switch (ping.via, source) {
            case (.udp(let pinged), .udp(let actual)):
                credit(slot, pinged, seenFrom: actual, latency: latency, now: now)
            case (_, .relay(let region, _)):
                noteRelayRoute(slot, region: region)
            default:
                break
            }
            return nil
        }
        return refuse(.unknownTransaction, source, slots[0], now: now)
    }

    /// A ping over UDP is answered over UDP, one through a relay by the same node through a relay.
    private static func isSameWay(_ via: PathVia, _ source: Source, node: NodePublicKey) -> Bool {
        switch (via, source) {
        case (.udp, .udp): true
        case (.relay, .relay(_, let from)): from == node
        default: false
        }
    }

    /// The pinged address works; `actual` is where the answer came from, which a NAT may have changed.
    private mutating func credit(
        _ slot: Int, _ pinged: SocketAddress, seenFrom actual: SocketAddress, latency: Interval, now: Instant
    ) {
        guard let index = peers[slot]!.candidateIndex(pinged) else { return }
        map(actual, to: slot)
        peers[slot]!.candidates[index].answeredAt = now
        peers[slot]!.candidates[index].latency = latency
        if let until = peers[slot]!.candidates[index].shunnedUntil, now < until { return }
        let measured = MeasuredAddress(address: pinged, latency: latency)
        let best = peers[slot]!.best
        if let best, best.awaitsData {
            // No other address takes over by a pong alone: data decides.
            if best.measured.address == pinged { creditWhileAwaitingData(slot, measured, now: now) }
        } else if best?.measured.address == pinged {
            let wasDoubted = best?.doubtedSince != nil
            peers[slot]!.best = PathPeer.Best(measured: measured, trustUntil: now + limits.trust)
            if wasDoubted { report(.trustedAgain(pinged), slot, now: now) }
        } else if best.map({ !$0.isTrusted(at: now) }) ?? true || measured.isBetter(than: best?.measured) {
            // An address that answers beats one that does not, whatever their figures.
            peers[slot]!.best = begin(measured, slot, index, now: now)
            report(.chosen(pinged, latency: latency, previous: best?.measured.address), slot, now: now)
        }
        arm(slot)
    }

    // MARK: CallMeMaybe

    private mutating func receiveCallMeMaybe(
        _ addresses: [SocketAddress], _ slots: [Int], _ source: Source, now: Instant
    ) -> DiscoRefusal? {
        guard case .relay(let region, let node) = source,
            let slot = slots.first(where: { peers[$0]!.nodeKey == node })
        else { return refuse(.wrongWay, source, slots[0], now: now) }
        guard !isDirectBlocked else { return refuse(.policy, source, slot, now: now) }
        noteRelayRoute(slot, region: region)
        report(.callMeMaybeReceived(addresses: addresses.count), slot, now: now)
        let earlier = peers[slot]!.candidates.filter { $0.callMeMaybeAt != nil }.map(\.address)
        for index in peers[slot]!.candidates.indices { peers[slot]!.candidates[index].callMeMaybeAt = nil }
        // Of what is named no longer, what nothing else speaks for goes first: it makes room.
        let named = Set(addresses)
        for address in earlier where !named.contains(address) {
            guard let index = peers[slot]!.candidateIndex(address),
                !peers[slot]!.candidates[index].isInNodeList,
                peers[slot]!.candidates[index].pingedUsAt == nil
            else { continue }
            removeCandidate(slot, index, .noLongerNamed, now: now)
        }
        for address in addresses {
            guard let index = addCandidate(slot, address, .callMeMaybe, now: now) else { continue }
            peers[slot]!.candidates[index].callMeMaybeAt = now
        }
        for index in peers[slot]!.candidates.indices { peers[slot]!.candidates[index].probedAt = nil }
        startRound(slot, callMeMaybe: false, now: now)
        return nil
    }

    // MARK: Output

    /// Seals the next message into `memory`, which needs `Disco.maximumSealedBytes`, and says where it goes.
    package mutating func nextOutput(into memory: UnsafeMutableRawBufferPointer) -> Output? {
        while let output = outputs.popFirst() {
            switch output {
            case .ping(let peer, let via, let id, _):
                guard let slot = slotOfID[peer] else { continue }
                let length = unsafe seal(.ping(id, nodeKey: ownNodeKey), slot, into: memory)
                switch via {
                case .udp(let address): return .udp(address, length: length)
                case .relay(let region): return .relay(region: region, peers[slot]!.nodeKey, length: length)
                }
            case .pong(let peer, let source, let id):
                guard let slot = slotOfID[peer] else { continue }
                switch source {
                case .udp(let address):
                    let length = unsafe seal(.pong(id, source: address), slot, into: memory)
                    return .udp(address, length: length)
                case .relay(let region, let node):
                    let length = unsafe seal(.pong(id, source: Self.relayAddress(region)), slot, into: memory)
                    return .relay(region: region, node, length: length)
                }
            case .callMeMaybe(let peer, let region):
                guard let slot = slotOfID[peer] else { continue }
                let own = isDirectBlocked ? [] : Array(ownEndpoints.prefix(Disco.callMeMaybeLimit))
                let length = unsafe seal(.callMeMaybe(own), slot, into: memory)
                return .relay(region: region, peers[slot]!.nodeKey, length: length)
            }
        }
        return nil
    }

    private mutating func seal(
        _ message: DiscoMessage, _ slot: Int, into memory: UnsafeMutableRawBufferPointer
    ) -> Int {
        let nonce = BoxNonce(using: &random)
        return unsafe Disco.seal(
            message, from: ownDiscoKey, with: peers[slot]!.box, nonce: nonce, into: memory)
    }

    /// 127.3.3.40:region, which stands for a relay where the wire wants an address.
    package static func relayAddress(_ region: Int) -> SocketAddress {
        SocketAddress(IPAddress(v4: 0x7f03_0328), port: UInt16(truncatingIfNeeded: region))
    }

    // MARK: Policy and link

    /// Switches direct paths off or on. §6
    package mutating func setDirectBlocked(_ isBlocked: Bool, now: Instant) {
        guard isBlocked != isDirectBlocked else { return }
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
    package mutating func linkChanged(now: Instant) {
        report(.linkChanged, now: now)
        ownEndpointsAt = nil
        for slot in peers.indices where peers[slot] != nil {
            for index in peers[slot]!.candidates.indices { peers[slot]!.candidates[index].probedAt = nil }
            peers[slot]!.lastRound = nil
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

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
            return receivePing(
                id, claimedBy: nodeKey, bytes: bytes.byteCount, slots, source, now: now)
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
        if refusalBudget.take(now: now) {
            report(.refused(Self.via(source), reason), slot, now: now)
        } else {
            counters.refusalsUnreported += 1
        }
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
        _ id: TransactionID, claimedBy nodeKey: NodePublicKey?, bytes: Int, _ slots: [Int], _ source: Source,
        now: Instant
    ) -> DiscoRefusal? {
        let slot: Int
        var isCertain = true
        switch source {
        case .relay(let region, let node):
            guard let owner = slots.first(where: { peers[$0]!.nodeKey == node }) else {
                return refuse(.wrongWay, source, slots[0], now: now)
            }
            slot = owner
            noteRelayRoute(slot, region: region, now: now)
            guard peers[slot]!.lastRelayTransaction != id else { return .duplicate }
        case .udp(let address):
            // A claimed node key is believed only when it is one of those that have this discovery key.
            let claimed = nodeKey.flatMap { key in slots.first { peers[$0]!.nodeKey == key } }
            slot = claimed ?? slots[0]
            isCertain = claimed != nil || slots.count == 1
            if let index = peers[slot]!.candidateIndex(address),
                peers[slot]!.candidates[index].lastTransaction == id
            {
                return .duplicate
            }
        }
        guard peers[slot]!.pongBudget.take(now: now) else {
            counters.rateLimited += 1
            return .rateLimited
        }
        handle(.ping(Self.via(source), bytes: bytes, isCertain: isCertain), slot, now: now)
        if case .udp(let address) = source {
            guard let index = peers[slot]!.candidateIndex(address) else { return .policy }
            peers[slot]!.candidates[index].lastTransaction = id
        } else {
            peers[slot]!.lastRelayTransaction = id
        }
        // A pong is as large as its ping, so that it proves the way back and amplifies nothing.
        let size = bytes >= Disco.leastUsefulBytes ? Disco.paddedBytes : bytes
        _ = enqueue(.pong(peers[slot]!.id, source, id, bytes: size))
        return nil
    }

    mutating func handlePing(_ via: PathVia, bytes: Int, isCertain: Bool, _ slot: Int, now: Instant) {
        guard case .udp(let address) = via else { return report(.pinged(via, bytes: bytes), slot, now: now) }
        guard let index = addCandidate(slot, address, .ping, now: now) else { return }
        peers[slot]!.candidates[index].pingedUsAt = now
        if isCertain { map(address, to: slot) }
        report(.pinged(via, bytes: bytes), slot, now: now)
        pingBack(slot, index, now: now)
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
            guard let ping = peers[slot]!.sentPings.first(where: { $0.id == id }) else { continue }
            guard Self.isSameWay(ping.via, source, node: peers[slot]!.nodeKey) else { break }
            if case .relay(let region, _) = source { noteRelayRoute(slot, region: region, now: now) }
            handle(.pong(number: ping.number, Self.via(source), seenAs: seenAs), slot, now: now)
            return nil
        }
        return refuse(.unknownTransaction, source, slots[0], now: now)
    }

    mutating func handlePong(
        _ number: UInt64, _ actual: PathVia, seenAs: SocketAddress, _ slot: Int, now: Instant
    ) {
        guard let index = peers[slot]!.sentPings.firstIndex(where: { $0.number == number }) else { return }
        let ping = peers[slot]!.sentPings.remove(at: index)
        let latency = now.since(ping.at)
        report(.answered(ping.via, ping.purpose, latency: latency, seenAs: seenAs), slot, now: now)
        if case .user(let token) = ping.purpose {
            report(.pong(token: token, ping.via, latency: latency), slot, now: now)
            settleUserPing(ping.purpose, isAnswered: true, slot, now: now)
        }
        switch (ping.via, actual) {
        case (.udp, .udp(let source)): credit(slot, ping, seenFrom: source, latency: latency, now: now)
        case (_, .relay):
            peers[slot]!.relayAnsweredAt = now
            peers[slot]!.relayLatency = latency
        default: break
        }
    }

    /// A ping over UDP is answered over UDP, one through a relay by the same node through a relay.
    private static func isSameWay(_ via: PathVia, _ source: Source, node: NodePublicKey) -> Bool {
        switch (via, source) {
        case (.udp, .udp): true
        case (.relay, .relay(_, let from)): from == node
        default: false
        }
    }

    // MARK: CallMeMaybe

    private mutating func receiveCallMeMaybe(
        _ addresses: [SocketAddress], _ slots: [Int], _ source: Source, now: Instant
    ) -> DiscoRefusal? {
        guard case .relay(let region, let node) = source,
            let slot = slots.first(where: { peers[$0]!.nodeKey == node })
        else { return refuse(.wrongWay, source, slots[0], now: now) }
        guard !isDirectBlocked else { return refuse(.policy, source, slot, now: now) }
        guard peers[slot]!.offerBudget.take(now: now) else {
            counters.rateLimited += 1
            return .rateLimited
        }
        noteRelayRoute(slot, region: region, now: now)
        handle(.callMeMaybe(region: region, addresses), slot, now: now)
        return nil
    }

    mutating func handleCallMeMaybe(
        _ region: Int, _ addresses: [SocketAddress], _ slot: Int, now: Instant
    ) {
        report(.callMeMaybeReceived(addresses: addresses.count), slot, now: now)
        peers[slot]!.offeredAt = now
        peers[slot]!.offersNothing = addresses.isEmpty
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
        // A swarm of these, kept by a relay while we slept, is one wish and not many.
        for index in peers[slot]!.candidates.indices {
            guard let at = peers[slot]!.candidates[index].probedAt, now.since(at) >= limits.offerPause else {
                continue
            }
            peers[slot]!.candidates[index].probedAt = nil
        }
        startRound(slot, callMeMaybe: false, now: now)
    }

    // MARK: Output

    /// Seals the next message into `memory`, which needs `Disco.maximumSealedBytes`, and says where it goes.
    package mutating func nextOutput(into memory: UnsafeMutableRawBufferPointer) -> Output? {
        while let output = outputs.popFirst() {
            switch output {
            case .ping(let peer, let via, let id, let bytes):
                guard let slot = slotOfID[peer] else { continue }
                let length = unsafe seal(.ping(id, nodeKey: ownNodeKey), bytes, slot, into: memory)
                switch via {
                case .udp(let address): return .udp(address, length: length)
                case .relay(let region): return .relay(region: region, peers[slot]!.nodeKey, length: length)
                }
            case .pong(let peer, let source, let id, let bytes):
                guard let slot = slotOfID[peer] else { continue }
                switch source {
                case .udp(let address):
                    let length = unsafe seal(.pong(id, source: address), bytes, slot, into: memory)
                    return .udp(address, length: length)
                case .relay(let region, let node):
                    let seen = Self.relayAddress(region)
                    let length = unsafe seal(.pong(id, source: seen), bytes, slot, into: memory)
                    return .relay(region: region, node, length: length)
                }
            case .callMeMaybe(let peer, let region):
                guard let slot = slotOfID[peer] else { continue }
                let own = isDirectBlocked ? [] : Array(ownEndpoints.prefix(Disco.callMeMaybeLimit))
                let length = unsafe seal(.callMeMaybe(own), 0, slot, into: memory)
                return .relay(region: region, peers[slot]!.nodeKey, length: length)
            }
        }
        return nil
    }

    private mutating func seal(
        _ message: DiscoMessage, _ bytes: Int, _ slot: Int, into memory: UnsafeMutableRawBufferPointer
    ) -> Int {
        let nonce = BoxNonce(using: &random)
        return unsafe Disco.seal(
            message, from: ownDiscoKey, with: peers[slot]!.box, nonce: nonce, padding: bytes, into: memory)
    }

    /// 127.3.3.40:region, which stands for a relay where the wire wants an address.
    package static func relayAddress(_ region: Int) -> SocketAddress {
        SocketAddress(IPAddress(v4: 0x7f03_0328), port: UInt16(truncatingIfNeeded: region))
    }
}

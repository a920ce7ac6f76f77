// SPDX-License-Identifier: Apache-2.0

/// What a node knows of its own network when it explains a path.
package struct PathSurroundings: Hashable, Sendable {
    /// STUN servers that are asked.
    package var stunServers = 0
    /// Hosts that they are on.
    package var stunHosts = 0
    /// Whether one answered; nil while the first round is under way.
    package var hasUDP: Bool?
    /// Whether they see different addresses.
    package var mappingVaries: Bool?
    /// Whether this machine has addresses of the families.
    package var hasV4 = true
    package var hasV6 = true

    package init() {}
}

/// How a peer is reached, what was tried, and why not otherwise: the content of `coder ping --explain`.
public struct PathExplanation: Hashable, Sendable {
    /// The result, in order of goodness.
    public enum Outcome: String, Hashable, Sendable {
        case direct, relayed, unreachable

        /// Exit status of `coder ping --explain`.
        public var exitStatus: Int32 {
            switch self {
            case .direct: 0
            case .relayed: 3
            case .unreachable: 1
            }
        }
    }

    /// What became of one address.
    public struct Candidate: Hashable, Sendable {
        /// The address.
        public var address: SocketAddress
        /// Who named it.
        public var sources: [CandidateSource]
        /// Time since it was first heard of.
        public var age: Interval
        /// Pings sent and answers.
        public var probes: Int
        /// See `probes`.
        public var answers: Int
        /// Time since the last full ping; nil before the first.
        public var sinceProbe: Interval?
        /// Time since its last answer; nil without one.
        public var sinceAnswer: Interval?
        /// Time since the peer pinged us from it.
        public var sincePeerPing: Interval?
        /// Round trip.
        public var latency: Interval?
        /// Largest ping that was answered, bytes of UDP payload.
        public var passedBytes: Int?
        /// Whether packets go there now.
        public var isChosen: Bool
        /// Why packets do not go there; nil when they do, or could.
        public var reason: PathReason?
    }

    /// The result.
    public var outcome: Outcome
    /// The address in use.
    public var direct: SocketAddress?
    /// Its round trip.
    public var latency: Interval?
    /// Region of the relay in use or in reserve.
    public var relay: Int?
    /// Round trip of the last ping through it.
    public var relayLatency: Interval?
    /// Why the path is not direct; nil when it is.
    public var reason: PathReason?
    /// Time since the peer last named its addresses through a relay.
    public var sinceCallMeMaybe: Interval?
    /// What was tried, chosen first.
    public var candidates: [Candidate]
    /// Own addresses, as the peer hears of them.
    public var ownEndpoints: [SocketAddress]
    /// What the peer says of its own network, if it was asked.
    public var peerNetwork: PeerNetwork?

    /// What a peer knows of its own network; nil for what it does not know.
    public struct PeerNetwork: Hashable, Sendable {
        /// Whether a STUN server answered it.
        public var hasUDP: Bool?
        /// Whether STUN servers see it at different addresses.
        public var mappingVaries: Bool?
        /// Whether direct connections are switched off there.
        public var blocksDirect: Bool

        /// What a peer said.
        public init(hasUDP: Bool?, mappingVaries: Bool?, blocksDirect: Bool) {
            self.hasUDP = hasUDP
            self.mappingVaries = mappingVaries
            self.blocksDirect = blocksDirect
        }
    }

    /// The peer does not answer inside the tunnel, whatever answers outside of it.
    public mutating func noteSilentTunnel() {
        switch outcome {
        case .direct: reason = .dataDead
        case .relayed: if reason != .dataDead { reason = .peerSilent }
        case .unreachable: break
        }
        outcome = .unreachable
    }

    /// What could only be guessed of the peer's half is replaced by what the peer knows.
    public mutating func refine(_ peer: PeerNetwork) {
        peerNetwork = peer
        guard outcome == .relayed else { return }
        switch reason {
        case .timeout, .udpBlockedPeer, .policyPeer, .hardNATBoth, .stunMissing: break
        default: return
        }
        if peer.blocksDirect {
            reason = .policyPeer
        } else if peer.hasUDP == false {
            reason = .udpBlockedPeer
        } else if peer.mappingVaries == true {
            reason = .hardNATBoth
        } else if reason == .udpBlockedPeer || reason == .policyPeer {
            reason = .timeout
        }
    }

    /// One line of advice; nil when there is nothing to say.
    public var advice: String? { reason?.advice }
}

extension Paths {
    /// Explains the path to a peer.
    package func explain(
        _ id: PeerID, _ surroundings: PathSurroundings, now: Instant
    ) -> PathExplanation? {
        guard let slot = slotOfID[id] else { return nil }
        let peer = peers[slot]!
        var surroundings = surroundings
        if surroundings.hasUDP == false, hasHeardDirectly(peer, now: now) { surroundings.hasUDP = true }
        let direct = peer.best.flatMap { $0.isTrusted(at: now) ? $0.measured : nil }
        var candidates = peer.candidates.enumerated().map { index, candidate in
            explain(slot, index, candidate, isChosen: candidate.address == direct?.address, surroundings, now)
        }
        candidates += peer.refused.map { refused in
            PathExplanation.Candidate(
                address: refused.address, sources: [refused.source], age: now.since(refused.at), probes: 0,
                answers: 0, isChosen: false, reason: PathReason(refused.reason))
        }
        candidates.sort { a, b in
            if a.isChosen != b.isChosen { return a.isChosen }
            if (a.latency != nil) != (b.latency != nil) { return a.latency != nil }
            return a.address < b.address
        }
        let relay = relayRegion(slot)
        let isRelayed = relay.map(openRegions.contains) ?? false
        let answered = [peer.relayAnsweredAt, peer.heardAt].contains { at in
            at.map { now.since($0) <= limits.sessionActive } ?? false
        }
        let outcome: PathExplanation.Outcome =
            direct != nil ? .direct : isRelayed && answered ? .relayed : .unreachable
        var reason: PathReason?
        if outcome != .direct { reason = why(peer, candidates, surroundings) }
        if outcome == .unreachable, !isDirectBlocked || reason != .policy {
            reason = isRelayed ? .peerSilent : .relayMissing
        }
        return PathExplanation(
            outcome: outcome, direct: direct?.address, latency: direct?.latency, relay: relay,
            relayLatency: peer.relayLatency, reason: reason,
            sinceCallMeMaybe: peer.offeredAt.map { now.since($0) }, candidates: candidates,
            ownEndpoints: isDirectBlocked ? [] : ownEndpoints)
    }

    /// Whether a ping or an answer of the peer came by UDP just now: STUN servers may be silent for reasons of theirs.
    private func hasHeardDirectly(_ peer: PathPeer, now: Instant) -> Bool {
        peer.candidates.contains { candidate in
            [candidate.pingedUsAt, candidate.answeredAt].contains { at in
                at.map { now.since($0) <= limits.pingTimeout } ?? false
            }
        }
    }

    private func explain(
        _ slot: Int, _ index: Int, _ candidate: Candidate, isChosen: Bool, _ surroundings: PathSurroundings,
        _ now: Instant
    ) -> PathExplanation.Candidate {
        var sources: [CandidateSource] = []
        if candidate.isInNodeList { sources.append(.nodeList) }
        if candidate.callMeMaybeAt != nil { sources.append(.callMeMaybe) }
        if candidate.pingedUsAt != nil { sources.append(.ping) }
        return PathExplanation.Candidate(
            address: candidate.address, sources: sources, age: now.since(candidate.seenAt),
            probes: candidate.probes, answers: candidate.answers,
            sinceProbe: candidate.probedAt.map { now.since($0) },
            sinceAnswer: candidate.answeredAt.map { now.since($0) },
            sincePeerPing: candidate.pingedUsAt.map { now.since($0) }, latency: candidate.latency,
            passedBytes: candidate.passedBytes > 0 ? candidate.passedBytes : nil, isChosen: isChosen,
            reason: isChosen ? nil : why(slot, index, candidate, surroundings, now))
    }

    /// Why packets do not go to this address; nil when they could.
    private func why(
        _ slot: Int, _ index: Int, _ candidate: Candidate, _ surroundings: PathSurroundings, _ now: Instant
    ) -> PathReason? {
        if isDirectBlocked { return .policy }
        if isShunned(slot, index, now: now) { return .dataDead }
        if let at = candidate.answeredAt, now.since(at) <= limits.trust, !candidate.isUnanswered {
            return nil
        }
        if candidate.isNarrow || candidate.sendFailure == .tooBig { return .mtu }
        if candidate.sendFailure == .unreachable { return .noRoute }
        guard candidate.address.ip.isV4 ? surroundings.hasV4 : surroundings.hasV6 else {
            return .noAddressFamily
        }
        if candidate.probes == 0 { return .notTried }
        if surroundings.stunServers > 0, surroundings.hasUDP == false {
            return surroundings.stunHosts <= 1 ? .stunSilent : .udpBlocked
        }
        // A private address of another network tells nothing about NATs.
        let isOutside = !candidate.address.ip.isPrivate && !candidate.address.ip.isLinkLocal
        if isOutside, candidate.address.ip.isV4, surroundings.mappingVaries == true { return .hardNATBoth }
        if isOutside, surroundings.stunServers == 0 { return .stunMissing }
        return .timeout
    }

    /// The one reason that matters most.
    private func why(
        _ peer: PathPeer, _ candidates: [PathExplanation.Candidate], _ surroundings: PathSurroundings
    ) -> PathReason {
        if isDirectBlocked { return .policy }
        let reasons = Set(candidates.compactMap(\.reason))
        for reason in [PathReason.dataDead, .mtu] where reasons.contains(reason) { return reason }
        if surroundings.stunServers > 0, surroundings.hasUDP == false {
            return surroundings.stunHosts <= 1 ? .stunSilent : .udpBlocked
        }
        let named = candidates.filter { $0.reason != .unusableAddress && $0.reason != .policy }
        if named.isEmpty { return .policyPeer }
        if surroundings.stunServers == 0 { return .stunMissing }
        if surroundings.mappingVaries == true, reasons.contains(.hardNATBoth) { return .hardNATBoth }
        let hasOutside = named.contains {
            !$0.address.ip.isPrivate && !$0.address.ip.isLinkLocal && !$0.address.ip.isLoopback
        }
        let isOwnOutside = ownEndpoints.contains { !$0.ip.isPrivate && !$0.ip.isLoopback }
        if !hasOutside, isOwnOutside { return .udpBlockedPeer }
        if reasons == [.noRoute] { return .noRoute }
        return .timeout
    }
}

// SPDX-License-Identifier: Apache-2.0

/// All that the path machine knows of one peer.
struct PathPeer: Sendable {
    /// The chosen address.
    struct Best: Hashable, Sendable, Codable {
        var measured: MeasuredAddress
        /// End of trust without a further pong.
        var trustUntil: Instant
        /// Since when packets go both ways.
        var doubtedSince: Instant?
        /// The doubt ends when data comes, not when a pong does.
        var awaitsData = false
        /// Since when pings are answered while data is awaited: only then its absence says something.
        var answeredSince: Instant?
        /// When the first of the unanswered pings to it left, and how many there are.
        var unansweredSince: Instant?
        var unanswered = 0
        /// Packets leave and none come back: one missing pong is enough to doubt.
        var isSilent = false
        /// When the next look at unanswered pings is due.
        var checkAt = Instant.never

        func isTrusted(at now: Instant) -> Bool { doubtedSince == nil && now <= trustUntil }
    }

    /// A ping that may still be answered.
    struct SentPing: Hashable, Sendable, Codable {
        /// Names the ping on the wire.
        var id = TransactionID(high: 0, low: 0)
        /// Names it in a record: pings of a peer are counted.
        var number: UInt64
        var via: PathVia
        var at: Instant
        var purpose: ProbePurpose
        var bytes: Int

        private enum CodingKeys: CodingKey { case number, via, at, purpose, bytes }
    }

    /// An address that was named and is not tried.
    struct Refused: Hashable, Sendable, Codable {
        var address: SocketAddress
        var source: CandidateSource
        var reason: CandidateRefusal
        var at: Instant
    }

    let id: PeerID
    var nodeKey: NodePublicKey
    var discoKey: DiscoPublicKey
    var box: BoxKey
    var home: Int
    /// Region that a packet of the peer came through last.
    var relayRoute: Int?
    /// Last told by an event.
    var reportedRelay: Int?
    var candidates: [Candidate] = []
    var best: Best?
    /// When data was lost on a direct path.
    var dataDeadAt: Instant?
    /// In order of sending.
    var sentPings: [SentPing] = []
    var lastSend: Instant?
    var lastRound: Instant?
    var heartbeatAt = Instant.never
    var resendAt = Instant.never
    var resendStep = 0
    /// A CallMeMaybe waits for own addresses until then.
    var callMeMaybeAt = Instant.never
    var lastCallMeMaybe: Instant?
    /// Rounds since something was chosen: many make the search patient.
    var fruitlessRounds = 0
    /// Pings made so far.
    var pingCount: UInt64 = 0
    /// When small pings were sent last, to find out whether the path is too narrow.
    var lastSizing: Instant?
    /// When the peer answered through a relay last, and how fast.
    var relayAnsweredAt: Instant?
    var relayLatency: Interval?
    /// When a CallMeMaybe came last, and whether it named nothing.
    var offeredAt: Instant?
    var offersNothing = false
    /// Addresses that were refused, oldest first; few.
    var refused: [Refused] = []
    /// When authenticated packets came last. Not part of a record: nothing is decided by it.
    var heardAt: Instant?
    /// Whether such packets came straight from the peer since an address was chosen, when the last did, and since when
    /// they come through a relay instead. Not part of a record: their effects are.
    var directHeardAt: Instant?
    var relayedSince: Instant?
    /// The newest unknown address that such packets came from.
    var lastMove: SocketAddress?
    /// Since when packets leave and none come back; never while they do. Not part of a record: its effects are.
    var silentSince = Instant.never
    /// No further ping for silence before then.
    var silenceHeldUntil = Instant(nanoseconds: 0)
    var lastRelayTransaction: TransactionID?
    var pingBudget: Budget
    var pongBudget: Budget
    var openBudget: Budget
    var offerBudget: Budget
    /// Sources of pongs that are no candidates, oldest first; few.
    var extraAddresses: [SocketAddress] = []
    /// Earliest entry of this peer in the heap of timers.
    var timerAt = Instant.never

    func isActive(at now: Instant, within interval: Interval) -> Bool {
        lastSend.map { now.since($0) <= interval } ?? false
    }

    func candidateIndex(_ address: SocketAddress) -> Int? { candidates.firstIndex { $0.address == address } }

    /// When something is due.
    func deadline(_ limits: Paths.Limits) -> Instant {
        var result = min(heartbeatAt, resendAt, callMeMaybeAt)
        if let best {
            result = min(result, best.checkAt)
            if silentSince != .never {
                result = min(result, max(silentSince + limits.silence(best), silenceHeldUntil))
            }
        }
        if let first = sentPings.first { result = min(result, first.at + limits.pingTimeout) }
        return result
    }
}

/// So many things at once, then so many per second.
struct Budget: Hashable, Sendable, Codable {
    private let burst: UInt64
    private let perSecond: UInt64
    private var used: UInt64 = 0
    private var at = Instant(nanoseconds: 0)

    init(burst: Int, perSecond: Int) {
        self.burst = UInt64(burst)
        self.perSecond = UInt64(perSecond)
    }

    /// Whether one more is allowed, and if so counts it.
    mutating func take(now: Instant) -> Bool {
        guard isOpen(now: now) else { return false }
        used += 1
        return true
    }

    /// Whether one more would be allowed.
    mutating func isOpen(now: Instant) -> Bool {
        let (product, overflow) = now.since(at).nanoseconds.multipliedReportingOverflow(by: perSecond)
        let returned = overflow ? burst : product / 1_000_000_000
        if returned >= used {
            used = 0
            at = now
        } else if returned > 0 {
            used -= returned
            at = at + Interval(nanoseconds: returned * 1_000_000_000 / perSecond)
        }
        return used < burst
    }
}

/// An entry of the heap: this peer has something to do then. Stale ones are harmless.
struct PathTimer: Comparable, Sendable {
    var at: Instant
    var slot: Int

    static func < (a: PathTimer, b: PathTimer) -> Bool { a.at != b.at ? a.at < b.at : a.slot < b.slot }
}

/// A ping that somebody waits for.
struct UserPing: Sendable {
    var peer: PeerID
    var isAnswered = false
    var outstanding = 0
}

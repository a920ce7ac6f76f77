// SPDX-License-Identifier: Apache-2.0

internal import DequeModule
internal import HeapModule

/// Decides which address, or which relay, carries the packets of each peer. No I/O, no clock. `path-selection.md`.
///
/// Drive it like this: ask `route` for each burst of packets; hand in discovery messages with `receive`; after any
/// call empty `nextOutput` and `nextEvent`; sleep until `nextDeadline`, then call `handleTimeout`. When
/// `needsFreshEndpoints` is set, find the own addresses again and call `setOwnEndpoints`.
public struct Paths: ~Copyable, Sendable {
    /// Times and bounds. Defaults are upstream's unless said otherwise.
    package struct Limits: Sendable {
        /// Trust in an address after its last pong.
        package var trust = Interval.milliseconds(6_500)
        /// Between pings of the chosen address.
        package var heartbeat = Interval.seconds(3)
        /// A session without packets for so long is idle: no more pings.
        package var sessionActive = Interval.seconds(45)
        /// A ping is forgotten after this.
        package var pingTimeout = Interval.seconds(5)
        /// Between discovery pings to one address, and between rounds.
        package var discovery = Interval.seconds(5)
        /// Between full rounds while the chosen address works.
        package var upgrade = Interval.seconds(60)
        /// At or below this no better address is looked for.
        package var goodEnough = Interval.milliseconds(5)
        /// Own addresses older than this are found anew before they are told.
        package var endpointsFresh = Interval.seconds(27)
        /// How long a CallMeMaybe waits for that. Ours: upstream waits without bound.
        package var endpointsWait = Interval.milliseconds(500)
        /// Unanswered discovery pings are sent again after these steps: most losses of a first ping are a NAT that
        /// was not open yet. Ours.
        package var resend: [Interval] = [50, 100, 150, 200, 250, 250].map { .milliseconds($0) }
        /// After so many rounds in vain their pings are resent once only, and after twice as many they come rarely:
        /// a pair that cannot have a direct path should not try all the time.
        package var eagerRounds = 4
        /// Between rounds from then on.
        package var patientDiscovery = Interval.seconds(15)
        /// A heartbeat that is unanswered after four round trips, within these bounds, is repeated; the second
        /// such makes the address doubtful. Ours: upstream waits for the end of trust.
        package var patience = (least: Interval.milliseconds(200), most: Interval.milliseconds(800))
        /// A doubted address without an answer is given up after this.
        package var doubt = Interval.milliseconds(3_500)
        /// Data that surely stalls twice within this is no accident.
        package var deadTwice = Interval.seconds(15)
        /// An address that answers pings is given up after so long without data.
        package var dataDoubt = Interval.milliseconds(1_500)
        /// Packets of the peer come through a relay for so long though its address is trusted: data dies on the way.
        /// The longer time is for a peer that was never heard directly, which may not have found the path yet.
        package var relayedData = (heard: Interval.milliseconds(400), unheard: Interval.seconds(1))
        /// An address that answered pings but lost data is not chosen for this long, doubling up to 32 times.
        package var shun = Interval.seconds(10)
        /// Between small pings that find out whether a path is too narrow, and how many addresses get them.
        package var sizing = (period: Interval.seconds(60), addresses: 6)
        /// Sizes of those, bytes on the wire.
        package var smallSizes = [1_200, 800, 400]
        /// Use is noted this often.
        package var useResolution = Interval.seconds(1)
        /// An address that was pinged just now is not pinged again because a CallMeMaybe asks for it.
        package var offerPause = Interval.milliseconds(10)
        /// CallMeMaybes of a peer that are looked at: at once and per second.
        package var offerBurst = 20
        package var offersPerSecond = 4
        /// Events per second about dropped messages; more are only counted.
        package var refusalsPerSecond = 20
        /// Refused addresses remembered per peer, for explanations.
        package var refusedAddresses = 16
        /// What the recorder keeps; nil for none.
        package var recording: RecorderLimits? = RecorderLimits()
        /// Addresses kept per peer.
        package var candidates = 100
        /// Pings per peer: at most this at once, and so many per second after. Together ≤ 100 in 5 s, so that a
        /// CallMeMaybe cannot aim us at others.
        package var pingBurst = 50
        package var pingsPerSecond = 10
        /// Pongs per peer: a replayed ping must not be a way to make us work.
        package var pongBurst = 200
        package var pongsPerSecond = 100
        /// Boxes of one key that may fail to open, per second, before further ones are not tried.
        package var failedOpensPerSecond = 200
        /// Messages waiting to be written.
        package var outputs = 4_096
        /// Events waiting to be read; the oldest are dropped.
        package var events = 4_096
        /// User pings waiting for answers.
        package var userPings = 64

        package init() {}

        /// Packets leave and none come back for so long: ask the address. Within a fifth of a second in all, so
        /// that the first retransmission of TCP (200 ms) already goes both ways.
        func silence(_ best: PathPeer.Best) -> Interval {
            min(max(best.measured.latency * 2, .milliseconds(60)), .milliseconds(500))
        }
    }

    /// Who a peer is and where it may be.
    package struct PeerConfiguration: Hashable, Sendable {
        package var nodeKey: NodePublicKey
        package var discoKey: DiscoPublicKey
        /// Region of its home relay; 0 when unknown.
        package var home: Int
        /// Addresses that the coordinator names.
        package var endpoints: [SocketAddress]

        package init(nodeKey: NodePublicKey, discoKey: DiscoPublicKey, home: Int, endpoints: [SocketAddress])
        {
            self.nodeKey = nodeKey
            self.discoKey = discoKey
            self.home = home
            self.endpoints = endpoints
        }
    }

    /// What `setPeer` found.
    package enum PeerChange: Hashable, Sendable {
        case added, updated
        /// Another discovery key: the peer started anew, its WireGuard session should be flushed.
        case restarted
    }

    /// Where packets go now: to one of them, to both, or nowhere.
    package struct Route: Hashable, Sendable {
        package var udp: SocketAddress?
        package var relay: Int?

        package init(udp: SocketAddress? = nil, relay: Int? = nil) {
            self.udp = udp
            self.relay = relay
        }
    }

    /// How a discovery message came.
    package enum Source: Hashable, Sendable {
        case udp(SocketAddress)
        case relay(region: Int, node: NodePublicKey)
    }

    /// Where the message in the buffer is to go.
    package enum Output: Hashable, Sendable {
        case udp(SocketAddress, length: Int)
        case relay(region: Int, NodePublicKey, length: Int)
    }

    /// What was dropped.
    package struct Counters: Hashable, Sendable {
        package var unknownSenders: UInt64 = 0
        package var failedOpens: UInt64 = 0
        package var malformed: UInt64 = 0
        package var rateLimited: UInt64 = 0
        package var eventsDropped: UInt64 = 0
        package var outputsDropped: UInt64 = 0
        package var pingsWithheld: UInt64 = 0
        package var refusalsUnreported: UInt64 = 0
    }

    enum Pending {
        case ping(PeerID, PathVia, TransactionID, bytes: Int)
        case pong(PeerID, Source, TransactionID, bytes: Int)
        case callMeMaybe(PeerID, region: Int)
    }

    /// What was dropped since creation.
    package internal(set) var counters = Counters()
    let limits: Limits
    let ownNodeKey: NodePublicKey
    let discoKey: PrivateKey
    let ownDiscoKey: DiscoPublicKey
    let tunnelPrefixes: [IPPrefix]
    var random: SecureGenerator
    /// Slots; a removed peer leaves nil, so that indices stay.
    var peers: [PathPeer?] = []
    var freeSlots: [Int] = []
    var slotOfID: [PeerID: Int] = [:]
    var slotOfNode: [NodePublicKey: Int] = [:]
    /// Ascending slots; nearly always one.
    var slotsOfDisco: [DiscoPublicKey: [Int]] = [:]
    var slotOfAddress: [SocketAddress: Int] = [:]
    var timers = Heap<PathTimer>()
    var outputs = Deque<Pending>()
    var events = Deque<PathEvent>()
    var userPings: [UInt64: UserPing] = [:]
    var nextToken: UInt64 = 1
    var ownEndpoints: [SocketAddress] = []
    var ownEndpointsAt: Instant?
    var openRegions: [Int] = []
    /// Whether direct paths are switched off.
    package internal(set) var isDirectBlocked = false
    /// Set when a CallMeMaybe waits for the own addresses. `setOwnEndpoints` clears it.
    package internal(set) var needsFreshEndpoints = false
    var refusalBudget: Budget
    /// Whether the caller says when packets of peers arrive. Without that, silence means nothing.
    var hearsPackets = false
    /// What was asked and said lately.
    package internal(set) var recorder: PathRecorder?

    /// The machine of one node. `discoKey` is fresh per process; addresses within `tunnelPrefixes` are never tried.
    package init(
        nodeKey: NodePublicKey, discoKey: PrivateKey, tunnelPrefixes: [IPPrefix] = Paths.coderPrefixes,
        limits: Limits = Limits(), random: SecureGenerator
    ) {
        ownNodeKey = nodeKey
        self.discoKey = discoKey
        ownDiscoKey = discoKey.discoPublicKey
        self.tunnelPrefixes = tunnelPrefixes
        self.limits = limits
        self.random = random
        refusalBudget = Budget(burst: limits.refusalsPerSecond, perSecond: limits.refusalsPerSecond)
        recorder = limits.recording.map { PathRecorder(limits: $0) }
    }

    /// fd60:627a:a42b::/48 and fd7a:115c:a1e0::/48: the addresses inside the tunnel.
    package static let coderPrefixes = [
        IPPrefix(IPAddress(high: 0xfd60_627a_a42b_0000, low: 0), bits: 48),
        IPPrefix(IPAddress(high: 0xfd7a_115c_a1e0_0000, low: 0), bits: 48),
    ]

    // MARK: Packets

    /// Where to send the peer's next packets. Counts as use: keeps the session active and looks for a direct path.
    package mutating func route(to id: PeerID, now: Instant) -> Route {
        guard let slot = slotOfID[id] else { return Route() }
        if wantsUse(slot, now: now) { handle(.use, slot, now: now) }
        if let best = peers[slot]!.best, best.isTrusted(at: now) {
            if hearsPackets, peers[slot]!.silentSince == .never { beginSilence(slot, now: now) }
            return Route(udp: best.measured.address)
        }
        return Route(udp: peers[slot]!.best?.measured.address, relay: relayRegion(slot))
    }

    /// Authenticated packets of this peer arrived, whichever way. Call it once per burst: a chosen address that
    /// swallows what is sent is then found out within a fifth of a second instead of at the next heartbeat.
    ///
    /// `source` is where they came from, when that is known: a peer whose NAT forgot it is found at its new address
    /// by its first packet.
    package mutating func noteReceived(_ id: PeerID, from source: SocketAddress? = nil, now: Instant) {
        hearsPackets = true
        guard let slot = slotOfID[id] else { return }
        peers[slot]!.heardAt = now
        guard let source else { return noteRelayed(slot, now: now) }
        peers[slot]!.silentSince = .never
        peers[slot]!.directHeardAt = now
        peers[slot]!.relayedSince = nil
        noteDirectData(slot, from: source, now: now)
        guard slotOfAddress[source] != slot, peers[slot]!.lastMove != source, !isDirectBlocked
        else { return }
        // Once per address: a NAT that gives a new port to each packet must not make us ping for ever.
        peers[slot]!.lastMove = source
        handle(.moved(source), slot, now: now)
    }

    /// Whose packets come from this address. Packets of others are dropped.
    package func peer(forUDP address: SocketAddress) -> PeerID? {
        slotOfAddress[address].map { peers[$0]!.id }
    }

    /// Who has this node key.
    package func peer(forNode key: NodePublicKey) -> PeerID? { slotOfNode[key].map { peers[$0]!.id } }

    /// Whose packet this is that came through a relay; remembers that the peer is reachable there.
    package mutating func peer(
        forNode key: NodePublicKey, throughRelay region: Int, now: Instant = Instant(nanoseconds: 0)
    ) -> PeerID? {
        guard let slot = slotOfNode[key] else { return nil }
        noteRelayRoute(slot, region: region, now: now)
        return peers[slot]!.id
    }

    /// The system refused to send to this address.
    package mutating func noteSendFailure(
        to address: SocketAddress, _ failure: SendFailure = .unreachable, now: Instant
    ) {
        guard let slot = slotOfAddress[address] ?? slotOfCandidate(address) else { return }
        handle(.sendFailed(address, failure), slot, now: now)
    }

    // MARK: Relays

    /// A connection to this region is up.
    package mutating func relayConnected(_ region: Int, now: Instant = Instant(nanoseconds: 0)) {
        guard !openRegions.contains(region) else { return }
        handle(.relayUp(region: region), now: now)
    }

    /// The connection to this region is gone, and with it what was learnt through it.
    package mutating func relayDisconnected(_ region: Int, now: Instant) {
        handle(.relayDown(region: region), now: now)
    }

    /// The relay says that this node is not connected to it.
    package mutating func relayPeerGone(_ region: Int, node: NodePublicKey, now: Instant) {
        guard let slot = slotOfNode[node], peers[slot]!.relayRoute == region else { return }
        handle(.relayPeerGone(region: region), slot, now: now)
    }

    // MARK: Events

    /// The oldest event that was not read yet.
    package mutating func nextEvent() -> PathEvent? { events.popFirst() }

    mutating func report(_ kind: PathEvent.Kind, _ slot: Int? = nil, now: Instant) {
        if events.count >= limits.events {
            events.removeFirst()
            counters.eventsDropped += 1
        }
        let event = PathEvent(at: now, peer: slot.flatMap { peers[$0]?.id }, kind: kind)
        if let slot { recorder?.note(event, slot) }
        events.append(event)
    }

    /// How large everything is that peers can make grow.
    package struct Sizes: Hashable, Sendable {
        /// Of the peer that has most.
        package var candidates = 0
        package var pings = 0
        package var timers = 0
        package var addresses = 0
        package var outputs = 0
        package var recorded = 0

        package init() {}
    }

    /// How large everything is that peers can make grow. Cost: linear in peers.
    package var sizes: Sizes {
        var result = Sizes()
        for case let peer? in peers {
            result.candidates = max(result.candidates, peer.candidates.count)
            result.pings = max(result.pings, peer.sentPings.count)
        }
        result.timers = timers.count
        result.addresses = slotOfAddress.count
        result.outputs = outputs.count
        result.recorded = recorder?.entries ?? 0
        return result
    }

    /// The trusted address of a peer.
    package func directAddress(of id: PeerID, now: Instant) -> SocketAddress? {
        guard let slot = slotOfID[id], let best = peers[slot]!.best, best.isTrusted(at: now) else {
            return nil
        }
        return best.measured.address
    }

    /// How a peer is reached, for people.
    package func status(of id: PeerID, now: Instant) -> PathStatus? {
        guard let slot = slotOfID[id] else { return nil }
        let peer = peers[slot]!
        return PathStatus(
            peer: id, direct: peer.best.flatMap { $0.isTrusted(at: now) ? $0.measured.address : nil },
            latency: peer.best?.measured.latency, relay: relayRegion(slot),
            isActive: peer.isActive(at: now, within: limits.sessionActive),
            candidates: peer.candidates.map {
                PathStatus.Candidate(
                    address: $0.address, isInNodeList: $0.isInNodeList,
                    isFromCallMeMaybe: $0.callMeMaybeAt != nil,
                    pingedUsAt: $0.pingedUsAt, probedAt: $0.probedAt, answeredAt: $0.answeredAt,
                    latency: $0.latency)
            })
    }
}

/// How a peer is reached.
public struct PathStatus: Hashable, Sendable {
    /// One address and what is known of it.
    public struct Candidate: Hashable, Sendable {
        /// The address.
        public var address: SocketAddress
        /// Named by the coordinator.
        public var isInNodeList: Bool
        /// Named by the peer through a relay.
        public var isFromCallMeMaybe: Bool
        /// When the peer pinged us from it.
        public var pingedUsAt: Instant?
        /// When we pinged it.
        public var probedAt: Instant?
        /// When it answered.
        public var answeredAt: Instant?
        /// Round trip of that answer.
        public var latency: Interval?
    }

    /// Who.
    public var peer: PeerID
    /// The address in use, when it is trusted.
    public var direct: SocketAddress?
    /// Round trip of the chosen address.
    public var latency: Interval?
    /// Region of the relay in use, or in reserve.
    public var relay: Int?
    /// Whether packets were sent lately.
    public var isActive: Bool
    /// What is tried.
    public var candidates: [Candidate]
}

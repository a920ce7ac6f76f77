// SPDX-License-Identifier: Apache-2.0

/// One TCP connection: RFC 9293's transmission control block. A value in a table; whatever it shares with others
/// (pool, counters, timers, queues) comes as `StackContext`. Buffers exist only while they hold bytes.
struct Connection: ~Copyable {
    /// Why the send timer runs. There is only one: they exclude each other (as in Linux).
    enum SendTimer: UInt8 {
        case off
        case retransmit
        case tailProbe
        case reorder
        case persist
    }

    /// RFC 5681/8985: where the sender stands.
    enum Phase: UInt8 {
        case open
        case recovery
        case loss
    }

    /// Events that wait for `nextEvent`.
    struct Pending: OptionSet {
        let rawValue: UInt8
        static let accepted = Pending(rawValue: 1)
        static let connected = Pending(rawValue: 2)
        static let readable = Pending(rawValue: 4)
        static let writable = Pending(rawValue: 8)
        static let peerClosed = Pending(rawValue: 16)
        static let closed = Pending(rawValue: 32)
        static let asked = Pending(rawValue: 64)
    }

    // Identity
    let slot: UInt32
    var generation: UInt32 = 0
    var state = TCPState.closed
    var local = SocketAddress(IPAddress(v4: 0), port: 0)
    var remote = SocketAddress(IPAddress(v4: 0), port: 0)
    /// Checksum of the pseudo header without the length.
    var pseudoHeader: UInt64 = 0
    /// A peer opened it.
    var isPassive = false
    /// A peer's SYN that is answered when the owner says so; the owner knows of it.
    var wasAsked = false
    /// The owner has not decided yet.
    var awaitsDecision = false
    /// Counted among the half-open ones.
    var isHalfOpen = false
    /// The slot is on the free list.
    var isFree = false
    /// The owner let go of it: no more events.
    var isOrphan = false
    var pending: Pending = []
    var closeReason = CloseReason.done
    var saidPeerClosed = false
    var saidClosed = false

    // Negotiated
    /// Payload bytes per segment, options taken off.
    var segmentSize = 536
    /// What the peer's SYN allowed.
    var peerMaximumSize = 536
    var pathMTU = 1_280
    var sendShift: UInt8 = 0
    var receiveShift: UInt8 = 0
    var usesTimestamps = false
    var usesSACK = false
    var offersOptions = true
    var timestampOffset: UInt32 = 0

    // Sending
    var send = ByteRing()
    /// Sequence number of the first byte in `send`.
    var sendBase = SequenceNumber(0)
    var initialSend = SequenceNumber(0)
    var unacknowledged = SequenceNumber(0)
    /// First number never sent.
    var sendNext = SequenceNumber(0)
    var sendWindow = 0
    var largestSendWindow = 0
    var windowUpdateSequence = SequenceNumber(0)
    var windowUpdateAck = SequenceNumber(0)
    var sendTarget = 0
    var finQueued = false
    var finSent = false
    var synNeeded = false
    var wantsWritable = false
    var sent = SentRanges()
    var cubic = Cubic(maximumSegment: 536)
    var trip = RoundTrip()
    var windowLimited = false
    var lastSend = Instant(nanoseconds: 0)

    // Loss recovery
    var phase = Phase.open
    var recoveryPoint = SequenceNumber(0)
    var duplicateACKs = 0
    var prrDelivered = 0
    var prrOut = 0
    var prrFlightAtStart = 0
    var rackSentAt = Instant(nanoseconds: 0)
    var rackEnd = SequenceNumber(0)
    var rackTrip: UInt64 = 0
    var rackForward = SequenceNumber(0)
    var reorderingSeen = false
    var reorderWindowFactor: UInt64 = 1
    var reorderWindowRounds: UInt8 = 0
    var reorderRoundEnd = SequenceNumber(0)
    var tailProbeEnd: SequenceNumber?
    var tailProbeRetransmitted = false
    var probeNeeded = false
    var forcePartial = false
    var undo: Undo?
    var retries = 0

    // Receiving
    var receive = ByteRing()
    var initialReceive = SequenceNumber(0)
    var receiveNext = SequenceNumber(0)
    /// Right edge of the window that the peer was told; never moves left.
    var advertisedEdge = SequenceNumber(0)
    var outOfOrder = OutOfOrder()
    var receiveTarget = 0
    /// Number of the peer's FIN once it was seen, perhaps ahead of missing data.
    var finAt: SequenceNumber?
    var finReceived = false
    /// The owner wants no more bytes.
    var discardsInput = false
    /// The owner is gone without reading everything: RST once what it wrote has arrived.
    var resetsWhenSent = false
    var recentTimestamp: UInt32 = 0
    var recentTimestampAt = Instant(nanoseconds: 0)
    var lastAckSent = SequenceNumber(0)
    var duplicateBlock: SACKBlock?
    /// The peer's idea of a full segment.
    var receiveSegmentSize = 536
    var lastSegmentSize = 0
    /// The peer sent nearly all that the window allowed.
    var windowUsedUp = false
    var ackNow = false
    /// Duplicate ACKs to send one by one to a peer without SACK.
    var duplicatesOwed = 0
    var quickACKs = 16
    var receiveTrip: UInt64 = 0
    var copiedSince = 0
    var copiedStart = Instant(nanoseconds: 0)
    /// Segments that came again since the last new one, and when the first of them did.
    var repeatsReceived = 0
    var repeatsSince = Instant(nanoseconds: 0)

    // Timers
    var sendTimer = SendTimer.off
    var sendDeadline = Instant.never
    var retransmitBase = Instant(nanoseconds: 0)
    var ackDeadline = Instant.never
    var lifeDeadline = Instant.never
    var lastReceived = Instant(nanoseconds: 0)
    var keepaliveCount = 0
    /// A segment just below the window is to be sent, which the peer must answer: keepalive or window probe.
    var pokeNeeded = false
    var challengeWindow = Instant(nanoseconds: 0)
    var challengesLeft = 0
    /// Bytes this connection may still send before the next one's turn.
    var deficit = 0
    /// Waits in the backlog with nothing to send and some of its share left.
    var isParked = false

    init(slot: UInt32) { self.slot = slot }

    var id: ConnectionID { ConnectionID(slot: slot, generation: generation) }

    /// The earliest of its timers.
    var deadline: Instant { min(sendDeadline, min(ackDeadline, lifeDeadline)) }

    /// Number of our FIN, once it is queued.
    var finSequence: SequenceNumber { sendBase + send.count }

    /// Bytes written and not yet sent once.
    var unsentBytes: Int { max(0, send.count - (sendNext - sendBase)) }

    /// How far the peer lets us send.
    var windowEdge: SequenceNumber { unacknowledged + sendWindow }

    /// Bytes that the receive buffer may hold now: no more than can be stored.
    func receiveLimit(_ context: borrowing StackContext) -> Int {
        min(receiveTarget, min(context.bufferShare, context.pool.reach(from: receive.capacity)))
    }

    /// The window that we offer now, without shrinking what was promised.
    func offeredWindow(_ context: borrowing StackContext) -> Int {
        max(receiveLimit(context) - receive.count, advertisedEdge - receiveNext, 0)
    }

    /// Our timestamp clock: milliseconds plus an offset of this connection's own (RFC 7323 §5.4).
    @inline(__always) func timestampNow(_ now: Instant) -> UInt32 {
        UInt32(truncatingIfNeeded: now.nanoseconds / 1_000_000) &+ timestampOffset
    }

    /// Derives the payload size from path MTU and the peer's limit.
    mutating func updateSegmentSize() {
        let headers = IPHeader.size(isV4: local.ip.isV4) + Segment.headerSize
        let options = usesTimestamps ? 12 : 0
        segmentSize = max(min(peerMaximumSize, pathMTU - headers) - options, 64)
    }
}

/// What is needed to take back a congestion response that turns out needless: Eifel (RFC 3522 and 4015) by the
/// timestamp, and D-SACK (RFC 3708) by counting.
struct Undo {
    var cubic: Cubic
    /// Timestamp of the first retransmission. An echo of something older proves the original arrived.
    var timestamp: UInt32?
    /// The oldest outstanding byte at that time: reports of duplicates before it are about other repetitions.
    var start: SequenceNumber
    /// Segments repeated since, less those that the peer reports to have had already.
    var repeated = 0
    /// No timer ran out: the owner asked for the repetition.
    var wasTold = false
}

/// What all connections of a stack share.
struct StackContext: ~Copyable {
    let limits: StackLimits
    var counters = StackCounters()
    var pool: BufferPool
    var timers = ConnectionTimers()
    /// Connections with events to hand out.
    var events = SlotQueue()
    /// Connections that may have something to send: those that just became active go first.
    var fresh = SlotQueue()
    var backlog = SlotQueue()
    /// TIME_WAIT in order of age, to be given up first when the table is full.
    var resting = SlotQueue()
    /// Finished packets that belong to no connection.
    var packets: PacketQueue
    /// Peers towards which bytes do not get through, or from which no acknowledgement seems to arrive.
    var stalls: [Stack.Stall] = []
    var mtu: Int

    init(limits: StackLimits, mtu: Int) {
        self.limits = limits
        self.mtu = mtu
        packets = PacketQueue(limit: limits.packetQueue)
        pool = BufferPool(limit: limits.bufferMemory, retainLimit: limits.retainedBuffers, mtu: mtu)
    }

    /// What one buffer may hold now: half of the memory that is left, so that n busy buffers settle at one part in
    /// n + 2 of all memory each and a newcomer always finds room (dynamic thresholds, Choudhury and Hahne 1998).
    @inline(__always) var bufferShare: Int { max(limits.initialBuffer, pool.available / 2) }
}

extension StackContext {
    /// Tells the owner that a peer's packets, or ours to it, seem to be lost; a few at most are remembered.
    mutating func noteStall(_ remote: IPAddress, isCertain: Bool) {
        let stall = Stack.Stall(remote: remote, isCertain: isCertain)
        guard stalls.count < 64, !stalls.contains(stall) else { return }
        stalls.append(stall)
    }
}

extension Connection {
    /// Notes an event for the owner.
    @inline(__always)
    mutating func notify(_ event: Pending, _ context: inout StackContext) {
        guard !isOrphan else { return }
        pending.insert(event)
        context.events.append(slot)
    }

    /// Asks for a turn to send.
    @inline(__always)
    mutating func wantsOutput(_ context: inout StackContext) {
        if context.backlog.contains(slot), !isParked || deficit <= 0 { return }
        context.fresh.append(slot)
    }
}

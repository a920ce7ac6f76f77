// SPDX-License-Identifier: Apache-2.0

/// One end of a stream that outlives the connections (carriers) that bring its bytes to the peer. Pure: no I/O, no
/// clock; times are monotonic nanoseconds that the caller tells.
///
/// What was taken from the local side is kept until the peer has it, at most `limits.windowBytes`: then no more is
/// taken, and whoever writes waits. What came from the peer is kept until the local side took it, and the peer is
/// told how much more it may send: neither end ever drops or grows. A new carrier begins with a greeting in which
/// both sides say what they have; then the rest is sent again.
public struct ResumableStream: ~Copyable {
    /// What both sides agree on, and how patient they are.
    public struct Limits: Sendable {
        /// 4 MiB: bytes that wait for the peer, and as many that wait for the local side.
        public var windowBytes = 4 << 20
        /// Bytes between two acknowledgements.
        public var acknowledgementBytes = 256 << 10
        /// 200 ms: an acknowledgement waits no longer.
        public var acknowledgementNanoseconds: UInt64 = 200_000_000
        /// 3 s of silence while the peer owes an acknowledgement, then a ping.
        public var owedNanoseconds: UInt64 = 3_000_000_000
        /// 10 s of silence otherwise, then a ping.
        public var idleNanoseconds: UInt64 = 10_000_000_000
        /// 4 s after a ping, the carrier is given up.
        public var patienceNanoseconds: UInt64 = 4_000_000_000

        /// The defaults.
        public init() {}
    }

    /// What was seen.
    public struct Counters: Hashable, Sendable {
        /// Carriers that were attached.
        public var carriers = 0
        /// Bytes that were sent more than once.
        public var repeatedBytes: UInt64 = 0
        /// Bytes that came more than once.
        public var duplicateBytes: UInt64 = 0
        /// Frames of unknown kind.
        public var unknownFrames: UInt64 = 0

        /// All zero.
        public init() {}
    }

    public let limits: Limits
    public internal(set) var counters = Counters()
    /// Whether a carrier is there.
    public internal(set) var isAttached = false
    /// Why the stream is over before its end.
    public internal(set) var failure: ResumeError?

    // From the local side to the peer.
    /// Bytes from `ackedOffset` on.
    var replay = ByteBuffer()
    var ackedOffset: UInt64 = 0
    /// Next byte to send on this carrier, and the furthest ever.
    var sendOffset: UInt64 = 0
    var sentOffset: UInt64 = 0
    /// Up to where the peer allows.
    var peerLimit: UInt64 = 0
    var hasLocalEnd = false
    var isEndSent = false
    var isEndAcked = false

    // From the peer to the local side.
    var delivery = ByteBuffer()
    var receivedOffset: UInt64 = 0
    var toldOffset: UInt64 = 0
    /// The highest limit that the peer was told.
    var toldLimit: UInt64
    var peerEnd: UInt64?
    var isEndTaken = false

    // The carrier.
    var inbound = ByteBuffer()
    /// Rest of the payload of the frame that is being read.
    var payloadLeft = 0
    var payloadOffset: UInt64 = 0
    var skipLeft = 0
    /// Headers, and frames without stream bytes.
    var control = ByteBuffer()
    /// Rest of the payload of the frame that is being sent.
    var frameLeft = 0
    var due = Due()
    var timers = Timers()

    struct Due {
        var acknowledgement = false
        var ping = false
        var pong: UInt64?
        var reset: UInt64?
    }

    struct Timers {
        var heardAt: UInt64 = 0
        var pingAt: UInt64?
        var acknowledgeAt: UInt64?
        /// Since when the peer owes an acknowledgement.
        var owedSince: UInt64?
    }

    /// A stream without a carrier.
    public init(limits: Limits = Limits()) {
        precondition(limits.windowBytes > 0)
        self.limits = limits
        toldLimit = UInt64(limits.windowBytes)
    }

    // MARK: Carriers

    /// What a greeting of ours says about the stream.
    public func fill(_ greeting: inout ResumeGreeting) {
        greeting.received = receivedMark
        greeting.limit = toldLimit
    }

    /// Uses a new carrier, on which the peer's greeting said `received` and `limit`. Forgets the previous carrier.
    public mutating func attach(received: UInt64, limit: UInt64, now: UInt64) throws(ResumeError) {
        detach()
        // What the peer has it must have got from us, and it cannot lose what it had.
        guard received >= ackedMark, received <= sentMark else {
            throw fail(.badAcknowledgement(received))
        }
        accept(mark: received)
        guard limit >= ackedOffset, limit - ackedOffset <= UInt64(Int.max / 4) else {
            throw fail(.badAcknowledgement(limit))
        }
        peerLimit = limit
        counters.repeatedBytes += sentOffset - ackedOffset
        sendOffset = ackedOffset
        isEndSent = isEndAcked
        isAttached = true
        counters.carriers += 1
        timers = Timers()
        timers.heardAt = now
        if sentOffset > ackedOffset { timers.owedSince = now }
        due.acknowledgement = receivedMark > 0
    }

    /// The carrier is gone. What it still carried will come again.
    public mutating func detach() {
        isAttached = false
        inbound.consume(inbound.count)
        inbound.trim()
        payloadLeft = 0
        skipLeft = 0
        control.consume(control.count)
        frameLeft = 0
        let reset = due.reset
        due = Due()
        due.reset = reset
        timers = Timers()
    }

    mutating func fail(_ error: ResumeError) -> ResumeError {
        if failure == nil { failure = error }
        return error
    }

    // MARK: The local side

    /// How many bytes may be taken from the local side now; zero: let it wait.
    public var writableCount: Int {
        hasLocalEnd || failure != nil ? 0 : max(0, limits.windowBytes - replay.count)
    }

    /// Lets `read` put up to `capacity` bytes of the local side straight into the replay buffer; returns its result.
    public mutating func write(
        upTo capacity: Int, _ read: (UnsafeMutableRawBufferPointer) -> Int
    ) -> Int {
        let size = min(capacity, writableCount)
        guard size > 0 else { return 0 }
        let count = unsafe read(replay.space(size))
        guard count > 0 else { return count }
        precondition(count <= size)
        replay.commit(count)
        return count
    }

    /// The local side will write no more.
    public mutating func finish() { hasLocalEnd = true }

    /// The local side is gone: the peer is told, and nothing else goes out.
    public mutating func reset(reason: UInt64 = 0) {
        guard due.reset == nil, failure == nil else { return }
        due.reset = reason
        failure = .reset(reason)
    }

    /// Bytes for the local side. Valid until the next mutating call.
    public var deliverable: UnsafeRawBufferPointer { unsafe delivery.bytes(0, delivery.count) }

    /// How many bytes wait for the local side.
    public var deliverableCount: Int { delivery.count }

    /// The local side took `count` bytes.
    public mutating func delivered(_ count: Int) {
        delivery.consume(count)
        // Room is told in large steps, and before the peer has used up what it knows of.
        let limit = receivedOffset - UInt64(delivery.count) + UInt64(limits.windowBytes)
        if limit - toldLimit >= UInt64(limits.windowBytes / 4) { due.acknowledgement = true }
    }

    /// All bytes of the peer were delivered, and it said that there are no more.
    public var isPeerFinished: Bool { peerEnd != nil && delivery.isEmpty }

    /// Both directions are over and both sides know it.
    public var isComplete: Bool { isPeerFinished && isEndAcked && !needsCarrier }

    /// Both directions are over as far as this end can tell: only the peer's word on our end may be missing.
    public var isDrained: Bool { isPeerFinished && hasLocalEnd && replay.isEmpty }

    /// Whether the peer has all that was taken from the local side, and its end if there was one.
    public var hasPeerAll: Bool { replay.isEmpty && (isEndAcked || !hasLocalEnd) }

    /// Whether there is anything to say that the carrier has not taken.
    var needsCarrier: Bool {
        due.acknowledgement || due.reset != nil || !control.isEmpty || frameLeft > 0
    }

    /// Bytes that the peer does not have yet.
    public var unacknowledgedCount: Int { replay.count }

    /// Gives the memory of a burst back.
    public mutating func releaseSpareMemory() {
        replay.trim()
        delivery.trim()
        inbound.trim()
    }

    // MARK: Marks

    /// What came, the end counted as one.
    var receivedMark: UInt64 { receivedOffset + (peerEnd == nil ? 0 : 1) }
    var ackedMark: UInt64 { ackedOffset + (isEndAcked ? 1 : 0) }

    /// The furthest that the peer can have: no end before all bytes went out, on whatever carrier.
    private var sentMark: UInt64 {
        sentOffset + (hasLocalEnd && sentOffset == ackedOffset + UInt64(replay.count) ? 1 : 0)
    }

    /// The peer has everything before `mark`; the caller has checked it.
    mutating func accept(mark: UInt64) {
        let written = ackedOffset + UInt64(replay.count)
        let data = min(mark, written)
        replay.consume(Int(data - ackedOffset))
        ackedOffset = data
        if mark > written, hasLocalEnd { isEndAcked = true }
    }
}

// One stream belongs to one thread at a time.
extension ResumableStream: @unchecked Sendable {}

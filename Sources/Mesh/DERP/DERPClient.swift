// SPDX-License-Identifier: Apache-2.0

/// One connection to a relay, seen from the node. No I/O, no clock. `derp.md` §3, §7.
///
/// Drive it like this: put received bytes in with `withInputSpace`, call `nextEvent` until nil, write what
/// `withOutput` shows and tell it with `consumeOutput`, sleep until `nextDeadline` at most. Packets may be sent from
/// the start: they wait, bounded, until the relay's key is known. An error means: close the connection.
package struct DERPClient: ~Copyable, Sendable {
    /// Bounds on what a relay, or a slow connection to it, can make us hold.
    package struct Limits: Sendable {
        /// Unsent bytes before packets are dropped: some 50 ms at 40 Mbit/s; more would only add delay.
        package var outputBytes = 256 << 10
        /// The same for urgent packets: some hundred discovery messages.
        package var urgentBytes = 64 << 10
        /// What was sent before the relay's key came goes out with the login unless it is older than this: data was
        /// repeated by then, and would only delay its repetition.
        package var earlyData = Interval.seconds(2)
        /// The same for urgent packets.
        package var earlyUrgent = Interval.seconds(5)
        /// Text of a health frame that is kept; longer ones are skipped.
        package var healthBytes = 4 << 10
        /// Login answer; the real one has 53.
        package var serverInfoBytes = 64 << 10
        /// From creation to the relay's key. The rest of the login needs no round trip.
        package var login = Interval.seconds(10)
        /// Covers the keep-alive of 60 s.
        package var silence = Interval.seconds(120)

        package init() {}
    }

    /// What happened. `payload` are positions for `withPayload`, valid until the next input.
    package enum Event: Hashable, Sendable {
        /// The relay told its key; our login is in the output.
        case serverKey(NodePublicKey)
        /// The relay accepted us.
        case ready(DERPServerInfo)
        case packet(from: NodePublicKey, payload: Range<Int>)
        case peerGone(NodePublicKey, DERPPeerGoneReason)
        case peerPresent(NodePublicKey)
        case keepAlive
        case pong(UInt64)
        /// A problem in words, or nil: healthy again.
        case health(String?)
        /// The relay stops: connect again after the first interval, try for the second.
        case restarting(reconnectIn: Interval, tryFor: Interval)
    }

    /// What was not an event.
    package struct Counters: Sendable, Hashable {
        package var framesIn: UInt64 = 0
        package var framesSkipped: UInt64 = 0
        package var packetsIn: UInt64 = 0
        package var packetsOut: UInt64 = 0
        package var packetsDroppedFull: UInt64 = 0
        package var packetsDroppedRate: UInt64 = 0
        /// Sent before the login, which took too long.
        package var packetsDroppedLate: UInt64 = 0
    }

    private enum Login { case awaitingKey, awaitingInfo(BoxKey), done }

    /// Counters since creation.
    package private(set) var counters = Counters()
    private let privateKey: PrivateKey
    private let info: DERPClientInfo
    private let limits: Limits
    private var random: SecureGenerator
    private var login = Login.awaitingKey
    private var isPreferred: Bool
    private var input = ByteQueue()
    private var output = DERPOutput()
    /// Frames sent before the relay's key was known.
    private var early = EarlyFrames()
    private var inputStep = 16 << 10
    private var skip = 0
    private var lastFrame: Instant
    private let created: Instant
    private var rate: Int = 0
    private var burst: Int = 0
    private var tokens: Int = 0
    private var tokensAt: Instant

    /// A client for a connection that is being made now. `isPreferred`: this relay's region is our home.
    package init(
        privateKey: PrivateKey, isPreferred: Bool = false, info: DERPClientInfo = DERPClientInfo(),
        limits: Limits = Limits(), random: SecureGenerator, now: Instant
    ) {
        self.privateKey = privateKey
        self.isPreferred = isPreferred
        self.info = info
        self.limits = limits
        self.random = random
        created = now
        lastFrame = now
        tokensAt = now
    }

    // MARK: Input

    /// Calls `body` with room for received bytes; it returns how many it put there. Room grows while reads fill it.
    package mutating func withInputSpace<E: Error>(
        _ body: (UnsafeMutableRawBufferPointer) throws(E) -> Int
    ) throws(E) {
        var filled = 0
        var room = 0
        unsafe try input.fill(atLeast: inputStep) { free throws(E) in
            room = free.count
            filled = unsafe try body(free)
            return filled
        }
        if filled == room, inputStep < 64 << 10 { inputStep *= 2 }
    }

    /// Puts received bytes in by copying them.
    package mutating func receive(_ bytes: RawSpan) { input.append(bytes) }

    /// The payload of the last `packet` event, in place and writable.
    package mutating func withPayload<R>(
        _ payload: Range<Int>, _ body: (UnsafeMutableRawBufferPointer) throws -> R
    ) rethrows -> R {
        unsafe try input.withMutableBytes(at: payload, body)
    }

    /// The next thing that happened, nil when more input is needed.
    package mutating func nextEvent(now: Instant) throws(DERPError) -> Event? {
        while true {
            if skip > 0 {
                let skipped = min(skip, input.count)
                input.consume(skipped)
                skip -= skipped
                if skip > 0 { return nil }
            }
            guard input.count >= DERP.headerBytes else { return nil }
            let (type, length) = input.withBytes { ($0.wireByte(0), Int($0.wire32(1))) }
            guard length <= DERP.maximumClientFrameBytes else { throw .badLength(type: type, length: length) }
            guard try isWanted(type, length: length) else {
                lastFrame = now
                counters.framesSkipped += 1
                input.consume(DERP.headerBytes)
                skip = length
                continue
            }
            guard input.count >= DERP.headerBytes + length else {
                input.reserve(DERP.headerBytes + length - input.count)
                return nil
            }
            lastFrame = now
            counters.framesIn += 1
            let body = input.start + DERP.headerBytes..<input.start + DERP.headerBytes + length
            let event = try handle(type, at: body, now: now)
            input.consume(DERP.headerBytes + length)
            if let event { return event }
        }
    }

    /// Whether a frame has to be read as a whole. Throws for lengths that end the connection.
    private func isWanted(_ type: UInt8, length: Int) throws(DERPError) -> Bool {
        if case .awaitingKey = login {
            guard type == DERPFrameType.serverKey.rawValue else { throw .unexpectedFrame(type: type) }
            guard length >= 40, length <= DERP.maximumServerKeyBytes else {
                throw .badLength(type: type, length: length)
            }
            return true
        }
        switch DERPFrameType(rawValue: type) {
        case .serverInfo:
            guard length >= 24 + BoxKey.tagBytes, length <= limits.serverInfoBytes else {
                throw .badLength(type: type, length: length)
            }
            if case .awaitingInfo = login { return true }
            return false
        case .receivePacket: return length >= 32 && length <= DERP.keyBytes + DERP.maximumPayloadBytes
        case .peerGone, .peerPresent: return length >= 32 && length <= 1024
        case .ping, .pong: return length >= 8 && length <= 1024
        case .restarting: return length >= 8 && length <= 1024
        case .health: return length <= limits.healthBytes
        case .keepAlive: return length == 0
        default: return false
        }
    }

    private mutating func handle(_ type: UInt8, at body: Range<Int>, now: Instant) throws(DERPError) -> Event?
    {
        switch DERPFrameType(rawValue: type) {
        case .serverKey:
            return try handleServerKey(copy(body), now: now)
        case .serverInfo:
            return try handleServerInfo(copy(body), now: now)
        case .receivePacket:
            counters.packetsIn += 1
            return .packet(from: key(at: body.lowerBound), payload: body.lowerBound + 32..<body.upperBound)
        case .peerGone:
            let reason = body.count > 32 ? copy(body)[32] : 0
            return .peerGone(key(at: body.lowerBound), DERPPeerGoneReason(rawValue: reason) ?? .other)
        case .peerPresent:
            return .peerPresent(key(at: body.lowerBound))
        case .keepAlive:
            return .keepAlive
        case .ping:
            let data = Array(copy(body).prefix(8))
            // A relay that pings without reading our answers must not make us grow.
            if output.frames.count < limits.outputBytes { enqueue(DERP.frame(.pong, data)) }
            return nil
        case .pong:
            return .pong(number(copy(body), bytes: 8))
        case .health:
            return .health(body.isEmpty ? nil : String(decoding: copy(body), as: UTF8.self))
        case .restarting:
            let bytes = copy(body)
            return .restarting(
                reconnectIn: .milliseconds(number(bytes, bytes: 4)),
                tryFor: .milliseconds(number(Array(bytes[4...]), bytes: 4)))
        default:
            return nil
        }
    }

    private mutating func handleServerKey(_ body: [UInt8], now: Instant) throws(DERPError) -> Event? {
        guard case .awaitingKey = login else { return nil }
        guard body.starts(with: DERP.magic) else { throw .badMagic }
        let server: NodePublicKey = unsafe body.span.bytes.wireKey(8)
        guard let box = BoxKey(ours: privateKey, theirs: server) else { throw .weakKey }
        let nonce = BoxNonce(using: &random)
        let sealed = box.seal(info.json, nonce: nonce)
        login = .awaitingInfo(box)
        enqueue(DERP.frame(.clientInfo, privateKey.nodePublicKey.bytes, nonce.bytes, sealed))
        if isPreferred { enqueue(DERP.frame(.notePreferred, [1])) }
        let waited = early.release(urgentAge: limits.earlyUrgent, dataAge: limits.earlyData, now: now)
        for frame in waited.frames { unsafe output.frames.append(frame.span.bytes) }
        counters.packetsDroppedLate += UInt64(waited.dropped)
        return .serverKey(server)
    }

    private mutating func handleServerInfo(_ body: [UInt8], now: Instant) throws(DERPError) -> Event? {
        guard case .awaitingInfo(let box) = login else { return nil }
        let bytes = unsafe body.span.bytes
        guard let text = box.open(bytes.extracting(24..<body.count), nonce: BoxNonce(bytes)) else {
            throw .cannotOpen
        }
        let server: DERPServerInfo
        do { server = try unsafe DERPServerInfo(json: text.span.bytes) } catch { throw .badLogin(error) }
        login = .done
        rate = min(server.tokenBucketBytesPerSecond, DERP.maximumRate)
        // At least one frame must fit, or nothing could ever be sent.
        let frameBytes = DERP.headerBytes + DERP.keyBytes + DERP.maximumPayloadBytes
        burst = max(frameBytes, min(server.tokenBucketBytesBurst, DERP.maximumRate))
        tokens = burst
        tokensAt = now
        return .ready(server)
    }

    private func copy(_ range: Range<Int>) -> [UInt8] {
        input.withBytes { $0.wireBytes(range.lowerBound - input.start..<range.upperBound - input.start) }
    }

    private func key(at position: Int) -> NodePublicKey {
        input.withBytes { $0.wireKey(position - input.start) }
    }

    private func number(_ bytes: [UInt8], bytes count: Int) -> UInt64 {
        bytes.prefix(count).reduce(0) { $0 << 8 | UInt64($1) }
    }

    // MARK: Output

    /// Whether the relay accepted our login.
    package var isReady: Bool {
        if case .done = login { return true }
        return false
    }

    /// Puts a packet for `peer` into the output. False: dropped and counted, because too much waits already, the
    /// relay's rate is used up, or it is longer than relays carry.
    /// `isUrgent`: discovery and handshakes overtake data that waits.
    @discardableResult
    package mutating func send(
        _ packet: RawSpan, to peer: NodePublicKey, isUrgent: Bool = false, now: Instant
    ) -> Bool {
        if case .awaitingKey = login, packet.byteCount <= DERP.maximumPayloadBytes {
            counters.packetsOut += 1
            let frame = DERP.frame(.sendPacket, peer.bytes, packet.wireBytes(0..<packet.byteCount))
            keepEarly(frame, isUrgent: isUrgent, at: now)
            return true
        }
        // Before the login is accepted nothing may overtake it.
        let isUrgent = isUrgent && isReady
        let hasRoom =
            isUrgent ? output.urgent.count < limits.urgentBytes : output.frames.count < limits.outputBytes
        guard packet.byteCount <= DERP.maximumPayloadBytes, hasRoom else {
            counters.packetsDroppedFull += 1
            return false
        }
        let frameBytes = DERP.headerBytes + DERP.keyBytes + packet.byteCount
        guard takeTokens(frameBytes, now: now) else {
            counters.packetsDroppedRate += 1
            return false
        }
        counters.packetsOut += 1
        if isUrgent {
            Self.write(packet, to: peer, into: &output.urgent)
        } else {
            Self.write(packet, to: peer, into: &output.frames)
        }
        return true
    }

    private static func write(_ packet: RawSpan, to peer: NodePublicKey, into queue: inout ByteQueue) {
        let frameBytes = DERP.headerBytes + DERP.keyBytes + packet.byteCount
        unsafe queue.fill(atLeast: frameBytes) { free in
            var writer = unsafe WireWriter(free)
            writer.byte(DERPFrameType.sendPacket.rawValue)
            writer.big32(UInt32(DERP.keyBytes + packet.byteCount))
            writer.key(peer)
            writer.bytes(packet)
            return frameBytes
        }
    }

    private mutating func takeTokens(_ bytes: Int, now: Instant) -> Bool {
        guard rate > 0 else { return true }
        let gained = now.since(tokensAt).inSeconds * Double(rate)
        if gained >= 1 {
            tokens = Int(min(Double(burst), Double(tokens) + gained))
            tokensAt = now
        }
        guard tokens >= bytes else { return false }
        tokens -= bytes
        return true
    }

    /// Tells the relay whether its region is our home. Statistics only.
    package mutating func setPreferred(_ isPreferred: Bool) {
        guard isPreferred != self.isPreferred else { return }
        self.isPreferred = isPreferred
        if case .awaitingKey = login { return }
        enqueue(DERP.frame(.notePreferred, [isPreferred ? 1 : 0]))
    }

    /// Asks the relay for a pong with the same number.
    package mutating func ping(_ number: UInt64) {
        enqueue(DERP.frame(.ping, (0..<8).map { UInt8(truncatingIfNeeded: number >> (56 - 8 * $0)) }))
    }

    private mutating func keepEarly(_ frame: [UInt8], isUrgent: Bool, at: Instant?) {
        let dropped = early.keep(frame, isUrgent: isUrgent, at: at, limit: limits.outputBytes)
        counters.packetsDroppedFull += UInt64(dropped)
    }

    private mutating func enqueue(_ frame: [UInt8]) {
        if case .awaitingKey = login {
            keepEarly(frame, isUrgent: true, at: nil)
        } else {
            unsafe output.frames.append(frame.span.bytes)
        }
    }

    /// Whether bytes wait to be written.
    package var hasOutput: Bool { output.count > 0 }

    /// How many bytes wait to be written.
    package var outputCount: Int { output.count }

    /// Calls `body` with bytes to write next; tell what was written by `consumeOutput`, then ask `hasOutput` again.
    package func withOutput<R>(_ body: (RawSpan) throws -> R) rethrows -> R {
        try output.withNext(body)
    }

    /// Drops bytes that were written.
    package mutating func consumeOutput(_ count: Int) { output.consume(count) }

    // MARK: Time

    /// When `handleTimeout` must be called at the latest.
    package var nextDeadline: Instant {
        if case .done = login { return lastFrame + limits.silence }
        return created + limits.login
    }

    /// Throws when the relay is silent for too long.
    package mutating func handleTimeout(now: Instant) throws(DERPError) {
        guard now >= nextDeadline else { return }
        if case .done = login { throw .silence }
        throw .loginTimeout
    }
}

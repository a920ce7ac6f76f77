// SPDX-License-Identifier: Apache-2.0

/// One end of a yamux session: many byte streams with flow control over one. No I/O and no clock of its own.
///
/// Drive it like this: feed bytes by `receive`, look at `takeEvents()`, act on streams, send what `takeOutput()`
/// gives, and call `handleTimeout` at `nextDeadline`. Times are durations since any fixed moment.
/// A fatal error kills the session; what is left in the output (a GoAway) should still be sent. Source:
/// rpc-transport §3, hashicorp yamux v0.1.2.
public struct YamuxSession: ~Copyable, Sendable {
    /// Which ids an end hands out.
    public enum Role: Sendable {
        /// Odd ids; the HTTP client.
        case client
        /// Even ids; the HTTP server.
        case server
    }

    /// What happened. Data arrives silently until the reader has taken what was there before.
    public enum Event: Hashable, Sendable {
        /// The peer opened a stream; `accept()` takes it.
        case incoming
        /// The peer accepted our stream.
        case established(YamuxStreamID)
        /// New bytes wait in `read`.
        case readable(YamuxStreamID)
        /// The window grew after it was empty.
        case writable(YamuxStreamID)
        /// The peer writes no more; buffered bytes stay readable.
        case remoteClosed(YamuxStreamID)
        /// The stream died; nothing of it can be read or written any more.
        case reset(YamuxStreamID)
        /// The answer to `ping`.
        case pong(UInt32)
        /// The peer takes no new streams.
        case goAway
    }

    /// Bounds on everything that a peer can grow.
    public struct Limits: Sendable {
        /// Streams that wait for `accept`, and own streams that wait for an ACK. rpc-transport §3.2.
        public var acceptBacklog = 256
        /// Live streams of each side; upstream has no limit, 1,000 concurrent calls are usual in tests.
        public var liveStreams = 2_048
        /// Bytes that the peer may have in flight per stream; at least the protocol's 262,144. More is granted
        /// by a window update with the SYN or ACK.
        public var receiveWindow = 262_144
        /// Received bytes that nobody has read, over all streams; the protocol has no session window.
        public var bufferedBytes = 32 << 20
        /// Output above which `write` accepts nothing: back-pressure of the transport.
        public var outputBytes = 1 << 20
        /// Ping interval; nil switches own pings off. rpc-transport §3.2.
        public var keepAliveInterval: Duration? = .seconds(30)
        /// Time for the answer to a keep-alive ping.
        public var keepAliveTimeout = Duration.seconds(10)
        /// Time for the ACK of an opened stream.
        public var openTimeout = Duration.seconds(75)
        /// Time for the peer's FIN after ours.
        public var closeTimeout = Duration.seconds(300)
        public init() {}
    }

    /// 262,144 bytes: window of a fresh stream in both directions. rpc-transport §3.2.
    public static let initialWindow = 262_144

    struct Stream {
        var acknowledged: Bool
        var openedAt: Duration
        var sendWindow = YamuxSession.initialWindow
        var receiveWindow = YamuxSession.initialWindow
        var buffer: [UInt8] = []
        var localClosed = false
        var remoteClosed = false
        /// Nobody reads any more: drop what comes.
        var released = false
        var closedAt: Duration?
    }

    let role: Role
    let limits: Limits
    var streams: [YamuxStreamID: Stream] = [:]
    var acceptQueue: [YamuxStreamID] = []
    var nextID: UInt64
    var unacknowledged = 0
    var incomingCount = 0
    var buffered = 0
    var remoteGoneAway = false
    var failure: YamuxError?

    // The frame being read.
    var headerBytes: [UInt8] = []
    var bodyLeft = 0
    var bodyStream: YamuxStreamID?
    var bodyEndsStream = false

    var events: [Event] = []
    var output: [UInt8] = []

    var nextPing: UInt32 = 0
    var keepAliveAt: Duration?
    /// The keep-alive ping that waits for its answer, and until when.
    var keepAlivePing: (value: UInt32, deadline: Duration)?
    var pings: Set<UInt32> = []

    /// A fresh session.
    public init(role: Role, limits: Limits = Limits(), now: Duration) {
        self.role = role
        self.limits = limits
        nextID = role == .client ? 1 : 2
        keepAliveAt = limits.keepAliveInterval.map { now + $0 }
    }

    /// Why the session is dead, or nil while it lives.
    public var error: YamuxError? { failure }

    /// Streams in the table, for statistics and limits.
    public var streamCount: Int { streams.count }

    /// Received bytes that wait for a reader, over all streams.
    public var bufferedCount: Int { buffered }

    /// Whether there is something to send.
    public var hasOutput: Bool { !output.isEmpty }

    /// Whether `write` would accept nothing because the transport is slow.
    public var isOutputFull: Bool { output.count >= limits.outputBytes }

    /// Takes at most `maximum` bytes to send.
    public mutating func takeOutput(maximum: Int = 256 << 10) -> [UInt8] {
        guard output.count > maximum else {
            defer { output = [] }
            return output
        }
        let head = Array(output[..<maximum])
        output.removeFirst(maximum)
        return head
    }

    /// What happened since the last call, in order.
    public mutating func takeEvents() -> [Event] {
        defer { events = [] }
        return events
    }

    // MARK: - Streams

    /// Whether `open` would succeed now or fail for good, rather than ask to try again.
    public var canTryOpen: Bool {
        failure != nil || remoteGoneAway
            || (unacknowledged < limits.acceptBacklog && streams.count - incomingCount < limits.liveStreams)
    }

    /// Opens a stream. Data may be written at once.
    public mutating func open(now: Duration) throws(YamuxError) -> YamuxStreamID {
        if let failure { throw failure }
        guard !remoteGoneAway else { throw .goneAway }
        guard unacknowledged < limits.acceptBacklog else { throw .tooManyUnacknowledged }
        guard streams.count - incomingCount < limits.liveStreams else { throw .tooManyStreams }
        guard let id = YamuxStreamID(exactly: nextID) else { throw .idsExhausted }
        nextID += 2
        unacknowledged += 1
        streams[id] = Stream(acknowledged: false, openedAt: now)
        grant(id, with: .syn)
        return id
    }

    /// The oldest stream that the peer opened and nobody has accepted.
    public mutating func accept() -> YamuxStreamID? {
        guard failure == nil, !acceptQueue.isEmpty else { return nil }
        let id = acceptQueue.removeFirst()
        guard streams[id] != nil else { return accept() }
        streams[id]?.acknowledged = true
        grant(id, with: .ack)
        return id
    }

    /// Queues as much as window and output allow; returns how many bytes that is (0 when the stream is gone).
    public mutating func write(_ id: YamuxStreamID, _ bytes: ArraySlice<UInt8>) -> Int {
        guard failure == nil, let stream = streams[id], !stream.localClosed else { return 0 }
        let room = max(0, limits.outputBytes - output.count)
        let count = min(bytes.count, stream.sendWindow, room)
        guard count > 0 else { return 0 }
        streams[id]?.sendWindow -= count
        send(YamuxHeader(.data, stream: id, length: UInt32(count)))
        output += bytes.prefix(count)
        return count
    }

    /// Takes everything that has arrived on the stream, and gives the peer credit for it.
    public mutating func read(_ id: YamuxStreamID) -> [UInt8] {
        guard let bytes = streams[id]?.buffer, !bytes.isEmpty else { return [] }
        streams[id]?.buffer = []
        buffered -= bytes.count
        if failure == nil { grant(id) }
        removeIfDone(id)
        return bytes
    }

    /// Whether the stream can still be read from or written to.
    public func isAlive(_ id: YamuxStreamID) -> Bool { streams[id] != nil && failure == nil }

    /// Whether the peer has closed its side and all its bytes were read.
    public func isAtEnd(_ id: YamuxStreamID) -> Bool {
        guard let stream = streams[id] else { return true }
        return stream.remoteClosed && stream.buffer.isEmpty
    }

    /// We write no more on this stream.
    public mutating func closeWrite(_ id: YamuxStreamID, now: Duration) {
        guard failure == nil, let stream = streams[id], !stream.localClosed else { return }
        streams[id]?.localClosed = true
        streams[id]?.closedAt = now
        send(YamuxHeader(.windowUpdate, .fin, stream: id))
        removeIfDone(id)
    }

    /// Nobody uses this stream any more: close it, drop what still comes, forget it when the peer closes too.
    public mutating func release(_ id: YamuxStreamID, now: Duration) {
        guard streams[id] != nil else { return }
        closeWrite(id, now: now)
        guard let stream = streams[id] else { return }
        buffered -= stream.buffer.count
        streams[id]?.buffer = []
        streams[id]?.released = true
        removeIfDone(id)
    }

    /// Kills the stream in both directions.
    public mutating func reset(_ id: YamuxStreamID) {
        guard streams[id] != nil else { return }
        if failure == nil { send(YamuxHeader(.windowUpdate, .rst, stream: id)) }
        remove(id)
    }

    /// Sends a ping; `.pong` with the returned value is its answer.
    public mutating func ping() -> UInt32 {
        let value = nextPing
        nextPing &+= 1  // an opaque value; wrapping is harmless
        if pings.count < 1_024 { pings.insert(value) }
        send(YamuxHeader(.ping, .syn, stream: 0, length: value))
        return value
    }

    /// Ends the session: every stream is gone. As upstream, only the transport's end tells the peer.
    public mutating func close() { fail(.closed) }

    // MARK: - Time

    /// When `handleTimeout` must be called next.
    public var nextDeadline: Duration? {
        guard failure == nil else { return nil }
        var next = [keepAliveAt, keepAlivePing?.deadline].compactMap { $0 }.min()
        for stream in streams.values {
            guard let due = deadline(stream) else { continue }
            next = next.map { min($0, due) } ?? due
        }
        return next
    }

    /// Sends keep-alive pings and enforces time limits.
    public mutating func handleTimeout(now: Duration) throws(YamuxError) {
        if let failure { throw failure }
        if let ping = keepAlivePing, now >= ping.deadline { throw fail(.keepAliveTimeout) }
        if let at = keepAliveAt, let interval = limits.keepAliveInterval, now >= at {
            keepAliveAt = now + interval
            if keepAlivePing == nil { keepAlivePing = (ping(), now + limits.keepAliveTimeout) }
        }
        for id in streams.keys.sorted() {
            guard let stream = streams[id], let due = deadline(stream), now >= due else { continue }
            if !stream.acknowledged, !isIncoming(id) { throw fail(.openTimeout(id)) }
            reset(id)
            events.append(.reset(id))
        }
    }

    private func deadline(_ stream: Stream) -> Duration? {
        if !stream.acknowledged { return stream.openedAt + limits.openTimeout }
        return stream.closedAt.map { $0 + limits.closeTimeout }
    }
}

// SPDX-License-Identifier: Apache-2.0

/// What `RPCConnection` guards: the session, its calls, and those who wait. Pure but for the continuations it keeps.
struct RPCState: ~Copyable, Sendable {
    /// One yamux stream with the call on it.
    struct Call: Sendable {
        var transport: DRPCTransport
        /// Messages that nobody has taken yet, oldest first.
        var inbox: [[UInt8]] = []
        var isReadClosed = false
        var end: RPCError?
        /// The stream carries nothing more; `end` is set as well.
        var isStreamOver = false
        /// Server: a call that waits for a handler.
        var invoked: String?
        /// Counts the calls on this stream, so that a late handle cannot touch the next call.
        var generation = 0
        /// Bytes that the window or the transport did not take yet.
        var pending: ArraySlice<UInt8> = []
    }

    var session: YamuxSession
    var calls: [YamuxStreamID: Call] = [:]
    var closedBecause: RPCError?
    var waiters: [RPCConnection.WaitKey: [UInt64: CheckedContinuation<Void, Never>]] = [:]
    /// Time of the current change, since the connection was made.
    var now = Duration.zero

    private let limits: RPCConnection.Limits
    private var accepted: AsyncStream<YamuxStreamID>.Continuation
    private var awake: [CheckedContinuation<Void, Never>] = []
    private var nextToken: UInt64 = 0
    /// Pings that a task waits for; the session's own keep-alive is not among them.
    private var unanswered: Set<UInt32> = []
    private var unfinishedBytes = 0

    init(
        role: YamuxSession.Role, limits: RPCConnection.Limits,
        accepted: AsyncStream<YamuxStreamID>.Continuation
    ) {
        session = YamuxSession(role: role, limits: limits.session, now: .zero)
        self.limits = limits
        self.accepted = accepted
    }

    // MARK: - Waiting

    mutating func makeToken() -> UInt64 {
        nextToken += 1
        return nextToken
    }

    mutating func wake(_ key: RPCConnection.WaitKey) {
        guard let all = waiters.removeValue(forKey: key) else { return }
        awake += all.values
    }

    mutating func wake(_ key: RPCConnection.WaitKey, token: UInt64) {
        guard let continuation = waiters[key]?.removeValue(forKey: token) else { return }
        if waiters[key]?.isEmpty == true { waiters[key] = nil }
        awake.append(continuation)
    }

    mutating func takeAwake() -> [CheckedContinuation<Void, Never>] {
        defer { awake = [] }
        return awake
    }

    mutating func sendPing() -> UInt32? {
        guard closedBecause == nil else { return nil }
        let value = session.ping()
        unanswered.insert(value)
        return value
    }

    func hasAnswered(_ value: UInt32) -> Bool { closedBecause != nil || !unanswered.contains(value) }

    mutating func forgetPing(_ value: UInt32) { unanswered.remove(value) }

    // MARK: - Session

    mutating func receive(_ bytes: [UInt8], now: Duration) {
        guard closedBecause == nil else { return }
        do { try session.receive(bytes[...], now: now) } catch {
            close(because: .connectionClosed("yamux: \(error)"))
        }
    }

    mutating func handleTimeout(now: Duration) {
        guard closedBecause == nil else { return }
        do { try session.handleTimeout(now: now) } catch {
            close(because: .connectionClosed("yamux: \(error)"))
        }
    }

    mutating func takeOutput() -> [UInt8] {
        let wasFull = session.isOutputFull
        let bytes = session.takeOutput()
        if wasFull { for id in calls.keys.sorted() { flush(id) } }
        return bytes
    }

    mutating func close(because error: RPCError) {
        guard closedBecause == nil else { return }
        closedBecause = error
        session.close()
        for id in calls.keys.sorted() { endStream(id, error) }
        accepted.finish()
        for key in Array(waiters.keys) { wake(key) }
    }

    /// Acts on everything the session has to say. Runs after each change.
    mutating func settle() {
        while true {
            let events = session.takeEvents()
            guard !events.isEmpty else { break }
            for event in events { handle(event) }
        }
        if session.hasOutput { wake(.output) }
        if waiters[.open] != nil, session.canTryOpen { wake(.open) }
    }

    private mutating func handle(_ event: YamuxSession.Event) {
        switch event {
        case .incoming:
            guard let id = session.accept() else { return }
            calls[id] = Call(transport: DRPCTransport(role: .server))
            accepted.yield(id)
        case .established, .goAway: break
        case .readable(let id), .remoteClosed(let id): pump(id)
        case .writable(let id): flush(id)
        case .reset(let id): endStream(id, .streamClosed)
        case .pong(let value):
            unanswered.remove(value)
            wake(.pong(value))
        }
    }

    // MARK: - Calls

    /// Moves bytes from the stream into the call, as long as its inbox is empty: a reader that does not read
    /// fills the window and stops the peer.
    mutating func pump(_ id: YamuxStreamID) {
        while let call = calls[id], call.inbox.isEmpty, call.invoked == nil, !call.isStreamOver {
            let before = call.transport.bufferedCount
            let event: DRPCTransport.Event?
            do { event = try calls[id]?.transport.nextEvent() } catch { return violation(id, error, before) }
            unfinishedBytes += (calls[id]?.transport.bufferedCount ?? 0) - before
            if let event {
                handle(event, of: id)
                continue
            }
            let bytes = session.read(id)
            if !bytes.isEmpty {
                calls[id]?.transport.receive(bytes)
                unfinishedBytes += bytes.count
                guard unfinishedBytes <= limits.unfinishedBytes else {
                    return violation(id, .packetTooLarge(limit: limits.unfinishedBytes), before + bytes.count)
                }
                continue
            }
            if session.isAtEnd(id) { endStream(id, .streamClosed) }
            return
        }
    }

    private mutating func handle(_ event: DRPCTransport.Event, of id: YamuxStreamID) {
        switch event {
        case .invoked(let name, _):
            // Of a running call this is the end; its handler is cancelled before the next one starts.
            calls[id]?.invoked = name
            if calls[id]?.end == nil { calls[id]?.end = .cancelled }
            wake(.end(id))
        case .message(let bytes): calls[id]?.inbox.append(bytes)
        case .sendClosed: calls[id]?.isReadClosed = true
        case .ended(let end):
            switch end {
            case .closed: calls[id]?.isReadClosed = true
            case .failed(let code, let text): calls[id]?.end = .failed(code: code, message: text)
            case .cancelled: break
            }
            if calls[id]?.end == nil { calls[id]?.end = end == .closed ? .streamClosed : .cancelled }
            wake(.end(id))
            wake(.send(id))
        }
        wake(.read(id))
    }

    private mutating func violation(_ id: YamuxStreamID, _ error: DRPCError, _ heldBefore: Int) {
        unfinishedBytes -= heldBefore
        session.reset(id)
        calls[id]?.isStreamOver = true
        calls[id]?.transport = DRPCTransport(role: .client)  // empty: its bytes were just uncounted
        endStream(id, .protocolViolation("\(error)"))
    }

    private mutating func endStream(_ id: YamuxStreamID, _ error: RPCError) {
        guard calls[id] != nil else { return }
        calls[id]?.isStreamOver = true
        calls[id]?.pending = []
        if calls[id]?.end == nil { calls[id]?.end = error }
        for key in [RPCConnection.WaitKey.read(id), .send(id), .end(id)] { wake(key) }
    }

    /// Moves the call's output into the session as far as the window allows.
    mutating func flush(_ id: YamuxStreamID) {
        guard let output = calls[id]?.transport.takeOutput() else { return }
        calls[id]?.pending += output
        guard let pending = calls[id]?.pending, !pending.isEmpty else { return }
        let count = session.write(id, pending)
        calls[id]?.pending = pending.dropFirst(count)
        if count == pending.count {
            calls[id]?.pending = []
            wake(.send(id))
        }
    }

    /// Nobody uses the call any more.
    mutating func release(_ id: YamuxStreamID) {
        guard calls[id] != nil else { return }
        flush(id)
        unfinishedBytes -= calls[id]?.transport.bufferedCount ?? 0
        calls[id] = nil
        session.release(id, now: now)
        for key in [RPCConnection.WaitKey.read(id), .send(id), .end(id)] { wake(key) }
    }
}

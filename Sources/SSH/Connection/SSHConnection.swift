// SPDX-License-Identifier: Apache-2.0

/// The client's end. See `SSHConnection`.
public typealias ClientConnection = SSHConnection
/// The server's end. See `SSHConnection`.
public typealias ServerConnection = SSHConnection

/// What happened on a connection.
public enum SSHEvent: Hashable, Sendable {
    /// Client: the server's key in wire form (name and key). Comes once, before anything is sent under the
    /// keys.
    case hostKey([UInt8])
    /// Server: the peer wants in. Only when the policy is `.ask`; call `answerAuthentication`.
    case authenticationRequested(user: String, method: String)
    /// Both ends may open channels now. `user` is the name the client gave.
    case authenticated(user: String)
    /// The peer wants a channel: `accept` or `refuse` it, at any time.
    case channelRequested(ChannelID, ChannelType)
    /// The peer accepted a channel of ours.
    case opened(ChannelID)
    /// The peer refused a channel of ours; its name is void now.
    case openFailed(ChannelID, reason: UInt32, message: String)
    /// `count` bytes came: read them with `withData` now, call `consumed` once they are out of memory.
    case data(ChannelID, DataStream, count: Int)
    /// The peer will send no more data on this channel.
    case endOfData(ChannelID)
    /// More can be written, after a `write` that took less than it was given.
    case writable(ChannelID)
    /// A request on a channel. When `wantsReply`, call `reply` before the next `nextEvent`, else it is
    /// refused.
    case request(ChannelID, ChannelRequest, wantsReply: Bool)
    /// The peer's answer to the oldest unanswered request of ours on this channel.
    case reply(ChannelID, success: Bool)
    /// The channel is gone; its name is void now.
    case closed(ChannelID)
    /// When `wantsReply`, call `replyGlobal` before the next `nextEvent`, else it is refused.
    case globalRequest(GlobalRequest, wantsReply: Bool)
    /// The peer's answer to the oldest unanswered global request of ours; `port` answers a forward of port 0.
    case globalReply(success: Bool, port: UInt32?)
}

/// One end of an SSH-2 connection (RFC 4253, 4252, 4254). No I/O, no clock.
///
/// Drive it like this: hand in what came (`receive`), call `nextEvent` until nil, send `outgoing` and call
/// `consumeOutgoing`, wait for the socket or for `nextDeadlineNanoseconds`. After an error send what
/// `outgoing` still holds and close. Stop reading the socket while `wantsInput` is false.
public struct SSHConnection: ~Copyable {
    var transport: Transport
    var channels: [Channel] = []
    var openCount = 0
    /// By how much the windows of all channels were widened.
    var grownBytes = 0
    var authentication: Authentication
    /// Kinds of our global requests that await an answer, oldest first.
    var pendingGlobals: [PendingGlobal] = []
    /// The place of the data of the last event, relative to the head of the incoming queue.
    var dataRange = 0..<0
    /// The reply that the last event demands.
    var owedReply: OwedReply?
    /// Channels whose writer waits: looked at when keys are renewed or output drained.
    var hasWaitingWriters = false
    var writableCursor = 0
    var timers = Timers()
    /// Client: ask for a session together with the entry, which saves a round trip. For servers that let everybody in.
    public var opensSessionEarly = false
    /// The session that was asked for that way.
    public internal(set) var earlySession: ChannelID?
    var failure: SSHError?
    var hasReportedHostKey = false
    /// What a caller-side method could not report, e.g. a bound of the deferred queue; thrown by `nextEvent`.
    var lateFailure: SSHError?

    enum OwedReply {
        case channel(ChannelID)
        case global
    }

    enum PendingGlobal {
        case request
        case keepalive
    }

    struct Timers {
        var startedAt: UInt64?
        var keysSince: UInt64 = 0
        var exchangesSeen: UInt64 = 0
        var heardAt: UInt64 = 0
        var bytesHeard: UInt64 = 0
        var probesUnanswered = 0
        var keepaliveInterval: UInt64 = 0
        var keepaliveLimit = 3
    }

    /// Who may enter.
    public enum AuthenticationPolicy: Sendable {
        /// Everyone: `none` succeeds at once. For servers inside the mesh.
        case acceptNone
        /// The caller decides upon `.authenticationRequested`.
        case ask
    }

    /// A server's end.
    ///
    /// - Parameters:
    ///   - software: goes into the version line, without blanks.
    public init(
        serverWith hostKey: HostKey, policy: AuthenticationPolicy = .acceptNone,
        limits: SSHLimits = SSHLimits(),
        ciphers: [CipherName] = CipherName.preferred, software: String = "coder", seed: EntropySeed
    ) {
        transport = Transport(
            role: .server, limits: limits, ciphers: ciphers, version: "SSH-2.0-\(software)", hostKey: hostKey,
            seed: seed)
        authentication = Authentication(policy: policy, user: "")
    }

    /// A client's end; authenticates as `user` by `none`.
    public init(
        clientNamed user: String, limits: SSHLimits = SSHLimits(),
        ciphers: [CipherName] = CipherName.preferred,
        software: String = "coder", seed: EntropySeed
    ) {
        transport = Transport(
            role: .client, limits: limits, ciphers: ciphers, version: "SSH-2.0-\(software)", hostKey: nil,
            seed: seed)
        authentication = Authentication(policy: .acceptNone, user: user)
    }

    // MARK: Bytes

    /// Takes bytes from the transport, split in any way.
    public mutating func receive(_ bytes: UnsafeRawBufferPointer) {
        transport.counters.bytesReceived += UInt64(bytes.count)
        unsafe transport.inbound.append(bytes)
    }

    /// Lets `read` put up to `capacity` bytes from the transport straight into the incoming queue; it returns
    /// how many, and its result comes back.
    public mutating func receive(
        upTo capacity: Int, _ read: (UnsafeMutableRawBufferPointer) -> Int
    ) -> Int {
        let space = unsafe UnsafeMutableRawBufferPointer(
            rebasing: transport.inbound.space(capacity)[..<capacity])
        let count = unsafe read(space)
        guard count > 0 else { return count }
        precondition(count <= capacity)
        transport.inbound.commit(count)
        transport.counters.bytesReceived += UInt64(count)
        return count
    }

    /// Whether more bytes may come in. False while much is unhandled, because `outgoing` is not drained.
    public var wantsInput: Bool {
        let limits = transport.limits
        return failure == nil
            && transport.inbound.count
                < (authentication.isDone ? limits.incomingBytes : limits.packetBytesBeforeKeys)
    }

    /// Bytes to send. Valid until the next mutating call.
    public var outgoing: UnsafeRawBufferPointer { unsafe transport.outbound.bytes }

    /// How many bytes are to be sent.
    public var outgoingCount: Int { transport.outbound.count }

    /// Drops the first `count` bytes of `outgoing`, which have been sent.
    public mutating func consumeOutgoing(_ count: Int) { transport.outbound.consume(count) }

    /// Gives memory of the last burst back. Worth calling when nothing has moved for a while.
    public mutating func releaseSpareMemory() {
        transport.inbound.trim()
        transport.outbound.trim()
        transport.deferred.trim()
    }

    /// Counters of this connection.
    public var counters: SSHCounters { transport.counters }

    /// The peer's version line, once it came.
    public var peerVersion: String? { transport.peerVersion.map { String(decoding: $0, as: UTF8.self) } }

    /// Whether channels may be opened.
    public var isAuthenticated: Bool { authentication.isDone }

    /// Number of channels, half-open ones included.
    public var channelCount: Int { openCount }

    /// The session identifier, for binding other protocols to this connection.
    public var sessionID: [UInt8]? { transport.exchange.sessionID }

    // MARK: Events

    /// What happened next; nil when more bytes, or room in `outgoing`, are needed. After an error the
    /// connection is over: it says good-bye in `outgoing`, and each further call throws the same.
    public mutating func nextEvent() throws(SSHError) -> SSHEvent? {
        if let failure { throw failure }
        do {
            return try step()
        } catch {
            failure = error
            if case .disconnected = error { throw error }
            if transport.peerVersion != nil {
                transport.sendDisconnect(reason: error.disconnectReason, description: "\(error)")
            }
            throw error
        }
    }

    private mutating func step() throws(SSHError) -> SSHEvent? {
        if let lateFailure { throw lateFailure }
        try refuseUnanswered()
        if transport.isRekeyDue, authentication.isDone { transport.startKeyExchange() }
        if let event = nextWritable() { return event }
        while true {
            guard let message = try transport.nextMessage() else {
                // The exchange may have ended in the messages just handled.
                return try afterExchange() ?? nextWritable()
            }
            let type = message.type
            var reader = message.reader
            do {
                if let event = try handle(type, &reader) { return event }
            } catch let error as WireError {
                throw .malformed(message: type, error)
            } catch let error as SSHError {
                throw error
            } catch {
                throw .unexpectedMessage(type)
            }
        }
    }

    /// What follows from a finished key exchange.
    mutating func afterExchange() throws(SSHError) -> SSHEvent? {
        guard transport.exchange.hasFinished else { return nil }
        transport.exchange.hasFinished = false
        guard transport.role == .client, !authentication.isStarted else { return nil }
        // Service and user request go out together: the server answers both in one round trip.
        try startAuthentication()
        guard !hasReportedHostKey, let blob = transport.exchange.hostKeyBlob else { return nil }
        hasReportedHostKey = true
        return .hostKey(blob)
    }

    private mutating func refuseUnanswered() throws(SSHError) {
        switch owedReply {
        case .channel(let id)?: reply(id, success: false)
        case .global?: replyGlobal(success: false)
        case nil: return
        }
        if let lateFailure { throw lateFailure }
    }

    /// The bytes of the last `.data` event; empty after anything else. Valid inside `body` only.
    public borrowing func withData<Result>(
        _ body: (UnsafeRawBufferPointer) throws -> Result
    ) rethrows -> Result {
        guard !dataRange.isEmpty else { return unsafe try body(UnsafeRawBufferPointer(start: nil, count: 0)) }
        let start = unsafe transport.inbound.address(dataRange.lowerBound)
        return unsafe try body(UnsafeRawBufferPointer(start: start, count: dataRange.count))
    }

    private mutating func handle(_ type: UInt8, _ reader: inout WireReader) throws -> SSHEvent? {
        dataRange = 0..<0
        if let event = try afterExchange() {
            // Client only: the server cannot speak before our service request, so this message is too early.
            _ = event
            throw SSHError.unexpectedMessage(type)
        }
        switch type {
        case Message.serviceRequest, Message.serviceAccept, 50...79:
            return try handleAuthentication(type, &reader)
        case 80...127:
            guard authentication.isDone else { throw SSHError.unexpectedMessage(type) }
            return try handleConnection(type, &reader)
        default:
            // RFC 4253 §11.4: unknown messages are answered and otherwise ignored.
            transport.counters.unimplementedMessages += 1
            let sequence = transport.receiveSequence &- 1
            try transport.send {
                $0.append(Message.unimplemented)
                $0.append(sequence)
            }
            return nil
        }
    }

    /// Says good-bye. Send `outgoing`, then close the transport.
    public mutating func disconnect(description: String = "") {
        guard failure == nil else { return }
        failure = .disconnected(reason: 11, description: description)
        transport.sendDisconnect(reason: 11, description: description)
    }

    /// Renews the keys now, as happens by itself after enough bytes or time.
    public mutating func renewKeys() {
        guard transport.canSendData, !transport.exchange.isReceiving, failure == nil else { return }
        transport.startKeyExchange()
    }

    /// Sends a message on behalf of the caller; a passed bound ends the connection at the next `nextEvent`.
    mutating func send(_ write: (inout ByteQueue) -> Void) {
        guard failure == nil else { return }
        do {
            try transport.send(write)
        } catch {
            lateFailure = error
        }
    }
}

// One connection belongs to one thread at a time; its ciphers and buffers are shared with nothing.
extension SSHConnection: @unchecked Sendable {}

extension SSHConnection {
    /// Sends any payload under the current keys: for tests that play a hostile peer.
    package mutating func sendPayload(_ payload: [UInt8]) {
        send { $0.append(payload) }
    }
}

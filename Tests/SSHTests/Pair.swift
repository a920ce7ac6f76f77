// SPDX-License-Identifier: Apache-2.0

import LinuxIO
import SSH
import Testing

/// xorshift64*: enough for reproducible tests.
struct TestGenerator: RandomNumberGenerator {
    var state: UInt64
    init(_ seed: UInt64) { state = seed &* 0x9e37_79b9_7f4a_7c15 | 1 }
    mutating func next() -> UInt64 {
        state ^= state >> 12
        state ^= state << 25
        state ^= state >> 27
        return state &* 0x2545_f491_4f6c_dd1d
    }
    mutating func bytes(_ count: Int) -> [UInt8] {
        (0..<count).map { _ in UInt8(truncatingIfNeeded: next()) }
    }
}

/// A client and a server that talk in memory. Events are handed to closures as they come.
struct Pair: ~Copyable {
    var client: SSHConnection
    var server: SSHConnection
    var generator: TestGenerator
    /// Largest piece in which bytes travel.
    var pieceBytes = Int.max
    var clientEvents: [SSHEvent] = []
    var serverEvents: [SSHEvent] = []
    /// Bytes of data events, per side.
    var clientData: [UInt8] = []
    var clientErrorData: [UInt8] = []
    var serverData: [UInt8] = []
    /// Whether received data is taken at once.
    var consumesAtOnce = true

    init(
        seed: UInt64 = 1, clientCiphers: [CipherName] = CipherName.allCases,
        limits: SSHLimits = SSHLimits(), clientLimits: SSHLimits? = nil,
        policy: SSHConnection.AuthenticationPolicy = .acceptNone
    ) {
        generator = TestGenerator(seed)
        let key = HostKey(owner: "alice", workspace: "dev", agent: "main")
        server = SSHConnection(
            serverWith: key, policy: policy, limits: limits, seed: EntropySeed(using: &generator))
        client = SSHConnection(
            clientNamed: "coder", limits: clientLimits ?? limits, ciphers: clientCiphers,
            seed: EntropySeed(using: &generator))
    }

    /// Moves bytes until nothing moves. Requests and channels are granted.
    mutating func pump() throws {
        var moves = true
        while moves {
            moves = false
            if Self.move(&client, &server, piece()) { moves = true }
            try drainServer()
            if Self.move(&server, &client, piece()) { moves = true }
            try drainClient()
        }
    }

    private mutating func piece() -> Int {
        pieceBytes == .max ? .max : Int.random(in: 1...pieceBytes, using: &generator)
    }

    static func move(_ from: inout SSHConnection, _ to: inout SSHConnection, _ limit: Int) -> Bool {
        let count = min(from.outgoingCount, limit)
        guard count > 0, to.wantsInput else { return false }
        to.receive(UnsafeRawBufferPointer(rebasing: from.outgoing[..<count]))
        from.consumeOutgoing(count)
        return true
    }

    mutating func drainServer() throws {
        while let event = try server.nextEvent() {
            serverEvents.append(event)
            switch event {
            case .channelRequested(let id, _): server.accept(id)
            case .request(let id, _, wantsReply: true): server.reply(id, success: true)
            case .globalRequest(_, wantsReply: true): server.replyGlobal(success: true, port: 4242)
            case .data(let id, _, let count):
                server.withData { serverData += $0 }
                if consumesAtOnce { server.consumed(id, count) }
            default: break
            }
        }
    }

    mutating func drainClient() throws {
        while let event = try client.nextEvent() {
            clientEvents.append(event)
            switch event {
            case .channelRequested(let id, _): client.accept(id)
            case .data(let id, let stream, let count):
                client.withData { if stream == .error { clientErrorData += $0 } else { clientData += $0 } }
                if consumesAtOnce { client.consumed(id, count) }
            default: break
            }
        }
    }

    /// Connects and opens one session; returns its name at both ends.
    mutating func openSession() throws -> (client: ChannelID, server: ChannelID) {
        try pump()
        guard let id = client.openChannel(.session) else { throw Missing.channel }
        try pump()
        for event in serverEvents.reversed() {
            if case .channelRequested(let remote, .session) = event { return (id, remote) }
        }
        throw Missing.channel
    }

    enum Missing: Error { case channel, progress }
}

/// As `#expect`, whose expansion cannot look into values that are not copyable.
func expect(_ condition: Bool, _ comment: Comment? = nil, at location: SourceLocation = #_sourceLocation) {
    #expect(condition, comment, sourceLocation: location)
}

/// As `#require`, for the same reason.
func need<Value>(_ value: Value?, at location: SourceLocation = #_sourceLocation) throws -> Value {
    try #require(value, sourceLocation: location)
}

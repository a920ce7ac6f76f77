// SPDX-License-Identifier: Apache-2.0

internal import CSodium

/// The first bytes on a carrier, one in each direction, big-endian. A port that is not ours answers something else,
/// or nothing.
///
///      0          8      9        10      12         16        32         64            72         80
///     ┌──────────┬──────┬────────┬───────┬──────────┬─────────┬──────────┬─────────────┬──────────┐
///     │ magic    │ kind │ zero   │ port  │ zero     │ id      │ token    │ received    │ limit    │
///     └──────────┴──────┴────────┴───────┴──────────┴─────────┴──────────┴─────────────┴──────────┘
public struct ResumeGreeting: Hashable, Sendable {
    /// 80 bytes.
    public static let size = 80

    /// What the sender wants, or answers.
    public enum Kind: UInt8, Sendable {
        /// Client: a new stream to `port`. Frames may follow at once.
        case new = 1
        /// Client: go on with stream `id`; frames follow after the answer.
        case resume = 2
        /// Agent: here it is.
        case accepted = 16
        /// Agent: no such stream, or not with these keys.
        case unknownStream = 17
        /// Agent: nobody listens on the port.
        case connectFailed = 18
        /// Agent: too many streams.
        case busy = 19
    }

    /// Starts what a client says, and what an agent says: never equal, so that an echo is not taken for an answer.
    static let clientMagic = Array("coderRS1".utf8), agentMagic = Array("CODERrs1".utf8)

    public var kind: Kind
    /// Port of the agent; zero where it does not matter.
    public var port: UInt16 = 0
    /// Name of the stream.
    public var id = ResumeID()
    /// Proves that the stream is the sender's.
    public var token = StreamToken()
    /// Bytes of the other direction that the sender has: nothing before it must be sent again.
    public var received: UInt64 = 0
    /// Offset up to which the receiver may send.
    public var limit: UInt64 = 0

    /// A greeting of this kind.
    public init(_ kind: Kind) { self.kind = kind }

    /// Whether it is an agent's.
    public var isAnswer: Bool { kind.rawValue >= 16 }

    /// The 80 bytes.
    public var bytes: [UInt8] {
        var bytes = isAnswer ? Self.agentMagic : Self.clientMagic
        bytes += [kind.rawValue, 0]
        Self.append(UInt64(port), 2, &bytes)
        Self.append(0, 4, &bytes)
        bytes += id.bytes
        bytes += token.bytes
        Self.append(received, 8, &bytes)
        Self.append(limit, 8, &bytes)
        return bytes
    }

    /// Reads 80 bytes. Throws `.notResumable` for anything that is not a greeting of that side.
    public init(parsing bytes: [UInt8], isAnswer: Bool) throws(ResumeError) {
        guard bytes.count == Self.size, let kind = Kind(rawValue: bytes[8]),
            Array(bytes[..<8]) == (isAnswer ? Self.agentMagic : Self.clientMagic)
        else { throw .notResumable }
        self.init(kind)
        guard self.isAnswer == isAnswer else { throw .notResumable }
        port = UInt16(bytes[10]) << 8 | UInt16(bytes[11])
        id = ResumeID(bytes: Array(bytes[16..<32]))
        token = StreamToken(bytes: Array(bytes[32..<64]))
        received = Self.number(bytes[64..<72])
        limit = Self.number(bytes[72..<80])
    }

    /// Whether `bytes` can still become an answer. A foreign service is found out at its first byte.
    public static func canBeAnswer(_ bytes: [UInt8]) -> Bool {
        zip(bytes, agentMagic).allSatisfy { $0 == $1 }
    }

    private static func append(_ value: UInt64, _ size: Int, _ bytes: inout [UInt8]) {
        for index in 0..<size {
            bytes.append(UInt8(truncatingIfNeeded: value >> UInt64((size - 1 - index) * 8)))
        }
    }

    private static func number(_ bytes: ArraySlice<UInt8>) -> UInt64 {
        bytes.reduce(0) { $0 << 8 | UInt64($1) }
    }
}

/// Name of a stream: 16 random bytes, chosen by the agent.
public struct ResumeID: Hashable, Sendable {
    /// 16 bytes.
    public let bytes: [UInt8]

    /// All zero: none yet.
    public init() { bytes = [UInt8](repeating: 0, count: 16) }

    init(bytes: [UInt8]) {
        precondition(bytes.count == 16)
        self.bytes = bytes
    }

    /// A random name.
    public static func random(using generator: inout some RandomNumberGenerator) -> ResumeID {
        ResumeID(bytes: (0..<16).map { _ in UInt8.random(in: 0...255, using: &generator) })
    }
}

/// The right to go on with a stream: a keyed hash over its name and both peers' node keys. It is of no use to a
/// carrier whose ends are other nodes, and needs no table.
public struct StreamToken: Sendable {
    /// 32 bytes.
    public let bytes: [UInt8]

    /// All zero: none yet.
    public init() { bytes = [UInt8](repeating: 0, count: 32) }

    init(bytes: [UInt8]) {
        precondition(bytes.count == 32)
        self.bytes = bytes
    }

    /// BLAKE2b-256 with the agent's secret (32 bytes that live as long as its process) as key.
    public init(secret: [UInt8], id: ResumeID, clientKey: [UInt8], agentKey: [UInt8]) {
        precondition(secret.count == 32 && clientKey.count == 32 && agentKey.count == 32)
        let text = Array("coder resume 1".utf8) + id.bytes + clientKey + agentKey
        var hash = [UInt8](repeating: 0, count: 32)
        let code = unsafe crypto_generichash(&hash, 32, text, UInt64(text.count), secret, 32)
        precondition(code == 0, "sizes are right")
        bytes = hash
    }

    /// Compares in constant time.
    public func matches(_ other: StreamToken) -> Bool { unsafe sodium_memcmp(bytes, other.bytes, 32) == 0 }
}

extension StreamToken: Hashable {}

// SPDX-License-Identifier: Apache-2.0

// yamux frame, all numbers big-endian. Source: rpc-transport §3.1.
//
//     0        1        2        3        4                                8                               12
//     | version | type  |     flags       |          stream id             |            length             | body…
//
// Only Data has a body; WindowUpdate's length is the increment, Ping's an opaque value, GoAway's a code.

/// Names one stream of a yamux session: odd ids are the client's, even ids the server's, 0 is the session itself.
public typealias YamuxStreamID = UInt32

/// The 12-byte header that starts each yamux frame.
public struct YamuxHeader: Hashable, Sendable {
    /// What a frame is.
    public enum Kind: UInt8, Sendable {
        case data = 0
        case windowUpdate = 1
        case ping = 2
        case goAway = 3
    }

    /// Bits that open and close streams.
    public struct Flags: OptionSet, Hashable, Sendable {
        public let rawValue: UInt16
        public init(rawValue: UInt16) { self.rawValue = rawValue }
        /// Opens a stream, or asks for a pong.
        public static let syn = Flags(rawValue: 0x1)
        /// Accepts a stream, or is a pong.
        public static let ack = Flags(rawValue: 0x2)
        /// The sender writes no more.
        public static let fin = Flags(rawValue: 0x4)
        /// The stream is dead in both directions.
        public static let rst = Flags(rawValue: 0x8)
    }

    /// 12 bytes. rpc-transport §3.1.
    public static let size = 12

    public var kind: Kind
    public var flags: Flags
    public var stream: YamuxStreamID
    public var length: UInt32

    public init(_ kind: Kind, _ flags: Flags = [], stream: YamuxStreamID, length: UInt32 = 0) {
        self.kind = kind
        self.flags = flags
        self.stream = stream
        self.length = length
    }

    /// Reads a header from exactly 12 bytes.
    public init(parsing bytes: ArraySlice<UInt8>) throws(YamuxError) {
        precondition(bytes.count == Self.size, "a yamux header has 12 bytes")
        let at = bytes.startIndex
        guard bytes[at] == 0 else { throw .unknownVersion(bytes[at]) }
        guard let kind = Kind(rawValue: bytes[at + 1]) else { throw .unknownKind(bytes[at + 1]) }
        self.kind = kind
        flags = Flags(rawValue: UInt16(bytes[at + 2]) << 8 | UInt16(bytes[at + 3]))
        stream = Self.number(bytes[(at + 4)..<(at + 8)])
        length = Self.number(bytes[(at + 8)..<(at + 12)])
    }

    /// Appends the 12 bytes.
    public func write(into output: inout [UInt8]) {
        output.append(0)
        output.append(kind.rawValue)
        output.append(UInt8(truncatingIfNeeded: flags.rawValue >> 8))
        output.append(UInt8(truncatingIfNeeded: flags.rawValue))
        for shift in [24, 16, 8, 0] { output.append(UInt8(truncatingIfNeeded: stream >> UInt32(shift))) }
        for shift in [24, 16, 8, 0] { output.append(UInt8(truncatingIfNeeded: length >> UInt32(shift))) }
    }

    private static func number(_ bytes: ArraySlice<UInt8>) -> UInt32 {
        bytes.reduce(0) { $0 << 8 | UInt32($1) }
    }
}

/// Why a yamux session died, or why a stream could not be opened.
public enum YamuxError: Error, Hashable, Sendable {
    case unknownVersion(UInt8)
    case unknownKind(UInt8)
    /// SYN for a stream that lives already.
    case duplicateStream(YamuxStreamID)
    /// SYN with an id of our own parity, or 0.
    case wrongStreamID(YamuxStreamID)
    /// FIN after FIN.
    case repeatedFIN(YamuxStreamID)
    /// More data than the window allowed.
    case windowExceeded(YamuxStreamID)
    /// The peer said GoAway with a code other than 0.
    case remoteGoAway(UInt32)
    /// A ping went unanswered for too long.
    case keepAliveTimeout
    /// An opened stream was not acknowledged in time.
    case openTimeout(YamuxStreamID)
    /// The peer makes us answer faster than it reads.
    case outputOverflow
    /// The peer filled all windows while nobody reads.
    case inputOverflow
    /// Closed by us.
    case closed
    /// Not fatal: too many opens wait for their ACK. Try again after `.established`.
    case tooManyUnacknowledged
    /// Not fatal: the limit of live streams is reached. Try again later.
    case tooManyStreams
    /// The peer takes no new streams.
    case goneAway
    /// All ids of this session are used up.
    case idsExhausted
}

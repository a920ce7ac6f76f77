// SPDX-License-Identifier: Apache-2.0

/// Frames of the WebSocket protocol as a server sees them: what comes in is masked, what goes out is not.
/// RFC 6455 §5.2.
///
///     1 byte  FIN 0 0 0 opcode(4)
///     1 byte  MASK length(7)      126: 2 more bytes, 127: 8 more bytes
///     4 bytes mask                (client to server only)
///     n bytes payload
enum WebSocketFrame: Sendable, Equatable {
    /// Part of a message; `isText` is that of the message's first frame.
    case data(payload: [UInt8], isText: Bool, isFinal: Bool)
    case ping([UInt8])
    case pong([UInt8])
    /// Code 1005 when the frame carried none.
    case close(code: UInt16, reason: String)
}

/// Why a WebSocket is given up; `closeCode` is what the peer is told.
enum WebSocketError: Error, Equatable {
    /// Reserved bits, unknown opcode, bad control frame, missing mask, broken fragmentation.
    case protocolError(String)
    /// A frame above the limit.
    case tooLarge
    /// The stream ended without a close frame.
    case disconnected
    /// The other side did not answer our ping in time.
    case pingTimeout
    /// A text message on a route that carries bytes.
    case notBinary

    /// RFC 6455 §7.4.1.
    var closeCode: UInt16 {
        switch self {
        case .protocolError: 1002
        case .tooLarge: 1009
        case .disconnected: 1006
        case .pingTimeout: 1001
        case .notBinary: 1003
        }
    }
}

/// Turns received bytes into frames.
struct WebSocketDecoder {
    /// A data frame whose payload is still coming.
    private struct Begun {
        var left: Int
        var mask: [UInt8]
        let isText: Bool
        let isFinal: Bool
    }

    /// Longest frame taken: yamux bodies stay below 256 KiB.
    var maximumFrameBytes: Int
    /// Whether payload is passed on as it comes, as data frames that are not final: nothing is kept then, however
    /// long the peer's frames are.
    private let passesPartsOn: Bool
    private var bytes: [UInt8] = []
    private var start = 0
    private var messageIsText: Bool?
    private var begun: Begun?

    init(maximumFrameBytes: Int = 4 * 1024 * 1024, passesPartsOn: Bool = false) {
        self.maximumFrameBytes = maximumFrameBytes
        self.passesPartsOn = passesPartsOn
    }

    mutating func append(_ more: some Collection<UInt8>) {
        if start > 0 {
            bytes.removeFirst(start)
            start = 0
        }
        bytes += more
    }

    /// Gives memory back while nothing is kept.
    mutating func releaseIfEmpty() {
        guard start == bytes.count else { return }
        bytes = []
        start = 0
    }

    /// The next frame, or nil until more bytes arrive.
    mutating func next() throws(WebSocketError) -> WebSocketFrame? {
        if begun != nil { return nextPart() }
        guard bytes.count - start >= 2 else { return nil }
        let (first, second) = (bytes[start], bytes[start + 1])
        guard first & 0x70 == 0 else { throw .protocolError("reserved bits") }
        // RFC 6455 §5.1: a server MUST close upon receiving a frame that is not masked.
        guard second & 0x80 != 0 else { throw .protocolError("frame without mask") }
        let opcode = first & 15
        let isFinal = first & 0x80 != 0
        if opcode >= 8, !isFinal || second & 0x7F > 125 { throw .protocolError("long control frame") }
        guard let (length, headerBytes) = try lengthAndHeader(second & 0x7F) else { return nil }
        let isPassedOn = passesPartsOn && opcode < 8 && length > 0
        guard bytes.count - start >= headerBytes + 4 + (isPassedOn ? 0 : length) else { return nil }
        let mask = Array(bytes[(start + headerBytes)..<(start + headerBytes + 4)])
        start += headerBytes + 4
        guard isPassedOn else {
            let payload = take(length, mask)
            return try frame(opcode: opcode, isFinal: isFinal, payload: payload)
        }
        // What kind of frame it is does not depend on its payload.
        guard case .data(_, let isText, _) = try frame(opcode: opcode, isFinal: isFinal, payload: []) else {
            return nil
        }
        begun = Begun(left: length, mask: mask, isText: isText, isFinal: isFinal)
        return nextPart()
    }

    private mutating func nextPart() -> WebSocketFrame? {
        guard var part = begun else { return nil }
        let count = min(part.left, bytes.count - start)
        guard count > 0 else { return nil }
        let payload = take(count, part.mask)
        part.left -= count
        let turn = count & 3
        part.mask = Array(part.mask[turn...] + part.mask[..<turn])
        begun = part.left > 0 ? part : nil
        return .data(payload: payload, isText: part.isText, isFinal: part.isFinal && part.left == 0)
    }

    /// The next `count` bytes, unmasked.
    private mutating func take(_ count: Int, _ mask: [UInt8]) -> [UInt8] {
        let word = mask.enumerated().reduce(UInt64(0)) { $0 | UInt64($1.element) << UInt64(8 * $1.offset) }
        let mask8 = word | word << 32
        let from = start
        start += count
        return [UInt8](unsafeUninitializedCapacity: count) { payload, initialized in
            bytes.withUnsafeBytes { source in
                let target = UnsafeMutableRawBufferPointer(payload)
                var index = 0
                while index + 8 <= count {
                    let eight = source.loadUnaligned(fromByteOffset: from + index, as: UInt64.self)
                    target.storeBytes(
                        of: eight ^ mask8.littleEndian, toByteOffset: index, as: UInt64.self)
                    index += 8
                }
                while index < count {
                    target[index] = source[from + index] ^ mask[index & 3]
                    index += 1
                }
            }
            initialized = count
        }
    }

    private func lengthAndHeader(_ short: UInt8) throws(WebSocketError) -> (Int, Int)? {
        let extra = short == 126 ? 2 : short == 127 ? 8 : 0
        guard bytes.count - start >= 2 + extra else { return nil }
        let length =
            extra == 0
            ? UInt64(short) : bytes[(start + 2)..<(start + 2 + extra)].reduce(0) { $0 << 8 | UInt64($1) }
        guard length <= UInt64(maximumFrameBytes) else { throw .tooLarge }
        return (Int(length), 2 + extra)
    }

    private mutating func frame(
        opcode: UInt8, isFinal: Bool, payload: [UInt8]
    ) throws(WebSocketError) -> WebSocketFrame {
        switch opcode {
        case 0:
            guard let isText = messageIsText else { throw .protocolError("continuation of nothing") }
            if isFinal { messageIsText = nil }
            return .data(payload: payload, isText: isText, isFinal: isFinal)
        case 1, 2:
            guard messageIsText == nil else { throw .protocolError("message inside a message") }
            if !isFinal { messageIsText = opcode == 1 }
            return .data(payload: payload, isText: opcode == 1, isFinal: isFinal)
        case 8:
            guard payload.count != 1 else { throw .protocolError("close frame of one byte") }
            let code = payload.count >= 2 ? UInt16(payload[0]) << 8 | UInt16(payload[1]) : 1005
            return .close(code: code, reason: String(decoding: payload.dropFirst(2), as: UTF8.self))
        case 9: return .ping(payload)
        case 10: return .pong(payload)
        default: throw .protocolError("unknown opcode")
        }
    }
}

/// Writes frames of a server: never masked, never fragmented.
enum WebSocketEncoder {
    static func data(_ payload: some Collection<UInt8>, isText: Bool) -> [UInt8] {
        frame(opcode: isText ? 1 : 2, payload)
    }

    static func ping(_ payload: [UInt8]) -> [UInt8] { frame(opcode: 9, payload.prefix(125)) }
    static func pong(_ payload: [UInt8]) -> [UInt8] { frame(opcode: 10, payload.prefix(125)) }

    /// The reason is cut to 123 bytes at a character's border.
    static func close(code: UInt16, reason: String) -> [UInt8] {
        var text = reason
        while text.utf8.count > 123 { text.removeLast() }
        return frame(opcode: 8, [UInt8(code >> 8), UInt8(code & 255)] + Array(text.utf8))
    }

    private static func frame(opcode: UInt8, _ payload: some Collection<UInt8>) -> [UInt8] {
        var out: [UInt8] = []
        out.reserveCapacity(payload.count + 10)
        out.append(0x80 | opcode)
        switch payload.count {
        case ..<126: out.append(UInt8(payload.count))
        case ..<65_536: out += [126, UInt8(payload.count >> 8), UInt8(payload.count & 255)]
        default:
            out.append(127)
            for shift in stride(from: 56, through: 0, by: -8) {
                out.append(UInt8(truncatingIfNeeded: payload.count >> shift))
            }
        }
        out += payload
        return out
    }
}

// SPDX-License-Identifier: Apache-2.0

/// A body that comes in chunks. RFC 9112 §7.1. Each byte is looked at once, and only payload is kept.
///
///     1a;name=value\r\n   size in hexadecimal, maybe extensions
///     26 bytes\r\n
///     0\r\n
///     Trailer: x\r\n      any number of them
///     \r\n
struct ChunkedBody {
    private enum Phase {
        case size
        case payload(left: Int)
        case payloadEnd
        case trailers
        case complete
    }

    /// Longest line of a size or trailer: senders write a few digits.
    static let lineBytes = 1024
    /// Extensions and trailers of a whole body: nobody needs them, and they cost the sender nothing.
    static let extraBytes = 16_384

    private let limit: Int
    private var phase = Phase.size
    private var extra = 0
    /// The payload so far.
    private(set) var body: [UInt8] = []

    /// At most `limit` bytes of payload.
    init(limit: Int) { self.limit = limit }

    /// Whether the last chunk and its trailers have come.
    var isComplete: Bool {
        if case .complete = phase { true } else { false }
    }

    /// Takes what it can use and says how many bytes that were. What is left needs more bytes, or belongs to the next
    /// request.
    mutating func take(_ bytes: ArraySlice<UInt8>) throws(RequestError) -> Int {
        var position = bytes.startIndex
        while position < bytes.endIndex, !isComplete {
            if case .payload(let left) = phase {
                let count = min(left, bytes.endIndex - position)
                body += bytes[position..<position + count]
                position += count
                phase = count < left ? .payload(left: left - count) : .payloadEnd
                continue
            }
            let window = bytes[position...].prefix(Self.lineBytes)
            guard let newline = window.firstIndex(of: 10) else {
                guard window.count < Self.lineBytes else { throw .malformed("chunk line") }
                break
            }
            // A bare LF ends a line too (RFC 9112 §2.2).
            let hasReturn = newline > position && bytes[newline - 1] == 13
            try takeLine(bytes[position..<(hasReturn ? newline - 1 : newline)])
            position = newline + 1
        }
        return position - bytes.startIndex
    }

    private mutating func takeLine(_ line: ArraySlice<UInt8>) throws(RequestError) {
        switch phase {
        case .size:
            let digits = line.prefix { $0 != UInt8(ascii: ";") }.filter { $0 != 32 && $0 != 9 }
            guard (1...8).contains(digits.count), digits.allSatisfy(Self.isHexadecimal),
                let size = Int(String(decoding: digits, as: UTF8.self), radix: 16)
            else { throw .malformed("chunk size") }
            try count(line.count - digits.count)
            guard size <= limit - body.count else { throw .bodyTooLarge }
            phase = size == 0 ? .trailers : .payload(left: size)
        case .payloadEnd:
            guard line.isEmpty else { throw .malformed("chunk end") }
            phase = .size
        case .trailers:
            if line.isEmpty { phase = .complete }
            try count(line.count)
        case .payload, .complete: break
        }
    }

    private mutating func count(_ bytes: Int) throws(RequestError) {
        extra += bytes
        guard extra <= Self.extraBytes else { throw .malformed("chunk extensions") }
    }

    private static func isHexadecimal(_ byte: UInt8) -> Bool {
        switch byte {
        case UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "a")...UInt8(ascii: "f"),
            UInt8(ascii: "A")...UInt8(ascii: "F"):
            true
        default: false
        }
    }
}

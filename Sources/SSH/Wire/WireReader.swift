// SPDX-License-Identifier: Apache-2.0

/// Reads the data types of RFC 4251 §5 from a message. Every step is checked: a short or overlong field is an
/// error of the peer, never a trap.
///
/// It points into the buffer of its connection, so it must not outlive the handling of one message.
@safe package struct WireReader {
    private let base: UnsafeRawPointer
    private let end: Int
    /// Bytes read so far.
    package private(set) var offset = 0

    @unsafe package init(_ bytes: UnsafeRawBufferPointer) {
        if let start = bytes.baseAddress {
            unsafe base = start
            end = bytes.count
        } else {
            unsafe base = UnsafeRawPointer(bitPattern: 1).unsafelyUnwrapped  // never read: the end is 0
            end = 0
        }
    }

    /// Bytes not read yet.
    package var remaining: Int { end - offset }
    package var isAtEnd: Bool { offset == end }

    package mutating func byte() throws(WireError) -> UInt8 {
        guard remaining >= 1 else { throw .truncated(needed: 1, available: remaining) }
        defer { offset += 1 }
        return unsafe base.load(fromByteOffset: offset, as: UInt8.self)
    }

    package mutating func boolean() throws(WireError) -> Bool { try byte() != 0 }

    package mutating func uint32() throws(WireError) -> UInt32 {
        guard remaining >= 4 else { throw .truncated(needed: 4, available: remaining) }
        defer { offset += 4 }
        return unsafe UInt32(bigEndian: base.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
    }

    package mutating func uint64() throws(WireError) -> UInt64 {
        guard remaining >= 8 else { throw .truncated(needed: 8, available: remaining) }
        defer { offset += 8 }
        return unsafe UInt64(bigEndian: base.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
    }

    /// The place of a `string` inside the message.
    package mutating func stringRange(limit: Int = .max) throws(WireError) -> Range<Int> {
        let length = Int(try uint32())
        guard length <= limit else { throw .tooLong(length: length, limit: limit) }
        guard length <= remaining else { throw .truncated(needed: length, available: remaining) }
        defer { offset += length }
        return offset..<offset + length
    }

    package mutating func skip(_ count: Int) throws(WireError) {
        guard count >= 0, count <= remaining else { throw .truncated(needed: count, available: remaining) }
        offset += count
    }

    /// A copy of a `string`.
    package mutating func bytes(limit: Int = .max) throws(WireError) -> [UInt8] {
        let range = try stringRange(limit: limit)
        return unsafe Array(UnsafeRawBufferPointer(start: base + range.lowerBound, count: range.count))
    }

    package mutating func byteString(limit: Int = .max) throws(WireError) -> ByteString {
        ByteString(try bytes(limit: limit))
    }

    /// A `string` as text; what is not UTF-8 becomes U+FFFD.
    package mutating func text(limit: Int = .max) throws(WireError) -> String {
        let range = try stringRange(limit: limit)
        let part = unsafe UnsafeRawBufferPointer(start: base + range.lowerBound, count: range.count)
        return unsafe String(decoding: part, as: UTF8.self)
    }

    /// A `name-list`: comma-separated names.
    package mutating func nameList(limit: Int) throws(WireError) -> [String] {
        let text = try text(limit: limit)
        return text.isEmpty
            ? [] : text.split(separator: ",", omittingEmptySubsequences: false).map(String.init)
    }

    /// A copy of the whole message, read or not.
    package func copyAll() -> [UInt8] {
        unsafe Array(UnsafeRawBufferPointer(start: base, count: end))
    }

    /// The bytes at `range`, which a method above has returned.
    @unsafe package func view(_ range: Range<Int>) -> UnsafeRawBufferPointer {
        precondition(range.lowerBound >= 0 && range.upperBound <= end)
        return unsafe UnsafeRawBufferPointer(start: base + range.lowerBound, count: range.count)
    }
}

/// Why a message could not be read.
public enum WireError: Error, Hashable, Sendable {
    /// A field needs more bytes than the message has.
    case truncated(needed: Int, available: Int)
    /// A field is longer than allowed here.
    case tooLong(length: Int, limit: Int)
}

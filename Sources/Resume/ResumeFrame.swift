// SPDX-License-Identifier: Apache-2.0

/// What goes over a carrier after the greeting, big-endian:
///
///      0        1                4                        12
///     ┌────────┬────────────────┬────────────────────────┬───────────┐
///     │ type   │ length (24)    │ offset (64)            │ payload … │
///     └────────┴────────────────┴────────────────────────┴───────────┘
///
/// `offset` counts the bytes of the stream from its beginning, in the direction that the frame names; the end of a
/// direction counts as one more byte.
struct ResumeFrame: Hashable {
    enum Kind: UInt8 {
        /// Bytes of the stream; `offset` is that of the first.
        case data = 1
        /// `offset`: everything before it has come. Payload: uint64, the offset up to which the peer may send.
        case acknowledgement = 2
        /// The direction ends at `offset`.
        case end = 3
        /// The stream is over at once; `offset` is a reason.
        case reset = 4
        /// Answer with a pong of the same `offset`.
        case ping = 5
        case pong = 6
    }

    /// 12 bytes.
    static let headerBytes = 12
    /// 64 KiB: payload of one DATA frame.
    static let payloadLimit = 64 * 1024

    /// Kinds that are not known are skipped.
    var type: UInt8
    var length: Int
    var offset: UInt64

    init(_ kind: Kind, length: Int = 0, offset: UInt64) {
        type = kind.rawValue
        self.length = length
        self.offset = offset
    }

    /// Reads a header; the caller has seen to its size.
    init(_ bytes: UnsafeRawBufferPointer) {
        let first = unsafe UInt32(bigEndian: bytes.loadUnaligned(as: UInt32.self))
        type = UInt8(truncatingIfNeeded: first >> 24)
        length = Int(first & 0xff_ffff)
        offset = unsafe UInt64(bigEndian: bytes.loadUnaligned(fromByteOffset: 4, as: UInt64.self))
    }

    func write(to buffer: inout ByteBuffer) {
        buffer.append(UInt64(type) << 24 | UInt64(length), 4)
        buffer.append(offset, 8)
    }
}

/// Why a stream cannot go on. All but `lost` are faults of the peer.
public enum ResumeError: Error, Hashable, Sendable {
    /// The greeting is not ours.
    case notResumable
    /// A frame of a size that its kind does not have.
    case badFrame(type: UInt8, length: Int)
    /// Bytes are missing between `expected` and what came.
    case gap(expected: UInt64, got: UInt64)
    /// More than was allowed.
    case windowExceeded
    /// The peer says that it has what was never sent, or lost what it had.
    case badAcknowledgement(UInt64)
    /// Bytes after the end.
    case dataAfterEnd
    /// The peer gave the stream up.
    case reset(UInt64)
}

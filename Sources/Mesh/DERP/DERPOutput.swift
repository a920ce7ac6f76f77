// SPDX-License-Identifier: Apache-2.0

/// Frames that wait to be written to a relay, some of which overtake the others, but none in its middle.
struct DERPOutput: ~Copyable, Sendable {
    var frames = ByteQueue()
    /// Those that go before `frames`, between two of them.
    var urgent = ByteQueue()
    /// Bytes that belong to the first of `frames` when part of it was written already.
    private var rest = 0

    /// Bytes that wait.
    var count: Int { frames.count + urgent.count }

    /// Whether the urgent frames are next: the others are between two frames.
    private var isUrgentNext: Bool { !urgent.isEmpty && rest == 0 }

    /// Calls `body` with bytes to write next.
    func withNext<R>(_ body: (RawSpan) throws -> R) rethrows -> R {
        if isUrgentNext { return try urgent.withBytes(body) }
        guard !urgent.isEmpty else { return try frames.withBytes(body) }
        return try frames.withBytes { try body($0.extracting(0..<rest)) }
    }

    /// Drops so many of the bytes that were shown last.
    mutating func consume(_ count: Int) {
        if isUrgentNext {
            urgent.consume(count)
            return urgent.releaseIfEmpty()
        }
        rest = Self.rest(of: frames, rest, after: count)
        frames.consume(count)
        if frames.capacity > 64 << 10 { frames.releaseIfEmpty() }
    }

    /// What is left of the frame in which `count` bytes end, when `rest` bytes of the first were still to go.
    private static func rest(of queue: borrowing ByteQueue, _ rest: Int, after count: Int) -> Int {
        queue.withBytes { bytes in
            var end = rest
            while end < count, bytes.byteCount >= end + DERP.headerBytes {
                end += DERP.headerBytes + Int(bytes.wire32(end + 1))
            }
            return max(0, end - count)
        }
    }
}

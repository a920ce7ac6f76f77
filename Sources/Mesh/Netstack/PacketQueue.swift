// SPDX-License-Identifier: Apache-2.0

/// A bounded first-in-first-out queue of byte strings with a small header each, in one ring of memory that exists
/// only while the queue is not empty.
struct PacketQueue: ~Copyable {
    /// What goes with the bytes.
    struct Entry {
        var local: SocketAddress
        var remote: SocketAddress
        var length: Int
    }

    private var bytes = ByteRing()
    private var entries: [Entry] = []
    private var head = 0
    private let limit: Int

    init(limit: Int) { self.limit = limit }

    var isEmpty: Bool { head == entries.count }

    /// The next entry, without taking it.
    var first: Entry? { isEmpty ? nil : entries[head] }

    /// Memory for `length` bytes at the end, as writer. Nil when the queue is full. Must be followed by `commit`.
    mutating func reserve(_ length: Int, _ pool: inout BufferPool) -> Bool {
        // 64 bytes per entry on top, so that a flood of empty datagrams is bounded as well.
        guard bytes.count + length + (entries.count - head) * 64 <= limit else { return false }
        return bytes.ensure(bytes.count + max(length, 1), &pool)
    }

    /// Appends the pieces as one entry after a `reserve` for all of them.
    mutating func append(_ entry: Entry, _ first: PacketBytes?, _ second: PacketBytes? = nil) {
        for piece in [first, second] {
            guard let piece else { continue }
            bytes.place(piece, at: bytes.count)
            bytes.extend(piece.count)
        }
        entries.append(entry)
    }

    /// Moves the next entry's bytes to `out`, cut to its size.
    mutating func pop(into out: UnsafeMutableRawBufferPointer, _ pool: inout BufferPool) -> Entry? {
        guard !isEmpty else { return nil }
        let entry = entries[head]
        let length = min(entry.length, out.count)
        unsafe bytes.copy(0, length, into: out)
        drop(&pool)
        return entry
    }

    /// Forgets the next entry.
    mutating func drop(_ pool: inout BufferPool) {
        bytes.consume(entries[head].length)
        head += 1
        if head == entries.count {
            entries.removeAll(keepingCapacity: entries.count <= 64)
            head = 0
            bytes.release(&pool)
        } else if head >= 256, head * 2 >= entries.count {
            entries.removeFirst(head)
            head = 0
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

/// A growable ring of bytes without memory of its own while it is empty. Bytes may be placed beyond `count`
/// (segments that arrive out of order) and become part of it when the gap has closed.
@safe struct ByteRing: ~Copyable {
    private var base: UnsafeMutableRawPointer?
    /// Power of two, or 0.
    private(set) var capacity = 0
    private var head = 0
    /// Bytes from the front without a gap.
    private(set) var count = 0

    init() { unsafe base = nil }

    deinit {
        // Owners give the block back to the pool; this is for stacks that are dropped as a whole.
        if let base = unsafe base { unsafe base.deallocate() }
    }

    var isEmpty: Bool { count == 0 }

    /// Makes room for `extent` bytes from the front, gap and all. False when the pool is exhausted.
    mutating func ensure(_ extent: Int, _ pool: inout BufferPool) -> Bool {
        guard extent > capacity else { return true }
        let size = BufferPool.blockSize(extent)
        guard let block = unsafe pool.take(size) else { return false }
        if let old = unsafe base {
            // All of it: bytes beyond `count` count as well.
            let first = capacity - head
            unsafe block.copyMemory(from: old + head, byteCount: first)
            unsafe (block + first).copyMemory(from: old, byteCount: head)
            unsafe pool.give(old, capacity)
        }
        unsafe base = block
        capacity = size
        head = 0
        return true
    }

    /// Gives the memory back. All bytes are lost.
    mutating func release(_ pool: inout BufferPool) {
        if let old = unsafe base { unsafe pool.give(old, capacity) }
        unsafe base = nil
        capacity = 0
        head = 0
        count = 0
    }

    /// Copies `bytes` to `offset` behind the front without counting them. There must be room.
    mutating func place(_ bytes: PacketBytes, at offset: Int) {
        precondition(offset >= 0 && offset + bytes.count <= capacity, "no room in ring")
        let memory = unsafe base.unsafelyUnwrapped
        let source = unsafe bytes.buffer.baseAddress.unsafelyUnwrapped
        let start = (head + offset) & (capacity - 1)
        let first = min(bytes.count, capacity - start)
        unsafe (memory + start).copyMemory(from: source, byteCount: first)
        if first < bytes.count {
            unsafe memory.copyMemory(from: source + first, byteCount: bytes.count - first)
        }
    }

    /// Counts `length` bytes that were placed right behind the counted ones.
    mutating func extend(_ length: Int) {
        precondition(length >= 0 && count + length <= capacity, "no room in ring")
        count += length
    }

    /// Copies `length` bytes from `offset` into `out`.
    borrowing func copy(_ offset: Int, _ length: Int, into out: UnsafeMutableRawBufferPointer) {
        precondition(offset >= 0 && length >= 0 && offset + length <= count, "no such bytes in ring")
        precondition(out.count >= length, "no room for bytes of ring")
        guard length > 0 else { return }
        let memory = unsafe base.unsafelyUnwrapped
        let target = unsafe out.baseAddress.unsafelyUnwrapped
        let start = (head + offset) & (capacity - 1)
        let first = min(length, capacity - start)
        unsafe target.copyMemory(from: memory + start, byteCount: first)
        if first < length { unsafe (target + first).copyMemory(from: memory, byteCount: length - first) }
    }

    /// Copies `length` bytes from `offset` into `out` and returns their sum for the Internet checksum.
    @inline(__always)
    borrowing func copySumming(
        _ offset: Int, _ length: Int, into out: UnsafeMutableRawBufferPointer
    ) -> UInt64 {
        precondition(offset >= 0 && length >= 0 && offset + length <= count, "no such bytes in ring")
        precondition(out.count >= length, "no room for bytes of ring")
        guard length > 0 else { return 0 }
        let memory = unsafe base.unsafelyUnwrapped
        let target = unsafe out.baseAddress.unsafelyUnwrapped
        let start = (head + offset) & (capacity - 1)
        let first = min(length, capacity - start)
        let sum = unsafe Checksum.copy(memory + start, to: target, first)
        guard first < length else { return sum }
        let rest = unsafe Checksum.copy(memory, to: target + first, length - first)
        return sum &+ (first & 1 == 0 ? rest : Checksum.swapped(rest))
    }

    /// The counted bytes up to where the ring wraps. Valid until the next change.
    var front: UnsafeRawBufferPointer {
        guard let base = unsafe base else { return unsafe UnsafeRawBufferPointer(start: nil, count: 0) }
        return unsafe UnsafeRawBufferPointer(start: base + head, count: min(count, capacity - head))
    }

    /// Up to `limit` bytes of room behind the counted ones, up to where the ring wraps. For rings without gaps.
    var room: UnsafeMutableRawBufferPointer {
        guard let base = unsafe base else {
            return unsafe UnsafeMutableRawBufferPointer(start: nil, count: 0)
        }
        let start = (head + count) & (capacity - 1)
        return unsafe UnsafeMutableRawBufferPointer(
            start: base + start, count: min(capacity - count, capacity - start))
    }

    /// Drops `length` bytes from the front.
    mutating func consume(_ length: Int) {
        precondition(length >= 0 && length <= count, "consuming more than there is")
        count -= length
        head = capacity == 0 ? 0 : (head + length) & (capacity - 1)
    }

    /// Starts again at the beginning of the memory, which stays warm in the cache. For empty rings without gaps.
    mutating func rewind() {
        precondition(count == 0, "ring is not empty")
        head = 0
    }
}

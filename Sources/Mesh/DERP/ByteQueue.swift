// SPDX-License-Identifier: Apache-2.0

/// Contiguous bytes that are appended at the end and consumed from the front. Grows by doubling up to what its owner
/// asks for; the owner keeps the limit. Moves bytes only when the free end is too short.
@safe package struct ByteQueue: ~Copyable, Sendable {
    // Owned by this value alone, freed in deinit.
    private nonisolated(unsafe) var memory: UnsafeMutableRawBufferPointer
    private var head = 0
    private var tail = 0

    /// An empty queue; memory is taken with the first byte.
    package init() { unsafe memory = UnsafeMutableRawBufferPointer(start: nil, count: 0) }

    deinit { unsafe memory.deallocate() }

    /// Bytes that wait.
    package var count: Int { tail - head }
    package var isEmpty: Bool { tail == head }
    /// Memory held, bytes.
    package var capacity: Int { unsafe memory.count }
    /// Position of the first waiting byte; positions stay valid until the next `reserve` or `append`.
    package var start: Int { head }

    /// Makes room for `needed` more bytes at the end.
    package mutating func reserve(_ needed: Int) {
        guard capacity - tail < needed else { return }
        // Moving at most as much as was consumed keeps the cost per byte constant.
        if head >= count, capacity - count >= needed {
            if head > 0, count > 0 {
                unsafe memory.baseAddress!.copyMemory(from: memory.baseAddress! + head, byteCount: count)
            }
            tail -= head
            head = 0
            return
        }
        var size = max(capacity * 2, 512)
        while size - count < needed { size *= 2 }
        let larger = UnsafeMutableRawBufferPointer.allocate(byteCount: size, alignment: 16)
        if count > 0 {
            unsafe larger.baseAddress!.copyMemory(from: memory.baseAddress! + head, byteCount: count)
        }
        unsafe memory.deallocate()
        unsafe memory = larger
        tail -= head
        head = 0
    }

    /// Gives memory back when nothing waits.
    package mutating func releaseIfEmpty() {
        guard isEmpty, capacity > 0 else { return }
        unsafe memory.deallocate()
        unsafe memory = UnsafeMutableRawBufferPointer(start: nil, count: 0)
        head = 0
        tail = 0
    }

    /// Calls `body` with at least `minimum` free bytes; it returns how many it filled.
    package mutating func fill<E: Error>(
        atLeast minimum: Int, _ body: (UnsafeMutableRawBufferPointer) throws(E) -> Int
    ) throws(E) {
        reserve(minimum)
        let free = unsafe UnsafeMutableRawBufferPointer(rebasing: memory[tail...])
        let filled = unsafe try body(free)
        precondition(filled >= 0 && filled <= free.count, "filled more than there was room")
        tail += filled
    }

    /// Appends a copy.
    package mutating func append(_ bytes: RawSpan) {
        guard bytes.byteCount > 0 else { return }
        unsafe fill(atLeast: bytes.byteCount) { free in
            unsafe bytes.withUnsafeBytes { source in
                unsafe free.baseAddress!.copyMemory(from: source.baseAddress!, byteCount: source.count)
            }
            return bytes.byteCount
        }
    }

    /// The waiting bytes.
    package func withBytes<R>(_ body: (RawSpan) throws -> R) rethrows -> R {
        try unsafe body(UnsafeRawBufferPointer(rebasing: memory[head..<tail]).bytes)
    }

    /// The waiting bytes, writable.
    package mutating func withMutableBytes<R>(
        _ body: (UnsafeMutableRawBufferPointer) throws -> R
    ) rethrows -> R {
        try unsafe body(UnsafeMutableRawBufferPointer(rebasing: memory[head..<tail]))
    }

    /// Bytes at positions counted as `start` is; also such as were consumed since the last `reserve`.
    package mutating func withMutableBytes<R>(
        at range: Range<Int>, _ body: (UnsafeMutableRawBufferPointer) throws -> R
    ) rethrows -> R {
        try unsafe body(UnsafeMutableRawBufferPointer(rebasing: memory[range]))
    }

    /// Drops `number` bytes from the front.
    package mutating func consume(_ number: Int) {
        precondition(number >= 0 && number <= count, "consumed more than there is")
        head += number
    }
}

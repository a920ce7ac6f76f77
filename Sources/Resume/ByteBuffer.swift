// SPDX-License-Identifier: Apache-2.0

/// Contiguous bytes, appended at the tail and taken off the head. Does not limit its size: its owner does, before it
/// appends.
@safe struct ByteBuffer: ~Copyable {
    private var base: UnsafeMutableRawPointer
    private var capacity: Int
    private var head = 0
    private var tail = 0

    /// 4 KiB: what an idle stream keeps.
    private static let restingCapacity = 4 * 1024

    init() {
        capacity = Self.restingCapacity
        unsafe base = UnsafeMutableRawPointer.allocate(byteCount: capacity, alignment: 16)
    }

    deinit { unsafe base.deallocate() }

    var count: Int { tail - head }
    var isEmpty: Bool { tail == head }

    /// `size` bytes, `offset` after the head. Valid until the buffer changes.
    @unsafe func bytes(_ offset: Int, _ size: Int) -> UnsafeRawBufferPointer {
        precondition(offset >= 0 && size >= 0 && offset + size <= count)
        return unsafe UnsafeRawBufferPointer(start: base + head + offset, count: size)
    }

    /// Free space of exactly `size` bytes at the tail. Fill it, then call `commit`.
    @unsafe mutating func space(_ size: Int) -> UnsafeMutableRawBufferPointer {
        reserve(size)
        return unsafe UnsafeMutableRawBufferPointer(start: base + tail, count: size)
    }

    mutating func commit(_ size: Int) {
        precondition(size >= 0 && size <= capacity - tail)
        tail += size
    }

    mutating func append(_ bytes: UnsafeRawBufferPointer) {
        guard let source = bytes.baseAddress else { return }
        unsafe space(bytes.count).baseAddress?.copyMemory(from: source, byteCount: bytes.count)
        commit(bytes.count)
    }

    /// Appends the lower `size` bytes of a number, big-endian.
    mutating func append(_ value: UInt64, _ size: Int) {
        let space = unsafe space(size)
        for index in 0..<size {
            unsafe space[index] = UInt8(truncatingIfNeeded: value >> UInt64((size - 1 - index) * 8))
        }
        commit(size)
    }

    mutating func consume(_ size: Int) {
        precondition(size >= 0 && size <= count)
        head += size
        guard head == tail else { return }
        head = 0
        tail = 0
    }

    /// Gives the memory of a burst back, if nothing is inside.
    mutating func trim() {
        guard isEmpty, capacity > Self.restingCapacity else { return }
        unsafe base.deallocate()
        capacity = Self.restingCapacity
        unsafe base = UnsafeMutableRawPointer.allocate(byteCount: capacity, alignment: 16)
    }

    private mutating func reserve(_ size: Int) {
        guard capacity - tail < size else { return }
        let count = self.count
        if count + size <= capacity, count <= capacity / 2 {
            unsafe base.copyMemory(from: base + head, byteCount: count)
        } else {
            let larger = max(capacity * 2, count + size)
            let grown = UnsafeMutableRawPointer.allocate(byteCount: larger, alignment: 16)
            unsafe grown.copyMemory(from: base + head, byteCount: count)
            unsafe base.deallocate()
            unsafe base = grown
            capacity = larger
        }
        head = 0
        tail = count
    }
}

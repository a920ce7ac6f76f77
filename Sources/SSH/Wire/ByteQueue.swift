// SPDX-License-Identifier: Apache-2.0

/// Contiguous bytes that are appended at the tail and consumed at the head. All traffic of a connection lives
/// in two of these: packets are opened and sealed inside, without storage of their own.
///
/// The queue itself does not limit its size: its owners do, before they append.
@safe package struct ByteQueue: ~Copyable {
    private var base: UnsafeMutableRawPointer
    private var capacity: Int
    /// Offset of the first byte; moves when space is reserved.
    package private(set) var head = 0
    /// Offset after the last byte.
    package private(set) var tail = 0

    /// Storage that an idle queue keeps, and that a busy one does: giving back in a stream would cost it
    /// dearly.
    private static let restingCapacity = 16 * 1024, burstCapacity = 4 * 1024 * 1024

    package init(capacity: Int = 4096) {
        self.capacity = max(capacity, 64)
        unsafe base = UnsafeMutableRawPointer.allocate(byteCount: self.capacity, alignment: 64)
    }

    deinit { unsafe base.deallocate() }

    package var count: Int { tail - head }
    package var isEmpty: Bool { tail == head }

    /// The bytes in the queue. Valid until the queue changes.
    @unsafe package var bytes: UnsafeRawBufferPointer {
        unsafe UnsafeRawBufferPointer(start: base + head, count: count)
    }

    /// Address of the byte `offset` after the head. Valid until space is reserved or bytes are consumed.
    @unsafe package func address(_ offset: Int) -> UnsafeMutableRawPointer {
        assert(offset >= 0 && head + offset <= capacity)
        return unsafe base + head + offset
    }

    /// Makes room for `size` more bytes at the tail.
    package mutating func reserve(_ size: Int) {
        guard capacity - tail < size else { return }
        let count = self.count
        // Moving is cheap while at least half of the storage is free; else grow, so that appends stay linear.
        if count + size <= capacity, count <= capacity / 2 {
            unsafe base.copyMemory(from: base + head, byteCount: count)
        } else {
            let larger = max(capacity * 2, count + size)
            let grown = UnsafeMutableRawPointer.allocate(byteCount: larger, alignment: 64)
            unsafe grown.copyMemory(from: base + head, byteCount: count)
            unsafe base.deallocate()
            unsafe base = grown
            capacity = larger
        }
        head = 0
        tail = count
    }

    /// Free space at the tail, at least `size` bytes. Fill it, then call `commit`.
    @unsafe package mutating func space(_ size: Int) -> UnsafeMutableRawBufferPointer {
        reserve(size)
        return unsafe UnsafeMutableRawBufferPointer(start: base + tail, count: capacity - tail)
    }

    /// Appends the first `size` bytes of the free space.
    package mutating func commit(_ size: Int) {
        precondition(size >= 0 && size <= capacity - tail)
        tail += size
    }

    /// Removes `size` bytes at the head.
    package mutating func consume(_ size: Int) {
        precondition(size >= 0 && size <= count)
        head += size
        guard head == tail else { return }
        head = 0
        tail = 0
        if capacity > Self.burstCapacity { trim() }
    }

    /// Forgets everything after the first `size` bytes.
    package mutating func truncate(to size: Int) {
        precondition(size >= 0 && size <= count)
        tail = head + size
    }

    /// Gives the storage of a burst back, if the queue is empty.
    package mutating func trim() {
        guard isEmpty, capacity > Self.restingCapacity else { return }
        unsafe base.deallocate()
        capacity = Self.restingCapacity
        unsafe base = UnsafeMutableRawPointer.allocate(byteCount: capacity, alignment: 64)
    }
}

// Appending of the data types of RFC 4251 §5.
extension ByteQueue {
    package mutating func append(_ value: UInt8) {
        reserve(1)
        unsafe base.storeBytes(of: value, toByteOffset: tail, as: UInt8.self)
        tail += 1
    }

    package mutating func append(_ value: UInt32) {
        reserve(4)
        unsafe base.storeBytes(of: value.bigEndian, toByteOffset: tail, as: UInt32.self)
        tail += 4
    }

    package mutating func append(_ value: UInt64) {
        reserve(8)
        unsafe base.storeBytes(of: value.bigEndian, toByteOffset: tail, as: UInt64.self)
        tail += 8
    }

    package mutating func append(_ value: Bool) { append(UInt8(value ? 1 : 0)) }

    @unsafe package mutating func append(_ bytes: UnsafeRawBufferPointer) {
        reserve(bytes.count)
        if let source = bytes.baseAddress {
            unsafe (base + tail).copyMemory(from: source, byteCount: bytes.count)
        }
        tail += bytes.count
    }

    package mutating func append(_ bytes: [UInt8]) {
        unsafe bytes.withUnsafeBytes { unsafe append($0) }
    }

    /// A `string`: length and bytes.
    package mutating func appendString(_ bytes: [UInt8]) {
        append(UInt32(clamping: bytes.count))
        append(bytes)
    }

    /// A `string`: length and the text's UTF-8.
    package mutating func appendString(_ text: String) {
        appendString(Array(text.utf8))
    }

    package mutating func appendString(_ text: ByteString) { appendString(text.bytes) }

    /// Overwrites four bytes, `offset` after the head.
    package mutating func overwrite(_ value: UInt32, at offset: Int) {
        precondition(offset >= 0 && offset + 4 <= count)
        unsafe base.storeBytes(of: value.bigEndian, toByteOffset: head + offset, as: UInt32.self)
    }

    /// Overwrites one byte, `offset` after the head.
    package mutating func overwrite(_ value: UInt8, at offset: Int) {
        precondition(offset >= 0 && offset < count)
        unsafe base.storeBytes(of: value, toByteOffset: head + offset, as: UInt8.self)
    }

    /// A copy of the bytes.
    package func copy() -> [UInt8] { unsafe Array(bytes) }
}

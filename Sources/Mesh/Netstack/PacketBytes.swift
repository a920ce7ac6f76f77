// SPDX-License-Identifier: Apache-2.0

/// Packet bytes to read: a pointer with a length, borrowed for the length of one call and never stored. Every
/// access is checked, so that a forgotten length check ends in a trap and never in foreign memory.
@safe struct PacketBytes {
    private let base: UnsafeRawPointer
    /// Number of bytes.
    let count: Int

    /// The bytes of `buffer`, which must not be empty.
    init?(_ buffer: UnsafeRawBufferPointer) {
        guard let base = buffer.baseAddress, unsafe !buffer.isEmpty else { return nil }
        unsafe self.base = base
        count = buffer.count
    }

    private init(base: UnsafeRawPointer, count: Int) {
        unsafe self.base = base
        self.count = count
    }

    @inline(__always) func u8(_ at: Int) -> UInt8 {
        precondition(at >= 0 && at &+ 1 <= count, "read outside of packet")
        return unsafe base.load(fromByteOffset: at, as: UInt8.self)
    }

    @inline(__always) func u16(_ at: Int) -> UInt16 {
        precondition(at >= 0 && at &+ 2 <= count, "read outside of packet")
        return unsafe UInt16(bigEndian: base.loadUnaligned(fromByteOffset: at, as: UInt16.self))
    }

    @inline(__always) func u32(_ at: Int) -> UInt32 {
        precondition(at >= 0 && at &+ 4 <= count, "read outside of packet")
        return unsafe UInt32(bigEndian: base.loadUnaligned(fromByteOffset: at, as: UInt32.self))
    }

    @inline(__always) func u64(_ at: Int) -> UInt64 {
        precondition(at >= 0 && at &+ 8 <= count, "read outside of packet")
        return unsafe UInt64(bigEndian: base.loadUnaligned(fromByteOffset: at, as: UInt64.self))
    }

    var isEmpty: Bool { count == 0 }

    /// `length` bytes from `start`.
    @inline(__always) func slice(_ start: Int, _ length: Int) -> PacketBytes {
        precondition(start >= 0 && length >= 0 && start &+ length <= count, "slice outside of packet")
        return unsafe PacketBytes(base: base + start, count: length)
    }

    /// Everything from `start`.
    @inline(__always) func dropFirst(_ start: Int) -> PacketBytes { slice(start, count - start) }

    /// The memory, for copies.
    @inline(__always) var buffer: UnsafeRawBufferPointer {
        unsafe UnsafeRawBufferPointer(start: base, count: count)
    }
}

/// Memory to write a packet into, borrowed for the length of one call. Every access is checked.
@safe struct PacketWriter {
    private let base: UnsafeMutableRawPointer
    /// Number of bytes that fit.
    let capacity: Int

    /// Writes to `buffer`, which must not be empty.
    init?(_ buffer: UnsafeMutableRawBufferPointer) {
        guard let base = buffer.baseAddress, unsafe !buffer.isEmpty else { return nil }
        unsafe self.base = base
        capacity = buffer.count
    }

    @inline(__always) func put8(_ value: UInt8, _ at: Int) {
        precondition(at >= 0 && at &+ 1 <= capacity, "write outside of packet")
        unsafe base.storeBytes(of: value, toByteOffset: at, as: UInt8.self)
    }

    @inline(__always) func put16(_ value: UInt16, _ at: Int) {
        precondition(at >= 0 && at &+ 2 <= capacity, "write outside of packet")
        unsafe base.storeBytes(of: value.bigEndian, toByteOffset: at, as: UInt16.self)
    }

    @inline(__always) func put32(_ value: UInt32, _ at: Int) {
        precondition(at >= 0 && at &+ 4 <= capacity, "write outside of packet")
        unsafe base.storeBytes(of: value.bigEndian, toByteOffset: at, as: UInt32.self)
    }

    @inline(__always) func put64(_ value: UInt64, _ at: Int) {
        precondition(at >= 0 && at &+ 8 <= capacity, "write outside of packet")
        unsafe base.storeBytes(of: value.bigEndian, toByteOffset: at, as: UInt64.self)
    }

    /// Stores a checksum, which is already in memory order.
    @inline(__always) func putChecksum(_ value: UInt16, _ at: Int) {
        precondition(at >= 0 && at &+ 2 <= capacity, "write outside of packet")
        unsafe base.storeBytes(of: value, toByteOffset: at, as: UInt16.self)
    }

    @inline(__always) func put(_ bytes: PacketBytes, _ at: Int) {
        precondition(at >= 0 && at &+ bytes.count <= capacity, "write outside of packet")
        unsafe (base + at).copyMemory(
            from: bytes.buffer.baseAddress.unsafelyUnwrapped, byteCount: bytes.count)
    }

    /// `length` bytes from `start`, to be filled by someone else.
    @inline(__always) func region(_ start: Int, _ length: Int) -> UnsafeMutableRawBufferPointer {
        precondition(start >= 0 && length >= 0 && start &+ length <= capacity, "write outside of packet")
        return unsafe UnsafeMutableRawBufferPointer(start: base + start, count: length)
    }

    /// What was written, for checksums.
    @inline(__always) func bytes(_ start: Int, _ length: Int) -> PacketBytes? {
        unsafe PacketBytes(UnsafeRawBufferPointer(region(start, length)))
    }
}

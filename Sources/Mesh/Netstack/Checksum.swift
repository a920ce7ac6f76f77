// SPDX-License-Identifier: Apache-2.0

/// The Internet checksum (RFC 1071), computed over 64-bit words in memory order. The ones' complement sum does not
/// care about byte order as long as the result is stored the way the words were loaded.
enum Checksum {
    /// Adds `bytes` to a running sum. The bytes must start at an even offset of what is summed.
    static func sum(_ bytes: PacketBytes, _ initial: UInt64 = 0) -> UInt64 {
        let buffer = unsafe bytes.buffer
        let base = unsafe buffer.baseAddress.unsafelyUnwrapped
        var lanes = SIMD4<UInt64>.zero
        var offset = 0
        while offset &+ 32 <= buffer.count {
            let words = unsafe base.loadUnaligned(fromByteOffset: offset, as: SIMD4<UInt64>.self)
            // Two 32-bit halves into 64 bits: no carry can be lost below 2^31 words.
            lanes = lanes &+ (words & lowHalf) &+ (words &>> halfShift)
            offset &+= 32
        }
        return unsafe initial &+ lanes.wrappedSum() &+ tail(base, offset, buffer.count)
    }

    /// Copies `count` bytes and returns their sum: one pass over the memory instead of two.
    static func copy(
        _ source: UnsafeRawPointer, to target: UnsafeMutableRawPointer, _ count: Int
    ) -> UInt64 {
        var lanes = SIMD4<UInt64>.zero
        var offset = 0
        while offset &+ 32 <= count {
            let words = unsafe source.loadUnaligned(fromByteOffset: offset, as: SIMD4<UInt64>.self)
            unsafe target.storeBytes(of: words, toByteOffset: offset, as: SIMD4<UInt64>.self)
            lanes = lanes &+ (words & lowHalf) &+ (words &>> halfShift)
            offset &+= 32
        }
        unsafe (target + offset).copyMemory(from: source + offset, byteCount: count &- offset)
        return unsafe lanes.wrappedSum() &+ tail(source, offset, count)
    }

    /// A sum of bytes that stand at an odd offset of what is summed: the same with its bytes swapped (RFC 1071 §2 B).
    static func swapped(_ sum: UInt64) -> UInt64 { UInt64(fold(sum).byteSwapped) }

    // Computed, so that the compiler sees constants: a shift by a variable vector is scalar code on x86-64's baseline.
    @inline(__always) private static var lowHalf: SIMD4<UInt64> { SIMD4(repeating: 0xffff_ffff) }
    @inline(__always) private static var halfShift: SIMD4<UInt64> { SIMD4(repeating: 32) }

    /// What is left behind the whole blocks: fewer than 32 bytes.
    @inline(__always)
    private static func tail(_ base: UnsafeRawPointer, _ start: Int, _ end: Int) -> UInt64 {
        var total: UInt64 = 0
        var offset = start
        while offset &+ 4 <= end {
            total &+= unsafe UInt64(base.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
            offset &+= 4
        }
        var shift: UInt64 = 0
        while offset < end {
            total &+= unsafe UInt64(base.load(fromByteOffset: offset, as: UInt8.self)) &<< shift
            shift &+= 8
            offset &+= 1
        }
        return total
    }

    /// Sum of what a TCP, UDP or ICMPv6 checksum covers besides its own bytes, without the length.
    static func pseudoHeader(_ source: IPAddress, _ destination: IPAddress, _ kind: UInt8) -> UInt64 {
        var total = UInt64(UInt32(kind).bigEndian)
        if source.isV4 {
            total &+= UInt64(source.v4.bigEndian) &+ UInt64(destination.v4.bigEndian)
        } else {
            for word in [source.high, source.low, destination.high, destination.low] {
                total &+= (word.bigEndian & 0xffff_ffff) &+ (word.bigEndian >> 32)
            }
        }
        return total
    }

    /// The part of the pseudo header that differs from segment to segment.
    @inline(__always) static func length(_ count: Int) -> UInt64 {
        UInt64(UInt32(truncatingIfNeeded: count).bigEndian)
    }

    /// The checksum field, in memory order, for a sum over everything with the field zero.
    @inline(__always) static func finish(_ sum: UInt64) -> UInt16 { ~fold(sum) }

    /// Whether a sum over everything, field included, is right.
    @inline(__always) static func isValid(_ sum: UInt64) -> Bool { fold(sum) == 0xffff }

    @inline(__always) private static func fold(_ sum: UInt64) -> UInt16 {
        var total = (sum & 0xffff_ffff) &+ (sum &>> 32)
        total = (total & 0xffff_ffff) &+ (total &>> 32)
        total = (total & 0xffff) &+ (total &>> 16)
        total = (total & 0xffff) &+ (total &>> 16)
        return UInt16(truncatingIfNeeded: total)
    }
}

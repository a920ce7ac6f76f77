// SPDX-License-Identifier: Apache-2.0

/// The Internet checksum (RFC 1071), computed over 64-bit words in memory order. The ones' complement sum does not
/// care about byte order as long as the result is stored the way the words were loaded.
enum Checksum {
    /// Adds `bytes` to a running sum. The bytes must start at an even offset of what is summed.
    static func sum(_ bytes: PacketBytes, _ initial: UInt64 = 0) -> UInt64 {
        let buffer = unsafe bytes.buffer
        let base = unsafe buffer.baseAddress.unsafelyUnwrapped
        let words = buffer.count >> 3
        var total = initial
        for index in 0..<words {
            let word = unsafe base.loadUnaligned(fromByteOffset: index &<< 3, as: UInt64.self)
            // Two 32-bit halves into 64 bits: no carry can be lost below 2^31 words.
            total &+= (word & 0xffff_ffff) &+ (word &>> 32)
        }
        var offset = words &<< 3
        var tail: UInt64 = 0
        var shift: UInt64 = 0
        while offset < bytes.count {
            let byte = unsafe base.load(fromByteOffset: offset, as: UInt8.self)
            tail |= UInt64(byte) &<< shift
            shift &+= 8
            offset &+= 1
        }
        return total &+ (tail & 0xffff_ffff) &+ (tail &>> 32)
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

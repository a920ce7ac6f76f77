// SPDX-License-Identifier: Apache-2.0

internal import CSodium

/// 32 secret, unpredictable bytes, from which a connection derives all of its randomness. A shell takes them
/// from the system; a test from its seed.
public struct EntropySeed: Sendable {
    let bytes: [UInt8]

    /// Draws 32 bytes. Use `SystemRandomNumberGenerator` outside of tests.
    public init(using generator: inout some RandomNumberGenerator) {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(32)
        for _ in 0..<4 {
            let word = generator.next()
            for shift in stride(from: 0, to: 64, by: 8) {
                bytes.append(UInt8(truncatingIfNeeded: word >> shift))
            }
        }
        self.bytes = bytes
    }
}

/// A deterministic generator with fast key erasure: each draw replaces the key, so earlier output cannot be
/// recomputed from memory.
struct EntropyPool: ~Copyable {
    private var key: [UInt8]
    /// State of the cheap generator for padding, whose value protects nothing under an AEAD.
    private var padding: UInt64

    init(seed: EntropySeed) {
        key = seed.bytes
        padding = 0x9e37_79b9_7f4a_7c15
        padding ^= draw(8).reduce(0) { $0 << 8 | UInt64($1) } | 1
    }

    deinit {
        // The array is held by nothing else, so that writing into it is safe although `self` is immutable
        // here.
        unsafe key.withUnsafeBytes {
            unsafe sodium_memzero(UnsafeMutableRawPointer(mutating: $0.baseAddress), $0.count)
        }
    }

    /// `count` fresh bytes, at most 4 KiB.
    mutating func draw(_ count: Int) -> [UInt8] {
        precondition(count <= 4096)
        var output = [UInt8](repeating: 0, count: 32 + count)
        unsafe randombytes_buf_deterministic(&output, output.count, key)
        key = Array(output[..<32])
        return Array(output[32...])
    }

    /// Eight bytes of padding (xorshift64).
    mutating func drawPadding() -> UInt64 {
        padding ^= padding << 13
        padding ^= padding >> 7
        padding ^= padding << 17
        return padding
    }
}

extension [UInt8] {
    /// Overwrites secret bytes in a way that the optimiser keeps.
    mutating func wipe() {
        unsafe withUnsafeMutableBytes { unsafe sodium_memzero($0.baseAddress, $0.count) }
    }
}

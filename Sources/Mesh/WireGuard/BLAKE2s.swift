// SPDX-License-Identifier: Apache-2.0

/// BLAKE2s (RFC 7693), plain and keyed, and what WireGuard builds of it: HMAC-BLAKE2s-256 and the key
/// derivation of whitepaper §5.4. Only handshakes use it, so it is plain scalar code.
@safe
package struct BLAKE2s {
    private var state: InlineArray<8, UInt32>
    private var block = InlineArray<16, UInt32>(repeating: 0)
    /// Bytes waiting in `block`, 0...64. A full block waits until more input shows that it is not the last.
    private var blockCount = 0
    /// Bytes compressed so far.
    private var total: UInt64 = 0
    private let outputLength: Int

    /// RFC 7693 §2.6.
    private static let initial: InlineArray<8, UInt32> = [
        0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab,
        0x5be0_cd19,
    ]

    /// Starts a hash of 1...32 bytes without a key.
    package init(outputLength: Int = 32) {
        precondition(1...32 ~= outputLength, "BLAKE2s gives 1 to 32 bytes")
        self.outputLength = outputLength
        state = Self.initial
        state[0] ^= 0x0101_0000 ^ UInt32(outputLength)
    }

    /// Starts a keyed hash; the key has 1...32 bytes. RFC 7693 §2.9.
    package init(outputLength: Int, key: UnsafeRawBufferPointer) {
        precondition(1...32 ~= key.count, "a BLAKE2s key has 1 to 32 bytes")
        self.init(outputLength: outputLength)
        state[0] ^= UInt32(key.count) << 8
        unsafe withBlock { unsafe $0.copyMemory(from: key) }
        blockCount = 64
    }

    /// Adds input.
    package mutating func update(_ input: UnsafeRawBufferPointer) {
        var offset = 0
        while offset < input.count {
            if blockCount == 64 {
                total += 64
                compress(isLast: false)
                blockCount = 0
            }
            let count = min(64 - blockCount, input.count - offset)
            let start = blockCount
            unsafe withBlock {
                unsafe $0.baseAddress!.advanced(by: start)
                    .copyMemory(from: input.baseAddress!.advanced(by: offset), byteCount: count)
            }
            blockCount += count
            offset += count
        }
    }

    /// Adds thirty-two bytes.
    mutating func update(_ input: WireGuard.Bytes32) {
        unsafe input.withBytes { unsafe update($0) }
    }

    /// Ends the hash and writes it to the first bytes of `output`, which has room for them.
    package mutating func finish(into output: UnsafeMutableRawBufferPointer) {
        precondition(output.count >= outputLength, "room for the hash")
        let start = blockCount
        unsafe withBlock {
            for index in start..<64 { unsafe $0[index] = 0 }
        }
        total += UInt64(blockCount)
        compress(isLast: true)
        for index in 0..<outputLength {
            unsafe output[index] = UInt8(truncatingIfNeeded: state[index / 4] >> UInt32(index % 4 * 8))
        }
    }

    /// Ends a hash of 32 bytes.
    mutating func finish() -> WireGuard.Bytes32 {
        var result = WireGuard.Bytes32()
        unsafe result.withMutableBytes { unsafe finish(into: $0) }
        return result
    }

    /// The waiting block as bytes, in the order of the message.
    @inline(__always)
    private mutating func withBlock(_ body: (UnsafeMutableRawBufferPointer) -> Void) {
        unsafe withUnsafeMutableBytes(of: &block) { unsafe body($0) }
    }

    /// RFC 7693 §3.2. One block into the state.
    private mutating func compress(isLast: Bool) {
        var work = Work(state: state, initial: Self.initial)
        work.v12 ^= UInt32(truncatingIfNeeded: total)
        work.v13 ^= UInt32(truncatingIfNeeded: total >> 32)
        if isLast { work.v14 = ~work.v14 }
        var message = block
        if 1.littleEndian != 1 { for index in 0..<16 { message[index] = message[index].byteSwapped } }
        work.round(message, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
        work.round(message, 14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3)
        work.round(message, 11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4)
        work.round(message, 7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8)
        work.round(message, 9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13)
        work.round(message, 2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9)
        work.round(message, 12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11)
        work.round(message, 13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10)
        work.round(message, 6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5)
        work.round(message, 10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0)
        work.fold(into: &state)
    }

    /// The sixteen working words.
    private struct Work {
        var v0, v1, v2, v3, v4, v5, v6, v7, v8, v9, v10, v11, v12, v13, v14, v15: UInt32

        @inline(__always)
        init(state h: InlineArray<8, UInt32>, initial iv: InlineArray<8, UInt32>) {
            (v0, v1, v2, v3) = (h[0], h[1], h[2], h[3])
            (v4, v5, v6, v7) = (h[4], h[5], h[6], h[7])
            (v8, v9, v10, v11) = (iv[0], iv[1], iv[2], iv[3])
            (v12, v13, v14, v15) = (iv[4], iv[5], iv[6], iv[7])
        }

        /// RFC 7693 §3.1, wrapping additions by definition.
        @inline(__always)
        private static func mix(
            _ a: inout UInt32, _ b: inout UInt32, _ c: inout UInt32, _ d: inout UInt32, _ x: UInt32,
            _ y: UInt32
        ) {
            a = a &+ b &+ x
            d ^= a
            d = d &>> 16 | d &<< 16
            c = c &+ d
            b ^= c
            b = b &>> 12 | b &<< 20
            a = a &+ b &+ y
            d ^= a
            d = d &>> 8 | d &<< 24
            c = c &+ d
            b ^= c
            b = b &>> 7 | b &<< 25
        }

        @inline(__always)
        mutating func round(
            _ m: InlineArray<16, UInt32>, _ s0: Int, _ s1: Int, _ s2: Int, _ s3: Int, _ s4: Int, _ s5: Int,
            _ s6: Int, _ s7: Int, _ s8: Int, _ s9: Int, _ s10: Int, _ s11: Int, _ s12: Int, _ s13: Int,
            _ s14: Int, _ s15: Int
        ) {
            Self.mix(&v0, &v4, &v8, &v12, m[s0], m[s1])
            Self.mix(&v1, &v5, &v9, &v13, m[s2], m[s3])
            Self.mix(&v2, &v6, &v10, &v14, m[s4], m[s5])
            Self.mix(&v3, &v7, &v11, &v15, m[s6], m[s7])
            Self.mix(&v0, &v5, &v10, &v15, m[s8], m[s9])
            Self.mix(&v1, &v6, &v11, &v12, m[s10], m[s11])
            Self.mix(&v2, &v7, &v8, &v13, m[s12], m[s13])
            Self.mix(&v3, &v4, &v9, &v14, m[s14], m[s15])
        }

        @inline(__always)
        func fold(into h: inout InlineArray<8, UInt32>) {
            h[0] ^= v0 ^ v8
            h[1] ^= v1 ^ v9
            h[2] ^= v2 ^ v10
            h[3] ^= v3 ^ v11
            h[4] ^= v4 ^ v12
            h[5] ^= v5 ^ v13
            h[6] ^= v6 ^ v14
            h[7] ^= v7 ^ v15
        }
    }
}

extension BLAKE2s {
    /// Hash of two inputs in a row.
    static func hash(_ first: WireGuard.Bytes32, _ second: UnsafeRawBufferPointer) -> WireGuard.Bytes32 {
        var hash = BLAKE2s()
        hash.update(first)
        unsafe hash.update(second)
        return hash.finish()
    }

    /// Hash of a text and a key: how the keys of MAC1 and of cookies are made. Whitepaper §5.4.4, §5.4.7.
    static func hash(label: StaticString, _ key: WireGuard.Bytes32) -> WireGuard.Bytes32 {
        var hash = BLAKE2s()
        unsafe hash.update(UnsafeRawBufferPointer(start: label.utf8Start, count: label.utf8CodeUnitCount))
        hash.update(key)
        return hash.finish()
    }

    /// Keyed hash of 16 bytes. Whitepaper §5.4: MAC.
    package static func mac(key: UnsafeRawBufferPointer, _ input: UnsafeRawBufferPointer) -> WireGuard.Bytes16
    {
        var hash = unsafe BLAKE2s(outputLength: 16, key: key)
        unsafe hash.update(input)
        var result = WireGuard.Bytes16()
        unsafe result.withMutableBytes { unsafe hash.finish(into: $0) }
        return result
    }

    /// HMAC (RFC 2104) with block length 64 over `input` and then, if given, one last byte.
    static func hmac(
        key: WireGuard.Bytes32, _ input: UnsafeRawBufferPointer, lastByte: UInt8? = nil
    ) -> WireGuard.Bytes32 {
        var inner = BLAKE2s()
        inner.updatePad(key, 0x36)
        unsafe inner.update(input)
        if let lastByte { unsafe withUnsafeBytes(of: lastByte) { unsafe inner.update($0) } }
        var outer = BLAKE2s()
        outer.updatePad(key, 0x5c)
        outer.update(inner.finish())
        return outer.finish()
    }

    private mutating func updatePad(_ key: WireGuard.Bytes32, _ pad: UInt8) {
        let repeated = UInt64(pad) &* 0x0101_0101_0101_0101
        var padded = key
        padded.words.0 ^= repeated
        padded.words.1 ^= repeated
        padded.words.2 ^= repeated
        padded.words.3 ^= repeated
        update(padded)
        padded.words = (repeated, repeated, repeated, repeated)
        update(padded)
    }

    /// Derives up to three keys. Whitepaper §5.4: KDFₙ.
    struct Derived {
        private let root: WireGuard.Bytes32
        /// T1.
        let first: WireGuard.Bytes32

        init(chainKey: WireGuard.Bytes32, _ input: UnsafeRawBufferPointer) {
            root = unsafe BLAKE2s.hmac(key: chainKey, input)
            first = unsafe BLAKE2s.hmac(key: root, UnsafeRawBufferPointer(start: nil, count: 0), lastByte: 1)
        }

        /// T2 from T1, T3 from T2.
        func next(after previous: WireGuard.Bytes32, _ number: UInt8) -> WireGuard.Bytes32 {
            unsafe previous.withBytes { unsafe BLAKE2s.hmac(key: root, $0, lastByte: number) }
        }
    }

    /// All three derived keys, for tests against published vectors. Keys shorter than 32 bytes are filled
    /// with zeros, as HMAC does.
    package static func derive(key: [UInt8], _ input: [UInt8]) -> [[UInt8]] {
        var chainKey = WireGuard.Bytes32()
        unsafe chainKey.withMutableBytes { unsafe $0.copyBytes(from: key.prefix(32)) }
        let derived = unsafe input.withUnsafeBytes { unsafe Derived(chainKey: chainKey, $0) }
        let second = derived.next(after: derived.first, 2)
        return [derived.first.bytes, second.bytes, derived.next(after: second, 3).bytes]
    }
}

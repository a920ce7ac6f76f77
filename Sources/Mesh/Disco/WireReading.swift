// SPDX-License-Identifier: Apache-2.0

/// Big-endian reads of the discovery, STUN and relay codecs. Reading outside of the span traps, so a codec checks
/// lengths first.
extension RawSpan {
    /// The byte at `offset`.
    package func wireByte(_ offset: Int) -> UInt8 {
        unsafe unsafeLoadUnaligned(fromByteOffset: offset, as: UInt8.self)
    }

    /// Two bytes, big endian.
    package func wire16(_ offset: Int) -> UInt16 {
        UInt16(bigEndian: unsafe unsafeLoadUnaligned(fromByteOffset: offset, as: UInt16.self))
    }

    /// Four bytes, big endian.
    package func wire32(_ offset: Int) -> UInt32 {
        UInt32(bigEndian: unsafe unsafeLoadUnaligned(fromByteOffset: offset, as: UInt32.self))
    }

    /// Eight bytes, big endian.
    package func wire64(_ offset: Int) -> UInt64 {
        UInt64(bigEndian: unsafe unsafeLoadUnaligned(fromByteOffset: offset, as: UInt64.self))
    }

    /// Thirty-two bytes as a public key.
    package func wireKey<Key: PublicKeyBytes>(_ offset: Int, as kind: Key.Type = Key.self) -> Key {
        func word(_ index: Int) -> UInt64 {
            UInt64(
                littleEndian: unsafe unsafeLoadUnaligned(fromByteOffset: offset + index * 8, as: UInt64.self))
        }
        return Key(words: (word(0), word(1), word(2), word(3)))
    }

    /// A copy of the bytes in `range`.
    package func wireBytes(_ range: Range<Int>) -> [UInt8] {
        unsafe extracting(range).withUnsafeBytes { unsafe Array($0) }
    }
}

/// Appends fixed-size big-endian fields to memory that the caller proved large enough; more traps.
@safe package struct WireWriter {
    private let memory: UnsafeMutableRawBufferPointer
    /// Bytes written so far.
    package private(set) var count = 0

    package init(_ memory: UnsafeMutableRawBufferPointer) { unsafe self.memory = memory }

    private var room: Int { unsafe memory.count - count }

    private mutating func put<T: BitwiseCopyable>(_ value: T) {
        precondition(MemoryLayout<T>.size <= room, "output buffer too small")
        unsafe memory.storeBytes(of: value, toByteOffset: count, as: T.self)
        count += MemoryLayout<T>.size
    }

    package mutating func byte(_ value: UInt8) { put(value) }
    package mutating func big16(_ value: UInt16) { put(value.bigEndian) }
    package mutating func big32(_ value: UInt32) { put(value.bigEndian) }
    package mutating func big64(_ value: UInt64) { put(value.bigEndian) }

    package mutating func key(_ key: some PublicKeyBytes) {
        put(key.words.0.littleEndian)
        put(key.words.1.littleEndian)
        put(key.words.2.littleEndian)
        put(key.words.3.littleEndian)
    }

    package mutating func bytes(_ bytes: RawSpan) {
        precondition(bytes.byteCount <= room, "output buffer too small")
        unsafe bytes.withUnsafeBytes { source in
            guard let base = source.baseAddress else { return }
            unsafe (memory.baseAddress! + count).copyMemory(from: base, byteCount: source.count)
        }
        count += bytes.byteCount
    }

    package mutating func zeros(_ number: Int) {
        precondition(number >= 0 && number <= room, "output buffer too small")
        for offset in count..<count + number { unsafe memory[offset] = 0 }
        count += number
    }

    /// Leaves `number` bytes as they are, for a later step to fill.
    package mutating func skip(_ number: Int) {
        precondition(number >= 0 && number <= room, "output buffer too small")
        count += number
    }
}

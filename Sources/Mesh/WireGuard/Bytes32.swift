// SPDX-License-Identifier: Apache-2.0

internal import CSodium

extension WireGuard {
    /// Thirty-two bytes of handshake state: a hash, a chain key, a symmetric key, a shared secret, a public
    /// key. Not a key of people's configuration: those have their own types. Comparison takes constant time.
    @frozen
    package struct Bytes32: Equatable, Sendable, BitwiseCopyable {
        var words: (UInt64, UInt64, UInt64, UInt64)

        /// All zeros.
        package init() { words = (0, 0, 0, 0) }

        /// From exactly 32 bytes.
        package init(bytes: some Collection<UInt8>) throws(KeyError) {
            guard bytes.count == 32 else { throw .wrongLength }
            self.init()
            unsafe withMutableBytes { unsafe $0.copyBytes(from: bytes) }
        }

        init(_ key: NodePublicKey) {
            self.init()
            unsafe withMutableBytes { out in unsafe key.withUnsafeBytes { unsafe out.copyMemory(from: $0) } }
        }

        /// Reads 32 bytes of a packet; the caller has checked the bounds.
        init(at pointer: UnsafeRawPointer) {
            self.init()
            unsafe withMutableBytes { unsafe $0.baseAddress!.copyMemory(from: pointer, byteCount: 32) }
        }

        /// The 32 bytes.
        package var bytes: [UInt8] { unsafe withBytes { unsafe Array($0) } }

        /// The same bytes as a node key.
        var nodePublicKey: NodePublicKey {
            NodePublicKey(
                words: (
                    UInt64(littleEndian: words.0), UInt64(littleEndian: words.1),
                    UInt64(littleEndian: words.2),
                    UInt64(littleEndian: words.3)
                ))
        }

        /// Whether all bytes are zero.
        var isZero: Bool { words.0 | words.1 | words.2 | words.3 == 0 }

        @inline(__always)
        func withBytes<R>(_ body: (UnsafeRawBufferPointer) -> R) -> R {
            unsafe withUnsafeBytes(of: words) { unsafe body($0) }
        }

        @inline(__always)
        mutating func withMutableBytes<R>(_ body: (UnsafeMutableRawBufferPointer) -> R) -> R {
            unsafe withUnsafeMutableBytes(of: &words) { unsafe body($0) }
        }

        /// Overwrites the bytes so that the compiler cannot leave it out.
        mutating func wipe() {
            unsafe withMutableBytes { unsafe sodium_memzero($0.baseAddress!, 32) }
        }

        package static func == (a: Self, b: Self) -> Bool {
            (a.words.0 ^ b.words.0) | (a.words.1 ^ b.words.1) | (a.words.2 ^ b.words.2)
                | (a.words.3 ^ b.words.3)
                == 0
        }
    }

    /// Sixteen bytes: a MAC or a cookie. Comparison takes constant time.
    @frozen
    package struct Bytes16: Equatable, Sendable, BitwiseCopyable {
        var words: (UInt64, UInt64)

        /// All zeros.
        package init() { words = (0, 0) }

        /// From exactly 16 bytes.
        package init(bytes: some Collection<UInt8>) throws(KeyError) {
            guard bytes.count == 16 else { throw .wrongLength }
            self.init()
            unsafe withMutableBytes { unsafe $0.copyBytes(from: bytes) }
        }

        /// Reads 16 bytes of a packet; the caller has checked the bounds.
        init(at pointer: UnsafeRawPointer) {
            self.init()
            unsafe withMutableBytes { unsafe $0.baseAddress!.copyMemory(from: pointer, byteCount: 16) }
        }

        /// The 16 bytes.
        package var bytes: [UInt8] { unsafe withBytes { unsafe Array($0) } }

        @inline(__always)
        func withBytes<R>(_ body: (UnsafeRawBufferPointer) -> R) -> R {
            unsafe withUnsafeBytes(of: words) { unsafe body($0) }
        }

        @inline(__always)
        mutating func withMutableBytes<R>(_ body: (UnsafeMutableRawBufferPointer) -> R) -> R {
            unsafe withUnsafeMutableBytes(of: &words) { unsafe body($0) }
        }

        package static func == (a: Self, b: Self) -> Bool {
            (a.words.0 ^ b.words.0) | (a.words.1 ^ b.words.1) == 0
        }
    }

    /// A symmetric key known to one pair of peers beforehand; mixed into the handshake.
    package struct PresharedKey: Sendable {
        let value: Bytes32

        init(value: Bytes32) { self.value = value }

        /// The 32 secret bytes.
        package var bytes: [UInt8] { value.bytes }

        /// Takes exactly 32 bytes.
        package init(bytes: some Collection<UInt8>) throws(KeyError) { value = try Bytes32(bytes: bytes) }
    }
}

extension [UInt8] {
    /// Overwrites the first bytes so that the compiler cannot leave it out.
    mutating func wipe(first count: Int) {
        precondition(count <= self.count, "bytes that exist")
        unsafe withUnsafeMutableBytes { if count > 0 { unsafe sodium_memzero($0.baseAddress!, count) } }
    }

    /// Overwrites all bytes and removes them; the memory stays.
    mutating func wipe() {
        wipe(first: count)
        removeAll(keepingCapacity: true)
    }
}

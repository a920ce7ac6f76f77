// SPDX-License-Identifier: Apache-2.0

internal import CChaPoly
internal import CCryptoBoringSSL
internal import CSodium

extension WireGuard {
    /// ChaCha20-Poly1305 (RFC 8439) on packets, in place, without allocation: load a key, then seal or open
    /// as many packets as there are. Interchangeable back ends. One owner, one thread.
    @safe
    package struct PacketCipher: ~Copyable {
        /// Who computes.
        package enum BackEnd: String, CaseIterable, Sendable {
            /// Our own, for AVX-512 IFMA: half the time of the next one.
            case vector = "avx512"
            /// `EVP_AEAD` of swift-crypto's BoringSSL: assembly that runs both algorithms in one pass.
            case boringSSL = "boringssl"
            /// libsodium: portable.
            case sodium

            /// Those that this machine can run, fastest first.
            package static var allCases: [BackEnd] {
                cchapoly_is_possible() != 0 ? [.vector, .boringSSL, .sodium] : [.boringSSL, .sodium]
            }
        }

        /// The fastest back end that passes its self-test, the portable one in any case; and those that did not
        /// pass. Tested once per process.
        package static let choice: (backEnd: BackEnd, failed: [BackEnd]) = {
            let failed = Array(BackEnd.allCases.prefix { !selfTest($0) })
            return (BackEnd.allCases.dropFirst(failed.count).first ?? .sodium, failed)
        }()
        package static var preferred: BackEnd { choice.backEnd }

        package let backEnd: BackEnd
        private let context: UnsafeMutablePointer<EVP_AEAD_CTX>
        private let key: UnsafeMutableRawPointer

        /// Makes a cipher without a key.
        package init(_ backEnd: BackEnd) {
            precondition(backEnd != .vector || cchapoly_is_possible() != 0, "instructions of this machine")
            self.backEnd = backEnd
            unsafe context = .allocate(capacity: 1)
            unsafe CCryptoBoringSSL_EVP_AEAD_CTX_zero(context)
            unsafe key = .allocate(byteCount: 32, alignment: 16)
            replaceKey(Bytes32())
        }

        deinit {
            unsafe sodium_memzero(context, MemoryLayout<EVP_AEAD_CTX>.size)
            unsafe context.deallocate()
            unsafe sodium_memzero(key, 32)
            unsafe key.deallocate()
        }

        /// Chooses the key of all following packets. Costs next to nothing when it is the same as before.
        @inline(__always)
        package func load(_ newKey: Bytes32) {
            if !isLoaded(newKey) { replaceKey(newKey) }
        }

        /// Lets go of a key that is not needed any more, if it is loaded.
        package func forget(_ oldKey: Bytes32) {
            if isLoaded(oldKey) { replaceKey(Bytes32()) }
        }

        /// Whether packets would be sealed with this key.
        @inline(__always)
        package func isLoaded(_ other: Bytes32) -> Bool { unsafe key.load(as: Bytes32.self) == other }

        private func replaceKey(_ newKey: Bytes32) {
            unsafe key.storeBytes(of: newKey, as: Bytes32.self)
            switch backEnd {
            case .boringSSL:
                let isLoaded = unsafe newKey.withBytes {
                    unsafe CCryptoBoringSSL_EVP_AEAD_CTX_init(
                        context, CCryptoBoringSSL_EVP_aead_chacha20_poly1305(),
                        $0.baseAddress!.assumingMemoryBound(to: UInt8.self), 32, 16, nil)
                }
                precondition(isLoaded == 1, "32-byte key and 16-byte tag are always taken")
            case .vector, .sodium: break
            }
        }

        /// Encrypts `length` bytes in place and writes the tag right behind them.
        @inline(__always)
        package func seal(_ text: UnsafeMutableRawPointer, length: Int, counter: UInt64) {
            unsafe seal(text, into: text, length: length, counter: counter)
        }

        /// Encrypts `length` bytes of `plain` into `text`, which is the same place or does not overlap, and
        /// writes the tag right behind them.
        @inline(__always)
        package func seal(
            _ plain: UnsafeRawPointer, into text: UnsafeMutableRawPointer, length: Int, counter: UInt64
        ) {
            let nonce = Nonce(counter)
            let bytes = unsafe text.assumingMemoryBound(to: UInt8.self)
            let source = unsafe plain.assumingMemoryBound(to: UInt8.self)
            switch backEnd {
            case .vector:
                unsafe cchapoly_seal(
                    key.assumingMemoryBound(to: UInt8.self), counter, source, bytes, length)
            case .boringSSL:
                var tagLength = 0
                let isSealed = unsafe nonce.withBytes {
                    unsafe CCryptoBoringSSL_EVP_AEAD_CTX_seal_scatter(
                        context, bytes, bytes + length, &tagLength, 16, $0, 12, source, length, nil, 0, nil, 0
                    )
                }
                precondition(isSealed == 1, "only overlong input is refused, and packets are short")
            case .sodium:
                let key = unsafe self.key.assumingMemoryBound(to: UInt8.self)
                unsafe nonce.withBytes {
                    _ = unsafe crypto_aead_chacha20poly1305_ietf_encrypt_detached(
                        bytes, bytes + length, nil, source, UInt64(length), nil, 0, nil, $0, key)
                }
            }
        }

        /// Decrypts `length` bytes in place if the tag right behind them is right; if not, their content is
        /// lost.
        @inline(__always)
        package func open(_ text: UnsafeMutableRawPointer, length: Int, counter: UInt64) -> Bool {
            let nonce = Nonce(counter)
            let bytes = unsafe text.assumingMemoryBound(to: UInt8.self)
            switch backEnd {
            case .vector:
                let key = unsafe self.key.assumingMemoryBound(to: UInt8.self)
                return unsafe cchapoly_open(key, counter, bytes, length) == 1
            case .boringSSL:
                return unsafe nonce.withBytes {
                    unsafe CCryptoBoringSSL_EVP_AEAD_CTX_open_gather(
                        context, bytes, $0, 12, bytes, length, bytes + length, 16, nil, 0)
                } == 1
            case .sodium:
                let key = unsafe self.key.assumingMemoryBound(to: UInt8.self)
                return unsafe nonce.withBytes {
                    unsafe crypto_aead_chacha20poly1305_ietf_decrypt_detached(
                        bytes, nil, bytes, UInt64(length), bytes + length, nil, 0, $0, key)
                } == 0
            }
        }
    }

    /// Four zero bytes and the counter. Whitepaper §5.4: AEAD.
    private struct Nonce {
        private let words: (UInt32, UInt32, UInt32)

        @inline(__always)
        init(_ counter: UInt64) {
            words = (
                0, UInt32(truncatingIfNeeded: counter).littleEndian,
                UInt32(truncatingIfNeeded: counter >> 32).littleEndian
            )
        }

        @inline(__always)
        func withBytes<R>(_ body: (UnsafePointer<UInt8>) -> R) -> R {
            unsafe withUnsafeBytes(of: words) {
                unsafe body($0.baseAddress!.assumingMemoryBound(to: UInt8.self))
            }
        }
    }
}

extension WireGuard.PacketCipher {
    /// Seals a text of known result, opens it again, and refuses each kind of damage; also agrees with the
    /// other back end for all lengths around the borders of its loops.
    package static func selfTest(_ backEnd: BackEnd) -> Bool {
        let cipher = Self(backEnd)
        let other = Self(backEnd == .sodium ? .boringSSL : .sodium)
        guard cipher.passesKnownAnswer() else { return false }
        for length in [
            0, 1, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129, 192, 193, 255, 256, 319, 320, 448, 449, 511,
            960, 961, 1280, 1420, 1472, 1473, 1984, 1985, 3008, 3009,
        ] {
            guard cipher.agrees(with: other, length: length) else { return false }
        }
        return true
    }

    /// Key bytes 0x80...0x9f, counter 0x4746454443424140, text of RFC 8439 §2.8.2 without associated data.
    private func passesKnownAnswer() -> Bool {
        var key = WireGuard.Bytes32()
        unsafe key.withMutableBytes { for index in 0..<32 { unsafe $0[index] = UInt8(0x80 + index) } }
        let text =
            "Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
        var packet = Array(text.utf8) + [UInt8](repeating: 0, count: 16)
        load(key)
        let length = text.utf8.count
        unsafe packet.withUnsafeMutableBytes {
            unsafe seal($0.baseAddress!, length: length, counter: 0x4746_4544_4342_4140)
        }
        return Array(packet[0..<16]) == Self.knownStart && Array(packet[length...]) == Self.knownTag
    }

    private static let knownStart: [UInt8] = [
        0xa4, 0x79, 0xcb, 0x54, 0x62, 0x89, 0x46, 0xd6, 0xf4, 0x04, 0x2a, 0x8e, 0x38, 0x4e, 0xf4, 0xbd,
    ]
    private static let knownTag: [UInt8] = [
        0xe2, 0x65, 0xf0, 0xaf, 0xfd, 0x3a, 0x43, 0xda, 0xc5, 0x2e, 0x4e, 0x41, 0x80, 0x28, 0xcb, 0x96,
    ]

    private func agrees(with other: borrowing Self, length: Int) -> Bool {
        let plain = (0..<length).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ length) }
        var key = WireGuard.Bytes32()
        key.words = (UInt64(length), 2, 3, 4)
        load(key)
        other.load(key)
        let counter = UInt64(length) << 33 | 1
        var mine = plain + [UInt8](repeating: 0, count: 16)
        var theirs = mine
        unsafe mine.withUnsafeMutableBytes { unsafe seal($0.baseAddress!, length: length, counter: counter) }
        unsafe theirs.withUnsafeMutableBytes {
            unsafe other.seal($0.baseAddress!, length: length, counter: counter)
        }
        guard mine == theirs else { return false }
        for damaged in [0, length / 2, length, length + 15] {
            var bad = mine
            bad[damaged] ^= 1
            let isOpened = unsafe bad.withUnsafeMutableBytes {
                unsafe open($0.baseAddress!, length: length, counter: counter)
            }
            if isOpened { return false }
        }
        let isOpened = unsafe mine.withUnsafeMutableBytes {
            unsafe open($0.baseAddress!, length: length, counter: counter)
        }
        return isOpened && Array(mine[0..<length]) == plain
    }
}

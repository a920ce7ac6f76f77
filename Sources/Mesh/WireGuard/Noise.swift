// SPDX-License-Identifier: Apache-2.0

internal import CSodium

extension WireGuard {
    /// Curve25519 as the handshake uses it.
    package enum Curve {
        /// Public key of a private one.
        package static func publicKey(of secret: Bytes32) -> Bytes32 {
            var result = Bytes32()
            unsafe result.withMutableBytes { out in
                unsafe secret.withBytes {
                    _ = unsafe crypto_scalarmult_base(pointer(out), pointer($0))
                }
            }
            return result
        }

        /// Shared secret of a private and a public key; nil when the public key is a low-order point and the
        /// secret would be all zeros.
        package static func shared(_ secret: Bytes32, _ point: Bytes32) -> Bytes32? {
            unsafe secret.withBytes { unsafe shared($0, point) }
        }

        /// The same with the long-term private key, which is not copied.
        static func shared(_ secret: PrivateKey, _ point: Bytes32) -> Bytes32? {
            unsafe secret.withUnsafeBytes { unsafe shared($0, point) }
        }

        private static func shared(_ secret: UnsafeRawBufferPointer, _ point: Bytes32) -> Bytes32? {
            var result = Bytes32()
            let status = unsafe result.withMutableBytes { out in
                unsafe point.withBytes {
                    unsafe crypto_scalarmult(pointer(out), pointer(secret), pointer($0))
                }
            }
            return status == 0 && !result.isZero ? result : nil
        }

        private static func pointer(_ bytes: UnsafeMutableRawBufferPointer) -> UnsafeMutablePointer<UInt8> {
            unsafe bytes.baseAddress!.assumingMemoryBound(to: UInt8.self)
        }

        private static func pointer(_ bytes: UnsafeRawBufferPointer) -> UnsafePointer<UInt8> {
            unsafe bytes.baseAddress!.assumingMemoryBound(to: UInt8.self)
        }
    }

    /// Chain key and hash of a handshake in progress: `Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s`, whitepaper
    /// §5.4.
    package struct SymmetricState: BitwiseCopyable, Sendable {
        package private(set) var chainKey: Bytes32
        package private(set) var hash: Bytes32

        /// HASH(construction) and HASH(chain key ‖ identifier). Whitepaper §5.4.2.
        package init() {
            chainKey = Self.initialChainKey
            hash = Self.initialHash
        }

        private static let initialChainKey = unsafe text("Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s") {
            var hash = BLAKE2s()
            unsafe hash.update($0)
            return hash.finish()
        }
        private static let initialHash = unsafe text("WireGuard v1 zx2c4 Jason@zx2c4.com") {
            unsafe BLAKE2s.hash(initialChainKey, $0)
        }

        private static func text(_ text: StaticString, _ body: (UnsafeRawBufferPointer) -> Bytes32) -> Bytes32
        {
            unsafe body(UnsafeRawBufferPointer(start: text.utf8Start, count: text.utf8CodeUnitCount))
        }

        /// H = HASH(H ‖ value).
        package mutating func mixHash(_ value: Bytes32) {
            hash = unsafe value.withBytes { unsafe BLAKE2s.hash(hash, $0) }
        }

        package mutating func mixHash(_ bytes: UnsafeRawBufferPointer) {
            hash = unsafe BLAKE2s.hash(hash, bytes)
        }

        /// An ephemeral public key: into the chain key and the hash.
        package mutating func mixEphemeral(_ key: Bytes32) {
            mixKey(key)
            mixHash(key)
        }

        /// C = KDF1(C, input).
        package mutating func mixKey(_ input: Bytes32) {
            chainKey = unsafe input.withBytes { unsafe BLAKE2s.Derived(chainKey: chainKey, $0).first }
        }

        /// (C, k) = KDF2(C, input); gives k.
        package mutating func mixKeyGivingKey(_ input: Bytes32) -> Bytes32 {
            let derived = unsafe input.withBytes { unsafe BLAKE2s.Derived(chainKey: chainKey, $0) }
            chainKey = derived.first
            return derived.next(after: derived.first, 2)
        }

        /// (C, τ, k) = KDF3(C, psk), H = Mix(τ); gives k.
        package mutating func mixPresharedKey(_ key: Bytes32) -> Bytes32 {
            let derived = unsafe key.withBytes { unsafe BLAKE2s.Derived(chainKey: chainKey, $0) }
            chainKey = derived.first
            let second = derived.next(after: derived.first, 2)
            mixHash(second)
            return derived.next(after: second, 3)
        }

        /// (T1, T2) = KDF2(C, ""): what the initiator and what the responder sends with. Whitepaper §5.4.5.
        package func transportKeys() -> (initiator: Bytes32, responder: Bytes32) {
            let derived = unsafe BLAKE2s.Derived(
                chainKey: chainKey, UnsafeRawBufferPointer(start: nil, count: 0))
            return (derived.first, derived.next(after: derived.first, 2))
        }

        /// Seals `text` under the hash, writes it with its tag to `output`, and mixes that into the hash.
        mutating func seal(_ text: UnsafeRawBufferPointer, key: Bytes32, into output: UnsafeMutableRawPointer)
        {
            unsafe Self.withArguments(key: key, hash: hash) { key, hash, nonce in
                _ = unsafe crypto_aead_chacha20poly1305_ietf_encrypt(
                    output.assumingMemoryBound(to: UInt8.self), nil,
                    text.baseAddress?.assumingMemoryBound(to: UInt8.self), UInt64(text.count), hash, 32, nil,
                    nonce, key)
            }
            unsafe mixHash(UnsafeRawBufferPointer(start: output, count: text.count + 16))
        }

        /// Opens what `seal` made, into `output`, which is 16 bytes shorter. False: damaged or not for us.
        mutating func open(
            _ sealed: UnsafeRawBufferPointer, key: Bytes32, into output: UnsafeMutableRawPointer?
        ) -> Bool {
            let status = unsafe Self.withArguments(key: key, hash: hash) { key, hash, nonce in
                unsafe crypto_aead_chacha20poly1305_ietf_decrypt(
                    output?.assumingMemoryBound(to: UInt8.self), nil, nil,
                    sealed.baseAddress!.assumingMemoryBound(to: UInt8.self), UInt64(sealed.count), hash, 32,
                    nonce, key)
            }
            guard status == 0 else { return false }
            unsafe mixHash(sealed)
            return true
        }

        /// Key, associated data and the all-zero nonce as libsodium wants them.
        private static func withArguments<R>(
            key: Bytes32, hash: Bytes32,
            _ body: (UnsafePointer<UInt8>, UnsafePointer<UInt8>, UnsafePointer<UInt8>) -> R
        ) -> R {
            let nonce = Bytes16()
            return unsafe key.withBytes { key in
                unsafe hash.withBytes { hash in
                    unsafe nonce.withBytes { nonce in
                        unsafe body(
                            key.baseAddress!.assumingMemoryBound(to: UInt8.self),
                            hash.baseAddress!.assumingMemoryBound(to: UInt8.self),
                            nonce.baseAddress!.assumingMemoryBound(to: UInt8.self))
                    }
                }
            }
        }

        /// Overwrites both values.
        mutating func wipe() {
            chainKey.wipe()
            hash.wipe()
        }
    }

    /// When an initiation was made: u64 big-endian seconds since 1970 plus 2⁶² + 10, u32 big-endian
    /// nanoseconds. Whitepaper §5.1; the low 24 bits are cleared on sending so that the clock is not
    /// disclosed too finely.
    package struct Timestamp: Comparable, BitwiseCopyable, Sendable {
        let seconds: UInt64
        let nanoseconds: UInt32

        /// From the wall clock, whitened.
        package init(_ time: WallTime) {
            seconds = 0x4000_0000_0000_000a &+ time.seconds
            nanoseconds = time.nanoseconds & 0xff00_0000
        }

        init(seconds: UInt64, nanoseconds: UInt32) {
            self.seconds = seconds
            self.nanoseconds = nanoseconds
        }

        /// Before every timestamp there is.
        static var none: Timestamp { Timestamp(seconds: 0, nanoseconds: 0) }

        init(at pointer: UnsafeRawPointer) {
            unsafe seconds = UInt64(bigEndian: pointer.loadUnaligned(as: UInt64.self))
            unsafe nanoseconds = UInt32(bigEndian: pointer.loadUnaligned(fromByteOffset: 8, as: UInt32.self))
        }

        /// One whitened step later: for initiations that follow each other faster than the clock's grain.
        var successor: Timestamp {
            let (sum, overflow) = nanoseconds.addingReportingOverflow(0x0100_0000)
            return overflow || sum >= 1_000_000_000
                ? Timestamp(seconds: seconds &+ 1, nanoseconds: 0)
                : Timestamp(seconds: seconds, nanoseconds: sum)
        }

        /// The twelve bytes on the wire.
        package var bytes: [UInt8] {
            unsafe withUnsafeBytes(of: seconds.bigEndian) { unsafe Array($0) }
                + withUnsafeBytes(of: nanoseconds.bigEndian) { unsafe Array($0) }
        }

        func write(to pointer: UnsafeMutableRawPointer) {
            unsafe pointer.storeBytes(of: seconds.bigEndian, as: UInt64.self)
            unsafe pointer.storeBytes(of: nanoseconds.bigEndian, toByteOffset: 8, as: UInt32.self)
        }

        package static func < (a: Timestamp, b: Timestamp) -> Bool {
            a.seconds != b.seconds ? a.seconds < b.seconds : a.nanoseconds < b.nanoseconds
        }
    }

    /// Unix time. Only timestamps of initiations need it.
    @frozen
    package struct WallTime: Sendable {
        /// Seconds since 1970-01-01 UTC.
        package var seconds: UInt64
        /// 0..<1,000,000,000.
        package var nanoseconds: UInt32

        /// A moment of civil time.
        package init(seconds: UInt64, nanoseconds: UInt32 = 0) {
            self.seconds = seconds
            self.nanoseconds = nanoseconds
        }
    }
}

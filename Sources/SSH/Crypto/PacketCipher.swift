// SPDX-License-Identifier: Apache-2.0

internal import CCryptoBoringSSL
internal import CSodium
internal import Crypto

/// Algorithms that protect packets.
public enum CipherName: String, CaseIterable, Hashable, Sendable {
    /// OpenSSH's PROTOCOL.chacha20poly1305.
    case chaCha20Poly1305 = "chacha20-poly1305@openssh.com"
    /// RFC 5647 with OpenSSH's name (PROTOCOL §1.6).
    case aes256GCM = "aes256-gcm@openssh.com"
    /// RFC 4344 §4, always with hmac-sha2-256-etm@openssh.com (OpenSSH PROTOCOL §1.5): for clients that know no AEAD.
    case aes256CTR = "aes256-ctr"

    /// Best first: AES-GCM is several times faster wherever the processor knows AES, and the client's order
    /// decides.
    public static let preferred: [CipherName] = [.aes256GCM, .chaCha20Poly1305, .aes256CTR]

    /// Bytes of key that are derived.
    var keyBytes: Int { self == .chaCha20Poly1305 ? 64 : 32 }
    /// Bytes of initial vector that are derived.
    var vectorBytes: Int {
        switch self {
        case .chaCha20Poly1305: 0
        case .aes256GCM: 12
        case .aes256CTR: 16
        }
    }
    /// Bytes of key for the MAC.
    var integrityBytes: Int { self == .aes256CTR ? 32 : 0 }
    /// The only MAC that is used with a cipher which needs one.
    static let integrityName = "hmac-sha2-256-etm@openssh.com"
    /// `packet_length` is a multiple of this (the length field is not counted under any of these).
    var blockBytes: Int { self == .chaCha20Poly1305 ? 8 : 16 }
    /// Bytes of the tag after the packet.
    var tagBytes: Int { self == .aes256CTR ? 32 : 16 }
}

/// Keys of one direction between two key exchanges. Seals and opens packets where they lie:
///
///     uint32 packet_length │ byte padding_length │ payload │ padding │ tag (16, 32)
///     ◀ own key / clear  ▶ ◀───────────── encrypted ──────────────▶
///
/// ChaCha20 and Poly1305 come from BoringSSL's vector code; the pairing of the two is OpenSSH's, not RFC
/// 8439's.
@safe final class PacketCipher {
    let name: CipherName

    /// One block: scratch values first, secrets after them, wiped as a whole.
    private let memory: UnsafeMutableRawPointer
    private static let memoryBytes = 1024
    // Offsets inside `memory`.
    private static let nonceAt = 0, oneTimeKeyAt = 32, tagAt = 96, keyAt = 128, integrityAt = 192,
        stateAt = 256

    private let context: UnsafeMutablePointer<EVP_AEAD_CTX>?
    private let counter: UnsafeMutablePointer<EVP_CIPHER_CTX>?
    /// Invocation counter of RFC 5647 §7.1: the last eight bytes of the nonce.
    private var invocation: UInt64 = 0

    /// Precondition: the lengths are those of `name`.
    init(name: CipherName, key: [UInt8], vector: [UInt8], integrity: [UInt8] = []) {
        precondition(key.count == name.keyBytes && vector.count == name.vectorBytes)
        precondition(integrity.count == name.integrityBytes)
        self.name = name
        let memory = UnsafeMutableRawPointer.allocate(byteCount: Self.memoryBytes, alignment: 64)
        unsafe self.memory = memory
        unsafe memory.initializeMemory(as: UInt8.self, repeating: 0, count: Self.memoryBytes)
        unsafe key.withUnsafeBytes {
            unsafe (memory + Self.keyAt).copyMemory(from: $0.baseAddress!, byteCount: $0.count)
        }
        switch name {
        case .chaCha20Poly1305:
            unsafe context = nil
            unsafe counter = nil
        case .aes256CTR:
            unsafe context = nil
            unsafe integrity.withUnsafeBytes {
                unsafe (memory + Self.integrityAt).copyMemory(from: $0.baseAddress!, byteCount: $0.count)
            }
            unsafe counter = CCryptoBoringSSL_EVP_CIPHER_CTX_new()
            let isReady = unsafe CCryptoBoringSSL_EVP_EncryptInit_ex(
                counter, CCryptoBoringSSL_EVP_aes_256_ctr(), nil, key, vector)
            precondition(isReady == 1, "AES-256-CTR is part of the library")
        case .aes256GCM:
            unsafe counter = nil
            unsafe memory.storeBytes(
                of: vector[..<4].reduce(0) { $0 << 8 | UInt32($1) }.bigEndian, toByteOffset: Self.nonceAt,
                as: UInt32.self)
            invocation = vector[4...].reduce(0) { $0 << 8 | UInt64($1) }
            unsafe context = key.withUnsafeBufferPointer {
                unsafe CCryptoBoringSSL_EVP_AEAD_CTX_new(
                    CCryptoBoringSSL_EVP_aead_aes_256_gcm(), $0.baseAddress, $0.count, name.tagBytes)
            }
            precondition(unsafe context != nil, "AES-256-GCM is part of the library")
        }
    }

    deinit {
        if let context = unsafe context { unsafe CCryptoBoringSSL_EVP_AEAD_CTX_free(context) }
        if let counter = unsafe counter { unsafe CCryptoBoringSSL_EVP_CIPHER_CTX_free(counter) }
        unsafe CCryptoBoringSSL_OPENSSL_cleanse(memory, Self.memoryBytes)
        unsafe memory.deallocate()
    }

    /// Seals the packet at `packet` (`4 + length` bytes, tag space after it) in place.
    @unsafe func seal(_ packet: UnsafeMutableRawPointer, length: Int, sequence: UInt32) {
        let bytes = unsafe packet.assumingMemoryBound(to: UInt8.self)
        switch name {
        case .chaCha20Poly1305:
            unsafe setNonce(sequence)
            unsafe chaCha(bytes, 4, key: Self.keyAt + 32, counter: 0)
            unsafe chaCha(bytes + 4, length, key: Self.keyAt, counter: 1)
            unsafe authenticate(bytes, 4 + length, tag: bytes + 4 + length)
        case .aes256CTR:
            unsafe count(bytes + 4, length)
            unsafe signature(bytes, 4 + length, sequence, tag: bytes + 4 + length)
        case .aes256GCM:
            let nonce = unsafe nextNonce()
            var tagLength = 0
            let sealed = unsafe CCryptoBoringSSL_EVP_AEAD_CTX_seal_scatter(
                context, bytes + 4, bytes + 4 + length, &tagLength, name.tagBytes, nonce, 12,
                bytes + 4, length, nil, 0, bytes, 4)
            precondition(sealed == 1 && tagLength == name.tagBytes, "sealing cannot fail")
        }
    }

    /// The `packet_length` in the four bytes at `packet`, which stay as they are.
    @unsafe func length(of packet: UnsafeRawPointer, sequence: UInt32) -> UInt32 {
        let field = unsafe packet.loadUnaligned(as: UInt32.self)
        guard name == .chaCha20Poly1305 else { return UInt32(bigEndian: field) }
        unsafe setNonce(sequence)
        let copy = unsafe memory + Self.tagAt
        unsafe copy.storeBytes(of: field, as: UInt32.self)
        unsafe chaCha(copy.assumingMemoryBound(to: UInt8.self), 4, key: Self.keyAt + 32, counter: 0)
        return unsafe UInt32(bigEndian: copy.load(as: UInt32.self))
    }

    /// Verifies and decrypts the packet at `packet` in place; the four bytes of length stay encrypted.
    @unsafe func open(_ packet: UnsafeMutableRawPointer, length: Int, sequence: UInt32) -> Bool {
        let bytes = unsafe packet.assumingMemoryBound(to: UInt8.self)
        switch name {
        case .chaCha20Poly1305:
            unsafe setNonce(sequence)
            let tag = unsafe (memory + Self.tagAt).assumingMemoryBound(to: UInt8.self)
            unsafe authenticate(bytes, 4 + length, tag: tag)
            guard unsafe CCryptoBoringSSL_CRYPTO_memcmp(tag, bytes + 4 + length, name.tagBytes) == 0
            else {
                return false
            }
            unsafe chaCha(bytes + 4, length, key: Self.keyAt, counter: 1)
            return true
        case .aes256CTR:
            let tag = unsafe (memory + Self.tagAt).assumingMemoryBound(to: UInt8.self)
            unsafe signature(bytes, 4 + length, sequence, tag: tag)
            guard unsafe CCryptoBoringSSL_CRYPTO_memcmp(tag, bytes + 4 + length, 32) == 0 else {
                return false
            }
            unsafe count(bytes + 4, length)
            return true
        case .aes256GCM:
            let nonce = unsafe nextNonce()
            return unsafe CCryptoBoringSSL_EVP_AEAD_CTX_open_gather(
                context, bytes + 4, nonce, 12, bytes + 4, length, bytes + 4 + length, name.tagBytes,
                bytes, 4) == 1
        }
    }

    // MARK: AES-CTR and HMAC

    /// Encrypts or decrypts in place; the counter goes on over packets.
    @unsafe private func count(_ bytes: UnsafeMutablePointer<UInt8>, _ length: Int) {
        var done: Int32 = 0
        let code = unsafe CCryptoBoringSSL_EVP_EncryptUpdate(
            counter, bytes, &done, bytes, Int32(clamping: length))
        precondition(code == 1 && Int(done) == length, "a stream cipher cannot fail")
    }

    /// OpenSSH PROTOCOL §1.5: over the sequence number, the length and what is encrypted.
    @unsafe private func signature(
        _ bytes: UnsafePointer<UInt8>, _ count: Int, _ sequence: UInt32, tag: UnsafeMutablePointer<UInt8>
    ) {
        let state = unsafe (memory + Self.stateAt).assumingMemoryBound(
            to: crypto_auth_hmacsha256_state.self)
        let key = unsafe (memory + Self.integrityAt).assumingMemoryBound(to: UInt8.self)
        unsafe crypto_auth_hmacsha256_init(state, key, 32)
        unsafe memory.storeBytes(of: sequence.bigEndian, toByteOffset: Self.nonceAt, as: UInt32.self)
        unsafe crypto_auth_hmacsha256_update(
            state, (memory + Self.nonceAt).assumingMemoryBound(to: UInt8.self), 4)
        unsafe crypto_auth_hmacsha256_update(state, bytes, UInt64(count))
        unsafe crypto_auth_hmacsha256_final(state, tag)
    }

    // MARK: ChaCha20 and Poly1305

    /// The 64-bit nonce of original ChaCha20 in BoringSSL's 96-bit form: its first four bytes are the upper
    /// half of the block counter, which no packet reaches.
    @unsafe private func setNonce(_ sequence: UInt32) {
        unsafe memory.storeBytes(
            of: UInt64(sequence).bigEndian, toByteOffset: Self.nonceAt + 4, as: UInt64.self)
    }

    @unsafe private func chaCha(_ bytes: UnsafeMutablePointer<UInt8>, _ count: Int, key: Int, counter: UInt32)
    {
        unsafe CCryptoBoringSSL_CRYPTO_chacha_20(
            bytes, bytes, count, (memory + key).assumingMemoryBound(to: UInt8.self),
            (memory + Self.nonceAt).assumingMemoryBound(to: UInt8.self), counter)
    }

    @unsafe private func authenticate(
        _ bytes: UnsafePointer<UInt8>, _ count: Int, tag: UnsafeMutablePointer<UInt8>
    ) {
        let oneTimeKey = unsafe (memory + Self.oneTimeKeyAt).assumingMemoryBound(to: UInt8.self)
        unsafe oneTimeKey.update(repeating: 0, count: 64)
        unsafe chaCha(oneTimeKey, 64, key: Self.keyAt, counter: 0)
        let state = unsafe (memory + Self.stateAt).assumingMemoryBound(to: poly1305_state.self)
        unsafe CCryptoBoringSSL_CRYPTO_poly1305_init(state, oneTimeKey)
        unsafe CCryptoBoringSSL_CRYPTO_poly1305_update(state, bytes, count)
        unsafe CCryptoBoringSSL_CRYPTO_poly1305_finish(state, tag)
    }

    /// RFC 5647 §7.1: the counter is incremented after each invocation.
    @unsafe private func nextNonce() -> UnsafePointer<UInt8> {
        unsafe memory.storeBytes(of: invocation.bigEndian, toByteOffset: Self.nonceAt + 4, as: UInt64.self)
        invocation &+= 1  // RFC 5647 §7.1: modulo 2^64; keys are renewed long before
        return unsafe UnsafePointer((memory + Self.nonceAt).assumingMemoryBound(to: UInt8.self))
    }
}

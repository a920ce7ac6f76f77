// SPDX-License-Identifier: Apache-2.0

internal import CCryptoBoringSSL
internal import CSodium

/// How a shared secret comes about, best first.
enum KeyExchangeMethod: String, CaseIterable {
    /// draft-ietf-sshm-mlkem-hybrid-kex: both must be broken.
    case mlkem768x25519 = "mlkem768x25519-sha256"
    /// RFC 8731, and the same under its older name (§1).
    case curve25519 = "curve25519-sha256"
    case curve25519Old = "curve25519-sha256@libssh.org"

    var isHybrid: Bool { self == .mlkem768x25519 }

    /// The shared secret as it goes into the exchange hash and the keys: a `string` for the hybrid, else an `mpint`.
    func encode(_ secret: [UInt8]) -> [UInt8] {
        guard isHybrid else { return Transport.mpint(secret) }
        var queue = ByteQueue(capacity: 64)
        queue.appendString(secret)
        return queue.copy()
    }
}

/// A client's ephemeral keys of one exchange.
///
///     hybrid, client: ML-KEM-768 public key (1184) │ X25519 public key (32)
///     hybrid, server: ML-KEM-768 ciphertext (1088) │ X25519 public key (32)
final class EphemeralKeys {
    let method: KeyExchangeMethod
    let publicValue: [UInt8]
    private var secret: [UInt8]
    private let lattice: MLKEMSecret?

    /// `secret`: 32 random bytes.
    init(_ method: KeyExchangeMethod, secret: [UInt8]) {
        self.method = method
        self.secret = secret
        let lattice = method.isHybrid ? MLKEMSecret() : nil
        self.lattice = lattice
        publicValue = (lattice?.publicKey ?? []) + Curve25519.publicKey(of: secret)
    }

    deinit { secret.wipe() }

    /// Client: what the server's public value leads to; nil when it is none.
    func shared(with peer: [UInt8]) -> [UInt8]? {
        guard let lattice else { return Curve25519.shared(secret: secret, peer: peer) }
        guard peer.count == MLKEMSecret.ciphertextBytes + 32,
            let first = lattice.decapsulate(Array(peer[..<MLKEMSecret.ciphertextBytes])),
            let second = Curve25519.shared(secret: secret, peer: Array(peer[MLKEMSecret.ciphertextBytes...]))
        else { return nil }
        return SHA256.digest(first + second)
    }

    /// Server: the answer to a client's public value, and the secret; nil when it is none.
    static func answer(
        _ method: KeyExchangeMethod, to peer: [UInt8], secret: [UInt8]
    ) -> (publicValue: [UInt8], shared: [UInt8])? {
        let own = Curve25519.publicKey(of: secret)
        guard method.isHybrid else {
            return Curve25519.shared(secret: secret, peer: peer).map { (own, $0) }
        }
        guard peer.count == MLKEMSecret.publicKeyBytes + 32,
            let (ciphertext, first) = MLKEMSecret.encapsulate(to: Array(peer[..<MLKEMSecret.publicKeyBytes])),
            let second = Curve25519.shared(secret: secret, peer: Array(peer[MLKEMSecret.publicKeyBytes...]))
        else { return nil }
        return (ciphertext + own, SHA256.digest(first + second))
    }
}

/// A private key of ML-KEM-768 (FIPS 203), by BoringSSL, which draws its own randomness from the system.
@safe final class MLKEMSecret {
    static let publicKeyBytes = 1184, ciphertextBytes = 1088

    private let key: UnsafeMutablePointer<MLKEM768_private_key>
    let publicKey: [UInt8]

    init() {
        unsafe key = UnsafeMutablePointer<MLKEM768_private_key>.allocate(capacity: 1)
        var publicKey = [UInt8](repeating: 0, count: Self.publicKeyBytes)
        unsafe CCryptoBoringSSL_MLKEM768_generate_key(&publicKey, nil, key)
        self.publicKey = publicKey
    }

    deinit {
        unsafe sodium_memzero(key, MemoryLayout<MLKEM768_private_key>.size)
        unsafe key.deallocate()
    }

    func decapsulate(_ ciphertext: [UInt8]) -> [UInt8]? {
        var secret = [UInt8](repeating: 0, count: 32)
        let code = unsafe CCryptoBoringSSL_MLKEM768_decap(&secret, ciphertext, ciphertext.count, key)
        return code == 1 ? secret : nil
    }

    /// FIPS 203 §7.2: the key is checked; nil when it is none.
    static func encapsulate(to encoded: [UInt8]) -> (ciphertext: [UInt8], secret: [UInt8])? {
        let key = UnsafeMutablePointer<MLKEM768_public_key>.allocate(capacity: 1)
        defer { unsafe key.deallocate() }
        let isKey = unsafe encoded.withUnsafeBufferPointer { bytes in
            var reader = unsafe CBS(data: bytes.baseAddress, len: bytes.count)
            return unsafe CCryptoBoringSSL_MLKEM768_parse_public_key(key, &reader) == 1 && reader.len == 0
        }
        guard isKey else { return nil }
        var ciphertext = [UInt8](repeating: 0, count: ciphertextBytes)
        var secret = [UInt8](repeating: 0, count: 32)
        unsafe CCryptoBoringSSL_MLKEM768_encap(&ciphertext, &secret, key)
        return (ciphertext, secret)
    }
}

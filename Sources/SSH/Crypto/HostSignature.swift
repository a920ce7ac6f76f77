// SPDX-License-Identifier: Apache-2.0

internal import CCryptoBoringSSL
internal import CSodium
internal import Crypto

/// Host key algorithms that a client understands. Agents of upstream have an RSA key.
enum HostSignature: String, CaseIterable {
    /// RFC 8709.
    case ed25519 = "ssh-ed25519"
    /// RFC 8332: keys of type `ssh-rsa`.
    case rsaSHA512 = "rsa-sha2-512"
    case rsaSHA256 = "rsa-sha2-256"

    /// Bits of the largest and smallest RSA modulus that is worth a verification.
    private static let modulusBytes = 128...2048

    /// Whether `signature` over `message` was made with the key in `blob`; both are in wire form.
    func verify(signature: [UInt8], message: [UInt8], blob: [UInt8]) -> Bool {
        guard let value = Self.fields(signature, name: rawValue, count: 1)?.first else { return false }
        switch self {
        case .ed25519:
            guard value.count == 64, let key = Self.fields(blob, name: rawValue, count: 1)?.first,
                key.count == 32
            else { return false }
            return unsafe crypto_sign_verify_detached(value, message, UInt64(message.count), key) == 0
        case .rsaSHA512:
            return Self.verifyRSA(value, SHA512.digest(message), NID_sha512, blob)
        case .rsaSHA256:
            return Self.verifyRSA(value, SHA256.digest(message), NID_sha256, blob)
        }
    }

    private static func verifyRSA(
        _ signature: [UInt8], _ digest: [UInt8], _ hash: Int32, _ blob: [UInt8]
    ) -> Bool {
        guard let numbers = fields(blob, name: "ssh-rsa", count: 2) else { return false }
        let exponent = numbers[0], modulus = Array(numbers[1].drop { $0 == 0 })
        guard modulusBytes.contains(modulus.count), exponent.count <= 8, signature.count <= modulus.count
        else {
            return false
        }
        // Some signers strip leading zeros.
        let padded = [UInt8](repeating: 0, count: modulus.count - signature.count) + signature
        guard let n = unsafe CCryptoBoringSSL_BN_bin2bn(modulus, modulus.count, nil) else { return false }
        defer { unsafe CCryptoBoringSSL_BN_free(n) }
        guard let e = unsafe CCryptoBoringSSL_BN_bin2bn(exponent, exponent.count, nil) else { return false }
        defer { unsafe CCryptoBoringSSL_BN_free(e) }
        guard let key = unsafe CCryptoBoringSSL_RSA_new_public_key(n, e) else { return false }
        defer { unsafe CCryptoBoringSSL_RSA_free(key) }
        return unsafe CCryptoBoringSSL_RSA_verify(hash, digest, digest.count, padded, padded.count, key) == 1
    }

    /// The `string` fields after the name, exactly `count` of them.
    private static func fields(_ blob: [UInt8], name: String, count: Int) -> [[UInt8]]? {
        unsafe blob.withUnsafeBytes { bytes in
            var reader = unsafe WireReader(bytes)
            guard let found = try? reader.text(limit: 64), found == name else { return nil }
            var fields: [[UInt8]] = []
            for _ in 0..<count {
                guard let field = try? reader.bytes() else { return nil }
                fields.append(field)
            }
            return reader.isAtEnd ? fields : nil
        }
    }
}

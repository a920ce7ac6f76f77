// SPDX-License-Identifier: Apache-2.0

internal import CSodium

/// The server's `ssh-ed25519` key (RFC 8709).
public struct HostKey: Sendable {
    /// The only algorithm.
    static let algorithm = "ssh-ed25519"

    private let secret: [UInt8]
    /// 32 bytes.
    public let publicKey: [UInt8]

    /// The key whose 32-byte private seed is `seed`.
    public init(seed: [UInt8]) {
        precondition(seed.count == 32, "an Ed25519 seed has 32 bytes")
        var publicKey = [UInt8](repeating: 0, count: 32)
        var secret = [UInt8](repeating: 0, count: 64)
        unsafe crypto_sign_seed_keypair(&publicKey, &secret, seed)
        self.secret = secret
        self.publicKey = publicKey
    }

    /// The key of a workspace agent: a function of the three names, so that it survives rebuilds. It is no
    /// secret and proves nothing; the mesh below has authenticated the peer already (`agent.md` §6).
    public init(owner: String, workspace: String, agent: String) {
        let names = "coder ssh host key v1\0\(owner)\0\(workspace)\0\(agent)"
        self.init(seed: SHA256.digest(Array(names.utf8)))
    }

    /// The public key as on the wire: algorithm name and key, RFC 8709 §4.
    public var blob: [UInt8] {
        var queue = ByteQueue(capacity: 64)
        queue.appendString(Self.algorithm)
        queue.appendString(publicKey)
        return queue.copy()
    }

    /// The signature over `message` as on the wire, RFC 8709 §6.
    func sign(_ message: [UInt8]) -> [UInt8] {
        var signature = [UInt8](repeating: 0, count: 64)
        unsafe crypto_sign_detached(&signature, nil, message, UInt64(message.count), secret)
        var queue = ByteQueue(capacity: 128)
        queue.appendString(Self.algorithm)
        queue.appendString(signature)
        return queue.copy()
    }

}

/// Hashes of libsodium.
enum SHA256 {
    static func digest(_ message: [UInt8]) -> [UInt8] {
        var output = [UInt8](repeating: 0, count: 32)
        unsafe crypto_hash_sha256(&output, message, UInt64(message.count))
        return output
    }
}

enum SHA512 {
    static func digest(_ message: [UInt8]) -> [UInt8] {
        var output = [UInt8](repeating: 0, count: 64)
        unsafe crypto_hash_sha512(&output, message, UInt64(message.count))
        return output
    }
}

/// X25519 as RFC 8731 uses it.
enum Curve25519 {
    /// The public key of `secret` (32 bytes).
    static func publicKey(of secret: [UInt8]) -> [UInt8] {
        var output = [UInt8](repeating: 0, count: 32)
        unsafe crypto_scalarmult_base(&output, secret)
        return output
    }

    /// The shared secret, or nil when it is all zero. RFC 8731 §3: MUST check and abort.
    static func shared(secret: [UInt8], peer: [UInt8]) -> [UInt8]? {
        guard peer.count == 32 else { return nil }
        var output = [UInt8](repeating: 0, count: 32)
        return unsafe crypto_scalarmult(&output, secret, peer) == 0 ? output : nil
    }
}

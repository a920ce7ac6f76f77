// SPDX-License-Identifier: Apache-2.0

internal import CSodium

/// A cryptographic generator for nonces and transaction ids: ChaCha20 with fast key erasure. Machines own one, so
/// that a seeded simulator replays them while a real node seeds them from the system.
package struct SecureGenerator: RandomNumberGenerator, Sendable {
    /// The first 32 bytes of each block become the next key and are never given out.
    private static let blockBytes = 544
    private var key: [UInt8]
    private var block: [UInt8] = []
    private var used = Self.blockBytes

    /// Takes 256 bits from `source`: the system's generator, or a seeded one in tests.
    package init(seededBy source: inout some RandomNumberGenerator) {
        key = (0..<32).map { _ in UInt8.random(in: 0...255, using: &source) }
    }

    package mutating func next() -> UInt64 {
        if used + 8 > Self.blockBytes { refill() }
        defer { used += 8 }
        return block[used..<used + 8].reduce(0) { $0 << 8 | UInt64($1) }
    }

    private mutating func refill() {
        var fresh = [UInt8](repeating: 0, count: Self.blockBytes)
        let nonce = [UInt8](repeating: 0, count: 8)
        _ = unsafe crypto_stream_chacha20(&fresh, UInt64(Self.blockBytes), nonce, key)
        key = Array(fresh[0..<32])
        block = fresh
        used = 32
    }
}

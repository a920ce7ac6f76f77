// SPDX-License-Identifier: Apache-2.0

/// SipHash-2-4 over whole 64-bit words with a key of the stack's own: initial sequence numbers (RFC 6528), timestamp
/// offsets, ephemeral ports and the connection table, none of which a peer should foresee.
struct KeyedHash: Sendable {
    private let k0: UInt64
    private let k1: UInt64

    init(_ generator: inout SeededGenerator) {
        k0 = generator.next()
        k1 = generator.next()
    }

    /// Hash of a connection's four corners and a purpose.
    @inline(__always)
    func hash(_ local: SocketAddress, _ remote: SocketAddress, purpose: UInt64) -> UInt64 {
        var v0 = k0 ^ 0x736f_6d65_7073_6575
        var v1 = k1 ^ 0x646f_7261_6e64_6f6d
        var v2 = k0 ^ 0x6c79_6765_6e65_7261
        var v3 = k1 ^ 0x7465_6462_7974_6573
        @inline(__always) func round() {
            v0 &+= v1
            v1 = (v1 << 13 | v1 >> 51) ^ v0
            v0 = v0 << 32 | v0 >> 32
            v2 &+= v3
            v3 = (v3 << 16 | v3 >> 48) ^ v2
            v0 &+= v3
            v3 = (v3 << 21 | v3 >> 43) ^ v0
            v2 &+= v1
            v1 = (v1 << 17 | v1 >> 47) ^ v2
            v2 = v2 << 32 | v2 >> 32
        }
        @inline(__always) func absorb(_ word: UInt64) {
            v3 ^= word
            round()
            round()
            v0 ^= word
        }
        absorb(local.ip.high)
        absorb(local.ip.low)
        absorb(remote.ip.high)
        absorb(remote.ip.low)
        absorb(UInt64(local.port) << 48 | UInt64(remote.port) << 32 | purpose)
        v2 ^= 0xff
        round()
        round()
        round()
        round()
        return v0 ^ v1 ^ v2 ^ v3
    }
}

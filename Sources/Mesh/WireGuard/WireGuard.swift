// SPDX-License-Identifier: Apache-2.0

/// The WireGuard protocol in user space: Noise_IKpsk2 handshake, transport, timers, cookies, allowed IPs.
/// Pure: no I/O, no clock; the caller passes time and packet memory. Entry point: `Device`. Source:
/// whitepaper "WireGuard: Next Generation Kernel Network Tunnel", and `wireguard-go` where the paper is
/// silent.
package enum WireGuard {
    /// Type, three zero bytes, receiver index, counter: what goes before the inner packet.
    package static let headerSize = 16
    /// Poly1305 tag: what goes behind the padded inner packet.
    package static let tagSize = 16
    /// Header and tag of a transport message. A keepalive is exactly this long.
    package static let overhead = headerSize + tagSize
    /// 148 bytes. Whitepaper §5.4.2.
    package static let initiationSize = 148
    /// 92 bytes. Whitepaper §5.4.3.
    package static let responseSize = 92
    /// 64 bytes. Whitepaper §5.4.7.
    package static let cookieReplySize = 64

    /// Length of an inner packet after padding with zeros to a multiple of 16, though not above the MTU.
    @inline(__always)
    package static func paddedLength(_ length: Int, mtu: Int) -> Int {
        guard mtu > 0 else { return (length + 15) & ~15 }
        let last = length > mtu ? length % mtu : length
        return length - last + min((last + 15) & ~15, mtu)
    }

    /// Names a peer of one `Device`. Becomes invalid when the peer is removed, also if its slot is used
    /// again.
    @frozen
    package struct PeerIndex: Hashable, Sendable {
        /// Place in the device's table: small numbers, used again after a removal. Good as an array index.
        package let slot: UInt32
        let generation: UInt32

        init(slot: UInt32, generation: UInt32) {
            self.slot = slot
            self.generation = generation
        }
    }

    /// Message types: the first four bytes as a little-endian number, so that the reserved bytes are checked
    /// too.
    enum MessageType {
        static let initiation: UInt32 = 1
        static let response: UInt32 = 2
        static let cookieReply: UInt32 = 3
        static let data: UInt32 = 4
    }
}

/// Unaligned little-endian access to packet memory. Callers have checked the bounds.
extension UnsafeMutableRawPointer {
    @inline(__always)
    func load32(_ offset: Int) -> UInt32 {
        unsafe UInt32(littleEndian: loadUnaligned(fromByteOffset: offset, as: UInt32.self))
    }

    @inline(__always)
    func load64(_ offset: Int) -> UInt64 {
        unsafe UInt64(littleEndian: loadUnaligned(fromByteOffset: offset, as: UInt64.self))
    }

    @inline(__always)
    func store32(_ value: UInt32, at offset: Int) {
        unsafe storeBytes(of: value.littleEndian, toByteOffset: offset, as: UInt32.self)
    }

    @inline(__always)
    func store64(_ value: UInt64, at offset: Int) {
        unsafe storeBytes(of: value.littleEndian, toByteOffset: offset, as: UInt64.self)
    }
}

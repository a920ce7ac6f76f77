// SPDX-License-Identifier: Apache-2.0

// struct virtio_net_hdr, 10 bytes, numbers in host order (VIRTIO 1.2 §5.1.6): 0 flags 1 kind 2 header
// length (2) 4 segment size (2) 6 checksum start (2) 8 checksum offset (2)

/// What stands before each packet of a TUN device with offload: whether its checksum is missing, and
/// whether it is a super-packet that stands for many.
package struct VirtioHeader: Equatable, BitwiseCopyable {
    /// 10 bytes: without the buffer count of newer devices.
    package static let size = 10

    /// What the packet stands for.
    package enum Kind: UInt8, BitwiseCopyable {
        /// Itself.
        case plain = 0
        case tcp4 = 1
        case tcp6 = 4
        /// `VIRTIO_NET_HDR_GSO_UDP_L4`: datagrams of equal size, either family.
        case udp = 5
    }

    /// The checksum at `checksumStart + checksumOffset` holds only the pseudo header's part.
    package var needsChecksum = false
    package var kind = Kind.plain
    /// Bytes before the payload of a super-packet.
    package var headerLength: UInt16 = 0
    /// Payload bytes of each packet but the last.
    package var segmentSize: UInt16 = 0
    package var checksumStart: UInt16 = 0
    package var checksumOffset: UInt16 = 0

    /// A plain packet.
    package init() {}

    /// Reads the ten bytes; nil for kinds that were not asked for.
    @inline(__always)
    package init?(at pointer: UnsafeRawPointer) {
        func number16(_ offset: Int) -> UInt16 {
            unsafe pointer.loadUnaligned(fromByteOffset: offset, as: UInt16.self)
        }
        guard let kind = unsafe Kind(rawValue: pointer.load(fromByteOffset: 1, as: UInt8.self)) else {
            return nil
        }
        self.kind = kind
        needsChecksum = unsafe pointer.load(as: UInt8.self) & 1 != 0
        headerLength = number16(2)
        segmentSize = number16(4)
        checksumStart = number16(6)
        checksumOffset = number16(8)
    }

    /// Writes the ten bytes.
    @inline(__always)
    package func write(to pointer: UnsafeMutableRawPointer) {
        unsafe pointer.storeBytes(of: needsChecksum ? 1 : 0, as: UInt8.self)
        unsafe pointer.storeBytes(of: kind.rawValue, toByteOffset: 1, as: UInt8.self)
        unsafe pointer.storeBytes(of: headerLength, toByteOffset: 2, as: UInt16.self)
        unsafe pointer.storeBytes(of: segmentSize, toByteOffset: 4, as: UInt16.self)
        unsafe pointer.storeBytes(of: checksumStart, toByteOffset: 6, as: UInt16.self)
        unsafe pointer.storeBytes(of: checksumOffset, toByteOffset: 8, as: UInt16.self)
    }
}

/// Unaligned big-endian access to packets whose bounds the caller has checked.
extension UnsafeMutableRawPointer {
    @inline(__always)
    func loadBig16(_ offset: Int) -> UInt16 {
        unsafe UInt16(bigEndian: loadUnaligned(fromByteOffset: offset, as: UInt16.self))
    }

    @inline(__always)
    func loadBig32(_ offset: Int) -> UInt32 {
        unsafe UInt32(bigEndian: loadUnaligned(fromByteOffset: offset, as: UInt32.self))
    }

    @inline(__always)
    func loadBig64(_ offset: Int) -> UInt64 {
        unsafe UInt64(bigEndian: loadUnaligned(fromByteOffset: offset, as: UInt64.self))
    }

    @inline(__always)
    func loadByte(_ offset: Int) -> UInt8 {
        unsafe load(fromByteOffset: offset, as: UInt8.self)
    }

    @inline(__always)
    func storeBig16(_ value: UInt16, at offset: Int) {
        unsafe storeBytes(of: value.bigEndian, toByteOffset: offset, as: UInt16.self)
    }

    @inline(__always)
    func storeBig32(_ value: UInt32, at offset: Int) {
        unsafe storeBytes(of: value.bigEndian, toByteOffset: offset, as: UInt32.self)
    }

    /// Running Internet checksum over `count` bytes from `offset`.
    @inline(__always)
    func checksum(_ offset: Int, _ count: Int, _ initial: UInt64 = 0) -> UInt64 {
        let range = unsafe UnsafeRawBufferPointer(start: self + offset, count: count)
        guard let bytes = unsafe PacketBytes(range) else { return initial }
        return Checksum.sum(bytes, initial)
    }

    /// Addresses and protocol of a packet as the checksums of TCP and UDP take them, without the length.
    @inline(__always)
    func pseudoHeaderSum(isV4: Bool, kind: UInt8) -> UInt64 {
        let number = UInt64(UInt32(kind).bigEndian)
        return unsafe isV4 ? checksum(12, 8, number) : checksum(8, 32, number)
    }
}

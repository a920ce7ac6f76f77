// SPDX-License-Identifier: Apache-2.0

/// Number of the protocol above IP.
enum IPProtocol {
    static let icmp: UInt8 = 1
    static let tcp: UInt8 = 6
    static let udp: UInt8 = 17
    static let icmpV6: UInt8 = 58
    /// Tailscale's "TSMP" (wireguard-integration.md §8.3).
    static let tsmp: UInt8 = 99
}

/// Why a packet was not understood.
enum IPHeaderError: Error {
    case malformed
    case checksum
    case fragment
    /// An extension header that cannot be skipped, or too many of them.
    case extensionHeader
}

/// An IPv4 or IPv6 header, its options and extension headers skipped.
///
///     IPv4  0: 4|ihl, tos, length16   4: id16, flags3|offset13   8: ttl, protocol, checksum16   12: src   16: dst
///     IPv6  0: 6|class|flow           4: length16, next, hops    8: src (16)                    24: dst (16)
struct IPHeader {
    /// 20 bytes. RFC 791 §3.1.
    static let v4Size = 20
    /// 40 bytes. RFC 8200 §3.
    static let v6Size = 40

    var source: IPAddress
    var destination: IPAddress
    var kind: UInt8
    /// Offset and length of what follows.
    var payloadOffset: Int
    var payloadLength: Int

    /// Reads the header of `packet`, which may have trailing padding.
    static func parse(_ packet: PacketBytes, extensionLimit: Int) throws(IPHeaderError) -> IPHeader {
        switch packet.u8(0) >> 4 {
        case 4: return try parseV4(packet)
        case 6: return try parseV6(packet, extensionLimit: extensionLimit)
        default: throw .malformed
        }
    }

    private static func parseV4(_ packet: PacketBytes) throws(IPHeaderError) -> IPHeader {
        guard packet.count >= v4Size else { throw .malformed }
        let headerLength = Int(packet.u8(0) & 15) * 4
        let total = Int(packet.u16(2))
        guard headerLength >= v4Size, headerLength <= total, total <= packet.count else { throw .malformed }
        guard Checksum.isValid(Checksum.sum(packet.slice(0, headerLength))) else { throw .checksum }
        // More fragments to come, or not the first: refused, the mesh's packets fit its MTU.
        guard packet.u16(6) & 0x3fff == 0 else { throw .fragment }
        return IPHeader(
            source: IPAddress(v4: packet.u32(12)), destination: IPAddress(v4: packet.u32(16)),
            kind: packet.u8(9), payloadOffset: headerLength, payloadLength: total - headerLength)
    }

    private static func parseV6(_ packet: PacketBytes, extensionLimit: Int) throws(IPHeaderError) -> IPHeader
    {
        guard packet.count >= v6Size else { throw .malformed }
        let end = v6Size + Int(packet.u16(4))
        guard end <= packet.count else { throw .malformed }
        var header = IPHeader(
            source: IPAddress(high: packet.u64(8), low: packet.u64(16)),
            destination: IPAddress(high: packet.u64(24), low: packet.u64(32)),
            kind: packet.u8(6), payloadOffset: v6Size, payloadLength: end - v6Size)
        if isExtension(header.kind) { try skipExtensions(packet, &header, end: end, limit: extensionLimit) }
        return header
    }

    private static func isExtension(_ kind: UInt8) -> Bool {
        kind == 0 || kind == 43 || kind == 44 || kind == 51 || kind == 60
    }

    private static func skipExtensions(
        _ packet: PacketBytes, _ header: inout IPHeader, end: Int, limit: Int
    ) throws(IPHeaderError) {
        var offset = header.payloadOffset
        var seen = 0
        while isExtension(header.kind) {
            seen += 1
            guard seen <= limit, offset + 8 <= end else { throw .extensionHeader }
            var size = 8
            switch header.kind {
            case 44:  // fragment: only one that is whole in itself (RFC 8200 §4.5, RFC 6946)
                guard packet.u16(offset + 2) & 0xfff9 == 0 else { throw .fragment }
            case 0, 60:
                guard header.kind == 60 || seen == 1 else { throw .extensionHeader }
                size = (Int(packet.u8(offset + 1)) + 1) * 8
                guard offset + size <= end else { throw .extensionHeader }
                try checkOptions(packet.slice(offset + 2, size - 2))
            case 43:  // routing: we are an end point, so nothing may be left to visit
                size = (Int(packet.u8(offset + 1)) + 1) * 8
                guard offset + size <= end, packet.u8(offset + 3) == 0 else { throw .extensionHeader }
            default: throw .extensionHeader  // authentication header
            }
            header.kind = packet.u8(offset)
            offset += size
        }
        header.payloadOffset = offset
        header.payloadLength = end - offset
    }

    /// RFC 8200 §4.2: unknown options say in their two top bits whether they may be skipped.
    private static func checkOptions(_ options: PacketBytes) throws(IPHeaderError) {
        var at = 0
        while at < options.count {
            let kind = options.u8(at)
            if kind == 0 {
                at += 1
                continue
            }
            guard at + 2 <= options.count else { throw .extensionHeader }
            guard kind == 1 || kind == 5 || kind >> 6 == 0 else { throw .extensionHeader }
            at += 2 + Int(options.u8(at + 1))
        }
        guard at == options.count else { throw .extensionHeader }
    }

    /// Size of the header that `write` makes for this family.
    @inline(__always) static func size(isV4: Bool) -> Int { isV4 ? v4Size : v6Size }

    /// Writes a header for `payloadLength` bytes above it, and returns its size.
    @inline(__always) @discardableResult
    static func write(
        _ out: PacketWriter, _ source: IPAddress, _ destination: IPAddress, kind: UInt8, payloadLength: Int
    ) -> Int {
        guard source.isV4 else {
            out.put32(0x6000_0000, 0)
            out.put32(UInt32(truncatingIfNeeded: payloadLength) << 16 | UInt32(kind) << 8 | 64, 4)
            out.put64(source.high, 8)
            out.put64(source.low, 16)
            out.put64(destination.high, 24)
            out.put64(destination.low, 32)
            return v6Size
        }
        out.put32(0x4500_0000 | UInt32(truncatingIfNeeded: payloadLength + v4Size), 0)
        out.put32(0x4000, 4)  // do not fragment; RFC 6864: the identification of such packets has no meaning
        out.put32(64 << 24 | UInt32(kind) << 16, 8)
        out.put32(source.v4, 12)
        out.put32(destination.v4, 16)
        if let header = out.bytes(0, v4Size) { out.putChecksum(Checksum.finish(Checksum.sum(header)), 10) }
        return v4Size
    }
}

// SPDX-License-Identifier: Apache-2.0

// A request, always 40 bytes (`stun-netcheck.md` §1, RFC 8489 §5):
//
//     0       2        4         8                 20                    32                40
//     | 0001  | length | cookie  | transaction 12  | 8022 0008 tailnode  | 8028 0004 crc   |

/// Why bytes are not the STUN message that was looked for.
package enum STUNError: Error, Hashable, Sendable {
    /// No STUN header.
    case notSTUN
    /// Another class or method.
    case unexpectedType(UInt16)
    /// A length that does not fit the bytes.
    case badLength
    /// No usable mapped address in a response.
    case noAddress
    /// A request that did not come from a node of this mesh (strict servers only).
    case foreignRequest
}

/// The small part of STUN that address discovery uses.
package enum STUN {
    /// Length of our requests, bytes.
    package static let requestBytes = 40
    /// Longest reply of ours, bytes: header and one IPv6 address.
    package static let maximumReplyBytes = 44
    /// Default port of servers. RFC 8489 §18.6.
    package static let port: UInt16 = 3478

    private static let cookie: UInt32 = 0x2112_a442
    private static let headerBytes = 20
    private static let fingerprintMask: UInt32 = 0x5354_554e
    private static let software = Array("tailnode".utf8)

    /// Whether a datagram is STUN rather than discovery or WireGuard.
    package static func looksLikeSTUN(_ bytes: RawSpan) -> Bool {
        bytes.byteCount >= headerBytes && bytes.wireByte(0) & 0xc0 == 0 && bytes.wire32(4) == cookie
    }

    /// The transaction of a message that looks like STUN.
    package static func transaction(of bytes: RawSpan) -> TransactionID {
        TransactionID(high: bytes.wire64(8), low: bytes.wire32(16))
    }

    /// Writes a binding request of `requestBytes`.
    package static func writeRequest(_ id: TransactionID, into memory: UnsafeMutableRawBufferPointer) {
        var writer = unsafe WireWriter(memory)
        writeHeader(type: 0x0001, length: 20, id, to: &writer)
        writer.big16(0x8022)
        writer.big16(8)
        unsafe writer.bytes(software.span.bytes)
        writer.big16(0x8028)
        writer.big16(4)
        let checksum = unsafe crc32(UnsafeRawBufferPointer(rebasing: memory[0..<requestBytes - 8]).bytes)
        writer.big32(checksum ^ fingerprintMask)
    }

    /// Mapped address of a success response. FINGERPRINT is not verified: any public server will do.
    package static func parseResponse(
        _ bytes: RawSpan
    ) throws(STUNError) -> (id: TransactionID, mapped: SocketAddress) {
        guard looksLikeSTUN(bytes) else { throw .notSTUN }
        guard bytes.wire16(0) == 0x0101 else { throw .unexpectedType(bytes.wire16(0)) }
        let end = headerBytes + Int(bytes.wire16(2))
        guard end <= bytes.byteCount else { throw .badLength }
        var plain: SocketAddress?
        var offset = headerBytes
        while offset + 4 <= end {
            let type = bytes.wire16(offset)
            let length = Int(bytes.wire16(offset + 2))
            let value = offset + 4
            guard value + length <= end else { throw .badLength }
            let attribute = bytes.extracting(value..<value + length)
            switch type {
            case 0x0020, 0x8020:
                if let address = address(attribute, xorWith: bytes) {
                    return (transaction(of: bytes), address)
                }
            case 0x0001:
                plain = plain ?? address(attribute, xorWith: nil)
            default:
                break
            }
            offset = value + (length + 3) / 4 * 4
        }
        guard let plain else { throw .noAddress }
        return (transaction(of: bytes), plain)
    }

    /// Server side: checks a request. A strict server answers only nodes of this mesh, as `derper` does.
    package static func parseRequest(_ bytes: RawSpan, strict: Bool) throws(STUNError) -> TransactionID {
        guard looksLikeSTUN(bytes) else { throw .notSTUN }
        guard bytes.wire16(0) == 0x0001 else { throw .unexpectedType(bytes.wire16(0)) }
        let end = headerBytes + Int(bytes.wire16(2))
        guard end <= bytes.byteCount else { throw .badLength }
        guard strict else { return transaction(of: bytes) }
        guard end == requestBytes, bytes.wire32(20) == 0x8022_0008, bytes.wireBytes(24..<32) == software,
            bytes.wire32(32) == 0x8028_0004,
            bytes.wire32(36) == crc32(bytes.extracting(0..<32)) ^ fingerprintMask
        else { throw .foreignRequest }
        return transaction(of: bytes)
    }

    /// Writes the server's reply: one XOR-MAPPED-ADDRESS, nothing that would amplify. Returns its length.
    package static func writeReply(
        _ id: TransactionID, mapped: SocketAddress, into memory: UnsafeMutableRawBufferPointer
    ) -> Int {
        var writer = unsafe WireWriter(memory)
        let addressLength: UInt16 = mapped.ip.isV4 ? 4 : 16
        writeHeader(type: 0x0101, length: 8 + addressLength, id, to: &writer)
        writer.big16(0x0020)
        writer.big16(4 + addressLength)
        writer.byte(0)
        writer.byte(mapped.ip.isV4 ? 1 : 2)
        writer.big16(mapped.port ^ UInt16(cookie >> 16))
        if mapped.ip.isV4 {
            writer.big32(mapped.ip.v4 ^ cookie)
        } else {
            writer.big64(mapped.ip.high ^ (UInt64(cookie) << 32 | id.high >> 32))
            writer.big64(mapped.ip.low ^ (id.high << 32 | UInt64(id.low)))
        }
        return writer.count
    }

    private static func writeHeader(
        type: UInt16, length: UInt16, _ id: TransactionID, to writer: inout WireWriter
    ) {
        writer.big16(type)
        writer.big16(length)
        writer.big32(cookie)
        writer.big64(id.high)
        writer.big32(id.low)
    }

    /// `message` is given for the XOR form, whose mask is cookie and transaction.
    private static func address(_ attribute: RawSpan, xorWith message: RawSpan?) -> SocketAddress? {
        guard attribute.byteCount >= 8 else { return nil }
        let port = attribute.wire16(2) ^ (message == nil ? 0 : UInt16(cookie >> 16))
        switch attribute.wireByte(1) {
        case 1:
            let ip = attribute.wire32(4) ^ (message == nil ? 0 : cookie)
            return SocketAddress(IPAddress(v4: ip), port: port)
        case 2:
            guard attribute.byteCount >= 20 else { return nil }
            var high = attribute.wire64(4)
            var low = attribute.wire64(12)
            if let message {
                high ^= message.wire64(4)
                low ^= message.wire64(12)
            }
            return SocketAddress(IPAddress(high: high, low: low).unmapped, port: port)
        default:
            return nil
        }
    }

    /// CRC-32 (IEEE 802.3), reflected.
    package static func crc32(_ bytes: RawSpan) -> UInt32 {
        var crc = UInt32.max
        for offset in 0..<bytes.byteCount {
            crc ^= UInt32(bytes.wireByte(offset))
            for _ in 0..<8 { crc = crc & 1 == 1 ? crc >> 1 ^ 0xedb8_8320 : crc >> 1 }
        }
        return ~crc
    }
}

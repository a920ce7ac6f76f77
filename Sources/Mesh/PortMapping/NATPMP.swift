// SPDX-License-Identifier: Apache-2.0

// Requests (RFC 6886 §3.2, §3.3) and their answers, big endian:
//
//     0         1    2       4       6       8       10      12          16
//     | version | op |
//     | version | op | 0     | inner | outer | lifetime      |
//     | version | op | result| epoch         | address       |
//     | version | op | result| epoch         | inner | outer | lifetime  |

/// Why an answer of a gateway cannot be used.
package enum PortMappingError: Error, Hashable, Sendable {
    /// Too short, or of another protocol.
    case malformed
    /// An operation that nobody asked for.
    case unexpectedOperation(UInt8)
    /// An answer to another request: wrong nonce, port or protocol.
    case notOurs
}

/// NAT-PMP: asks a router for a port. RFC 6886.
package enum NATPMP {
    /// Where gateways listen, of PCP too.
    package static let port: UInt16 = 5351
    /// 3: the network itself has no address; 5: unsupported. RFC 6886 §3.5.
    package static let unsupportedVersion: UInt16 = 1

    /// A gateway's answer. All carry the seconds since it lost its table.
    package enum Answer: Hashable, Sendable {
        case externalAddress(IPAddress, epoch: UInt32)
        case mapped(internalPort: UInt16, externalPort: UInt16, lifetimeSeconds: UInt32, epoch: UInt32)
        case refused(operation: UInt8, result: UInt16, epoch: UInt32)
    }

    /// Asks for the address on the other side.
    package static let externalAddressRequest: [UInt8] = [0, 0]

    /// Asks for a UDP mapping; lifetime 0 gives it back.
    package static func mapRequest(
        internalPort: UInt16, externalPort: UInt16, lifetimeSeconds: UInt32
    ) -> [UInt8] {
        [0, 1, 0, 0] + big(internalPort) + big(externalPort) + big(lifetimeSeconds)
    }

    /// Reads an answer.
    package static func parse(_ bytes: RawSpan) throws(PortMappingError) -> Answer {
        guard bytes.byteCount >= 8, bytes.wireByte(0) == 0 else { throw .malformed }
        let operation = bytes.wireByte(1)
        let (result, epoch) = (bytes.wire16(2), bytes.wire32(4))
        guard operation >= 0x80 else { throw .unexpectedOperation(operation) }
        guard result == 0 else { return .refused(operation: operation & 0x7f, result: result, epoch: epoch) }
        switch operation {
        case 0x80:
            guard bytes.byteCount >= 12 else { throw .malformed }
            return .externalAddress(IPAddress(v4: bytes.wire32(8)), epoch: epoch)
        case 0x81:
            guard bytes.byteCount >= 16 else { throw .malformed }
            return .mapped(
                internalPort: bytes.wire16(8), externalPort: bytes.wire16(10),
                lifetimeSeconds: bytes.wire32(12), epoch: epoch)
        default: throw .unexpectedOperation(operation)
        }
    }

    static func big(_ value: some FixedWidthInteger) -> [UInt8] {
        (0..<value.bitWidth / 8).reversed().map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) }
    }
}

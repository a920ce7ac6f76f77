// SPDX-License-Identifier: Apache-2.0

// A request: 24 bytes of header, for MAP 36 more (RFC 6887 §7.1, §11.1). Answers have the same layout with the
// result at 3 and the epoch at 8 in place of the client's address.
//
//     0         1    2   3   4          8                24
//     | version | op | 0 | 0 | lifetime | client address |
//     24      36         37  40      42      44              60
//     | nonce | protocol | 0 | inner | outer | outer address |

/// PCP: the newer way to ask a router for a port. RFC 6887.
package enum PCP {
    /// Chosen by us, repeated by the gateway: strangers cannot answer in its place.
    package typealias Nonce = TransactionID

    private static let version: UInt8 = 2
    private static let udp: UInt8 = 17

    /// A gateway's answer.
    package enum Answer: Hashable, Sendable {
        case announced(epoch: UInt32)
        case mapped(external: SocketAddress, internalPort: UInt16, lifetimeSeconds: UInt32, epoch: UInt32)
        /// `lifetimeSeconds`: how long the refusal will hold.
        case refused(operation: UInt8, result: UInt8, lifetimeSeconds: UInt32, epoch: UInt32)
    }

    /// Asks whether the gateway speaks PCP, and for its epoch.
    package static func announceRequest(own: IPAddress) -> [UInt8] { header(0, own: own, lifetimeSeconds: 0) }

    /// Asks for a UDP mapping; lifetime 0 gives it back.
    package static func mapRequest(
        own: IPAddress, nonce: Nonce, internalPort: UInt16, suggested: SocketAddress?, lifetimeSeconds: UInt32
    ) -> [UInt8] {
        header(1, own: own, lifetimeSeconds: lifetimeSeconds) + NATPMP.big(nonce.high) + NATPMP.big(nonce.low)
            + [udp, 0, 0, 0] + NATPMP.big(internalPort) + NATPMP.big(suggested?.port ?? 0)
            + address(suggested?.ip ?? IPAddress(v4: 0))
    }

    private static func header(_ operation: UInt8, own: IPAddress, lifetimeSeconds: UInt32) -> [UInt8] {
        [version, operation, 0, 0] + NATPMP.big(lifetimeSeconds) + address(own)
    }

    /// 16 bytes; IPv4 in its mapped form.
    private static func address(_ ip: IPAddress) -> [UInt8] {
        ip.isV4
            ? [UInt8](repeating: 0, count: 10) + [0xff, 0xff] + NATPMP.big(ip.v4)
            : NATPMP.big(ip.high) + NATPMP.big(ip.low)
    }

    /// Reads an answer. `nonce` must be that of the request: a MAP answer with another one is not ours.
    package static func parse(_ bytes: RawSpan, nonce: Nonce) throws(PortMappingError) -> Answer {
        guard bytes.byteCount >= 24, bytes.byteCount <= 1_100, bytes.wireByte(0) == version else {
            throw .malformed
        }
        let operation = bytes.wireByte(1)
        guard operation >= 0x80 else { throw .unexpectedOperation(operation) }
        let (result, lifetime, epoch) = (bytes.wireByte(3), bytes.wire32(4), bytes.wire32(8))
        if operation == 0x81 {
            guard bytes.byteCount >= 60 else { throw .malformed }
            guard bytes.wire64(24) == nonce.high, bytes.wire32(32) == nonce.low, bytes.wireByte(36) == udp
            else {
                throw .notOurs
            }
        }
        guard result == 0 else {
            return .refused(
                operation: operation & 0x7f, result: result, lifetimeSeconds: lifetime, epoch: epoch)
        }
        switch operation {
        case 0x80: return .announced(epoch: epoch)
        case 0x81:
            let ip = IPAddress(high: bytes.wire64(44), low: bytes.wire64(52)).unmapped
            return .mapped(
                external: SocketAddress(ip, port: bytes.wire16(42)), internalPort: bytes.wire16(40),
                lifetimeSeconds: lifetime, epoch: epoch)
        default: throw .unexpectedOperation(operation)
        }
    }
}

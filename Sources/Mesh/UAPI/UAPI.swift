// SPDX-License-Identifier: Apache-2.0

/// WireGuard's cross-platform configuration protocol, which `wg` and `wg-quick` speak over a unix socket:
/// lines of `key=value`, an operation ends with an empty line, its answer with `errno=N` and an empty line.
/// Pure: `Session` takes the bytes of one client and gives operations, `apply` carries settings out on a
/// device, `Status` writes the answer of `get`. Source: "Cross-platform Userspace Implementation" of
/// wireguard.com, and `wireguard-go` where that is silent.
package enum UAPI {
    /// Bounds on what a client may send. Clients are root, but programs have faults too.
    package struct Limits: Sendable {
        /// Bytes of a line without its end. The longest that means something is a key of 64 digits.
        package var lineBytes = 512
        /// Lines of one operation: 65,536 peers with 16 lines each, and as many prefixes again.
        package var linesPerOperation = 2 << 20
        /// Settings that are handed on at once, so that a long operation does not hold up the tunnel.
        package var settingsPerPiece = 128

        /// The usual bounds.
        package init() {}
    }

    /// Why an operation was refused. The client sees `errorNumber`.
    package enum Failure: Error, Hashable, Sendable {
        /// A line without `=`.
        case syntax
        /// `Limits.lineBytes` exceeded; the connection is closed.
        case lineTooLong
        /// `Limits.linesPerOperation` exceeded.
        case tooManyLines
        /// A key that does not exist, or does not belong here (before or after `public_key`).
        case unknownKey
        /// A value that its key does not take.
        case badValue
        /// A peer's key that no secret can be shared with.
        case unusableKey
        /// `WireGuard.Limits.peers` or `allowedIPs` reached.
        case tooMany
        /// Something else has the port.
        case portInUse
        /// The system refused with this `errno`.
        case system(Int32)

        /// The interface is gone (ENODEV).
        package static let ended = Failure.system(19)

        /// What goes into `errno=`: zero or below, with Linux' numbers.
        package var errorNumber: Int32 {
            switch self {
            case .syntax, .lineTooLong: -71  // EPROTO
            case .unknownKey, .badValue, .unusableKey: -22  // EINVAL
            case .tooManyLines: -7  // E2BIG
            case .tooMany: -28  // ENOSPC
            case .portInUse: -98  // EADDRINUSE
            case .system(let code): code > 0 ? -code : -5  // EIO
            }
        }
    }

    /// Where a peer is: an address, and for link-local IPv6 the interface that it is meant for.
    package struct Endpoint: Hashable, Sendable, CustomStringConvertible {
        /// Address and port. Never an IPv4-mapped IPv6 address.
        package var address: SocketAddress
        /// Name or number of the interface; empty for none.
        package var scope: String

        /// An endpoint.
        package init(_ address: SocketAddress, scope: String = "") {
            self.address = SocketAddress(address.ip.unmapped, port: address.port)
            self.scope = scope
        }

        package var description: String {
            scope.isEmpty ? address.description : "[\(address.ip)%\(scope)]:\(address.port)"
        }
    }

    /// One line of a `set` operation. Lines from `peer` on belong to that peer.
    package enum Setting: Sendable {
        /// `private_key`; nil removes it.
        case privateKey(PrivateKey?)
        /// `listen_port`
        case listenPort(UInt16)
        /// `fwmark`; 0 for none.
        case firewallMark(UInt32)
        /// `replace_peers`
        case replacePeers
        /// `public_key`
        case peer(NodePublicKey)
        /// `remove`
        case remove
        /// `update_only`
        case updateOnly
        /// `preshared_key`; nil removes it.
        case presharedKey(WireGuard.PresharedKey?)
        /// `endpoint`
        case endpoint(Endpoint)
        /// `persistent_keepalive_interval` in seconds; 0 for none.
        case persistentKeepalive(UInt16)
        /// `replace_allowed_ips`
        case replaceAllowedIPs
        /// `allowed_ip`
        case allowedIP(IPPrefix)
        /// `allowed_ip` with a minus sign.
        case noAllowedIP(IPPrefix)
        /// `protocol_version`: there is only one.
        case protocolVersion

        /// Whether it belongs to a peer rather than to the device.
        package var isOfPeer: Bool {
            switch self {
            case .privateKey, .listenPort, .firewallMark, .replacePeers, .peer: false
            default: true
            }
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

/// An IP address and a UDP or TCP port. Written `1.2.3.4:5` or `[::1]:5`.
@frozen
public struct SocketAddress: Hashable, Comparable, Sendable, CustomStringConvertible {
    /// The address.
    public var ip: IPAddress
    /// The port in host order.
    public var port: UInt16

    /// An address with its port.
    @inlinable public init(_ ip: IPAddress, port: UInt16) {
        self.ip = ip
        self.port = port
    }

    /// Reads `1.2.3.4:5` or `[v6]:5`; nil for anything else.
    public init?(_ text: some StringProtocol) {
        guard let colon = text.lastIndex(of: ":"), let port = UInt16(text[text.index(after: colon)...]) else {
            return nil
        }
        let host = text[..<colon]
        if host.hasPrefix("["), host.hasSuffix("]") {
            guard let ip = IPAddress(host.dropFirst().dropLast()), !ip.isV4 else { return nil }
            self.init(ip, port: port)
        } else {
            guard let ip = IPAddress(host), ip.isV4 else { return nil }
            self.init(ip, port: port)
        }
    }

    public static func < (a: SocketAddress, b: SocketAddress) -> Bool {
        a.ip != b.ip ? a.ip < b.ip : a.port < b.port
    }

    public var description: String { ip.isV4 ? "\(ip):\(port)" : "[\(ip)]:\(port)" }
}

/// A network prefix such as `10.0.0.0/8`. Host bits are masked off.
@frozen
public struct IPPrefix: Hashable, Sendable, CustomStringConvertible {
    /// First address of the prefix.
    public let address: IPAddress
    /// Length in bits: 0...32 or 0...128.
    public let bits: Int

    /// Masks off host bits. `bits` must be within the family's width.
    public init(_ address: IPAddress, bits: Int) {
        precondition(0...address.bitWidth ~= bits, "prefix length out of range")
        self.bits = bits
        if address.isV4 {
            self.address = IPAddress(v4: bits == 0 ? 0 : address.v4 & (UInt32.max << UInt32(32 - bits)))
        } else {
            let high = bits >= 64 ? UInt64.max : bits == 0 ? 0 : UInt64.max << UInt64(64 - bits)
            let low = bits <= 64 ? 0 : UInt64.max << UInt64(128 - bits)
            self.address = IPAddress(high: address.high & high, low: address.low & low)
        }
    }

    /// The prefix that holds just this address.
    public init(host address: IPAddress) { self.init(address, bits: address.bitWidth) }

    /// Reads `address/bits`.
    public init?(_ text: some StringProtocol) {
        let parts = text.split(separator: "/", omittingEmptySubsequences: false)
        guard parts.count == 2, let address = IPAddress(parts[0]), let bits = Int(parts[1]),
            0...address.bitWidth ~= bits, parts[1].first != "+"
        else { return nil }
        self.init(address, bits: bits)
    }

    /// Whether the address lies in this prefix. Families never mix.
    public func contains(_ other: IPAddress) -> Bool {
        other.isV4 == address.isV4 && IPPrefix(other, bits: bits).address == address
    }

    public var description: String { "\(address)/\(bits)" }
}

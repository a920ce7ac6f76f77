// SPDX-License-Identifier: Apache-2.0

/// An IPv4 or IPv6 address without a zone. Sixteen bytes in network order; IPv4 is stored in its IPv4-mapped form
/// (`::ffff:a.b.c.d`) with a flag, so that a mapped IPv6 address and the IPv4 address stay apart until `unmapped`.
@frozen
public struct IPAddress: Hashable, Sendable {
    /// Bytes 0...7 as a big-endian number.
    public var high: UInt64
    /// Bytes 8...15 as a big-endian number. An IPv4 address is its low 32 bits.
    public var low: UInt64
    /// Whether this is an IPv4 address.
    public var isV4: Bool

    /// An IPv6 address from its two big-endian halves.
    @inlinable public init(high: UInt64, low: UInt64) {
        self.high = high
        self.low = low
        isV4 = false
    }

    /// An IPv4 address from its big-endian number: `0x7f000001` is 127.0.0.1.
    @inlinable public init(v4: UInt32) {
        high = 0
        low = 0xffff_0000_0000 | UInt64(v4)
        isV4 = true
    }

    /// The IPv4 address as a big-endian number. Meaningless for IPv6.
    @inlinable public var v4: UInt32 { UInt32(truncatingIfNeeded: low) }

    /// 32 or 128.
    @inlinable public var bitWidth: Int { isV4 ? 32 : 128 }

    /// The IPv4 address of an IPv4-mapped IPv6 address; other addresses as they are.
    @inlinable public var unmapped: IPAddress {
        !isV4 && high == 0 && low >> 32 == 0xffff ? IPAddress(v4: v4) : self
    }

    /// `0.0.0.0` or `::`.
    @inlinable public var isUnspecified: Bool { isV4 ? v4 == 0 : high == 0 && low == 0 }
    /// `127.0.0.0/8` or `::1`.
    @inlinable public var isLoopback: Bool { isV4 ? v4 >> 24 == 127 : high == 0 && low == 1 }
    /// `224.0.0.0/4` or `ff00::/8`.
    @inlinable public var isMulticast: Bool { isV4 ? v4 >> 28 == 0xe : high >> 56 == 0xff }
    /// `169.254.0.0/16` or `fe80::/10`.
    @inlinable public var isLinkLocal: Bool { isV4 ? v4 >> 16 == 0xa9fe : high >> 54 == 0x3fa }
    /// RFC 1918 or `fc00::/7`.
    @inlinable public var isPrivate: Bool {
        guard isV4 else { return high >> 57 == 0x7e }
        return v4 >> 24 == 10 || v4 >> 20 == 0xac1 || v4 >> 16 == 0xc0a8
    }

    /// Calls `body` with the address in network order: 4 or 16 bytes.
    @inlinable public func withBytes<R>(_ body: (UnsafeRawBufferPointer) -> R) -> R {
        if isV4 {
            var bytes = v4.bigEndian
            return unsafe withUnsafeBytes(of: &bytes) { unsafe body($0) }
        }
        var bytes = (high.bigEndian, low.bigEndian)
        return unsafe withUnsafeBytes(of: &bytes) { unsafe body($0) }
    }
}

extension IPAddress: Comparable {
    /// IPv4 before IPv6, then by number.
    public static func < (a: IPAddress, b: IPAddress) -> Bool {
        if a.isV4 != b.isV4 { return a.isV4 }
        return a.high != b.high ? a.high < b.high : a.low < b.low
    }
}

extension IPAddress: CustomStringConvertible, LosslessStringConvertible {
    /// Reads `a.b.c.d` (no leading zeros) or an IPv6 address after RFC 4291 §2.2. Zones are refused.
    public init?(_ text: some StringProtocol) {
        if text.contains(":") {
            guard let (high, low) = Self.parseV6(Substring(text)) else { return nil }
            self.init(high: high, low: low)
        } else {
            guard let v4 = Self.parseV4(Substring(text)) else { return nil }
            self.init(v4: v4)
        }
    }

    private static func parseV4(_ text: Substring) -> UInt32? {
        let parts = text.split(separator: ".", omittingEmptySubsequences: false)
        guard parts.count == 4 else { return nil }
        var result: UInt32 = 0
        for part in parts {
            guard (1...3).contains(part.utf8.count), part.utf8.allSatisfy({ (48...57).contains($0) }),
                part.utf8.count == 1 || part.utf8.first != 48, let byte = UInt8(part)
            else { return nil }
            result = result << 8 | UInt32(byte)
        }
        return result
    }

    private static func parseV6(_ text: Substring) -> (UInt64, UInt64)? {
        var halves = [text]
        if let gap = text.firstDoubleColon {
            halves = [text[..<gap], text[text.index(gap, offsetBy: 2)...]]
        }
        guard let front = groups(halves[0], isLast: halves.count == 1) else { return nil }
        var all = front
        if halves.count == 2 {
            guard let back = groups(halves[1], isLast: true), front.count + back.count < 8 else { return nil }
            all += Array(repeating: 0, count: 8 - front.count - back.count) + back
        }
        guard all.count == 8 else { return nil }
        let join = { (part: ArraySlice<UInt16>) in part.reduce(UInt64(0)) { $0 << 16 | UInt64($1) } }
        return (join(all[0..<4]), join(all[4..<8]))
    }

    private static func groups(_ text: Substring, isLast: Bool) -> [UInt16]? {
        guard !text.isEmpty else { return [] }
        let parts = text.split(separator: ":", omittingEmptySubsequences: false)
        guard parts.count <= 8 else { return nil }
        var result: [UInt16] = []
        for (index, part) in parts.enumerated() {
            if isLast, index == parts.count - 1, part.contains(".") {
                guard let v4 = parseV4(part) else { return nil }
                result += [UInt16(v4 >> 16), UInt16(truncatingIfNeeded: v4)]
            } else {
                guard (1...4).contains(part.utf8.count), part.utf8.first != 43, part.utf8.first != 45,
                    let group = UInt16(part, radix: 16)
                else { return nil }
                result.append(group)
            }
        }
        return result
    }

    /// Dotted for IPv4; RFC 5952 for IPv6.
    public var description: String {
        guard !isV4 else { return "\(v4 >> 24).\(v4 >> 16 & 255).\(v4 >> 8 & 255).\(v4 & 255)" }
        if high == 0, low >> 32 == 0xffff { return "::ffff:" + IPAddress(v4: v4).description }
        let groups = (0..<8).map { index in
            UInt16(truncatingIfNeeded: (index < 4 ? high : low) >> UInt64((3 - index % 4) * 16))
        }
        var best = 0..<0
        var start = 0
        while start < 8 {
            var end = start
            while end < 8, groups[end] == 0 { end += 1 }
            if end - start > max(best.count, 1) { best = start..<end }
            start = end + 1
        }
        let text = { (part: ArraySlice<UInt16>) in part.map { String($0, radix: 16) }.joined(separator: ":") }
        guard !best.isEmpty else { return text(groups[...]) }
        return text(groups[..<best.lowerBound]) + "::" + text(groups[best.upperBound...])
    }
}

extension Substring {
    fileprivate var firstDoubleColon: Index? {
        var previous: Index?
        for index in indices {
            if self[index] == ":", let last = previous, self[last] == ":" { return last }
            previous = index
        }
        return nil
    }
}

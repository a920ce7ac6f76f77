// SPDX-License-Identifier: Apache-2.0

/// A UUID as the tailnet and agent APIs carry it: 16 raw bytes. Names a peer, an agent, a workspace, a tunnel's end.
@frozen
public struct RawUUID: Hashable, Sendable, Comparable, CustomStringConvertible, LosslessStringConvertible {
    /// Bytes 0...7 as a big-endian number.
    public let high: UInt64
    /// Bytes 8...15 as a big-endian number.
    public let low: UInt64

    public init(high: UInt64, low: UInt64) {
        self.high = high
        self.low = low
    }

    /// The nil UUID.
    public static let zero = RawUUID(high: 0, low: 0)

    /// Reads exactly 16 bytes.
    public init?(_ bytes: some Collection<UInt8>) {
        guard bytes.count == 16 else { return nil }
        high = bytes.prefix(8).reduce(0) { $0 << 8 | UInt64($1) }
        low = bytes.dropFirst(8).reduce(0) { $0 << 8 | UInt64($1) }
    }

    /// A random UUID of version 4.
    public static func random(using generator: inout some RandomNumberGenerator) -> RawUUID {
        let high = generator.next() & ~0xf000 | 0x4000
        let low = generator.next() & ~(3 << 62) | 1 << 63
        return RawUUID(high: high, low: low)
    }

    /// The 16 bytes. Generic, so that it also makes `Data`.
    public func bytes<C: RangeReplaceableCollection<UInt8>>(as type: C.Type = C.self) -> C {
        var result = C()
        for word in [high, low] {
            for index in 0..<8 { result.append(UInt8(truncatingIfNeeded: word >> UInt64(56 - index * 8))) }
        }
        return result
    }

    /// Reads the usual form `8-4-4-4-12`, in either case.
    public init?(_ text: String) {
        let digits = Array(text.utf8)
        guard digits.count == 36 else { return nil }
        var words: (UInt64, UInt64) = (0, 0)
        for (index, digit) in digits.enumerated() {
            if [8, 13, 18, 23].contains(index) {
                guard digit == UInt8(ascii: "-") else { return nil }
                continue
            }
            guard let value = Character(UnicodeScalar(digit)).hexDigitValue else { return nil }
            words = (words.0 << 4 | words.1 >> 60, words.1 << 4 | UInt64(value))
        }
        self.init(high: words.0, low: words.1)
    }

    public static func < (a: RawUUID, b: RawUUID) -> Bool {
        a.high != b.high ? a.high < b.high : a.low < b.low
    }

    /// Lower case, `8-4-4-4-12`.
    public var description: String {
        let digits = Array("0123456789abcdef".utf8)
        var text: [UInt8] = []
        for (index, byte) in bytes(as: [UInt8].self).enumerated() {
            if [4, 6, 8, 10].contains(index) { text.append(UInt8(ascii: "-")) }
            text += [digits[Int(byte >> 4)], digits[Int(byte & 15)]]
        }
        return String(decoding: text, as: UTF8.self)
    }

    // MARK: - What Coder derives from a UUID (coordinator.md §6)

    /// Node id: the last 8 bytes as a signed number, without its sign. Go's minimum stays negative.
    public var nodeID: Int64 {
        let value = Int64(bitPattern: low)
        return value == .min ? value : abs(value)
    }
}

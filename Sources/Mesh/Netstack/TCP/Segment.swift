// SPDX-License-Identifier: Apache-2.0

/// Control bits of a segment.
struct SegmentFlags: OptionSet {
    let rawValue: UInt8
    static let fin = SegmentFlags(rawValue: 1)
    static let syn = SegmentFlags(rawValue: 2)
    static let rst = SegmentFlags(rawValue: 4)
    static let psh = SegmentFlags(rawValue: 8)
    static let ack = SegmentFlags(rawValue: 16)
}

/// A pair of sequence numbers of a SACK block.
struct SACKBlock {
    var start: SequenceNumber
    var end: SequenceNumber
}

/// A received TCP segment, parsed; the payload is borrowed from the packet.
///
///     0: source port, destination port   4: sequence   8: acknowledgement
///     12: offset4|0, flags   14: window   16: checksum   18: urgent (ignored)   20: options
struct Segment {
    /// 20 bytes. RFC 9293 §3.1.
    static let headerSize = 20
    /// 40 bytes: the offset field counts to 15 words.
    static let optionsLimit = 40

    var sourcePort: UInt16
    var destinationPort: UInt16
    var sequence: SequenceNumber
    var acknowledgement: SequenceNumber
    var flags: SegmentFlags
    var window: UInt16
    var headerLength: Int
    var payloadLength: Int
    /// Largest segment the sender takes, from its SYN.
    var maximumSize: Int?
    /// Window shift, from its SYN, at most 14.
    var windowShift: UInt8?
    var sackPermitted = false
    var hasTimestamp = false
    var timestamp: UInt32 = 0
    var timestampEcho: UInt32 = 0
    var sackCount = 0
    var sacks = (SACKBlock.none, SACKBlock.none, SACKBlock.none, SACKBlock.none)

    /// Sequence space taken: bytes, SYN and FIN.
    var length: Int {
        payloadLength + (flags.contains(.syn) ? 1 : 0) + (flags.contains(.fin) ? 1 : 0)
    }

    /// The `index`th SACK block.
    func sack(_ index: Int) -> SACKBlock {
        switch index {
        case 0: sacks.0
        case 1: sacks.1
        case 2: sacks.2
        default: sacks.3
        }
    }

    /// Reads header and options of `bytes`, the payload of an IP packet. Nil when malformed. The checksum is the
    /// caller's business.
    static func parse(_ bytes: PacketBytes) -> Segment? {
        guard bytes.count >= headerSize else { return nil }
        let headerLength = Int(bytes.u8(12) >> 4) * 4
        guard headerLength >= headerSize, headerLength <= bytes.count else { return nil }
        var segment = Segment(
            sourcePort: bytes.u16(0), destinationPort: bytes.u16(2), sequence: SequenceNumber(bytes.u32(4)),
            acknowledgement: SequenceNumber(bytes.u32(8)), flags: SegmentFlags(rawValue: bytes.u8(13) & 0x1f),
            window: bytes.u16(14), headerLength: headerLength, payloadLength: bytes.count - headerLength)
        if headerLength == headerSize + 12, bytes.u32(20) == 0x0101_080a {  // what everyone sends
            segment.hasTimestamp = true
            segment.timestamp = bytes.u32(24)
            segment.timestampEcho = bytes.u32(28)
        } else if headerLength > headerSize {
            segment.parseOptions(bytes.slice(headerSize, headerLength - headerSize))
        }
        return segment
    }

    private mutating func parseOptions(_ options: PacketBytes) {
        var at = 0
        while at < options.count {
            let kind = options.u8(at)
            if kind == 0 { return }
            if kind == 1 {
                at += 1
                continue
            }
            guard at + 2 <= options.count else { return }
            let size = Int(options.u8(at + 1))
            guard size >= 2, at + size <= options.count else { return }
            parseOption(kind, options.slice(at, size))
            at += size
        }
    }

    private mutating func parseOption(_ kind: UInt8, _ option: PacketBytes) {
        switch (kind, option.count) {
        case (2, 4) where flags.contains(.syn): maximumSize = Int(option.u16(2))
        case (3, 3) where flags.contains(.syn): windowShift = min(option.u8(2), 14)  // RFC 7323 §2.3
        case (4, 2) where flags.contains(.syn): sackPermitted = true
        case (8, 10):
            hasTimestamp = true
            timestamp = option.u32(2)
            timestampEcho = option.u32(6)
        case (5, 10), (5, 18), (5, 26), (5, 34): parseSACK(option)
        default: break
        }
    }

    private mutating func parseSACK(_ option: PacketBytes) {
        sackCount = (option.count - 2) / 8
        for index in 0..<sackCount {
            let block = SACKBlock(
                start: SequenceNumber(option.u32(2 + index * 8)),
                end: SequenceNumber(option.u32(6 + index * 8)))
            switch index {
            case 0: sacks.0 = block
            case 1: sacks.1 = block
            case 2: sacks.2 = block
            default: sacks.3 = block
            }
        }
    }
}

extension SACKBlock {
    fileprivate static var none: SACKBlock { SACKBlock(start: SequenceNumber(0), end: SequenceNumber(0)) }
}

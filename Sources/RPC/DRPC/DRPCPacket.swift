// SPDX-License-Identifier: Apache-2.0

// dRPC frame. Source: rpc-transport §4.1, storj dRPC v0.0.34.
//
//     | control (1 byte) | stream id (varint) | message id (varint) | data length (varint) | data… |
//
// Control: bit 0 done, bits 1–6 kind, bit 7 "ignore me if you do not know the kind".
// All frames of one (stream, message) id up to a done frame make a packet.

/// Why a dRPC transport died. All of these are the peer's fault and fatal for its yamux stream.
public enum DRPCError: Error, Hashable, Sendable {
    /// A number that does not end after ten groups.
    case overlongNumber
    /// A frame with a lower (stream, message) id than before, or with an id of 0.
    case idWentDown
    /// Frames of one packet that disagree about its kind.
    case kindChanged
    /// A packet above the limit.
    case packetTooLarge(limit: Int)
    /// A kind that we do not know, not marked as ignorable.
    case unknownKind(UInt8)
    /// The server started a call, or a call was started with the id of the current one.
    case unexpectedInvoke
    /// Metadata that is not a map of strings.
    case malformedMetadata
    /// The name of a call is not UTF-8, or absurdly long.
    case malformedName
}

/// One packet: what a call's end says to the other.
public struct DRPCPacket: Hashable, Sendable {
    /// Meaning of a packet. rpc-transport §4.2.
    public enum Kind: UInt8, Sendable {
        /// Starts a call; the data is its name.
        case invoke = 1
        case message = 2
        /// Ends the call: code and text.
        case error = 3
        case cancel = 4
        /// Ends the call.
        case close = 5
        /// The sender has no more messages.
        case closeSend = 6
        /// Headers of the call whose Invoke follows.
        case invokeMetadata = 7
    }

    /// Number of the call on this transport, from 1.
    public var stream: UInt64
    /// Number of the packet of this direction, from 1.
    public var message: UInt64
    /// The raw kind, 0...63; `Kind(rawValue:)` may not know it.
    public var kind: UInt8
    /// Whether a receiver that does not know the kind shall ignore the packet.
    public var isControl: Bool
    public var data: [UInt8]

    public init(stream: UInt64, message: UInt64, kind: UInt8, isControl: Bool = false, data: [UInt8] = []) {
        self.stream = stream
        self.message = message
        self.kind = kind
        self.isControl = isControl
        self.data = data
    }

    /// 64 KiB: data bytes of one frame as upstream cuts them; receivers take any size. rpc-transport §4.1.
    public static let splitSize = 65_536

    /// Appends the packet as one or more frames.
    public func write(into output: inout [UInt8], splitSize: Int = DRPCPacket.splitSize) {
        var rest = data[...]
        repeat {
            let part = rest.prefix(splitSize)
            rest = rest.dropFirst(part.count)
            output.append((isControl ? 0x80 : 0) | (kind & 0x3f) << 1 | (rest.isEmpty ? 1 : 0))
            Self.appendNumber(stream, to: &output)
            Self.appendNumber(message, to: &output)
            Self.appendNumber(UInt64(part.count), to: &output)
            output += part
        } while !rest.isEmpty
    }

    /// Appends a varint: little-endian groups of seven bits, high bit set on all but the last.
    public static func appendNumber(_ number: UInt64, to output: inout [UInt8]) {
        var rest = number
        while rest >= 0x80 {
            output.append(UInt8(truncatingIfNeeded: rest) | 0x80)
            rest >>= 7
        }
        output.append(UInt8(rest))
    }
}

/// Puts packets together from bytes that arrive split in any way.
public struct DRPCPacketReader: Sendable {
    /// 4 MiB: the largest packet that either side of upstream takes. rpc-transport §4.1.
    public static let maximumPacketSize = 4 << 20

    private enum Step {
        case control
        case number(index: Int)
        case data
    }

    private let limit: Int
    private var step = Step.control
    private var numbers: (stream: UInt64, message: UInt64, length: UInt64) = (0, 0, 0)
    private var number: UInt64 = 0
    private var shift: UInt64 = 0
    private var control: UInt8 = 0
    private var dataLeft = 0
    /// The lowest id that the next frame may have.
    private var floor: (stream: UInt64, message: UInt64) = (1, 1)
    private var partial: DRPCPacket?
    private var input: ArraySlice<UInt8> = []

    public init(limit: Int = DRPCPacketReader.maximumPacketSize) { self.limit = limit }

    /// Bytes held back: unread input and the packet in the making.
    public var bufferedCount: Int { input.count + (partial?.data.count ?? 0) }

    /// Adds input. Take all packets before adding more, so that little is copied.
    public mutating func append(_ bytes: [UInt8]) {
        if input.isEmpty { input = bytes[...] } else { input += bytes }
    }

    /// The next whole packet, or nil when more input is needed.
    public mutating func nextPacket() throws(DRPCError) -> DRPCPacket? {
        while true {
            if case .data = step {
                let part = input.prefix(dataLeft)
                partial?.data += part
                input = input.dropFirst(part.count)
                dataLeft -= part.count
                guard dataLeft == 0 else { return nil }
                step = .control
                if control & 1 != 0 { return finishPacket() }
                continue
            }
            guard let byte = input.popFirst() else { return nil }
            try takeHeader(byte)
        }
    }

    private mutating func takeHeader(_ byte: UInt8) throws(DRPCError) {
        guard case .number(let index) = step else {
            control = byte
            step = .number(index: 0)
            (number, shift) = (0, 0)
            return
        }
        guard shift < 64 else { throw .overlongNumber }
        number |= UInt64(byte & 0x7f) << shift  // bits beyond 64 fall off, as upstream
        shift += 7
        guard byte & 0x80 == 0 else {
            guard shift < 64 else { throw .overlongNumber }
            return
        }
        switch index {
        case 0: numbers.stream = number
        case 1: numbers.message = number
        default: numbers.length = number
        }
        (number, shift) = (0, 0)
        if index < 2 {
            step = .number(index: index + 1)
        } else {
            try startData()
        }
    }

    private mutating func startData() throws(DRPCError) {
        let id = (numbers.stream, numbers.message)
        guard id.0 > 0, id.1 > 0, id >= floor else { throw .idWentDown }
        let kind = control >> 1 & 0x3f
        if let packet = partial, (packet.stream, packet.message) == id {
            guard packet.kind == kind else { throw .kindChanged }
            partial?.isControl = control & 0x80 != 0
        } else {
            // A higher id discards an unfinished packet.
            partial = DRPCPacket(stream: id.0, message: id.1, kind: kind, isControl: control & 0x80 != 0)
        }
        floor = id
        guard let length = Int(exactly: numbers.length), length <= limit - (partial?.data.count ?? 0) else {
            throw .packetTooLarge(limit: limit)
        }
        dataLeft = length
        step = .data
    }

    private mutating func finishPacket() -> DRPCPacket? {
        let (next, overflow) = floor.message.addingReportingOverflow(1)
        floor = overflow ? (floor.stream.addingReportingOverflow(1).partialValue, 1) : (floor.stream, next)
        defer { partial = nil }
        return partial
    }
}

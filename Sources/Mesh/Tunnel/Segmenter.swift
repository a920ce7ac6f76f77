// SPDX-License-Identifier: Apache-2.0

/// Cuts one packet from the TUN device into the packets that it stands for, where it lies: each segment's
/// header is written right before its payload, over the end of the segment before, which must be used up by
/// then. Pure.
///
/// A packet that is no super-packet is one segment; its checksum is completed if it is missing.
@safe package struct Segmenter {
    /// Longest header: IPv4 or IPv6 with some extensions, and TCP. Longer ones are refused.
    package static let headerLimit = 256

    /// How many packets result.
    package let count: Int
    private let packet: UnsafeMutableRawPointer
    private let length: Int
    private let kind: VirtioHeader.Kind
    private let isV4: Bool
    private let transport: Int
    /// Bytes before the payload; 0 when the packet is taken as it is.
    private let header: Int
    private let segmentSize: Int
    private let firstSequence: UInt32
    private let firstIdentifier: UInt16
    private let flags: UInt8
    /// Checksums of the header's constant parts.
    private var networkSum: UInt64 = 0
    private var transportSum: UInt64 = 0

    /// Looks at a packet of `length` bytes. `template` has room for `headerLimit` bytes and is handed to
    /// every call of `segment`. Nil: malformed, or of a kind that cannot be cut.
    package init?(
        packet: UnsafeMutableRawPointer, length: Int, as virtio: VirtioHeader,
        template: UnsafeMutableRawPointer
    ) {
        guard length >= 20 else { return nil }
        let version = unsafe packet.loadByte(0) >> 4
        guard version == 4 || version == 6 && length >= 40 else { return nil }
        unsafe self.packet = packet
        self.length = length
        isV4 = version == 4
        let start = Int(virtio.checksumStart)
        transport = start
        guard virtio.kind != .plain else {
            kind = .plain
            header = 0
            segmentSize = length
            count = 1
            firstSequence = 0
            firstIdentifier = 0
            flags = 0
            if virtio.needsChecksum {
                let place = start + Int(virtio.checksumOffset)
                guard start >= 20, place + 2 <= length else { return nil }
                unsafe Self.completeChecksum(packet, length: length, start: start, place: place)
            }
            return
        }
        kind = virtio.kind
        guard virtio.kind != .tcp4 || isV4, virtio.kind != .tcp6 || !isV4 else { return nil }
        guard start >= (isV4 ? 20 : 40), length >= start + (virtio.kind == .udp ? 8 : 20) else { return nil }
        let end = virtio.kind == .udp ? start + 8 : start + Int(unsafe packet.loadByte(start + 12) >> 4) * 4
        segmentSize = Int(virtio.segmentSize)
        guard end >= start + 8, virtio.kind == .udp || end >= start + 20, end < length,
            end <= Self.headerLimit, segmentSize > 0
        else { return nil }
        header = end
        count = (length - end + segmentSize - 1) / segmentSize
        firstIdentifier = unsafe isV4 ? packet.loadBig16(4) : 0
        let isTCP = virtio.kind != .udp
        firstSequence = unsafe isTCP ? packet.loadBig32(start + 4) : 0
        flags = unsafe isTCP ? packet.loadByte(start + 13) : 0
        unsafe prepare(template)
    }

    /// Copies the header and sums up what is the same in every segment.
    private mutating func prepare(_ template: UnsafeMutableRawPointer) {
        unsafe template.copyMemory(from: packet, byteCount: header)
        if isV4 {
            unsafe template.storeBig16(0, at: 2)
            unsafe template.storeBig16(0, at: 4)
            unsafe template.storeBig16(0, at: 10)
            networkSum = unsafe template.checksum(0, transport)
        }
        if kind == .udp {
            unsafe template.storeBig32(0, at: transport + 4)
        } else {
            unsafe template.storeBig32(0, at: transport + 4)
            unsafe template.storeBytes(of: 0, toByteOffset: transport + 13, as: UInt8.self)
            unsafe template.storeBig16(0, at: transport + 16)
        }
        transportSum = unsafe template.checksum(transport, header - transport)
        transportSum &+= unsafe template.pseudoHeaderSum(isV4: isV4, kind: kind == .udp ? 17 : 6)
    }

    /// Makes segment `index` complete and gives its place. Call in order; a segment is void once the next
    /// one was made.
    @inline(__always)
    package func segment(
        _ index: Int, template: UnsafeMutableRawPointer
    ) -> (start: UnsafeMutableRawPointer, length: Int) {
        guard header > 0 else { return unsafe (packet, length) }
        let offset = index * segmentSize
        let payload = min(segmentSize, length - header - offset)
        let start = unsafe packet + offset
        let total = header + payload
        unsafe start.copyMemory(from: template, byteCount: header)
        if isV4 {
            let identifier = firstIdentifier &+ UInt16(truncatingIfNeeded: index)
            let totalLength = UInt16(truncatingIfNeeded: total)
            unsafe start.storeBig16(totalLength, at: 2)
            unsafe start.storeBig16(identifier, at: 4)
            let sum = networkSum &+ UInt64(totalLength.bigEndian) &+ UInt64(identifier.bigEndian)
            unsafe start.storeBytes(of: Checksum.finish(sum), toByteOffset: 10, as: UInt16.self)
        } else {
            unsafe start.storeBig16(UInt16(truncatingIfNeeded: total - 40), at: 4)
        }
        var sum = transportSum &+ Checksum.length(total - transport)
        sum = unsafe start.checksum(header, payload, sum)
        if kind == .udp {
            let datagram = UInt16(truncatingIfNeeded: total - transport)
            unsafe start.storeBig16(datagram, at: transport + 4)
            sum &+= UInt64(datagram.bigEndian)
            let result = Checksum.finish(sum)
            // RFC 768: a checksum of zero is sent as all ones.
            let checksum = result == 0 ? 0xffff : result
            unsafe start.storeBytes(of: checksum, toByteOffset: transport + 6, as: UInt16.self)
            return unsafe (start, total)
        }
        let sequence = firstSequence &+ UInt32(truncatingIfNeeded: offset)
        var flags = self.flags
        // FIN and PSH belong to the last byte, CWR to the first segment.
        if index < count - 1 { flags &= ~0x09 }
        if index > 0 { flags &= ~0x80 }
        unsafe start.storeBig32(sequence, at: transport + 4)
        unsafe start.storeBytes(of: flags, toByteOffset: transport + 13, as: UInt8.self)
        sum &+= UInt64(sequence.bigEndian) &+ UInt64(UInt16(flags).bigEndian)
        unsafe start.storeBytes(of: Checksum.finish(sum), toByteOffset: transport + 16, as: UInt16.self)
        return unsafe (start, total)
    }

    /// The field holds the sum of the pseudo header; adds everything behind it.
    private static func completeChecksum(
        _ packet: UnsafeMutableRawPointer, length: Int, start: Int, place: Int
    ) {
        let result = unsafe Checksum.finish(packet.checksum(start, length - start))
        // RFC 768: zero means "no checksum" in UDP; all ones is the same number.
        unsafe packet.storeBytes(of: result == 0 ? 0xffff : result, toByteOffset: place, as: UInt16.self)
    }
}

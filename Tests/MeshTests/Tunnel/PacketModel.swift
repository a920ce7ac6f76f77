// SPDX-License-Identifier: Apache-2.0

import Mesh

/// A TCP or UDP packet in words, and its bytes made the slow and obvious way.
struct PacketModel: Equatable {
    var isV4 = true
    var isTCP = true
    var source: [UInt8] = [10, 0, 0, 1]
    var destination: [UInt8] = [10, 0, 0, 2]
    var ports: (UInt16, UInt16) = (1_000, 2_000)
    var identifier: UInt16 = 7
    var mayFragment = false
    var timeToLive: UInt8 = 64
    var service: UInt8 = 0
    var sequence: UInt32 = 1
    var acknowledgement: UInt32 = 2
    var flags: UInt8 = 0x10
    var window: UInt16 = 500
    /// Multiple of four bytes.
    var options: [UInt8] = []
    var payload: [UInt8] = []

    static func == (a: Self, b: Self) -> Bool { a.bytes == b.bytes }

    var networkLength: Int { isV4 ? 20 : 40 }
    var headerLength: Int { networkLength + (isTCP ? 20 + options.count : 8) }

    private static func big(_ value: UInt16) -> [UInt8] { [UInt8(value >> 8), UInt8(value & 255)] }
    private static func big(_ value: UInt32) -> [UInt8] {
        big(UInt16(value >> 16)) + big(UInt16(value & 0xffff))
    }

    /// RFC 1071, byte by byte.
    static func sum(_ bytes: [UInt8]) -> UInt16 {
        var total: UInt32 = 0
        for (index, byte) in bytes.enumerated() { total += UInt32(byte) << (index % 2 == 0 ? 8 : 0) }
        while total > 0xffff { total = (total & 0xffff) + (total >> 16) }
        return UInt16(total)
    }

    private func pseudoHeader(_ length: Int) -> [UInt8] {
        source + destination + Self.big(UInt32(length)) + [0, 0, 0, isTCP ? 6 : 17]
    }

    private func network(_ length: Int) -> [UInt8] {
        guard isV4 else {
            return [0x60 | service >> 4, service << 4, 0, 0] + Self.big(UInt16(length))
                + [isTCP ? 6 : 17, timeToLive] + source + destination
        }
        var header: [UInt8] = [0x45, service] + Self.big(UInt16(length + 20)) + Self.big(identifier)
        header += [mayFragment ? 0 : 0x40, 0, timeToLive, isTCP ? 6 : 17, 0, 0] + source + destination
        let checksum = ~Self.sum(header)
        header[10] = UInt8(checksum >> 8)
        header[11] = UInt8(checksum & 255)
        return header
    }

    private func transport(checksum: UInt16) -> [UInt8] {
        var result = Self.big(ports.0) + Self.big(ports.1)
        if isTCP {
            result += Self.big(sequence) + Self.big(acknowledgement)
            result += [UInt8(20 + options.count) << 2, flags] + Self.big(window)
            result += Self.big(checksum) + [0, 0] + options
        } else {
            result += Self.big(UInt16(8 + payload.count)) + Self.big(checksum)
        }
        return result + payload
    }

    /// Complete, as on a wire.
    var bytes: [UInt8] {
        let bare = transport(checksum: 0)
        var checksum = ~Self.sum(pseudoHeader(bare.count) + bare)
        if !isTCP, checksum == 0 { checksum = 0xffff }
        let whole = transport(checksum: checksum)
        return network(whole.count) + whole
    }

    /// As the kernel hands a packet without checksum over: only the pseudo header is summed up.
    var partialBytes: [UInt8] {
        let length = transport(checksum: 0).count
        let whole = transport(checksum: Self.sum(pseudoHeader(length)))
        return network(whole.count) + whole
    }

    /// The packets that a super-packet of this content stands for.
    func cut(every size: Int) -> [PacketModel] {
        stride(from: 0, to: payload.count, by: size).enumerated().map { index, start in
            var part = self
            part.payload = Array(payload[start..<min(start + size, payload.count)])
            part.identifier = identifier &+ UInt16(index)
            part.sequence = sequence &+ UInt32(start)
            if start + size < payload.count { part.flags &= ~0x09 }
            if index > 0 { part.flags &= ~0x80 }
            return part
        }
    }

    /// What the virtio header of such a super-packet says.
    func virtio(segmentSize: Int) -> VirtioHeader {
        var header = VirtioHeader()
        header.needsChecksum = true
        header.kind = isTCP ? (isV4 ? .tcp4 : .tcp6) : .udp
        header.headerLength = UInt16(headerLength)
        header.segmentSize = UInt16(segmentSize)
        header.checksumStart = UInt16(networkLength)
        header.checksumOffset = isTCP ? 16 : 6
        return header
    }

    /// Any of the kinds, with a payload of `count` bytes.
    static func random(_ generator: inout SeededGenerator, count: Int) -> PacketModel {
        var packet = PacketModel()
        packet.isV4 = Bool.random(using: &generator)
        packet.isTCP = Bool.random(using: &generator)
        let width = packet.isV4 ? 4 : 16
        packet.source = (0..<width).map { _ in UInt8.random(in: 0...255, using: &generator) }
        packet.destination = (0..<width).map { _ in UInt8.random(in: 0...255, using: &generator) }
        packet.ports = (
            UInt16.random(in: 0...65_535, using: &generator), UInt16.random(in: 0...65_535, using: &generator)
        )
        packet.identifier = UInt16.random(in: 0...65_535, using: &generator)
        packet.mayFragment = Bool.random(using: &generator)
        packet.timeToLive = UInt8.random(in: 1...255, using: &generator)
        packet.service = UInt8.random(in: 0...255, using: &generator)
        packet.sequence = UInt32.random(in: 0...UInt32.max, using: &generator)
        packet.acknowledgement = UInt32.random(in: 0...UInt32.max, using: &generator)
        packet.window = UInt16.random(in: 0...65_535, using: &generator)
        let words = packet.isTCP ? Int.random(in: 0...10, using: &generator) : 0
        packet.options = (0..<words * 4).map { _ in UInt8.random(in: 0...255, using: &generator) }
        packet.payload = (0..<count).map { _ in UInt8.random(in: 0...255, using: &generator) }
        return packet
    }
}

/// Runs the segmenter over bytes with its surroundings watched.
enum Cutting {
    /// The packets that result; nil when the bytes are refused. Traps when a segment lies outside of the packet.
    static func cut(_ bytes: [UInt8], _ virtio: VirtioHeader) -> [[UInt8]]? {
        var memory = bytes + [UInt8](repeating: 0, count: 64)
        var template = [UInt8](repeating: 0, count: Segmenter.headerLimit)
        return memory.withUnsafeMutableBytes { memory in
            template.withUnsafeMutableBytes { template in
                let base = memory.baseAddress!
                guard
                    let segmenter = Segmenter(
                        packet: base, length: bytes.count, as: virtio, template: template.baseAddress!)
                else { return nil }
                return (0..<segmenter.count).map { index in
                    let segment = segmenter.segment(index, template: template.baseAddress!)
                    precondition(segment.start >= base && segment.length > 0)
                    precondition(segment.start + segment.length <= base + bytes.count)
                    return Array(UnsafeRawBufferPointer(start: segment.start, count: segment.length))
                }
            }
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

/// Joining packets: what comes out, cut again, is what went in, in the order of each flow.
@Suite struct CoalescerTests {
    /// What a group says, with its bytes.
    struct Output {
        let virtio: VirtioHeader
        let bytes: [UInt8]
        let pieces: Int
    }

    func join(_ packets: [[UInt8]], tcp: Bool = true, udp: Bool = true) -> [Output] {
        var coalescer = Coalescer(joinsTCP: tcp, joinsUDP: udp)
        var memory = packets.flatMap { $0 }
        return memory.withUnsafeMutableBytes { memory in
            var offset = 0
            for packet in packets {
                coalescer.add(memory.baseAddress! + offset, length: packet.count)
                offset += packet.count
            }
            return (0..<coalescer.count).map { index in
                var header = [UInt8](repeating: 0, count: VirtioHeader.size)
                return header.withUnsafeMutableBytes { header in
                    var bytes: [UInt8] = []
                    var pieces = 0
                    coalescer.finish(index, virtio: header.baseAddress!) { start, length in
                        bytes += UnsafeRawBufferPointer(start: start, count: length)
                        pieces += 1
                    }
                    return Output(
                        virtio: VirtioHeader(at: header.baseAddress!)!, bytes: bytes, pieces: pieces)
                }
            }
        }
    }

    /// Cuts all groups again.
    func cut(_ outputs: [Output]) -> [[UInt8]] {
        outputs.flatMap { output in
            output.pieces > 1 ? Cutting.cut(output.bytes, output.virtio) ?? [] : [output.bytes]
        }
    }

    /// Without what RFC 6864 calls meaningless: the identifier of a packet that may not be fragmented.
    private func essence(_ packet: [UInt8]) -> [UInt8] {
        guard packet[0] >> 4 == 4, packet[6] & 0x40 != 0 else { return packet }
        return Array(packet[..<4]) + packet[6..<10] + packet[12...]
    }

    @Test func aStreamBecomesOnePacket() throws {
        var packet = PacketModel(options: [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2])
        packet.payload = (0..<44 * 1_368 + 100).map { UInt8(truncatingIfNeeded: $0 / 3) }
        packet.flags = 0x18
        let parts = packet.cut(every: 1_368).map(\.bytes)
        let outputs = join(parts)
        try #require(outputs.count == 1)
        #expect(outputs[0].pieces == 45)
        #expect(outputs[0].bytes == packet.partialBytes)
        #expect(outputs[0].virtio == packet.virtio(segmentSize: 1_368))
    }

    @Test func datagramsBecomeOnePacket() throws {
        for isV4 in [true, false] {
            var packet = PacketModel(isV4: isV4, isTCP: false)
            if !isV4 {
                packet.source = [UInt8](repeating: 1, count: 16)
                packet.destination = [UInt8](repeating: 2, count: 16)
            }
            packet.payload = (0..<63 * 64 + 9).map { UInt8(truncatingIfNeeded: $0) }
            let parts = packet.cut(every: 64).map(\.bytes)
            let outputs = join(parts)
            try #require(outputs.count == 1)
            #expect(outputs[0].bytes == packet.partialBytes)
            #expect(outputs[0].virtio == packet.virtio(segmentSize: 64))
            #expect(join(parts + parts).count == 2, "64 datagrams and no more; the short one ends a group")
            #expect(join(parts, udp: false).count == 64)
        }
    }

    /// Flows interleaved, with losses, repetitions, other flags, wrong checksums, fragments, noise.
    @Test(arguments: 0..<40) func nothingIsLostOrReordered(_ seed: UInt64) {
        var generator = SeededGenerator(seed: seed)
        var queues: [[[UInt8]]] = []
        for _ in 0..<Int.random(in: 1...6, using: &generator) {
            var packet = PacketModel.random(&generator, count: Int.random(in: 1...30_000, using: &generator))
            packet.flags = Bool.random(using: &generator) ? 0x10 : 0x18
            let size = Int.random(in: 200...1_460, using: &generator)
            var parts: [[UInt8]] = []
            for part in packet.cut(every: size) { parts += damage(part, &generator) }
            queues.append(parts)
        }
        var packets: [[UInt8]] = []
        while let index = queues.indices.filter({ !queues[$0].isEmpty }).randomElement(using: &generator) {
            let count = min(queues[index].count, Int.random(in: 1...12, using: &generator))
            packets += queues[index].prefix(count)
            queues[index].removeFirst(count)
        }
        let outputs = join(packets)
        let result = cut(outputs)
        #expect(result.count == packets.count, "seed \(seed)")
        // Per flow, that is by addresses and ports: the same packets in the same order.
        func byFlow(_ packets: [[UInt8]]) -> [[UInt8]: [[UInt8]]] {
            Dictionary(grouping: packets) { packet in
                Array(packet[0] >> 4 == 4 ? packet[12..<24] : packet[8..<44])
            }.mapValues { $0.map(essence) }
        }
        let isSame = byFlow(result) == byFlow(packets)
        #expect(isSame, "seed \(seed)")
        #expect(outputs.allSatisfy { $0.pieces <= Coalescer.segmentLimit && $0.bytes.count <= 65_535 })
    }

    /// Usually the packet; sometimes none, two, or one that differs.
    private func damage(_ packet: PacketModel, _ generator: inout SeededGenerator) -> [[UInt8]] {
        var packet = packet
        switch Int.random(in: 0..<40, using: &generator) {
        case 0: return []
        case 1: return [packet.bytes, packet.bytes]
        case 2: packet.flags = 0x12
        case 3: packet.window &+= 1
        case 4: packet.timeToLive ^= 1
        case 5: packet.service ^= 2
        case 6: packet.acknowledgement &+= 1
        case 7: packet.payload = []
        case 8:
            var bytes = packet.bytes
            bytes[bytes.count - 1] ^= 1
            return [bytes]
        case 9 where packet.isV4:
            var bytes = packet.bytes
            bytes[6] |= 0x20
            return [bytes]
        case 10: packet.options = packet.options.map { $0 ^ 1 }
        case 11: packet.mayFragment.toggle()
        case 12 where !packet.isTCP:
            var bytes = packet.bytes
            (bytes[packet.networkLength + 6], bytes[packet.networkLength + 7]) = (0, 0)
            return [bytes]
        case 13 where packet.isV4:
            var bytes = packet.bytes
            bytes[10] ^= 0x40
            return [bytes]
        default: break
        }
        return [packet.bytes]
    }

    /// A wrong checksum must reach the kernel as it is: joined, it would become right.
    @Test func wrongChecksumsStayWrong() {
        let packet = PacketModel(payload: [UInt8](repeating: 3, count: 3_000))
        var parts = packet.cut(every: 1_000).map(\.bytes)
        parts[1][500] ^= 0x10
        let outputs = join(parts)
        #expect(outputs.map(\.pieces) == [1, 1, 1])
        #expect(outputs.map(\.bytes) == parts)
        parts[0][500] ^= 0x10
        #expect(join(parts).map(\.bytes) == parts)
    }

    /// Any bytes that begin like a packet of that length.
    @Test(arguments: 0..<4) func noiseDoesNotCrash(_ seed: UInt64) {
        var generator = SeededGenerator(seed: seed)
        for _ in 0..<60 {
            let packets = (0..<40).map { _ -> [UInt8] in
                let count = Int.random(in: 20...120, using: &generator)
                var bytes = (0..<count).map { _ in UInt8.random(in: 0...255, using: &generator) }
                bytes[0] = count >= 40 && Bool.random(using: &generator) ? 0x60 : 0x45
                bytes[bytes[0] == 0x45 ? 9 : 6] = Bool.random(using: &generator) ? 6 : 17
                return bytes
            }
            #expect(cut(join(packets)) == packets)
        }
    }
}

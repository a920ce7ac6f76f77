// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

/// Cutting super-packets, against `PacketModel`.
@Suite struct SegmenterTests {
    @Test(arguments: 0..<8) func superPacketsBecomeWhatTheyStandFor(_ seed: UInt64) {
        var generator = SeededGenerator(seed: seed)
        for _ in 0..<120 {
            let count = Int.random(in: 1...20_000, using: &generator)
            var packet = PacketModel.random(&generator, count: count)
            packet.flags = UInt8.random(in: 0...255, using: &generator)
            let size = Int.random(in: max(1, count / 300)...max(1, min(count, 1_460)), using: &generator)
            let expected = packet.cut(every: size).map(\.bytes)
            let result = Cutting.cut(packet.partialBytes, packet.virtio(segmentSize: size))
            let isSame = result == expected
            #expect(isSame, "seed \(seed), \(count) bytes in segments of \(size)")
        }
    }

    @Test func largestSuperPacket() {
        var packet = PacketModel()
        packet.options = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]
        packet.payload = (0..<65_483).map { UInt8(truncatingIfNeeded: $0) }
        let result = Cutting.cut(packet.partialBytes, packet.virtio(segmentSize: 1_368))
        #expect(result?.count == 48)
        #expect(result == packet.cut(every: 1_368).map(\.bytes))
    }

    /// One packet whose checksum the kernel left to us, of every length; and one that is complete.
    @Test func checksumsAreCompleted() {
        var generator = SeededGenerator(seed: 1)
        for count in 0..<300 {
            let packet = PacketModel.random(&generator, count: count)
            var virtio = packet.virtio(segmentSize: 0)
            virtio.kind = .plain
            #expect(Cutting.cut(packet.partialBytes, virtio) == [packet.bytes])
            #expect(Cutting.cut(packet.bytes, VirtioHeader()) == [packet.bytes])
        }
    }

    /// A UDP checksum that comes out as zero is sent as all ones: RFC 768.
    @Test func zeroIsAllOnes() throws {
        var packet = PacketModel(isTCP: false, payload: [0, 0])
        let bare = packet.bytes
        // The complement of the sum in the payload makes the sum zero.
        packet.payload = [bare[26], bare[27]]
        var virtio = packet.virtio(segmentSize: 0)
        virtio.kind = .plain
        let result = try #require(Cutting.cut(packet.partialBytes, virtio))
        #expect(Array(result[0][26..<28]) == [0xff, 0xff])
        #expect(result == [packet.bytes])
    }

    @Test func malformedOnesAreRefused() {
        let packet = PacketModel(payload: [UInt8](repeating: 1, count: 3_000))
        let bytes = packet.partialBytes
        let good = packet.virtio(segmentSize: 1_000)
        func refused(_ bytes: [UInt8], _ change: (inout VirtioHeader) -> Void = { _ in }) -> Bool {
            var virtio = good
            change(&virtio)
            return Cutting.cut(bytes, virtio) == nil
        }
        #expect(!refused(bytes))
        #expect(refused(bytes) { $0.segmentSize = 0 })
        #expect(refused(bytes) { $0.kind = .tcp6 })
        #expect(refused(bytes) { $0.checksumStart = 19 })
        #expect(refused(bytes) { $0.checksumStart = 65_535 })
        #expect(refused(Array(bytes[..<19])))
        #expect(refused(Array(bytes[..<40])), "no payload")
        #expect(refused([0x55] + bytes[1...]), "neither IPv4 nor IPv6")
        var short = bytes
        short[32] = 0x40
        #expect(refused(short), "a TCP header of 16 bytes")
        #expect(
            refused(bytes) { header in
                header.kind = .plain
                header.checksumOffset = 65_535
            })
    }

    /// Whatever the header says: refused, or cut within the packet.
    @Test(arguments: 0..<4) func noiseDoesNotCrash(_ seed: UInt64) {
        var generator = SeededGenerator(seed: seed)
        var refused = 0
        for _ in 0..<2_000 {
            var packet = PacketModel.random(&generator, count: Int.random(in: 0...300, using: &generator))
            packet.flags = UInt8.random(in: 0...255, using: &generator)
            var bytes = packet.partialBytes
            for _ in 0..<Int.random(in: 0...4, using: &generator) {
                bytes[Int.random(in: 0..<min(bytes.count, 60), using: &generator)] = UInt8.random(
                    in: 0...255, using: &generator)
            }
            bytes.removeLast(Int.random(in: 0...min(bytes.count, 40), using: &generator))
            var header = (0..<10).map { _ in UInt8.random(in: 0...255, using: &generator) }
            header[1] = [0, 1, 4, 5].randomElement(using: &generator)!
            if Bool.random(using: &generator) { (header[3], header[5], header[7], header[9]) = (0, 0, 0, 0) }
            let virtio = header.withUnsafeBytes { VirtioHeader(at: $0.baseAddress!) }
            guard let virtio else { continue }
            if Cutting.cut(bytes, virtio) == nil { refused += 1 }
        }
        #expect(refused > 100 && refused < 2_000)
    }

    @Test func virtioHeaderRoundTrip() {
        let header = PacketModel().virtio(segmentSize: 1_234)
        var bytes = [UInt8](repeating: 0, count: VirtioHeader.size)
        bytes.withUnsafeMutableBytes { header.write(to: $0.baseAddress!) }
        #expect(
            bytes == [1, 1, 40, 0, 0xd2, 4, 20, 0, 16, 0], "little endian, as on every machine that we run on"
        )
        #expect(bytes.withUnsafeBytes { VirtioHeader(at: $0.baseAddress!) } == header)
        bytes[1] = 3
        #expect(bytes.withUnsafeBytes { VirtioHeader(at: $0.baseAddress!) } == nil, "UFO was not asked for")
    }
}

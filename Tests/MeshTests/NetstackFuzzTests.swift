// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

/// The whole input path under packets that are nearly right: a function of the seed.
@Suite struct NetstackFuzzTests {
    /// Sends segments with right checksums and random everything else to a stack with open connections, while
    /// its owner does random things.
    struct Storm: ~Copyable {
        var generator: SeededGenerator
        var stack: Stack
        var now = Instant(nanoseconds: 1_000_000_000)
        var ids: [ConnectionID] = []
        var lastNumbers: [UInt16: (sequence: UInt32, ack: UInt32)] = [:]
        var out = [UInt8](repeating: 0, count: 100_000)

        init(seed: UInt64, limits: StackLimits) {
            generator = SeededGenerator(seed: seed)
            stack = Stack(
                addresses: [NetstackPacketTests.us, NetstackPacketTests.us4], limits: limits, seed: seed)
            stack.listenAny()
            stack.bindUDP(53)
        }

        mutating func pick(_ count: Int) -> Int { Int.random(in: 0..<count, using: &generator) }

        mutating func segment() -> [UInt8] {
            let port = UInt16(1_000 + pick(6))
            let known = lastNumbers[port] ?? (0, 0)
            let near = [0, 1, -1, 2, 100, 1_220, 65_535, -65_536, 1 << 20, 1 << 30, Int(Int32.max), -5]
            let sequence =
                known.sequence &+ UInt32(truncatingIfNeeded: near[pick(near.count)] * (pick(3) == 0 ? 1 : 0))
            let ack = known.ack &+ UInt32(truncatingIfNeeded: near[pick(near.count)] * (pick(3) == 0 ? 1 : 0))
            let flags = [2, 16, 16, 16, 24, 17, 4, 20, 18, 0, 63, 1][pick(12)]
            var options: [UInt8] = []
            while options.count < 30, pick(3) != 0 { options += option(ack) }
            while options.count % 4 != 0 { options.append(pick(2) == 0 ? 1 : 0) }
            let payload = [0, 0, 1, 100, 1_200][pick(5)]
            let window = [0, 1, 500, 65_535][pick(4)]
            var tcp: [UInt8] = [UInt8(port >> 8), UInt8(port & 255), 0, 22]
            for shift in [24, 16, 8, 0] { tcp.append(UInt8(sequence >> UInt32(shift) & 255)) }
            for shift in [24, 16, 8, 0] { tcp.append(UInt8(ack >> UInt32(shift) & 255)) }
            tcp += [
                UInt8((20 + options.count) / 4) << 4, UInt8(flags), UInt8(window >> 8), UInt8(window & 255),
                0, 0, 0, 0,
            ]
            tcp += options + Array(repeating: UInt8(pick(256)), count: payload)
            return WirePacket.ip6(
                source: NetstackPacketTests.peer, destination: NetstackPacketTests.us, kind: 6, tcp,
                checksumAt: 16)
        }

        mutating func option(_ ack: UInt32) -> [UInt8] {
            func random() -> [UInt8] { (0..<4).map { _ in UInt8(pick(256)) } }
            func near(_ delta: Int) -> [UInt8] {
                let value = ack &+ UInt32(truncatingIfNeeded: delta)
                return [24, 16, 8, 0].map { UInt8(value >> UInt32($0) & 255) }
            }
            switch pick(8) {
            case 0: return [2, 4] + random().prefix(2)
            case 1: return [3, 3, UInt8(pick(20))]
            case 2: return [4, 2]
            case 3: return [8, 10] + random() + random()
            case 4: return [5, 10] + near(pick(3_000)) + near(pick(6_000))
            case 5: return [5, UInt8(pick(40))] + random()
            case 6: return [UInt8(pick(256)), UInt8(pick(6))]
            default: return [1]
            }
        }

        /// What the peer would say next.
        private mutating func note(_ start: Int, _ length: Int) {
            guard length >= 60, out[start + 6] == 6 else { return }
            func at32(_ at: Int) -> UInt32 { (0..<4).reduce(0) { $0 << 8 | UInt32(out[start + at + $1]) } }
            let port = UInt16(out[start + 42]) << 8 | UInt16(out[start + 43])
            lastNumbers[port] = (at32(48), at32(44) &+ UInt32(length > 72 ? length - 72 : 0))
            if out[start + 53] & 2 != 0 { lastNumbers[port] = (at32(48), at32(44) &+ 1) }
        }

        mutating func collect() {
            let (moment, limit) = (now, [1, 2, 40][pick(3)])
            for _ in 0..<400 {
                let burst = out.withUnsafeMutableBytes {
                    stack.nextBurst(into: $0, layout: .plain, limit: limit, now: moment)
                }
                guard let burst else { return }
                var at = 0
                for index in 0..<burst.count {
                    note(at, burst.length(of: index))
                    at += burst.length(of: index)
                }
            }
            Issue.record("the stack does not stop sending")
        }

        mutating func act() {
            while let event = stack.nextEvent() {
                if case .accepted(let id, _, _) = event { ids.append(id) }
            }
            guard !ids.isEmpty else { return }
            let index = pick(ids.count)
            let id = ids[index]
            let moment = now
            switch pick(12) {
            case 0...3:
                let count = pick(5_000)
                _ = Array(repeating: UInt8(1), count: count).withUnsafeBytes { stack.write(id, $0) }
            case 4...7:
                let share = pick(4)
                stack.read(id, now: moment) { $0.count * share / 3 }
            case 8: stack.shutdownWrite(id)
            case 9: if pick(4) == 0 { stack.close(ids.remove(at: index), now: moment) }
            case 10: if pick(8) == 0 { stack.abort(ids.remove(at: index)) }
            default: if ids.count > 40 { stack.abort(ids.removeFirst()) }
            }
        }

        mutating func run(_ steps: Int) {
            for _ in 0..<steps {
                var packet = segment()
                if pick(20) == 0 { packet[pick(packet.count)] ^= UInt8(1 + pick(255)) }
                if pick(50) == 0 { packet.removeLast(pick(packet.count)) }
                // Half of them past the checksum, so that what is altered is read.
                let (moment, isAuthentic) = (now, pick(2) == 0)
                packet.withUnsafeBytes { stack.receive($0, isAuthentic: isAuthentic, now: moment) }
                act()
                if pick(2) == 0 { collect() }
                now =
                    now
                    + [.zero, .milliseconds(1), .milliseconds(50), .seconds(3), .seconds(4_000)][
                        min(pick(60), 4) == 4 ? pick(2) : pick(5)]
                if stack.nextDeadline <= now { stack.handleTimeout(now) }
            }
        }
    }

    @Test(arguments: UInt64(1)...8) func stormsLeaveNothingBehind(seed: UInt64) {
        var limits = StackLimits()
        limits.connections = 64
        limits.bufferMemory = 4 << 20
        limits.outOfOrderRanges = 8
        limits.sentRanges = 32
        var storm = Storm(seed: seed, limits: limits)
        storm.run(3_000)
        #expect(storm.stack.connectionCount <= 64)
        #expect(storm.stack.bufferBytes <= (4 << 20) + 64 * 2 * 4_096)
        while let event = storm.stack.nextEvent() {
            if case .accepted(let id, _, _) = event { storm.ids.append(id) }
        }
        for id in storm.ids { storm.stack.abort(id) }
        storm.collect()
        for _ in 0..<20 {
            storm.now = storm.now + .seconds(3_600)
            storm.stack.handleTimeout(storm.now)
            while let event = storm.stack.nextEvent() {
                if case .accepted(let id, _, _) = event { storm.stack.abort(id) }
            }
            storm.collect()
        }
        #expect(storm.stack.connectionCount == 0, "seed \(seed)")
        #expect(storm.stack.bufferBytes == 0, "seed \(seed)")
    }

    /// One packet of every kind that is read, whole and right.
    static let kinds: [[UInt8]] = {
        let (us, peer) = (NetstackPacketTests.us, NetstackPacketTests.peer)
        let (us4, peer4) = (NetstackPacketTests.us4, IPAddress("100.64.0.77")!)
        let tcp: [UInt8] =
            [0x12, 0x34, 0, 22, 0, 0, 0, 9, 0, 0, 0, 0, 0xa0, 2, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 4, 0xc4]
            + [4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7]
        let udp: [UInt8] = [0, 99, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4]
        let echo: [UInt8] = [128, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
        let quoted = WirePacket.ip6(source: us, destination: peer, kind: 6, tcp, checksumAt: 16)
        let quoted4 = WirePacket.ip4(source: us4, destination: peer4, kind: 6, tcp, checksumAt: 16)
        let tooBig: [UInt8] = [2, 0, 0, 0, 0, 0, 5, 0] + quoted
        let unreachable: [UInt8] = [3, 4, 0, 0, 0, 0, 5, 0] + quoted4
        let chain: [UInt8] =
            [60, 0, 1, 4, 0, 0, 0, 0] + [43, 0, 1, 4, 0, 0, 0, 0] + [44, 0, 0, 0, 0, 0, 0, 0]
            + [6, 0, 0, 0, 0, 0, 0, 1] + tcp
        return [
            WirePacket.ip6(source: peer, destination: us, kind: 6, tcp, checksumAt: 16),
            WirePacket.ip4(source: peer4, destination: us4, kind: 6, tcp, checksumAt: 16),
            WirePacket.ip6(source: peer, destination: us, kind: 17, udp, checksumAt: 6),
            WirePacket.ip4(source: peer4, destination: us4, kind: 17, udp, checksumAt: 6),
            WirePacket.ip6(source: peer, destination: us, kind: 58, echo, checksumAt: 2),
            WirePacket.ip6(source: peer, destination: us, kind: 58, tooBig, checksumAt: 2),
            WirePacket.ip4(source: peer4, destination: us4, kind: 1, unreachable, checksumAt: 2),
            WirePacket.ip6(source: peer, destination: us, kind: 0, chain, checksumAt: nil),
            WirePacket.ip6(
                source: peer, destination: us, kind: 99, [0x70, 1, 2, 3, 4, 5, 6, 7, 8], checksumAt: nil),
        ]
    }()

    @Test(arguments: NetstackSimulationCampaign.seeds) func alteredPacketsOfEveryKind(seed: UInt64) {
        var generator = SeededGenerator(seed: seed)
        func pick(_ count: Int) -> Int { Int.random(in: 0..<count, using: &generator) }
        var stack = NetstackPacketTests.makeStack()
        stack.listenAny()
        stack.bindAnyUDP()
        var now = Instant(nanoseconds: 1_000_000_000)
        for _ in 0..<2_000 {
            var packet = Self.kinds[pick(Self.kinds.count)]
            for _ in 0..<pick(4) { packet[pick(packet.count)] = UInt8(pick(256)) }
            if pick(4) == 0 { packet.removeLast(pick(packet.count)) }
            if packet.count > 20, packet[0] >> 4 == 4, pick(2) == 0 {
                // The header's own checksum, made right again.
                packet[10] = 0
                packet[11] = 0
                let length = min(max(Int(packet[0] & 15) * 4, 20), packet.count)
                let check = ~WirePacket.sum(Array(packet[..<length]))
                packet[10] = UInt8(check >> 8)
                packet[11] = UInt8(check & 255)
            }
            let (moment, isAuthentic) = (now, pick(2) == 0)
            packet.withUnsafeBytes { stack.receive($0, isAuthentic: isAuthentic, now: moment) }
            if pick(20) == 0 {
                _ = NetstackPacketTests.output(&stack, at: now)
                while stack.nextEvent() != nil {}
                now = now + .milliseconds(UInt64(pick(3_000)))
                if stack.nextDeadline <= now { stack.handleTimeout(now) }
            }
        }
        #expect(stack.counters.packetsReceived == 2_000)
    }

    @Test(arguments: UInt64(1)...4) func randomBytesAreCounted(seed: UInt64) {
        var generator = SeededGenerator(seed: seed)
        var stack = NetstackPacketTests.makeStack()
        stack.listenAny()
        for _ in 0..<5_000 {
            let length = Int.random(in: 0..<200, using: &generator)
            var packet = (0..<length).map { _ in UInt8(truncatingIfNeeded: generator.next()) }
            if length > 0, Bool.random(using: &generator) { packet[0] = packet[0] & 15 | 0x60 }
            NetstackPacketTests.feed(&stack, packet)
        }
        #expect(stack.counters.packetsReceived == 5_000)
        #expect(NetstackPacketTests.output(&stack).count <= 500)
    }
}

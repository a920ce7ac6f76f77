// SPDX-License-Identifier: Apache-2.0

import DERPRelay
import Glibc
import LinuxIO
import Mesh
import Testing

/// The relay from outside, with the conformance cases of `derp.md` §11.
@Suite(.serialized) struct RelayTests {
    static func isReadable(_ descriptor: Int32, _ milliseconds: Int32) -> Bool {
        var wait = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        return poll(&wait, 1, milliseconds) > 0
    }

    /// A payload that looks like discovery.
    private func disco(_ number: UInt8) -> [UInt8] { Disco.magic + [UInt8](repeating: number, count: 80) }

    private func newKey() -> PrivateKey {
        var generator = SystemRandomNumberGenerator()
        return PrivateKey(using: &generator)
    }

    // D1, D4
    @Test(arguments: [false, true]) func packetsGoBothWays(_ usesTCP: Bool) throws {
        let harness = try RelayHarness(usesTCP: usesTCP)
        let (a, b) = (try harness.client(), try harness.client())
        for size in [0, 1, 1400, 65_536] {
            let bytes = (0..<size).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ size) }
            try a.send(bytes, to: b)
            let there = try b.waitForPacket()
            #expect(there.from == a.publicKey && there.bytes == bytes)
            try b.send(bytes, to: a)
            let back = try a.waitForPacket()
            #expect(back.from == b.publicKey && back.bytes == bytes)
        }
        try a.send([9], to: a)
        #expect(try a.waitForPacket().bytes == [9])
        #expect(
            harness.eventually { $0.packetsSent == 9 && $0.packetsReceived == 9 && $0.packetsDropped == 0 })
    }

    // D2, D3: the login in the left-over of the HTTP request, and a stream in single bytes.
    @Test func anySegmentation() throws {
        let harness = try RelayHarness()
        let b = try harness.client()
        let key = newKey()
        let now = Instant(nanoseconds: Clock.monotonicNanoseconds())
        var generator = SystemRandomNumberGenerator()
        var machine = DERPClient(privateKey: key, random: SecureGenerator(seededBy: &generator), now: now)
        machine.receive(DERPServerSession.serverKeyFrame(harness.relay.publicKey).span.bytes)
        _ = try machine.nextEvent(now: now)
        let payload: [UInt8] = [1, 2, 3]
        machine.send(payload.span.bytes, to: b.publicKey, now: now)
        let stream = machine.withOutput { $0.wireBytes(0..<$0.byteCount) }
        let descriptor = try harness.connect(leftover: stream)
        #expect(try b.waitForPacket().bytes == [1, 2, 3])
        Glibc.close(descriptor)
        let slow = try harness.connect()
        for byte in stream + DERP.frame(DERPFrameType.ping, [UInt8](repeating: 5, count: 8)) {
            try [byte].withUnsafeBytes { try Descriptor.writeAll(slow, $0) }
        }
        #expect(try b.waitForPacket().bytes == [1, 2, 3])
        Glibc.close(slow)
    }

    @Test func manyPacketsKeepTheirOrder() throws {
        let harness = try RelayHarness(usesTCP: true)
        let (a, b, c) = (try harness.client(), try harness.client(), try harness.client())
        var burst: [UInt8] = []
        for number in 0..<300 {
            let target = number % 3 == 0 ? c : b
            burst += DERP.frame(
                .sendPacket, target.publicKey.bytes, [UInt8(number / 256), UInt8(number % 256)],
                [UInt8](repeating: 1, count: 500))
        }
        try a.write(burst)
        var numbers: [Int] = []
        for _ in 0..<200 {
            let bytes = try b.waitForPacket().bytes
            numbers.append(Int(bytes[0]) * 256 + Int(bytes[1]))
        }
        for _ in 0..<100 { _ = try c.waitForPacket() }
        #expect(numbers == (0..<300).filter { $0 % 3 != 0 })
        #expect(
            c.packets.map { Int($0.bytes[0]) * 256 + Int($0.bytes[1]) } == (0..<300).filter { $0 % 3 == 0 })
    }

    // D5
    @Test func unknownFramesAndPings() throws {
        let harness = try RelayHarness()
        let a = try harness.client()
        try a.write([0x7f, 0, 0, 0, 3, 1, 2, 3] + [0x66, 0, 1, 0, 0] + [UInt8](repeating: 0, count: 65_536))
        try a.write(DERP.frame(.ping, [UInt8]("ABCDEFGH".utf8) + [UInt8](repeating: 0, count: 92)))
        let pong = try a.wait { if case .pong = $0 { true } else { false } }
        #expect(pong == .pong(0x4142_4344_4546_4748))
        #expect(harness.eventually { $0.unknownFrames == 2 && $0.pongsSent == 1 })
    }

    // D6
    @Test func peersHearWhenOneLeaves() throws {
        let harness = try RelayHarness()
        let (a, b, c) = (try harness.client(), try harness.client(), try harness.client())
        try a.send([1], to: b)
        _ = try b.waitForPacket()
        a.close()
        let event = try b.wait { if case .peerGone = $0 { true } else { false } }
        #expect(event == .peerGone(a.publicKey, .disconnected))
        try c.drain()
        #expect(!c.events.contains { if case .peerGone = $0 { true } else { false } })
    }

    // D7
    @Test func absentPeersAreToldSparingly() throws {
        let harness = try RelayHarness()
        let a = try harness.client()
        let nobody = newKey().nodePublicKey
        for number in 0..<10 { try a.send(disco(UInt8(number)), to: nobody) }
        for _ in 0..<10 { try a.send([1, 2, 3], to: nobody) }
        try a.drain()
        #expect(a.events.filter { $0 == .peerGone(nobody, .notHere) }.count == 3)
        #expect(harness.eventually { $0.droppedUnknown == 20 && $0.droppedDisco == 10 })
    }

    // D8, D18: a stalled reader costs bounded memory, keeps the newest, gets discovery first, and stops nobody.
    @Test(arguments: [false, true]) func stalledReader(_ usesTCP: Bool) throws {
        let harness = try RelayHarness(usesTCP: usesTCP) {
            $0.queuePackets = 512
            $0.queueNanoseconds = 60_000_000_000
            $0.discoQueueNanoseconds = 60_000_000_000
        }
        let (a, b, c) = (try harness.client(), try harness.client(), try harness.client())
        let sent = 12_000
        for number in 0..<sent {
            let bytes = [UInt8(number >> 16), UInt8(number >> 8 & 255), UInt8(number & 255)]
            try a.send(bytes + [UInt8](repeating: 0, count: 1397), to: b)
            if number % 3000 == 2999 { try a.send(disco(UInt8(number / 3000)), to: b) }
            if number % 1000 == 0 {
                try c.send([7], to: c)
                #expect(try c.waitForPacket().bytes == [7])
            }
        }
        #expect(harness.eventually { $0.packetsReceived == UInt64(sent) + 4 + 12 })
        #expect(harness.relay.counters.droppedQueueHead > 0)
        #expect(harness.relay.counters.queuedBytes <= 2 << 20)
        try b.drain()
        let bulk = b.packets.filter { $0.bytes.count == 1400 }
        let numbers = bulk.map { Int($0.bytes[0]) << 16 | Int($0.bytes[1]) << 8 | Int($0.bytes[2]) }
        #expect(numbers == numbers.sorted())
        #expect(numbers.suffix(512).first == sent - 512 && numbers.last == sent - 1)
        // All discovery arrived, and that of the queue before the bulk that waited with it.
        #expect(b.packets.filter { $0.bytes.count == 86 }.count == 4)
        let last = b.packets.lastIndex { $0.bytes.count == 86 }!
        #expect(b.packets.count - last > 500)
        let after = harness.relay.counters
        #expect(after.packetsSent + after.packetsDropped == after.packetsReceived)
        #expect(after.queuedBytes == 0)
    }

    // D9
    @Test func duplicateKeys() throws {
        let harness = try RelayHarness()
        let sender = try harness.client()
        let key = newKey()
        let old = try harness.client(key)
        try sender.send([1], to: key.nodePublicKey)
        #expect(try old.waitForPacket().bytes == [1])
        let new = try harness.client(key)
        #expect(harness.eventually { $0.duplicateKeys == 1 })
        try sender.send([2], to: key.nodePublicKey)
        #expect(try new.waitForPacket().bytes == [2])
        try old.ping(1)
        try old.wait { $0 == .pong(1) }
        try sender.send([3], to: key.nodePublicKey)
        #expect(try old.waitForPacket().bytes == [3])
        old.close()
        #expect(harness.eventually { $0.connections == 2 && $0.duplicateKeys == 0 })
        try sender.send([4], to: key.nodePublicKey)
        #expect(try new.waitForPacket().bytes == [4])
        // The last connection of the key goes: whom it sent to hears of it.
        try new.send([5], to: sender)
        #expect(try sender.waitForPacket().bytes == [5])
        new.close()
        try sender.wait { $0 == .peerGone(key.nodePublicKey, .disconnected) }
    }

    // D12, with shorter times
    @Test func keepAlive() throws {
        let harness = try RelayHarness(adjust: {
            $0.keepAliveNanoseconds = 0
            $0.keepAliveJitterNanoseconds = 0
        })
        let a = try harness.client()
        try a.wait { $0 == .keepAlive }
    }

    // D13, D16, D17
    @Test func badLoginsAreClosed() throws {
        let harness = try RelayHarness(usesTCP: true)
        let zeros = [UInt8](repeating: 0, count: 200)
        var generator = SeededGenerator(seed: 11)
        var attempts: [[UInt8]] = [
            DERP.frame(.clientInfo, zeros), DERP.frame(.clientInfo, [1], zeros),
            DERP.frame(.sendPacket, zeros),
            [0x02, 0x00, 0x04, 0x00, 0x01], Array("GET / HTTP/1.1\r\n\r\n".utf8), [0x02, 0, 0, 0, 55],
        ]
        for _ in 0..<50 {
            attempts.append((0..<100).map { _ in UInt8.random(in: 0...255, using: &generator) })
        }
        var closed = 0
        for attempt in attempts {
            let descriptor = try harness.connect()
            try? attempt.withUnsafeBytes { try Descriptor.writeAll(descriptor, $0) }
            var buffer = [UInt8](repeating: 0, count: 256)
            while Self.isReadable(descriptor, 1000) {
                if read(descriptor, &buffer, buffer.count) <= 0 {
                    closed += 1
                    break
                }
            }
            Glibc.close(descriptor)
        }
        // Random bytes may begin a ClientInfo that is still incomplete; all others are closed at once.
        #expect(closed >= attempts.count - 2)
        #expect(harness.eventually { $0.connections == 0 })
    }

    @Test func garbageAfterLoginIsClosedAndCounted() throws {
        let harness = try RelayHarness()
        var generator = SeededGenerator(seed: 12)
        for _ in 0..<200 {
            let client = try harness.client()
            try? client.write((0..<500).map { _ in UInt8.random(in: 0...255, using: &generator) })
            client.close()
        }
        #expect(harness.eventually { $0.connections == 0 && $0.clients == 0 })
        #expect(harness.relay.counters.accepts == 200)
    }

    // D14
    @Test func slowLoginsEnd() throws {
        let harness = try RelayHarness(adjust: { $0.loginNanoseconds = 500_000_000 })
        let descriptor = try harness.connect()
        let begun: [UInt8] = [0x02, 0x00, 0x04, 0x00, 0x00]
        try begun.withUnsafeBytes { try Descriptor.writeAll(descriptor, $0) }
        for _ in 0..<5 {
            _ = try? [UInt8](repeating: 0, count: 1000).withUnsafeBytes {
                try Descriptor.writeAll(descriptor, $0)
            }
            usleep(100_000)
        }
        #expect(
            harness.eventually { $0.loginTimeouts == 1 && $0.connections == 0 }, "\(harness.relay.counters)")
        Glibc.close(descriptor)
    }

    @Test func begunFramesOfAllClientsTogetherAreBounded() throws {
        let harness = try RelayHarness(adjust: { $0.partialBytes = 300_000 })
        var descriptors: [Int32] = []
        for _ in 0..<10 {
            let descriptor = try harness.connect()
            descriptors.append(descriptor)
            let begun = [0x02, 0x00, 0x04, 0x00, 0x00] + [UInt8](repeating: 0, count: 60_000)
            try? begun.withUnsafeBytes { try Descriptor.writeAll(descriptor, $0) }
        }
        #expect(harness.eventually { $0.refusedForLimits >= 5 && $0.connections <= 5 })
        for descriptor in descriptors { Glibc.close(descriptor) }
    }

    // D15
    @Test func meshFramesNeedTheKey() throws {
        let harness = try RelayHarness(meshKey: "secret")
        for bad in ["", "Secret", "secret2"] {
            let client = try harness.client(info: DERPClientInfo(meshKey: bad))
            try client.write(DERP.frame(.watchConnections))
            #expect(throws: TestClient.Closed.self) { try client.wait { _ in false } }
        }
        let a = try harness.client()
        let watcher = try harness.client(info: DERPClientInfo(meshKey: "secret"))
        try watcher.write(DERP.frame(.watchConnections))
        try watcher.wait { $0 == .peerPresent(a.publicKey) }
        let foreign = newKey().nodePublicKey
        try watcher.write(DERP.frame(.forwardPacket, foreign.bytes, a.publicKey.bytes, [4, 5, 6]))
        let packet = try a.waitForPacket()
        #expect(packet.from == foreign && packet.bytes == [4, 5, 6])
        try watcher.write(DERP.frame(.closePeer, a.publicKey.bytes))
        try watcher.wait { $0 == .peerGone(a.publicKey, .disconnected) }
        #expect(throws: TestClient.Closed.self) { try a.wait { _ in false } }
        #expect(harness.relay.counters.protocolErrors == 3)
    }

    @Test func admission() throws {
        let welcome = newKey()
        let allowed = welcome.nodePublicKey
        let harness = try RelayHarness(verify: { key, _, answer in answer(key == allowed) })
        let a = try harness.client(welcome)
        #expect(throws: TestClient.Closed.self) { _ = try harness.client() }
        try a.send([1], to: a)
        #expect(try a.waitForPacket().bytes == [1])
        #expect(harness.relay.counters.loginsRefused == 1)
    }

    // D19
    @Test func reconnectsLeaveNothingBehind() throws {
        let harness = try RelayHarness()
        let peer = try harness.client()
        let key = newKey()
        for _ in 0..<300 {
            let client = try harness.client(key)
            try client.send([1], to: peer)
            try peer.send([2], to: key.nodePublicKey)
            client.close()
        }
        #expect(harness.eventually { $0.connections == 1 && $0.clients == 1 && $0.duplicateKeys == 0 })
        try peer.drain()
        #expect(harness.eventually { $0.queuedBytes == 0 })
    }

    @Test func homesAreCounted() throws {
        let harness = try RelayHarness()
        let a = try harness.client()
        try a.setPreferred(true)
        #expect(harness.eventually { $0.homeConnections == 1 })
        a.close()
        #expect(harness.eventually { $0.homeConnections == 0 })
    }

    @Test func drainTellsClientsToComeBack() throws {
        let harness = try RelayHarness()
        let a = try harness.client()
        harness.relay.drain()
        let event = try a.wait { if case .restarting = $0 { true } else { false } }
        guard case .restarting(let reconnectIn, let tryFor) = event else { return }
        #expect(reconnectIn < .seconds(2) && tryFor == .seconds(5))
        #expect(throws: TestClient.Closed.self) { try a.wait { _ in false } }
        // A connection that comes too late is closed, not leaked.
        let late = try harness.connect()
        #expect(Self.isReadable(late, 1000))
        Glibc.close(late)
    }

    @Test func prometheusText() throws {
        let harness = try RelayHarness()
        let a = try harness.client()
        try a.send([1], to: a)
        _ = try a.waitForPacket()
        #expect(harness.eventually { $0.packetsSent == 1 })
        let text = harness.relay.counters.prometheusText
        #expect(text.contains("\ncoder_derp_packets_received_total 1\n"))
        #expect(text.contains("coder_derp_packets_dropped_reason_total{reason=\"unknown_dest\"} 0\n"))
        #expect(text.contains("\ncoder_derp_connections 1\n"))
    }
}

// SPDX-License-Identifier: Apache-2.0

import DERPRelay
import Glibc
import LinuxIO
import Mesh
import Synchronization
import Testing

/// Who sends more than others take, and what it costs them and everybody else.
@Suite(.serialized) struct RelayPressureTests {
    private func frame(_ client: TestClient, _ number: Int, bytes: Int = 1_400) -> [UInt8] {
        let mark = (0..<4).map { UInt8(truncatingIfNeeded: number >> (24 - 8 * $0)) }
        return DERP.frame(
            .sendPacket, client.publicKey.bytes, mark + [UInt8](repeating: 1, count: bytes - 4))
    }

    /// Writes until the socket is full; returns how many bytes went.
    private func pour(_ client: TestClient, _ bytes: [UInt8], from start: inout Int) throws {
        try Descriptor.setNonBlocking(client.descriptor)
        defer { try? Descriptor.setNonBlocking(client.descriptor, false) }
        bytes.withUnsafeBytes {
            while start < $0.count {
                let count = write(client.descriptor, $0.baseAddress! + start, $0.count - start)
                guard count > 0 else { return }
                start += count
            }
        }
    }

    /// A sender that floods one client that reads slowly loses nothing: it is read as fast as the client drains.
    @Test(arguments: [false, true], [false, true])
    func oneSenderIsSlowedDown(_ usesTCP: Bool, _ isSealed: Bool) throws {
        let harness = try RelayHarness(usesTCP: usesTCP) { $0.pauseNanoseconds = 5_000_000_000 }
        let (a, b) = (try harness.client(isSealed: isSealed), try harness.client(isSealed: isSealed))
        let count = 10_000
        let bytes = a.sealed((0..<count).flatMap { frame(b, $0) })
        var sent = 0
        while b.packets.count < count {
            try pour(a, bytes, from: &sent)
            try b.drain(5)
        }
        let numbers = b.packets.map { $0.bytes.prefix(4).reduce(0) { $0 << 8 | Int($1) } }
        #expect(numbers == Array(0..<count))
        let counters = harness.relay.counters
        // The cipher of the tests is slower than the reader.
        #expect(counters.packetsDropped == 0 && (counters.pauses > 0 || !usesTCP || isSealed))
    }

    /// A sender that floods a client of 1 MB/s and looks for a third one: its discovery stands in the same stream
    /// behind the flood, and must not wait there until the slow client has taken that.
    @Test func discoveryOfAFloodingSenderArrives() throws {
        let harness = try RelayHarness(usesTCP: true)
        let (a, slow, third) = (try harness.client(), try harness.client(), try harness.client())
        let flood = (0..<100).flatMap { frame(slow, $0) }
        let length = flood.count / 100
        // As nodes do: little waits on this side.
        Descriptor.setUnsentLowWater(a.descriptor, bytes: 32 << 10)
        let isOver = Atomic<Bool>(false)
        let descriptor = slow.descriptor
        let reader = try DedicatedThread(name: "slow-reader") {
            var buffer = [UInt8](repeating: 0, count: 20_000)
            while !isOver.load(ordering: .acquiring) {
                if RelayTests.isReadable(descriptor, 20) { _ = read(descriptor, &buffer, buffer.count) }
                usleep(20_000)
            }
        }
        var delays: [Double] = []
        var sent = 0
        var nextProbe = Clock.monotonicNanoseconds()
        let end = nextProbe + 4_000_000_000
        while Clock.monotonicNanoseconds() < end {
            let now = Clock.monotonicNanoseconds()
            if sent == flood.count { sent = 0 }
            try pour(a, flood, from: &sent)
            if now >= nextProbe {
                nextProbe = now + 100_000_000
                // A frame that was begun comes first.
                let end = min(flood.count, (sent + length - 1) / length * length)
                if end > sent { try a.write(Array(flood[sent..<end])) }
                sent = end
                let stamp = (0..<8).map { UInt8(truncatingIfNeeded: now >> (56 - 8 * UInt64($0))) }
                try a.write(
                    DERP.frame(
                        .sendPacket, third.publicKey.bytes, Disco.magic + stamp,
                        [UInt8](repeating: 1, count: 60)))
            }
            try third.drain(1)
            for packet in third.packets.dropFirst(delays.count) {
                let stamp = packet.bytes[6..<14].reduce(0) { $0 << 8 | UInt64($1) }
                delays.append(Double(Clock.monotonicNanoseconds() - stamp) / 1e9)
            }
        }
        isOver.store(true, ordering: .releasing)
        reader.join()
        let sorted = delays.sorted()
        #expect(sorted.count >= 10, "\(sorted.count)")
        #expect(sorted[sorted.count / 2] < 0.25, "\(sorted)")
    }

    /// Two senders to one slow client: both get their share, though one sends far more.
    @Test func sendersShareASlowClient() throws {
        let harness = try RelayHarness {
            $0.pauseNanoseconds = 0
            $0.queueBytes = 128 << 10
            $0.queueNanoseconds = 60_000_000_000
        }
        let (greedy, polite, slow) = (try harness.client(), try harness.client(), try harness.client())
        // The kernel's buffers fill first.
        for round in 0..<30 {
            try greedy.write((0..<50).flatMap { frame(slow, round * 50 + $0) })
            if round >= 20 { try polite.write(frame(slow, round)) }
        }
        #expect(harness.eventually { $0.packetsReceived == 1_510 })
        #expect(harness.relay.counters.droppedQueueHead > 0)
        try slow.drain()
        #expect(slow.packets.filter { $0.from == polite.publicKey }.count == 10)
        let fromGreedy = slow.packets.filter { $0.from == greedy.publicKey }
        #expect(fromGreedy.count > 50)
        // And the polite one's came in between, not after everything.
        let last = slow.packets.lastIndex { $0.from == polite.publicKey } ?? 0
        #expect(last < slow.packets.count - 20)
    }

    @Test func lateIsLost() throws {
        let harness = try RelayHarness { $0.queueNanoseconds = 50_000_000 }
        let (a, b) = (try harness.client(), try harness.client())
        for number in 0..<400 { try a.write(frame(b, number)) }
        #expect(harness.eventually { $0.packetsReceived == 400 })
        #expect(harness.eventually { $0.droppedLate > 0 && $0.queuedBytes == 0 })
    }

    @Test func ratesAreKept() throws {
        let harness = try RelayHarness(usesTCP: true) {
            $0.bytesPerSecond = 1 << 20
            $0.burstBytes = 128 << 10
        }
        let (a, b) = (try harness.client(), try harness.client())
        let bytes = (0..<750).flatMap { frame(b, $0) }
        let begin = Clock.monotonicNanoseconds()
        var sent = 0
        while b.packets.count < 750 {
            try pour(a, bytes, from: &sent)
            try b.drain(20)
        }
        let seconds = Double(Clock.monotonicNanoseconds() - begin) / 1e9
        // 1.05 MB less one burst at 1 MiB/s.
        #expect(seconds > 0.6)
        #expect(harness.relay.counters.rateLimited > 0 && harness.relay.counters.packetsDropped == 0)
    }

    /// Connections with a question still open wait with everything they sent, and lose none of it.
    @Test func verificationMayTakeItsTime() throws {
        let answers = Mutex<[@Sendable (Bool) -> Void]>([])
        let harness = try RelayHarness(verify: { _, _, answer in answers.withLock { $0.append(answer) } })
        var generator = SystemRandomNumberGenerator()
        func begin() throws -> TestClient {
            let key = PrivateKey(using: &generator)
            return TestClient(try harness.connect(), key: key, info: DERPClientInfo())
        }
        let (good, bad) = (try begin(), try begin())
        for client in [good, bad] {
            try client.wait { if case .serverKey = $0 { true } else { false } }
            try client.send([9], to: client)
            try client.ping(7)
        }
        #expect(harness.eventually { _ in answers.withLock { $0.count } == 2 })
        #expect(harness.relay.counters.clients == 0 && !good.isReadable(100))
        let asked = answers.withLock { $0 }
        asked[0](true)
        asked[1](false)
        #expect(try good.waitForPacket().bytes == [9])
        #expect(throws: TestClient.Closed.self) { try bad.wait { _ in false } }
        #expect(harness.eventually { $0.loginsRefused == 1 && $0.clients == 1 })
    }

    /// Clients that leave when told are waited for; packets between those that have not left go on.
    @Test func drainHandsOver() throws {
        let old = try RelayHarness()
        let new = try RelayHarness()
        let (a, b) = (try old.client(), try old.client())
        let isDone = Atomic<Bool>(false)
        let relay = old.relay
        let thread = try DedicatedThread(name: "drain") {
            relay.drain(nanoseconds: 20_000_000_000, waitsForClients: true)
            isDone.store(true, ordering: .releasing)
        }
        try a.wait { if case .restarting = $0 { true } else { false } }
        try a.send([1], to: b)
        #expect(try b.waitForPacket().bytes == [1])
        // Both are at the new relay before they leave the old one.
        let (a2, b2) = (try new.client(a.key), try new.client(b.key))
        a.close()
        usleep(50_000)
        let early = isDone.load(ordering: .acquiring)
        #expect(!early)
        b.close()
        thread.join()
        try a2.send([2], to: b2)
        #expect(try b2.waitForPacket().bytes == [2])
    }

    @Test func killedPeersLeaveNothing() throws {
        let harness = try RelayHarness(usesTCP: true)
        let survivor = try harness.client()
        for round in 0..<50 {
            let (a, b) = (try harness.client(), try harness.client())
            for number in 0..<20 { try a.write(frame(b, number)) }
            try a.send([UInt8(round)], to: survivor)
            #expect(try survivor.waitForPacket().bytes == [UInt8(round)])
            // A reset, not an orderly end.
            var linger = Glibc.linger(l_onoff: 1, l_linger: 0)
            for client in [a, b] {
                setsockopt(
                    client.descriptor, SOL_SOCKET, SO_LINGER, &linger,
                    socklen_t(MemoryLayout<Glibc.linger>.size))
                client.close()
            }
        }
        #expect(harness.eventually { $0.connections == 1 && $0.clients == 1 && $0.queuedBytes == 0 })
    }

    /// Memory that clients can make the relay hold has a bound whoever asks for it.
    @Test func stalledClientsTogetherAreBounded() throws {
        let harness = try RelayHarness {
            $0.totalQueueBytes = 1 << 20
            $0.crowdedQueueBytes = 16 << 10
            $0.queueNanoseconds = 60_000_000_000
            $0.pauseNanoseconds = 0
        }
        let sender = try harness.client()
        let stalled = try (0..<30).map { _ in try harness.client() }
        for round in 0..<10 {
            for client in stalled { try sender.write((0..<50).flatMap { frame(client, round * 50 + $0) }) }
        }
        #expect(harness.eventually { $0.packetsReceived == 15_000 })
        #expect(harness.relay.counters.queuedBytes <= (1 << 20) + 30 * (16 << 10) + (128 << 10))
        #expect(harness.relay.counters.droppedQueueHead > 0)
        for client in stalled { client.close() }
        #expect(harness.eventually { $0.queuedBytes == 0 && $0.connections == 1 })
    }
}

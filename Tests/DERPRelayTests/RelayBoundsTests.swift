// SPDX-License-Identifier: Apache-2.0

import DERPRelay
import Glibc
import LinuxIO
import Mesh
import Testing

/// What strangers can make the relay hold, and that it is they who pay for it.
@Suite(.serialized) struct RelayBoundsTests {
    private func newKey() -> PrivateKey {
        var generator = SystemRandomNumberGenerator()
        return PrivateKey(using: &generator)
    }

    private func begin(_ type: DERPFrameType, length: UInt32, bytes: Int) -> [UInt8] {
        let head = [type.rawValue] + (0..<4).map { UInt8(truncatingIfNeeded: length >> (24 - 8 * $0)) }
        return head + [UInt8](repeating: 0, count: bytes)
    }

    /// Memory of begun frames runs out; whoever holds little keeps it, logged in or not.
    @Test func whoHoldsMostPaysForBegunFrames() throws {
        let harness = try RelayHarness(adjust: {
            $0.partialBytes = 200_000
            $0.loginBytes = 100_000
        })
        let (a, b) = (try harness.client(), try harness.client())
        let frame = DERP.frame(.sendPacket, b.publicKey.bytes, [UInt8](repeating: 7, count: 10_000))
        try a.write(Array(frame[..<5_000]))
        // Strangers first, then clients that begin a packet.
        let strangers = try (0..<10).map { _ in
            let descriptor = try harness.connect()
            let begun = begin(.clientInfo, length: 256 << 10, bytes: 30_000)
            try? begun.withUnsafeBytes { try Descriptor.writeAll(descriptor, $0) }
            return descriptor
        }
        #expect(harness.eventually { $0.refusedForLimits >= 7 })
        let greedy = try (0..<10).map { _ in
            let client = try harness.client()
            try? client.write(begin(.sendPacket, length: 60_032, bytes: 50_000))
            return client
        }
        #expect(harness.eventually { $0.refusedForLimits >= 13 })
        try a.write(Array(frame[5_000...]))
        #expect(try b.waitForPacket().bytes.count == 10_000)
        for descriptor in strangers { Glibc.close(descriptor) }
        for client in greedy { client.close() }
        #expect(harness.eventually { $0.connections == 2 })
    }

    @Test func aBegunFrameMustEnd() throws {
        let harness = try RelayHarness(adjust: { $0.frameNanoseconds = 1_200_000_000 })
        let (a, b) = (try harness.client(), try harness.client())
        try a.write(begin(.sendPacket, length: 1_032, bytes: 500))
        #expect(throws: TestClient.Closed.self) { while true { try a.wait { _ in false } } }
        #expect(harness.eventually { $0.slowFrames == 1 && $0.connections == 1 })
        try b.send([1], to: b)
        #expect(try b.waitForPacket().bytes == [1])
    }

    /// Large frames in pieces of all sizes, with small ones between them.
    @Test func largeFramesInPieces() throws {
        let harness = try RelayHarness()
        let (a, b) = (try harness.client(), try harness.client())
        var generator = SeededGenerator(seed: 5)
        for round in 0..<12 {
            let payload = (0..<65_536).map { UInt8(truncatingIfNeeded: $0 &* 13 &+ round) }
            var stream = DERP.frame(.sendPacket, b.publicKey.bytes, payload)
            stream += DERP.frame(.sendPacket, b.publicKey.bytes, [UInt8(round)])
            stream += DERP.frame(.sendPacket, b.publicKey.bytes, payload)
            var rest = stream[...]
            while !rest.isEmpty {
                let size = min(
                    rest.count, Int.random(in: 1...(round % 3 == 0 ? 40_000 : 900), using: &generator))
                try a.write(Array(rest.prefix(size)))
                rest = rest.dropFirst(size)
            }
            #expect(try b.waitForPacket().bytes == payload)
            #expect(try b.waitForPacket().bytes == [UInt8(round)])
            #expect(try b.waitForPacket().bytes == payload)
        }
        #expect(harness.relay.counters.packetsDropped == 0)
    }

    @Test func oneKeyHasFewConnections() throws {
        let harness = try RelayHarness(adjust: { $0.connectionsPerKey = 4 })
        let key = newKey()
        let clients = try (0..<7).map { _ in try harness.client(key) }
        #expect(harness.eventually { $0.connections == 4 && $0.refusedForLimits == 3 })
        #expect(throws: TestClient.Closed.self) { while true { try clients[0].wait { _ in false } } }
        try clients[6].send([3], to: clients[6])
        #expect(try clients[6].waitForPacket().bytes == [3])
    }

    @Test func oneAddressHasFewConnections() throws {
        let harness = try RelayHarness(adjust: { $0.connectionsPerAddress = 2 })
        func connect(_ source: String) throws -> Int32 {
            let (near, far) = try Descriptor.socketPair().release()
            harness.relay.adopt(OwnedDescriptor(taking: far), source: source)
            return near
        }
        let first = try connect("192.0.2.1")
        let others = try [connect("192.0.2.1"), connect("192.0.2.1"), connect("192.0.2.2")]
        #expect(harness.eventually { $0.connections == 3 && $0.refusedForLimits == 1 })
        Glibc.close(first)
        #expect(harness.eventually { $0.connections == 2 })
        let again = try connect("192.0.2.1")
        #expect(harness.eventually { $0.connections == 3 && $0.refusedForLimits == 1 })
        for descriptor in others + [again] { Glibc.close(descriptor) }
    }

    /// Who is told when a key leaves has a bound; those that came in time hear it.
    @Test func acquaintancesAreBounded() throws {
        let harness = try RelayHarness(adjust: { $0.acquaintances = 3 })
        let sender = try harness.client()
        let peers = try (0..<6).map { _ in try harness.client() }
        for peer in peers {
            try sender.send([1], to: peer)
            _ = try peer.waitForPacket()
        }
        sender.close()
        for peer in peers[..<3] {
            try peer.wait { $0 == .peerGone(sender.publicKey, .disconnected) }
        }
        #expect(harness.eventually { $0.peerGoneDisconnected == 3 })
    }

    /// A relay that serves before it knows the mesh's secret.
    @Test func theMeshKeyMayComeLater() throws {
        let harness = try RelayHarness()
        let a = try harness.client()
        let early = try harness.client(info: DERPClientInfo(meshKey: "secret"))
        try early.write(DERP.frame(.watchConnections))
        #expect(throws: TestClient.Closed.self) { while true { try early.wait { _ in false } } }
        harness.relay.setMeshKey("secret")
        let watcher = try harness.client(info: DERPClientInfo(meshKey: "secret"))
        try watcher.write(DERP.frame(.watchConnections))
        try watcher.wait { $0 == .peerPresent(a.publicKey) }
    }
}

// SPDX-License-Identifier: Apache-2.0

import DERPRelay
import Glibc
import LinuxIO
import Mesh
import Synchronization
import Testing

/// Two relays of one region. `derp.md` §8.
@Suite(.serialized) struct RelayMeshTests {
    /// How links ended, in order.
    final class Ends: Sendable {
        private let ends = Mutex<[Relay.LinkEnd]>([])
        func add(_ end: Relay.LinkEnd) { ends.withLock { $0.append(end) } }
        var all: [Relay.LinkEnd] { ends.withLock { $0 } }
    }

    /// Opens a link from one relay to the other.
    private func link(_ from: RelayHarness, _ to: RelayHarness, _ ends: Ends = Ends()) throws {
        from.relay.link(OwnedDescriptor(taking: try to.connect())) { ends.add($0) }
    }

    private func pair(usesTCP: Bool = false) throws -> (RelayHarness, RelayHarness) {
        let left = try RelayHarness(usesTCP: usesTCP, meshKey: "shared")
        let right = try RelayHarness(usesTCP: usesTCP, meshKey: "shared")
        try link(left, right)
        try link(right, left)
        try #require(left.eventually { $0.links == 1 && $0.watchers == 1 })
        try #require(right.eventually { $0.links == 1 && $0.watchers == 1 })
        return (left, right)
    }

    /// Sends until the news of the other one has crossed the mesh.
    private func meet(_ sender: TestClient, _ receiver: TestClient) throws {
        for _ in 0..<100 {
            try sender.send([0xee], to: receiver)
            if receiver.isReadable(50) { break }
        }
        try receiver.drain(50)
        #expect(receiver.packets.last?.bytes == [0xee])
    }

    // D10
    @Test(arguments: [false, true]) func packetsCrossTheMesh(_ usesTCP: Bool) throws {
        let (left, right) = try pair(usesTCP: usesTCP)
        let (a, b) = (try left.client(), try right.client())
        // Each relay hears of the other one itself, too, as of any client.
        try #require(left.eventually { $0.remoteClients >= 1 && $0.clients == 2 })
        try meet(b, a)
        for size in [0, 1, 1_400, 65_536] {
            let bytes = (0..<size).map { UInt8(truncatingIfNeeded: $0 &* 3 &+ size) }
            try b.send(bytes, to: a)
            let packet = try a.waitForPacket()
            #expect(packet.from == b.publicKey && packet.bytes == bytes)
            try a.send(bytes, to: b)
            #expect(try b.waitForPacket().bytes == bytes)
        }
        #expect(left.eventually { $0.packetsForwardedOut >= 4 && $0.packetsForwardedIn >= 4 })
        // The one leaves: the other hears it across the mesh.
        b.close()
        try a.wait { $0 == .peerGone(b.publicKey, .disconnected) }
        #expect(right.eventually { $0.clients == 1 })
    }

    @Test func aKeyOnBothRelaysIsServedWhereItIs() throws {
        let (left, right) = try pair()
        var generator = SystemRandomNumberGenerator()
        let key = PrivateKey(using: &generator)
        let sender = try left.client()
        let far = try right.client(key)
        try meet(sender, far)
        let near = try left.client(key)
        try sender.send([2], to: near)
        #expect(try near.waitForPacket().bytes == [2])
        // Where it still is: nobody is told that it left.
        try near.send([3], to: sender)
        _ = try sender.waitForPacket()
        near.close()
        #expect(left.eventually { $0.clients == 2 })
        try sender.send([4], to: far)
        #expect(try far.waitForPacket().bytes == [4])
        try sender.drain(50)
        #expect(!sender.events.contains { if case .peerGone = $0 { true } else { false } })
    }

    @Test func linksEndWithAReason() throws {
        let left = try RelayHarness(meshKey: "shared")
        let ends = Ends()
        try link(left, left, ends)
        #expect(left.eventually { _ in ends.all == [.isSelf] })
        let stranger = try RelayHarness(meshKey: "another")
        try link(left, stranger, ends)
        #expect(left.eventually { _ in ends.all.count == 2 })
        #expect(ends.all.last != .isSelf && stranger.relay.counters.watchers == 0)
        let open = try RelayHarness()
        open.relay.link(OwnedDescriptor(taking: try left.connect())) { ends.add($0) }
        #expect(left.eventually { _ in ends.all.last == .stopped })
        #expect(left.eventually { $0.connections == 0 && $0.links == 0 })
    }

    @Test func garbageFromAnotherRelayEndsTheLink() throws {
        let harness = try RelayHarness(meshKey: "shared")
        var generator = SeededGenerator(seed: 21)
        let ends = Ends()
        for round in 0..<100 {
            let (near, far) = try Descriptor.socketPair().release()
            harness.relay.link(OwnedDescriptor(taking: near)) { ends.add($0) }
            var bytes: [UInt8] = []
            if round % 2 == 0 {
                bytes += DERPServerSession.serverKeyFrame(PrivateKey(using: &generator).nodePublicKey)
            }
            bytes += (0..<400).map { _ in UInt8.random(in: 0...255, using: &generator) }
            try? bytes.withUnsafeBytes { try Descriptor.writeAll(far, $0) }
            Glibc.close(far)
        }
        #expect(harness.eventually { _ in ends.all.count == 100 })
        #expect(harness.eventually { $0.connections == 0 && $0.remoteClients == 0 && $0.links == 0 })
    }

    /// One of two relays is killed in mid-transfer: its client comes back to the other one, and the transfer goes on.
    @Test func aRelayDiesInMidTransfer() throws {
        let left = try RelayHarness(usesTCP: true, meshKey: "shared")
        var right: RelayHarness? = try RelayHarness(usesTCP: true, meshKey: "shared")
        let ends = Ends()
        try link(left, right!, ends)
        try link(right!, left)
        let sender = try left.client()
        var receiver = try right!.client()
        try meet(sender, receiver)
        let key = receiver.key
        var seen = 0
        for number in 0..<2_000 {
            try sender.send(
                [UInt8(number & 255)] + [UInt8](repeating: 7, count: 1_399), to: key.nodePublicKey)
            if number == 1_000 {
                right!.relay.close()
                right = nil
                #expect(left.eventually { _ in ends.all == [.lost] })
                receiver = try left.client(key)
            }
            if number < 1_000, number % 50 == 49 {
                try receiver.drain(20)
                seen = receiver.packets.count
            }
        }
        // Everything that was sent after the return arrives; the relay that died took what it held.
        while receiver.packets.count < 999 { _ = try receiver.waitForPacket() }
        #expect(receiver.packets.count == 999 && seen >= 900)
        #expect(left.eventually { $0.remoteClients == 0 && $0.clients == 2 })
    }
}

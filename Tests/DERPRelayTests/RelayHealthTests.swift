// SPDX-License-Identifier: Apache-2.0

import DERPRelay
import Glibc
import LinuxIO
import Mesh
import Synchronization
import Testing

/// What clients are told in words, and connections that say nothing any more.
@Suite(.serialized) struct RelayHealthTests {
    private func isHealth(_ event: DERPClient.Event) -> Bool {
        if case .health = event { true } else { false }
    }

    private func healths(_ client: TestClient) -> [DERPClient.Event] { client.events.filter(isHealth) }

    /// Two machines with one key: each hears once that the other took its packets, and the one that stays that all
    /// is well again. derp.md §6.4.
    @Test func duplicatesAreTold() throws {
        let harness = try RelayHarness()
        var generator = SystemRandomNumberGenerator()
        let key = PrivateKey(using: &generator)
        let old = try harness.client(key)
        let new = try harness.client(key)
        guard case .health(let problem?) = try old.wait(isHealth) else {
            Issue.record("no problem told")
            return
        }
        #expect(problem.contains("same node key"))
        // They take turns: no flood of words comes of it.
        for number in 0..<20 {
            let speaker = number % 2 == 0 ? old : new
            try speaker.ping(UInt64(number))
            try speaker.wait { $0 == .pong(UInt64(number)) }
        }
        try new.drain(50)
        try old.drain(50)
        #expect(healths(old).count == 1 && healths(new).count == 1)
        new.close()
        #expect(try old.wait(isHealth) == .health(nil))
        #expect(harness.eventually { $0.healthSent == 3 && $0.duplicateKeys == 0 })
    }

    @Test func problemsAreTold() throws {
        let harness = try RelayHarness(meshKey: "secret")
        let (early, watcher) = (
            try harness.client(), try harness.client(info: DERPClientInfo(meshKey: "secret"))
        )
        harness.relay.report(problem: "the roof leaks")
        #expect(try early.wait(isHealth) == .health("the roof leaks"))
        let late = try harness.client()
        #expect(try late.wait(isHealth) == .health("the roof leaks"))
        harness.relay.report(problem: "the roof leaks")
        harness.relay.report(problem: nil)
        for client in [early, late] {
            #expect(try client.wait(isHealth) == .health(nil))
            try client.drain(50)
            #expect(healths(client).count == 2)
        }
        // Other relays have no use for it, and newcomers hear nothing of what is over.
        try watcher.drain(50)
        let last = try harness.client()
        try last.drain(50)
        #expect(healths(watcher) == [] && healths(last) == [])
    }

    @Test func overloadIsTold() throws {
        let harness = try RelayHarness {
            $0.totalQueueBytes = 256 << 10
            $0.pauseNanoseconds = 0
        }
        let (sender, stalled) = (try harness.client(), try harness.client())
        let frame = DERP.frame(
            .sendPacket, stalled.publicKey.bytes, [UInt8](repeating: 1, count: 1_400))
        for _ in 0..<40 { try sender.write((0..<25).flatMap { _ in frame }) }
        guard case .health(let problem?) = try sender.wait(isHealth) else {
            Issue.record("no problem told")
            return
        }
        #expect(problem.contains("overloaded"))
        #expect(try sender.wait(isHealth) == .health(nil))
        #expect(harness.relay.counters.droppedQueueHead > 0)
    }

    /// A relay that vanished without a word: its keys are forgotten, and the link may be opened again.
    @Test func aSilentLinkEnds() throws {
        let harness = try RelayHarness(meshKey: "shared") { $0.linkSilenceNanoseconds = 1_500_000_000 }
        var generator = SystemRandomNumberGenerator()
        let key = PrivateKey(using: &generator)
        let (near, far) = try Descriptor.socketPair().release()
        defer { Glibc.close(far) }
        let ends = Mutex<[Relay.LinkEnd]>([])
        harness.relay.link(OwnedDescriptor(taking: near)) { end in ends.withLock { $0.append(end) } }
        // The other relay, by hand: its key, its answer to the login, one key of its own; then nothing.
        var session = DERPServerSession(serverKey: key, meshKey: "shared")
        let hello = DERPServerSession.serverKeyFrame(key.nodePublicKey)
        try hello.withUnsafeBytes { try Descriptor.writeAll(far, $0) }
        var received: [UInt8] = []
        var isIn = false
        while !isIn {
            try #require(RelayTests.isReadable(far, 5_000))
            var buffer = [UInt8](repeating: 0, count: 1_024)
            let count = read(far, &buffer, buffer.count)
            try #require(count > 0)
            received += buffer[..<count]
            var (offset, needed) = (0, 0)
            var copy = session
            if case .login = try copy.next(in: received.span.bytes, offset: &offset, needed: &needed) {
                session = copy
                isIn = true
            }
        }
        var random = SecureGenerator(seededBy: &generator)
        let there = PrivateKey(using: &generator).nodePublicKey
        let answer = session.serverInfoFrame(random: &random) + DERP.frame(.peerPresent, there.bytes)
        try answer.withUnsafeBytes { try Descriptor.writeAll(far, $0) }
        #expect(harness.eventually { $0.links == 1 && $0.remoteClients == 1 })
        #expect(harness.eventually { $0.links == 0 && $0.remoteClients == 0 && $0.stalls == 1 })
        #expect(ends.withLock { $0 } == [.lost])
    }
}

// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

/// Which ports connections get, and how many may be half-open.
@Suite struct NetstackPortTests {
    /// All that both owners do: the server closes when the client has.
    private static func settle(_ world: inout NetstackSimulation, until limit: Instant) {
        while world.step(until: limit) {
            while world.a.nextEvent() != nil {}
            while let event = world.b.nextEvent() {
                if case .peerClosed(let id) = event { world.b.close(id, now: world.now) }
            }
        }
    }

    /// Whoever closes first keeps the port for half a minute: 20,000 of them do not run out of 16,384 ports.
    @Test func portsDoNotRunOutWhereTheDiallerClosesFirst() throws {
        var limits = StackLimits()
        limits.connections = 32_768
        var world = NetstackSimulation(
            seed: 1, link: LinkProfile(name: "ports", latency: .microseconds(100)), limits: limits)
        world.b.listen(8)
        let target = SocketAddress(NetstackSimulation.b6, port: 8)
        var last: [UInt16: Int] = [:]
        var soonest = Int.max
        for index in 0..<20_000 {
            let id = try world.a.connect(to: target, now: world.now)
            let found = world.a.endpoints(id)
            let port = try #require(found).local.port
            if let before = last[port] { soonest = min(soonest, index - before) }
            last[port] = index
            Self.settle(&world, until: world.now + .microseconds(400))
            world.a.close(id, now: world.now)
            Self.settle(&world, until: world.now + .microseconds(600))
        }
        #expect(soonest > 16_000, "ports come again as late as can be")
        #expect(world.a.counters.resetsReceived == 0 && world.b.counters.resetsSent == 0)
        #expect(world.b.connectionCount == 0)
        #expect(world.a.connectionCount <= 16_384)
    }

    private static func syn(_ source: IPAddress, port: Int) -> [UInt8] {
        let ports = [UInt8(port >> 8), UInt8(port & 255), 0, 22]
        let tcp = ports + [0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]
        return WirePacket.ip6(
            source: source, destination: NetstackSimulation.a6, kind: 6, tcp, checksumAt: 16)
    }

    @Test func aPeerThatNeverAnswersKeepsNobodyElseOut() {
        var limits = StackLimits()
        limits.halfOpenConnections = 20
        limits.halfOpenPerPeer = 5
        var stack = Stack(addresses: [NetstackSimulation.a6], limits: limits, seed: 3)
        stack.listen(22)
        let now = Instant(nanoseconds: 1_000_000_000)
        for port in 1...100 {
            Self.syn(IPAddress("fd7a::bad")!, port: port).withUnsafeBytes { stack.receive($0, now: now) }
        }
        #expect(stack.connectionCount == 5)
        #expect(stack.counters.synDropped == 95)
        Self.syn(IPAddress("fd7a::900d")!, port: 1).withUnsafeBytes { stack.receive($0, now: now) }
        #expect(stack.connectionCount == 6)
        // When its SYNs are given up it may begin again.
        _ = NetstackPacketTests.output(&stack, at: now)
        for _ in 0..<200 where stack.nextDeadline != .never {
            let moment = stack.nextDeadline
            stack.handleTimeout(moment)
            _ = NetstackPacketTests.output(&stack, at: moment)
        }
        #expect(stack.connectionCount == 0)
        Self.syn(IPAddress("fd7a::bad")!, port: 1).withUnsafeBytes { stack.receive($0, now: now) }
        #expect(stack.connectionCount == 1)
    }

    @Test func aSYNThatWasForgottenMayComeAgain() {
        var stack = Stack(addresses: [NetstackSimulation.a6], seed: 3)
        stack.listenAny(asking: true)
        let now = Instant(nanoseconds: 1_000_000_000)
        for _ in 0..<2 {
            Self.syn(IPAddress("fd7a::9")!, port: 7).withUnsafeBytes { stack.receive($0, now: now) }
            guard case .asked(let id, _, _) = stack.nextEvent() else {
                Issue.record("not asked")
                return
            }
            #expect(stack.connectionCount == 1)
            let isForgotten = stack.forget(id)
            #expect(isForgotten)
            #expect(stack.connectionCount == 0)
            #expect(NetstackPacketTests.output(&stack, at: now) == [])
            #expect(stack.nextEvent() == nil)
        }
        #expect(stack.counters.synDropped == 2)
    }
}

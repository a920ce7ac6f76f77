// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

/// Path MTU: told, proven, disproven, forged.
@Suite struct NetstackPathTests {
    private static func size(_ run: borrowing NetstackScenarioTests.Run) -> Int? {
        guard let id = run.clients[0].id else { return nil }
        return run.world.a.statistics(id)?.segmentSize
    }

    private static func start(mtu: Int) throws -> NetstackScenarioTests.Run {
        var run = try NetstackScenarioTests.Run(
            seed: 4, link: LinkProfile(name: "path"), streams: 1, bytes: 3_000_000, mtu: mtu)
        let limit = run.world.now + .milliseconds(40)
        while run.step(until: limit) {}
        return run
    }

    @Test func segmentsFollowThePath() throws {
        var run = try Self.start(mtu: 1_400)
        #expect(Self.size(run) == 1_400 - 72)
        run.world.a.setPathMTU(1_300, to: NetstackSimulation.b6)
        #expect(Self.size(run) == 1_300 - 72)
        run.world.link.mtu = 1_300
        let soon = run.world.now + .milliseconds(50)
        while run.step(until: soon) {}
        run.world.a.setPathMTU(9_000, to: NetstackSimulation.b6)
        #expect(Self.size(run) == 1_400 - 72, "not above the MTU")
        run.world.a.setPathMTU(100, to: NetstackSimulation.b6)
        #expect(Self.size(run) == 1_280 - 72, "not below what IPv6 demands")
        run.world.b.setPathMTU(1_280, to: NetstackSimulation.a6)
        run.finish(within: 60)
        run.check(3_000_000, "path")
    }

    @Test func newConnectionsOfferWhatThePathTakes() throws {
        var world = NetstackSimulation(seed: 1, link: LinkProfile(name: "mss"), mtu: 9_000)
        world.b.setPathMTU(1_400, to: NetstackSimulation.a6)
        world.b.listenAny()
        let id = try world.a.connect(to: SocketAddress(NetstackSimulation.b6, port: 9), now: world.now)
        let limit = world.now + .milliseconds(100)
        while world.step(until: limit) {}
        let size = world.a.statistics(id)?.segmentSize
        #expect(size == 1_400 - 72)
    }

    @Test func forgedPacketTooBigIsIgnored() throws {
        var run = try Self.start(mtu: 1_400)
        let id = try #require(run.clients[0].id)
        let us = NetstackSimulation.a6
        var memory = [UInt8](repeating: 0, count: 2_000)
        // A packet of ours that is on its way, to be quoted.
        var quoted: [UInt8] = []
        for _ in 0..<200 where quoted.isEmpty {
            _ = Array(repeating: UInt8(1), count: 5_000).withUnsafeBytes { run.world.a.write(id, $0) }
            let moment = run.world.now
            if let packet = memory.withUnsafeMutableBytes({ run.world.a.nextPacket(into: $0, now: moment) }),
                packet.length == 1_400
            {
                quoted = Array(memory[..<1_400])
            } else {
                _ = run.step(until: run.world.now + .milliseconds(5))
            }
        }
        try #require(quoted.count == 1_400)
        let now = run.world.now
        func tell(_ stack: inout Stack, _ limit: Int, _ quote: [UInt8]) {
            let size = [24, 16, 8, 0].map { UInt8(limit >> $0 & 255) }
            let message: [UInt8] = [2, 0, 0, 0] + size + Array(quote.prefix(1_200))
            let packet = WirePacket.ip6(
                source: IPAddress("fd7a:bad::1")!, destination: us, kind: 58, message,
                checksumAt: 2)
            packet.withUnsafeBytes { stack.receive($0, now: now) }
        }
        var old = quoted
        old[44] ^= 0x40  // a number that is not outstanding
        tell(&run.world.a, 1_300, old)
        var stranger = quoted
        stranger[43] ^= 1  // another port
        tell(&run.world.a, 1_300, stranger)
        tell(&run.world.a, 1_400, quoted)  // not smaller than what it complains about
        tell(&run.world.a, 1_500, quoted)
        #expect(Self.size(run) == 1_400 - 72)
        #expect(run.world.a.counters.icmpErrorsIgnored == 4)
        tell(&run.world.a, 1_300, quoted)
        #expect(Self.size(run) == 1_300 - 72)
        tell(&run.world.a, 0, quoted)
        #expect(run.world.a.counters.icmpErrorsIgnored == 5, "it is smaller already")
    }

    @Test func aRouterThatKnowsNoWayEndsTheDial() throws {
        let us = IPAddress("fd7a::1")!
        let peer = SocketAddress(IPAddress("fd7a::9")!, port: 80)
        var stack = Stack(addresses: [us], seed: 4)
        let now = Instant(nanoseconds: 1_000_000_000)
        let id = try stack.connect(to: peer, now: now)
        var memory = [UInt8](repeating: 0, count: 2_000)
        let syn = memory.withUnsafeMutableBytes { stack.nextPacket(into: $0, now: now) }
        var quoted = Array(memory[..<(try #require(syn)).length])
        func tell() {
            let message: [UInt8] = [1, 0, 0, 0, 0, 0, 0, 0] + quoted
            WirePacket.ip6(
                source: IPAddress("fd7a::5")!, destination: us, kind: 58, message, checksumAt: 2
            ).withUnsafeBytes { stack.receive($0, now: now) }
        }
        quoted[44] ^= 0x40  // somebody guesses
        tell()
        #expect(stack.nextEvent() == nil)
        #expect(stack.counters.icmpErrorsIgnored == 1)
        quoted[44] ^= 0x40
        tell()
        #expect(stack.nextEvent() == .closed(id, .unreachable))
    }

    @Test func datagramsFollowThePath() {
        var stack = Stack(addresses: [NetstackSimulation.a6, NetstackSimulation.a4], mtu: 1_400, seed: 1)
        stack.setPathMTU(1_300, to: NetstackSimulation.b6)
        #expect(stack.datagramLimit(to: NetstackSimulation.b6) == 1_300 - 48)
        #expect(stack.datagramLimit(to: NetstackSimulation.b4) == 1_400 - 28)
        let sent = [UInt8](repeating: 0, count: 1_253).withUnsafeBytes {
            stack.sendUDP(
                from: SocketAddress(NetstackSimulation.a6, port: 1),
                to: SocketAddress(NetstackSimulation.b6, port: 2), $0)
        }
        #expect(!sent && stack.counters.datagramsTooLong == 1)
    }

    @Test(arguments: [false, true]) func aPeerSaysThatNobodyTakesDatagrams(isV4: Bool) throws {
        var world = NetstackSimulation(seed: 2, link: LinkProfile(name: "udp"))
        let (near, far) =
            isV4
            ? (NetstackSimulation.a4, NetstackSimulation.b4) : (NetstackSimulation.a6, NetstackSimulation.b6)
        let (local, remote) = (SocketAddress(near, port: 4_000), SocketAddress(far, port: 53))
        world.a.bindUDP(4_000)
        _ = [UInt8](repeating: 1, count: 10).withUnsafeBytes { world.a.sendUDP(from: local, to: remote, $0) }
        while world.step(until: world.now + .seconds(1)) {}
        #expect(world.a.nextEvent() == .datagramRefused(local: local, remote: remote))
        // One that is refused later, by the program behind the port.
        world.b.bindUDP(53)
        world.b.refuseDatagram(to: remote, from: local, now: world.now)
        while world.step(until: world.now + .seconds(1)) {}
        #expect(world.a.nextEvent() == .datagramRefused(local: local, remote: remote))
        // About a port that is not ours.
        world.b.refuseDatagram(to: remote, from: SocketAddress(near, port: 4_001), now: world.now)
        while world.step(until: world.now + .seconds(1)) {}
        #expect(world.a.nextEvent() == nil)
        #expect(world.a.counters.icmpErrorsIgnored == 1)
    }

    @Test func everyCounterHasAName() {
        let names = StackCounters().named.map(\.name)
        #expect(names.count == Mirror(reflecting: StackCounters()).children.count)
        #expect(Set(names).count == names.count)
    }
}

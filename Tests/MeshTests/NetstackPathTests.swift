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
}

// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

/// Whole streams between two stacks over a simulated link.
@Suite struct NetstackStreamTests {
    static let profiles: [LinkProfile] = [
        LinkProfile(name: "clean"),
        LinkProfile(name: "no latency", latency: .zero),
        LinkProfile(name: "loss 1 %", loss: 0.01),
        LinkProfile(name: "loss 10 %", loss: 0.1),
        LinkProfile(name: "reordering", reordering: 0.2),
        LinkProfile(name: "duplication", duplication: 0.2),
        LinkProfile(name: "corruption", corruption: 0.02),
        LinkProfile(name: "slow and shallow", latency: .milliseconds(20), rate: 2_000_000, queue: 20 << 10),
        LinkProfile(name: "satellite", loss: 0.001, latency: .milliseconds(300), rate: 4_000_000),
        LinkProfile(
            name: "everything", loss: 0.03, duplication: 0.03, corruption: 0.01, reordering: 0.1,
            latency: .milliseconds(30), rate: 5_000_000, queue: 60 << 10),
    ]

    @Test(arguments: profiles, [false, true])
    func bothDirectionsByteExact(_ link: LinkProfile, v6: Bool) throws {
        for seed in UInt64(1)...2 {
            try Self.exchange(link, v6: v6, seed: seed, bytes: 400_000)
        }
    }

    static func exchange(_ link: LinkProfile, v6: Bool, seed: UInt64, bytes: Int) throws {
        var world = NetstackSimulation(seed: seed, link: link)
        world.b.listen(22)
        let target = v6 ? NetstackSimulation.b6 : NetstackSimulation.b4
        var client = StreamEnd(salt: 1, total: bytes)
        var server = StreamEnd(salt: 7, total: bytes / 2)
        client.id = try world.a.connect(to: SocketAddress(target, port: 22), now: world.now)
        let limit = world.now + .seconds(600)
        var lived = true
        while client.closed == nil || server.closed == nil, lived {
            lived = world.step(until: limit)
            while let event = world.a.nextEvent() { client.take(event) }
            while let event = world.b.nextEvent() { server.take(event) }
            client.pump(&world.a, peerSalt: 7, now: world.now)
            server.pump(&world.b, peerSalt: 1, now: world.now)
        }
        #expect(server.read == bytes, "\(link) seed \(seed)")
        #expect(client.read == bytes / 2, "\(link) seed \(seed)")
        #expect(client.mismatches == 0 && server.mismatches == 0)
        #expect(client.sawEnd && server.sawEnd)
        #expect(client.closed == .done && server.closed == .done, "\(link) seed \(seed)")
        _ = world.step(until: limit + .seconds(600))
        while world.step(until: limit + .seconds(600)) {}
        #expect(world.a.connectionCount == 0 && world.b.connectionCount == 0, "\(link) seed \(seed)")
        #expect(world.a.bufferBytes == 0 && world.b.bufferBytes == 0)
    }
}

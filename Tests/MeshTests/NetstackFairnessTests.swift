// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

/// Who gets how much of a link that all share, and how long small talk waits.
@Suite struct NetstackFairnessTests {
    /// 40 Mbit/s whose sender waits for it.
    static func link(_ latency: Interval) -> LinkProfile {
        LinkProfile(name: "paced", latency: latency, rate: 5_000_000, isPaced: true)
    }

    @Test(arguments: [Interval.milliseconds(1), .milliseconds(20)])
    func hundredConnectionsShareWithinTenPercent(latency: Interval) throws {
        var run = try NetstackScenarioTests.Run(
            seed: 3, link: Self.link(latency), streams: 100, bytes: 5_000_000)
        // Acknowledgements need not wait behind data of the other direction here.
        for index in run.servers.indices { run.servers[index] = StreamEnd(salt: 7, total: 0) }
        let start = run.world.now + .seconds(2)
        while run.step(until: start) {}
        let before = run.servers.map(\.read)
        let end = start + .seconds(5)
        while run.step(until: end) {}
        let shares = zip(run.servers, before).map { $0.read - $1 }.sorted()
        let mean = shares.reduce(0, +) / shares.count
        #expect(shares[0] * 10 >= mean * 9 && shares[99] * 10 <= mean * 11, "\(shares[0])...\(shares[99])")
        #expect(mean * 100 > 5_000_000 * 5 * 85 / 100, "the link is used: \(mean)")
    }

    @Test(arguments: [1, 8, 64]) func keystrokesDoNotQueueBehindBulk(streams: Int) throws {
        var run = try NetstackScenarioTests.Run(
            seed: 9, link: Self.link(.milliseconds(1)), streams: streams, bytes: 50_000_000)
        for index in run.servers.indices { run.servers[index] = StreamEnd(salt: 7, total: 0) }
        let port = UInt16(1_000 + streams)
        let key = try run.world.a.connect(
            to: SocketAddress(NetstackSimulation.b6, port: port), now: run.world.now)
        run.servers.append(StreamEnd(salt: 7, total: 0))
        let settled = run.world.now + .seconds(2)
        while run.step(until: settled) {}
        #expect(run.servers[streams].id != nil)
        var delays: [UInt64] = []
        for _ in 0..<40 {
            let sent = run.world.now
            let written = [UInt8(1)].withUnsafeBytes { run.world.a.write(key, $0) }
            #expect(written == 1)
            let target = run.servers[streams].read + 1
            let limit = sent + .seconds(1)
            while run.servers[streams].read < target, run.step(until: limit) {}
            delays.append(run.world.now.since(sent).nanoseconds)
            let pause = run.world.now + .milliseconds(50)
            while run.step(until: pause) {}
        }
        // One way through an empty link takes 1 ms; one segment may be on its way already.
        let worst = try #require(delays.max())
        #expect(worst <= 3_000_000, "\(worst / 1_000) µs with \(streams) bulk streams")
    }
}

// SPDX-License-Identifier: Apache-2.0

import Glibc
import Mesh
import Testing

/// Random worlds, one per seed: `SIM_SEEDS=1000` runs that many, `SIM_SEED=17` replays one.
@Suite struct NetstackSimulationCampaign {
    static let seeds: [UInt64] = {
        if let text = getenv("SIM_SEED"), let seed = UInt64(String(cString: text)) { return [seed] }
        let count = getenv("SIM_SEEDS").flatMap { UInt64(String(cString: $0)) } ?? 24
        return Array(1...max(count, 1))
    }()

    /// What all seeds of one kind of world together did.
    struct Totals: CustomStringConvertible {
        var runs = 0
        var streams = 0
        var bytes = 0
        var packets = 0
        var faults = FaultCounts()
        var mismatches = 0

        var description: String {
            "\(runs) worlds, \(streams) streams, \(bytes >> 10) KiB moved, \(packets) packets, "
                + "\(faults.total) faults (\(faults)), \(mismatches) mismatches"
        }

        static func += (a: inout Totals, b: Totals) {
            a.runs += b.runs
            a.streams += b.streams
            a.bytes += b.bytes
            a.packets += b.packets
            a.faults += b.faults
            a.mismatches += b.mismatches
        }
    }

    @Test func randomWorlds() throws {
        var kinds: [String: Totals] = [:]
        var all = Totals()
        for seed in Self.seeds {
            let (kind, totals) = try Self.run(seed)
            kinds[kind, default: Totals()] += totals
            all += totals
        }
        for (kind, totals) in kinds.sorted(by: { $0.key < $1.key }) {
            print("netstack campaign, \(kind): \(totals)")
        }
        print("netstack campaign: \(all)")
        #expect(all.mismatches == 0)
    }

    /// Against a TCP so simple that it is obviously right.
    @Test func referencePeer() {
        var bytes = 0
        for seed in Self.seeds {
            var run = ReferenceRun(seed: seed)
            run.run()
            #expect(run.peer.failures == [], "SIM_SEED=\(seed)")
            #expect(run.peer.isDone && run.end.closed == .done && run.end.mismatches == 0, "SIM_SEED=\(seed)")
            #expect(run.end.read == run.peer.outgoing.count, "SIM_SEED=\(seed)")
            #expect(run.peer.contiguous == run.end.total, "SIM_SEED=\(seed)")
            bytes += run.end.read + run.peer.contiguous
        }
        print("netstack reference model: \(Self.seeds.count) runs, \(bytes) bytes")
    }

    private static func profile(_ generator: inout SeededGenerator) -> LinkProfile {
        func maybe(_ most: Double) -> Double {
            Int.random(in: 0..<2, using: &generator) == 0 ? 0 : Double.random(in: 0..<most, using: &generator)
        }
        var link = LinkProfile(name: "random")
        link.loss = maybe(0.08)
        link.duplication = maybe(0.1)
        link.corruption = maybe(0.02)
        link.reordering = maybe(0.2)
        let delays: [UInt64] = [0, 100, 1_000, 5_000, 25_000, 75_000, 300_000]
        link.latency = .microseconds(delays[Int.random(in: 0..<delays.count, using: &generator)])
        if Bool.random(using: &generator) {
            link.rate = UInt64.random(in: 200_000...20_000_000, using: &generator)
            link.queue = Int.random(in: 8...256, using: &generator) << 10
        }
        return link
    }

    /// What kind of world it was, and what happened there.
    private static func run(_ seed: UInt64) throws -> (String, Totals) {
        var generator = SeededGenerator(seed: seed &* 0x9e37_79b9_7f4a_7c15)
        func pick(_ count: Int) -> Int { Int.random(in: 0..<count, using: &generator) }
        let mtu = [1_280, 1_400, 9_000][pick(3)]
        var limits = StackLimits()
        if pick(3) == 0 { limits.bufferMemory = (256 << 10) << pick(4) }
        if pick(3) == 0 { limits.receiveBuffer = 64 << 10 }
        let count = 1 + pick(6)
        let bytes = 20_000 + pick(200_000)
        var run = try NetstackScenarioTests.Run(
            seed: seed, link: profile(&generator), streams: count, bytes: bytes, mtu: mtu, limits: limits,
            isV6: pick(3) > 0, isEventDriven: seed % 2 == 0)
        if pick(4) == 0 { run.servers[0].appetite = 1_000 + pick(5_000) }
        let limit = run.world.now + .seconds(3_000)
        var nextChange = run.world.now
        while !run.isDone, run.step(until: limit) {
            guard run.world.now >= nextChange else { continue }
            nextChange = run.world.now + .milliseconds(UInt64(50 + pick(2_000)))
            // Nothing survives a cut that is longer than all repetitions of a SYN.
            let isConnected = run.servers.allSatisfy { $0.id != nil }
            disturb(&run.world, mtu: mtu, mayCut: isConnected, &generator)
        }
        run.servers[0].appetite = .max
        run.finish(within: 2_000)
        run.check(bytes, "SIM_SEED=\(seed)")
        #expect(run.world.checker.violations == [], "SIM_SEED=\(seed)")
        let owners = seed % 2 == 0 ? "owners act on events" : "owners try each time"
        let kind = "MTU \(mtu), \(owners)"
        let totals = Totals(
            runs: 1, streams: count, bytes: count * (bytes + bytes / 2), packets: run.world.checker.checked,
            faults: run.world.faults,
            mismatches: run.mismatches(bytes) + run.world.checker.violations.count)
        return (kind, totals)
    }

    /// Something changes while streams run.
    private static func disturb(
        _ world: inout NetstackSimulation, mtu: Int, mayCut: Bool, _ generator: inout SeededGenerator
    ) {
        func pick(_ count: Int) -> Int { Int.random(in: 0..<count, using: &generator) }
        switch pick(10) {
        case 0: world.link = profile(&generator)
        case 1:  // the path narrows, and says so or is probed by someone
            let size = max(1_280, mtu - pick(3_000))
            world.link.mtu = size
            world.link.answersTooBig = true
            world.a.setPathMTU(size, to: NetstackSimulation.b6)
            world.b.setPathMTU(size, to: NetstackSimulation.a6)
            world.a.setPathMTU(size, to: NetstackSimulation.b4)
            world.b.setPathMTU(size, to: NetstackSimulation.a4)
        case 2:
            world.link.mtu = 65_535
            world.a.setPathMTU(nil, to: NetstackSimulation.b6)
            world.b.setPathMTU(nil, to: NetstackSimulation.a6)
        case 3:
            world.now = world.now + .milliseconds(UInt64(pick(30_000)))
            world.faults.jumps += 1
        case 4:
            world.isCut = mayCut
        default: world.isCut = false
        }
    }
}

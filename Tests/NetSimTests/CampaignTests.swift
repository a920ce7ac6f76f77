// SPDX-License-Identifier: Apache-2.0

import FoundationEssentials
import Mesh
import NetSim
import Testing

#if canImport(Glibc)
    import Glibc
#endif

/// The path machines in simulated networks. `SIM_SEEDS` makes the campaign long, `SIM_SEED` replays one seed.
@Suite struct SimulatorTests {
    static let scenarios: [Scenario] = {
        let folder = #filePath.split(separator: "/").dropLast(2).joined(separator: "/") + "/Scenarios"
        let names = (try? FileManager.default.contentsOfDirectory(atPath: "/\(folder)")) ?? []
        return names.filter { $0.hasSuffix(".json") }.sorted().compactMap { name in
            guard let data = try? Data(contentsOf: URL(filePath: "/\(folder)/\(name)")) else { return nil }
            do {
                return try JSONDecoder().decode(Scenario.self, from: data)
            } catch {
                Issue.record("\(name): \(error)")
                return nil
            }
        }
    }()

    private static func number(_ name: String) -> UInt64? {
        getenv(name).flatMap { UInt64(String(cString: $0)) }
    }

    /// `share`: files take long, and differ less from seed to seed than pairs at random do.
    private static func seeds(_ usual: UInt64, share: UInt64 = 1) -> [UInt64] {
        if let one = number("SIM_SEED") { return [one] }
        return Array(0..<max(usual, (number("SIM_SEEDS") ?? 0) / share))
    }

    private func play(_ runs: [(Scenario, UInt64)]) -> ResultTable {
        var table = ResultTable()
        for (scenario, seed) in runs {
            let world = World(scenario, seed: seed)
            world.run()
            table.add(world)
        }
        return table
    }

    @Test func scenarioFiles() {
        #expect(Self.scenarios.count >= 20)
        let table = play(
            Self.scenarios.flatMap { scenario in Self.seeds(3, share: 50).map { (scenario, $0) } })
        #expect(table.violations.isEmpty, "\(table.text)")
    }

    @Test func pairsAtRandom() {
        let table = play(Self.seeds(120).map { (Campaign.pair(seed: $0), $0) })
        #expect(table.violations.isEmpty, "\(table.text)")
    }

    @Test func aCrowd() {
        // Thousands in the long campaign.
        let count = Self.number("SIM_SEEDS") == nil ? 200 : 2_000
        let seed = Self.number("SIM_SEED") ?? 1
        let table = play([(Campaign.crowd(count, seed: seed, duration: 8), seed)])
        #expect(table.violations.isEmpty, "\(table.text)")
    }

    @Test func aStar() {
        let count = Self.number("SIM_SEEDS") == nil ? 60 : 500
        let seed = Self.number("SIM_SEED") ?? 1
        let table = play([(Campaign.star(count, seed: seed, duration: 8), seed)])
        #expect(table.violations.isEmpty, "\(table.text)")
    }

    @Test func sameSeedSameTrace() {
        for seed in 0..<5 as Range<UInt64> {
            let traces = (0..<2).map { _ in
                let world = World(Campaign.pair(seed: seed), seed: seed)
                world.run()
                return world.trace
            }
            #expect(traces[0] == traces[1], "seed \(seed)")
            let other = World(Campaign.pair(seed: seed), seed: seed + 1)
            other.run()
            #expect(other.trace != traces[0])
        }
    }

    /// Violations are found: a simulator that finds nothing wrong would be worth nothing.
    @Test func whatCannotBeIsFound() {
        var scenario = Scenario(name: "impossible", duration: 10)
        var router = Scenario.Router(name: "r")
        router.blocksUDP = true
        scenario.routers = [router]
        scenario.hosts = [.init(name: "a", router: "r"), .init(name: "b", router: nil)]
        scenario.sessions = [.init(from: "a", to: "b")]
        scenario.expectations = [.init(from: "a", to: "b", at: 8, path: .direct)]
        scenario.faults = [.init(kind: .relayDown, who: "1", at: 2)]
        scenario.stallLimit = 3
        let world = World(scenario, seed: 1)
        world.run()
        #expect(world.violations.count == 2, "\(world.violations)")
    }
}

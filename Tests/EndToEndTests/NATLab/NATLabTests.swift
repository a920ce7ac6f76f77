// SPDX-License-Identifier: Apache-2.0

import Foundation
import Testing

/// Real NATs, routers, proxies and faults between two mesh nodes: which path is found, how soon, and whether every
/// byte survives a change of it. `scripts/nat-lab` writes the table to docs/NATLAB.md.
@Suite(.enabled(if: NATWorld.isPossible, "needs root, iproute2 and nftables"))
struct NATLabTests {
    /// Rows at a time: their nodes hardly work, but all wait for timers.
    private static let width = 5

    @Test func everyTopologyFindsItsPath() async throws {
        let world = try await NATWorld()
        let wanted = ProcessInfo.processInfo.environment["NATLAB_ROWS"]
        let rows = NATRow.all.enumerated().filter { _, row in
            row.isPossible(in: world) && (wanted.map { row.name.contains($0) } ?? true)
        }
        var results: [Int: NATResult] = [:]
        await withTaskGroup(of: (Int, NATResult).self) { group in
            var waiting = rows.makeIterator()
            let startNext = { (group: inout TaskGroup<(Int, NATResult)>) in
                guard let (number, row) = waiting.next() else { return }
                group.addTask { (number, await attempt(row, in: world, number: number)) }
            }
            for _ in 0..<Self.width { startNext(&group) }
            for await (number, result) in group {
                results[number] = result
                startNext(&group)
            }
        }
        await world.demolish()
        let ordered = rows.compactMap { results[$0.offset] }
        try report(ordered)
        for result in ordered where !result.isGood {
            Issue.record("\(result.row.name): found \(result.found). \(result.problem ?? "")")
        }
    }

    /// A row that fails is run once more, elsewhere, and the table says so: see "Known" in docs/NATLAB.md.
    private func attempt(_ row: NATRow, in world: NATWorld, number: Int) async -> NATResult {
        let first = await row.run(in: world, number: number)
        guard !first.isGood else { return first }
        var second = await row.run(in: world, number: number + 40)
        second.firstProblem = "found \(first.found). \(first.problem ?? "")"
        return second
    }

    private func report(_ results: [NATResult]) throws {
        let table = ([NATResult.heading] + results.map(\.line)).joined(separator: "\n") + "\n"
        FileHandle.standardError.write(Data(("\n" + table).utf8))
        for result in results {
            for remark in result.remarks {
                FileHandle.standardError.write(Data("\(result.row.name): \(remark)\n".utf8))
            }
            guard let problem = result.firstProblem else { continue }
            FileHandle.standardError.write(Data("\(result.row.name), first try: \(problem)\n".utf8))
        }
        guard let path = ProcessInfo.processInfo.environment["NATLAB_TABLE"] else { return }
        try Data(table.utf8).write(to: URL(filePath: path))
    }
}

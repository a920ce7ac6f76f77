// SPDX-License-Identifier: Apache-2.0

internal import Mesh

/// What many runs found, as a table: one row per scenario, then violations with their seeds.
public struct ResultTable {
    private struct Row {
        var runs = 0
        var sessions = 0
        var direct: [Double] = []
        var longestStall = 0.0
        var steps = 0
        var violations = 0
    }

    private var rows: [(name: String, row: Row)] = []
    /// Everything that was found wrong, with scenario and seed.
    public private(set) var violations: [String] = []

    /// An empty table.
    public init() {}

    /// Takes a run that is over.
    public mutating func add(_ world: World) {
        let name = world.scenario.name
        let index: Int
        if let known = rows.firstIndex(where: { $0.name == name }) {
            index = known
        } else {
            index = rows.count
            rows.append((name, Row()))
        }
        rows[index].row.runs += 1
        rows[index].row.sessions += world.sessions.count
        rows[index].row.direct += world.timeToDirect.keys.sorted().compactMap { world.timeToDirect[$0] }
        for session in world.sessions.indices {
            let stall = world.longestStall(session, since: World.start).inSeconds
            rows[index].row.longestStall = max(rows[index].row.longestStall, stall)
        }
        rows[index].row.steps += world.steps
        rows[index].row.violations += world.violations.count
        violations += world.violations.map { "\(name), seed \(world.seed): \($0)" }
    }

    /// The table.
    public var text: String {
        let header = [
            "scenario", "runs", "sessions", "direct", "p50 s", "max s", "stall s", "steps", "violations",
        ]
        var lines = [header]
        for (name, row) in rows {
            let direct = row.direct.sorted()
            lines.append([
                name, "\(row.runs)", "\(row.sessions)", "\(direct.count)",
                direct.isEmpty ? "-" : Self.seconds(direct[direct.count / 2]),
                direct.last.map(Self.seconds) ?? "-", Self.seconds(row.longestStall), "\(row.steps)",
                "\(row.violations)",
            ])
        }
        let widths = header.indices.map { column in lines.map { $0[column].count }.max() ?? 0 }
        let body = lines.map { line in
            zip(line, widths).map { $0 + String(repeating: " ", count: $1 - $0.count + 2) }.joined()
        }
        return body.joined(separator: "\n") + "\n" + violations.map { "VIOLATION \($0)\n" }.joined()
    }

    static func seconds(_ value: Double) -> String {
        let thousandths = Int((value * 1_000).rounded())
        return "\(thousandths / 1_000).\(String(1_000 + thousandths % 1_000).dropFirst())"
    }
}

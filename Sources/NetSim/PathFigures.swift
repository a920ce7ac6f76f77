// SPDX-License-Identifier: Apache-2.0

internal import Mesh

/// How soon a pair behind easy NATs goes directly, and how soon it recovers from each fault: one pair per seed, with
/// latencies at random.
public struct PathFigures {
    /// One row: a fault, or a share of datagrams that is lost.
    private struct Row {
        var name: String
        /// Seconds until both sides go directly.
        var direct: [Double] = []
        /// Longest silence of the stream since the fault.
        var silence: [Double] = []
        /// From the end of the fault until both sides go directly.
        var again: [Double] = []
        var runs = 0
        var missing = 0
    }

    /// The first side's network breaks here; the stream runs since the first second.
    private static let faultAt = 12.0
    private static let faultLength = 3.0
    private static let duration = 40.0

    private var rows: [Row] = []
    /// What was found wrong, with seeds.
    public private(set) var violations: [String] = []
    /// Pairs per row.
    private let pairs: Int

    /// Runs everything: `pairs` runs for each row.
    public init(pairs: Int, seed: UInt64) {
        self.pairs = pairs
        for loss in [0, 0.01, 0.05] {
            var row = Row(name: loss == 0 ? "no fault" : "\(Int(loss * 100)) % of datagrams lost")
            for number in 0..<UInt64(pairs) {
                let world = World(Self.easyPair(seed: seed + number, loss: loss), seed: seed + number)
                run(world, &row, hasFault: false)
            }
            rows.append(row)
        }
        for kind in Scenario.Fault.Kind.allCases {
            var row = Row(name: kind.rawValue)
            for number in 0..<UInt64(pairs) {
                var scenario = Self.easyPair(seed: seed + number, loss: 0)
                scenario.duration = Self.duration
                scenario.faults = [Self.fault(kind)]
                run(World(scenario, seed: seed + number), &row, hasFault: true)
            }
            rows.append(row)
        }
    }

    private mutating func run(_ world: World, _ row: inout Row, hasFault: Bool) {
        world.run()
        row.runs += 1
        violations += world.violations.map { "\(row.name), seed \(world.seed): \($0)" }
        if let times = world.timesToDirect {
            row.direct.append(max(times.0, times.1))
        } else {
            row.missing += 1
        }
        guard hasFault else { return }
        row.silence.append(world.longestStall(0, since: World.moment(Self.faultAt)).inSeconds)
        let isOver = [.roam, .rebind, .clockJump, .restart].contains(world.scenario.faults[0].kind)
        let end = World.moment(isOver ? Self.faultAt : Self.faultAt + Self.faultLength)
        if let again = world.directAgain(since: end) { row.again.append(again) } else { row.missing += 1 }
    }

    /// Two homes with the usual router, a relay with two STUN servers.
    private static func easyPair(seed: UInt64, loss: Double) -> Scenario {
        var random = SeededGenerator(seed: seed)
        var scenario = Scenario(name: "easy pair", duration: 6)
        scenario.regions[0].latency = Double(random.next() % 40 + 2)
        for name in ["a", "b"] {
            scenario.routers.append(Scenario.Router(name: "nat-\(name)"))
            var host = Scenario.Host(name: name, router: "nat-\(name)")
            host.latency = Double(random.next() % 20 + 1)
            (host.lossIn, host.lossOut) = (loss / 2, loss / 2)
            scenario.hosts.append(host)
        }
        scenario.sessions = [Scenario.Session(from: "a", to: "b")]
        // What is too long is shown, not judged.
        scenario.stallLimit = duration
        return scenario
    }

    private static func fault(_ kind: Scenario.Fault.Kind) -> Scenario.Fault {
        var fault = Scenario.Fault(kind: kind, who: "a", at: faultAt, until: faultAt + faultLength)
        switch kind {
        case .relayDown: fault.who = "1"
        case .rebind: fault.who = "nat-a"
        case .mtu: fault.value = 1_280
        case .loss: fault.value = 0.3
        case .clockJump: fault.value = 600
        default: break
        }
        return fault
    }

    // MARK: Text

    /// Two tables: seconds until direct, and what faults cost.
    public var text: String {
        var text = "| pairs behind easy NATs | pairs | direct within 0.3 s | p50 s | p90 s | max s |\n"
        text += "|---|---|---|---|---|---|\n"
        for row in rows.prefix(3) {
            let soon = row.direct.count { $0 <= 0.3 }
            text += "| \(row.name) | \(row.runs) | \(soon) | \(Self.quantiles(row.direct)) |\n"
        }
        text += "\n| fault (3 s long, or a moment) | pairs | silence p50 s | p90 | max "
        text += "| direct again p50 s | p90 | max | not in \(Int(Self.duration - Self.faultAt)) s |\n"
        text += "|---|---|---|---|---|---|---|---|---|\n"
        for row in rows.dropFirst(3) {
            text += "| \(row.name) | \(row.runs) | \(Self.quantiles(row.silence)) "
            text += "| \(Self.quantiles(row.again)) | \(row.missing) |\n"
        }
        return text + violations.map { "VIOLATION \($0)\n" }.joined()
    }

    private static func quantiles(_ values: [Double]) -> String {
        let sorted = values.sorted()
        return [0.5, 0.9, 1].map { share in
            guard !sorted.isEmpty else { return "-" }
            return ResultTable.seconds(sorted[min(sorted.count - 1, Int(Double(sorted.count) * share))])
        }.joined(separator: " | ")
    }
}

extension World {
    /// When each side of the first session first went directly, in seconds since it began.
    var timesToDirect: (Double, Double)? {
        let (a, b) = (hosts[sessions[0].hosts.0].name, hosts[sessions[0].hosts.1].name)
        guard let there = timeToDirect["\(a)-\(b)"], let back = timeToDirect["\(b)-\(a)"] else { return nil }
        return (there, back)
    }

    /// Seconds from `since` until both sides of the first session go directly and go on so until the end.
    func directAgain(since: Instant) -> Double? {
        var last: Instant?
        for side in 0..<2 {
            let host = sessions[0].host(side)
            let own = directChanges.filter { $0.host == host }
            guard let final = own.last, final.isDirect else { return nil }
            // The beginning of the last direct time.
            let begin = own.lastIndex { !$0.isDirect }.map { own[$0 + 1].at } ?? own[0].at
            last = max(last ?? begin, begin)
        }
        return last.map { $0.since(since).inSeconds }
    }
}

// SPDX-License-Identifier: Apache-2.0

import Foundation
import Synchronization

/// Seeds of simulations and fuzzers: a few by default, more by `SIM_SEEDS=1000`, a single one by `SIM_SEED=7`.
enum Seeds {
    static func some(_ count: Int) -> [UInt64] {
        let environment = ProcessInfo.processInfo.environment
        if let one = environment["SIM_SEED"].flatMap({ UInt64($0) }) { return [one] }
        let wanted = environment["SIM_SEEDS"].flatMap { Int($0) } ?? 0
        return (0..<UInt64(max(count, wanted))).map { $0 }
    }

    /// Whether a long campaign was asked for.
    static var isCampaign: Bool { ProcessInfo.processInfo.environment["SIM_SEEDS"] != nil }
}

/// How often each parser was fed; written to standard error as the count grows.
enum Executions {
    private static let counts = Mutex<[String: Int]>([:])

    static func add(_ count: Int, to parser: String) {
        let total = counts.withLock { counts in
            counts[parser, default: 0] += count
            return counts[parser]!
        }
        if Seeds.isCampaign {
            FileHandle.standardError.write(Data("fuzz: \(parser) \(total) executions\n".utf8))
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

/// When a workspace starts by itself: `CRON_TZ=Europe/Berlin 30 9 * * 1-5`, where day of month and month are `*`.
enum WeeklySchedule {
    private static let days = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]

    /// Nil when the text is a schedule, else what is wrong with it.
    static func complaint(_ text: String) -> String? {
        var fields = text.split(separator: " ").map(String.init)
        if let zone = fields.first, zone.hasPrefix("CRON_TZ=") || zone.hasPrefix("TZ=") {
            fields.removeFirst()
            let name = zone.drop { $0 != "=" }.dropFirst()
            let isName = name.utf8.allSatisfy { Names.isLetterOrDigit($0) || "_/+-".utf8.contains($0) }
            guard !name.isEmpty, isName, name != "Local" else { return "provided bad location \(name)" }
        }
        guard fields.count == 5 else {
            return "expected schedule to consist of 5 fields with an optional CRON_TZ=<timezone> prefix"
        }
        guard fields[2] == "*" else { return "expected day-of-month to be *" }
        guard fields[3] == "*" else { return "expected month to be *" }
        let parts: [(String, String, ClosedRange<Int>, [String])] = [
            ("minute", fields[0], 0...59, []), ("hour", fields[1], 0...23, []),
            ("day-of-week", fields[4], 0...6, days),
        ]
        let bad = parts.first { !isField($0.1, $0.2, names: $0.3) }
        return bad.map { "failed to parse \($0.0): \"\($0.1)\"" }
    }

    /// `*`, `5`, `1-5`, `mon`, each maybe with `/2` behind it; several with commas.
    private static func isField(_ text: String, _ range: ClosedRange<Int>, names: [String]) -> Bool {
        text.split(separator: ",", omittingEmptySubsequences: false).allSatisfy { item in
            let step = item.split(separator: "/", omittingEmptySubsequences: false)
            guard step.count <= 2, step.count == 1 || (Int(step[1]).map { $0 > 0 } ?? false) else {
                return false
            }
            if step[0] == "*" || step[0] == "?" { return true }
            let ends = step[0].split(separator: "-", omittingEmptySubsequences: false).map { word in
                names.firstIndex(of: word.lowercased()) ?? Int(word)
            }
            guard (1...2).contains(ends.count), let first = ends[0], let last = ends[ends.count - 1] else {
                return false
            }
            return range.contains(first) && range.contains(last) && first <= last
        }
    }
}

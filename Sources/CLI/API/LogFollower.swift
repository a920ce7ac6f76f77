// SPDX-License-Identifier: Apache-2.0

/// The lines of a build's or an agent's log as they appear: each look fetches those behind the last one seen.
struct LogFollower {
    let client: APIClient
    let console: Console
    let route: String
    private var last = 0

    init(client: APIClient, console: Console, route: String) {
        self.client = client
        self.console = console
        self.route = route
    }

    /// The new lines. None when the server cannot be asked: what waits for a build tells that, not its log.
    mutating func next() async -> [JSON] {
        let lines: [JSON]
        do {
            lines = try await client.get(route, [("after", "\(last)")]).elements
        } catch {
            return []
        }
        last = lines.reduce(last) { max($0, $1["id"].int ?? 0) }
        return lines
    }

    /// Prints the new lines, with what stands between the time and the text.
    mutating func show(_ prefix: (JSON) -> String) async {
        for line in await next() { show(line, prefix(line)) }
    }

    /// Prints a line; those for developers only with `--verbose`.
    func show(_ line: JSON, _ prefix: String = "") {
        let level = line["log_level"].string ?? line["level"].text
        guard client.isVerbose || !["trace", "debug"].contains(level) else { return }
        let time = Timestamp(line["created_at"].text).map { "\($0.logStamp) " } ?? ""
        console.note("\(time)\(prefix)\(Table.clean(line["output"].text))")
    }
}

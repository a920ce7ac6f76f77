// SPDX-License-Identifier: Apache-2.0

/// Follows a workspace build until it is done, in the lines that people and scripts know.
struct BuildWaiter {
    let client: APIClient
    let console: Console

    /// Waits for the build's job, and shows its log. Failed: its error; cancelled: silent.
    func wait(for build: JSON) async throws {
        let route = "workspacebuilds/\(build["id"].text)"
        var build = build
        var stage: Stage?
        var isLogged = false
        var logs = LogFollower(client: client, console: console, route: "\(route)/logs")
        while true {
            let job = build["job"]
            let status = job["status"].text
            let isWaiting = ["pending", "running", "canceling"].contains(status)
            let enter = { (name: String) in
                guard stage?.name != name else { return }
                stage?.end(console)
                stage = Stage(name, console)
            }
            if isWaiting, !isLogged { enter(stageName(job)) }
            if status != "pending" {
                for line in await logs.next() {
                    isLogged = true
                    if let name = line["stage"].string, !name.isEmpty { enter(Table.clean(name)) }
                    if !line["output"].text.isEmpty { logs.show(line) }
                }
            }
            guard isWaiting else { return try finish(job, stage) }
            try await Task.sleep(for: .milliseconds(250))
            build = try await client.get(route)
        }
    }

    private func finish(_ job: JSON, _ stage: Stage?) throws {
        let status = job["status"].text
        stage?.end(console, failed: status != "succeeded")
        guard status != "succeeded" else { return }
        guard status != "canceled" else { throw SilentFailure() }
        let reason = job["error"].text
        throw CommandError(reason.isEmpty ? "the workspace's build failed" : reason)
    }

    private func stageName(_ job: JSON) -> String {
        guard job["status"].text == "pending" else { return "Running" }
        switch job["queue_position"].int ?? 0 {
        case 0: return "Queued"
        case 1: return "Queued (next)"
        case let position: return "Queued (position: \(position))"
        }
    }
}

/// One `==> ⧗ …` line with its end.
struct Stage {
    let name: String
    private let began = Timestamp.now

    init(_ name: String, _ console: Console) {
        self.name = name
        console.note("==> ⧗ \(name)")
    }

    func end(_ console: Console, failed: Bool = false) {
        let milliseconds = began.age.wholeNanoseconds / 1_000_000
        console.note("=== \(failed ? "✘" : "✔") \(name) [\(milliseconds)ms]")
    }
}

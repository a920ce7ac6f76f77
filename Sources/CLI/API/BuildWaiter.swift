// SPDX-License-Identifier: Apache-2.0

/// Follows a workspace build until it is done, in the lines that people and scripts know.
struct BuildWaiter {
    let client: APIClient
    let console: Console

    /// Waits for the build's job. Failed: its error; cancelled: silent.
    func wait(for build: JSON) async throws {
        var build = build
        var stage: Stage?
        while true {
            let job = build["job"]
            let status = job["status"].text
            let name = stageName(job)
            if stage?.name != name, status == "pending" || status == "running" || status == "canceling" {
                stage?.end(console)
                stage = Stage(name, console)
            }
            switch status {
            case "succeeded":
                stage?.end(console)
                return
            case "canceled":
                stage?.end(console, failed: true)
                throw SilentFailure()
            case "failed":
                stage?.end(console, failed: true)
                let reason = job["error"].text
                throw CommandError(reason.isEmpty ? "the workspace's build failed" : reason)
            default: break
            }
            try await Task.sleep(for: .milliseconds(250))
            build = try await client.get("workspacebuilds/\(build["id"].text)")
        }
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

// SPDX-License-Identifier: Apache-2.0

import CLI
import Synchronization
import Testing

/// What `coder ssh` does before there is anything to connect to: builds, agents that come late, reports of use.
@Suite(.timeLimit(.minutes(2))) struct WaitingTests {
    /// A workspace as the server sees it.
    private static func workspace(_ transition: String, job: String, agents: String = "") -> String {
        let status = ["start": "running", "stop": "stopped"][transition] ?? ""
        return """
            {"id":"w1","name":"dev","owner_name":"ann","template_active_version_id":"v7","latest_build":{"id":"b1",
             "transition":"\(transition)","status":"\(status)","job":{"status":"\(job)"},
             "resources":[{"type":"x","name":"main","agents":[\(agents)]}]}}
            """
    }

    private static func agent(_ status: String, _ lifecycle: String) -> String {
        """
        {"id":"a1","name":"main","parent_id":null,"status":"\(status)","lifecycle_state":"\(lifecycle)",
         "log_sources":[{"id":"s1","display_name":"Startup Script"}],"scripts":[{"start_blocks_login":true}]}
        """
    }

    /// The answers of the n-th request for the same thing; the last one is repeated.
    private final class Script: Sendable {
        private let answers: [String: [StubServer.Answer]]
        private let counts = Mutex<[String: Int]>([:])

        init(_ answers: [String: [StubServer.Answer]]) { self.answers = answers }

        func answer(_ request: StubServer.Request) -> StubServer.Answer {
            guard let list = answers[request.line.replacing("/api/v2/", with: "")] else {
                return (404, #"{"message":"nothing here"}"#)
            }
            let index = counts.withLock { counts in
                defer { counts[request.line, default: 0] += 1 }
                return counts[request.line, default: 0]
            }
            return list[min(index, list.count - 1)]
        }
    }

    private func ssh(_ answers: [String: [StubServer.Answer]]) async throws -> (Outcome, StubServer) {
        let script = Script(answers)
        let server = try StubServer { script.answer($0) }
        let environment = ["CODER_URL": server.url, "CODER_SESSION_TOKEN": "t"]
        return (await coder(["ssh", "dev", "--", "true"], environment: environment), server)
    }

    /// The end of the tests' road: an agent that has gone again.
    private static let leaving = workspace(
        "start", job: "succeeded", agents: agent("connected", "shutting_down"))
    private static let left = "error: the workspace is shutting down\n"

    @Test func aBuildUnderWayIsAwaitedWithItsLog() async throws {
        let (outcome, _) = try await ssh([
            "GET users/me/workspace/dev": [(200, Self.workspace("start", job: "pending"))],
            "GET workspacebuilds/b1": [
                (200, #"{"id":"b1","job":{"status":"running"}}"#),
                (200, #"{"id":"b1","job":{"status":"succeeded"}}"#),
            ],
            "GET workspacebuilds/b1/logs?after=0": [
                (
                    200,
                    """
                    [{"id":4,"created_at":"2026-02-01T10:00:00.25Z","log_level":"info","stage":"Planning",
                      "output":"one \\u001b[31mred"},
                     {"id":5,"created_at":"2026-02-01T10:00:01Z","log_level":"debug","stage":"Planning",
                      "output":"two"}]
                    """
                )
            ],
            "GET workspacebuilds/b1/logs?after=5": [
                (
                    200,
                    """
                    [{"id":6,"created_at":"2026-02-01T10:00:02Z","log_level":"warn","stage":"Starting",
                      "output":"three"}]
                    """
                )
            ],
            "GET workspaces/w1": [(200, Self.leaving)],
        ])
        let lines = outcome.errors.split(separator: "\n").map(String.init)
        let names: [Substring] = ["Queued", "Running", "Planning", "Starting"]
        let stages = lines.compactMap { $0.firstMatch(of: /^(?:==> ⧗|=== ✔) (\w+)/)?.1 }
        #expect(stages == names.flatMap { [$0, $0] }, "\(outcome)")
        #expect(lines.contains { $0.hasPrefix("2026-02-01 ") && $0.hasSuffix(" one  [31mred") }, "\(lines)")
        #expect(!outcome.errors.contains("two") && outcome.errors.contains("three"))
        #expect(outcome.errors.hasSuffix(Self.left))
    }

    @Test func whoStartsAtTheSameTimeDoesNotMatter() async throws {
        let (outcome, server) = try await ssh([
            "GET users/me/workspace/dev": [(200, Self.workspace("stop", job: "succeeded"))],
            "POST workspaces/w1/builds": [(409, #"{"message":"A workspace build is already active."}"#)],
            "GET workspaces/w1": [(200, Self.workspace("start", job: "running")), (200, Self.leaving)],
            "GET workspacebuilds/b1": [(200, #"{"id":"b1","job":{"status":"succeeded"}}"#)],
        ])
        #expect(outcome.errors.hasSuffix(Self.left), "\(outcome)")
        #expect(server.requests.filter { $0.line.hasPrefix("POST") }.count == 1)
    }

    @Test func aTemplateMayInsistOnItsActiveVersion() async throws {
        let (outcome, server) = try await ssh([
            "GET users/me/workspace/dev": [(200, Self.workspace("stop", job: "succeeded"))],
            "POST workspaces/w1/builds": [
                (403, #"{"message":"The template requires the active version."}"#),
                (201, #"{"id":"b1","job":{"status":"succeeded"}}"#),
            ],
            "GET workspaces/w1": [(200, Self.leaving)],
        ])
        #expect(outcome.errors.hasSuffix(Self.left), "\(outcome)")
        let bodies = server.requests.filter { $0.line.hasPrefix("POST") }.map(\.body)
        #expect(
            bodies == [
                #"{"transition":"start","reason":"ssh_connection"}"#,
                #"{"transition":"start","reason":"ssh_connection","template_version_id":"v7"}"#,
            ])
    }

    @Test func anAgentMayTakeItsTime() async throws {
        let (outcome, _) = try await ssh([
            "GET users/me/workspace/dev": [
                (200, Self.workspace("start", job: "succeeded", agents: Self.agent("connecting", "created")))
            ],
            "GET workspaceagents/a1": [
                (502, "<html>the server restarts</html>"), (200, Self.agent("timeout", "created")),
                (200, Self.agent("connected", "starting")), (200, Self.agent("connected", "start_error")),
                (200, Self.agent("connected", "shutting_down")),
            ],
            "GET workspaceagents/a1/logs?after=0": [
                (200, "[]"), (200, #"[{"id":9,"created_at":"x","source_id":"s1","output":"installing"}]"#),
            ],
        ])
        var rest = outcome.errors[...]
        for text in [
            "==> ⧗ Waiting for the workspace agent to connect\n", "The agent has trouble connecting.",
            "=== ✔ Waiting for the workspace agent to connect [",
            "==> ⧗ Running workspace agent startup scripts", "Startup Script: installing\n",
            "=== ✘ Running workspace agent startup scripts", "Warning: the startup scripts",
        ] {
            let found = rest.firstRange(of: text)
            #expect(found != nil, "no \(text) in order in \(outcome.errors)")
            if let found { rest = rest[found.upperBound...] }
        }
    }

    @Test func aReportThatFailsIsFollowedByOthers() async {
        struct Refused: Error {}
        let count = Mutex(0)
        let reports = Task {
            await Usage.repeat(every: .milliseconds(1)) {
                let number = count.withLock { count in
                    count += 1
                    return count
                }
                if number == 1 { throw Refused() }
            }
        }
        while count.withLock({ $0 }) < 3 { await Task.yield() }
        reports.cancel()
        await reports.value
    }

    @Test func aHeaderCommandKnowsTheURLAndMustNotFail() async throws {
        let server = try StubServer { _ in (200, #"{"username":"ann"}"#) }
        let environment = ["CODER_URL": server.url, "CODER_SESSION_TOKEN": "t", "PATH": "/usr/bin:/bin"]
        let fine = await coder(
            ["whoami", "--header-command", "echo x-for=$CODER_URL"], environment: environment)
        #expect(fine.status == 0, "\(fine)")
        #expect(server.requests.allSatisfy { $0.header("x-for") == server.url } && !server.requests.isEmpty)
        let count = server.requests.count
        let failed = await coder(
            ["whoami", "--header-command", "echo a=b; exit 3"], environment: environment)
        #expect(failed.status == 1 && failed.errors.contains("--header-command failed"), "\(failed)")
        #expect(server.requests.count == count)
    }
}

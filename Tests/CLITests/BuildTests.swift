// SPDX-License-Identifier: Apache-2.0

import CLI
import Synchronization
import Testing

/// Starting and stopping, against a server that answers from a table.
@Suite(.timeLimit(.minutes(1))) struct BuildTests {
    /// A deployment with the workspace `dev`.
    private final class Deployment: Sendable {
        struct State {
            var transition: String
            var status: String
            var isOutdated = false
            /// Statuses that the next builds are refused with.
            var refusals: [Int] = []
            /// What the build's job says each time it is asked.
            var jobs: [String] = []
        }

        let server: StubServer

        init(_ initial: State) throws {
            let cell = Cell(initial)
            server = try StubServer { request in cell.answer(request) }
        }

        /// Bodies of the builds that were asked for.
        var builds: [JSON] {
            get throws {
                try server.requests.filter { $0.line == "POST /api/v2/workspaces/w1/builds" }.map {
                    try JSON.parse($0.body.utf8)
                }
            }
        }

        func run(_ arguments: String..., input: [String] = []) async -> Outcome {
            await coder(
                arguments,
                environment: ["CODER_URL": server.url, "CODER_SESSION_TOKEN": "t"], input: input)
        }
    }

    private final class Cell: Sendable {
        let state: Mutex<Deployment.State>
        init(_ state: Deployment.State) { self.state = Mutex(state) }

        func answer(_ request: StubServer.Request) -> StubServer.Answer {
            state.withLock { state in
                switch request.line {
                case "GET /api/v2/users/me/workspace/dev", "GET /api/v2/workspaces/w1":
                    return (200, Self.workspace(state))
                case "POST /api/v2/workspaces/w1/builds":
                    if !state.refusals.isEmpty {
                        return (state.refusals.removeFirst(), #"{"message":"refused"}"#)
                    }
                    let isStop = request.body.contains(#""transition":"stop""#)
                    (state.transition, state.status) = isStop ? ("stop", "stopped") : ("start", "running")
                    return (201, Self.build(state.jobs.isEmpty ? "succeeded" : state.jobs.removeFirst()))
                case "GET /api/v2/workspacebuilds/b2":
                    return (200, Self.build(state.jobs.isEmpty ? "succeeded" : state.jobs.removeFirst()))
                case let line where line.hasPrefix("GET /api/v2/workspacebuilds/b2/logs"): return (200, "[]")
                default: return (404, #"{"message":"\#(request.line)"}"#)
                }
            }
        }

        private static func workspace(_ state: Deployment.State) -> String {
            """
            {"id":"w1","name":"dev","owner_name":"ann","outdated":\(state.isOutdated),"dormant_at":null,
             "automatic_updates":"never","template_active_version_id":"v2",
             "latest_build":{"id":"b1","transition":"\(state.transition)","status":"\(state.status)",
               "has_external_agent":false,"job":{"status":"succeeded"},"resources":[]}}
            """
        }

        private static func build(_ job: String) -> String {
            #"{"id":"b2","transition":"start","job":{"status":"\#(job)","error":"it broke"}}"#
        }
    }

    private func stopped(_ refusals: [Int] = [], jobs: [String] = []) throws -> Deployment {
        try Deployment(.init(transition: "stop", status: "stopped", refusals: refusals, jobs: jobs))
    }

    @Test func aStartSaysWhyAndIsFollowed() async throws {
        let deployment = try stopped(jobs: ["pending", "running", "running"])
        let outcome = await deployment.run("start", "dev", "--yes", "--reason", "vscode_connection")
        #expect(outcome.status == 0, "\(outcome)")
        #expect(outcome.output.hasPrefix("The dev workspace has been started at "))
        let body = try #require(deployment.builds.first)
        #expect(body["reason"].string == "vscode_connection")
        #expect(body["transition"].string == "start")
        let stages = outcome.errors.split(separator: "\n").filter { $0.hasPrefix("==>") }
        #expect(stages == ["==> ⧗ Queued", "==> ⧗ Running"])
    }

    @Test func aRunningWorkspaceIsLeftAlone() async throws {
        let deployment = try Deployment(.init(transition: "start", status: "running"))
        let outcome = await deployment.run("start", "dev")
        #expect(outcome.output == "The dev workspace is running already.\n")
        #expect(try deployment.builds.isEmpty)
    }

    @Test func aForbiddenVersionIsReplacedByTheActiveOne() async throws {
        let deployment = try stopped([403])
        let outcome = await deployment.run("start", "dev")
        #expect(outcome.status == 0, "\(outcome)")
        let builds = try deployment.builds
        #expect(builds.count == 2)
        #expect(builds.last?["template_version_id"].string == "v2")
    }

    @Test func aFailedBuildIsItsError() async throws {
        let outcome = try await stopped(jobs: ["running", "failed"]).run("start", "dev")
        #expect(outcome.status == 1)
        #expect(outcome.output == "")
        #expect(outcome.errors.hasSuffix("\nerror: it broke\n"))
    }

    @Test func stopAsksFirst() async throws {
        let deployment = try Deployment(.init(transition: "start", status: "running"))
        let refused = await deployment.run("stop", "dev", input: ["no"])
        #expect(refused.status == 1)
        #expect(refused.errors == "")
        #expect(try deployment.builds.isEmpty)
        let stopped = await deployment.run("stop", "dev", "-y")
        #expect(stopped.output.hasPrefix("The dev workspace has been stopped at "))
        #expect(try deployment.builds.map { $0["transition"].string } == ["stop"])
    }

    @Test func restartAndUpdateStopFirst() async throws {
        let deployment = try Deployment(.init(transition: "start", status: "running", isOutdated: true))
        #expect(await deployment.run("restart", "dev", "--yes", "--parameter", "a=b=c").status == 0)
        #expect(await deployment.run("update", "dev").status == 0)
        let builds = try deployment.builds
        #expect(builds.map { $0["transition"].string } == ["stop", "start", "stop", "start"])
        #expect(builds.map { $0["template_version_id"].string } == [nil, nil, nil, "v2"])
        #expect(builds[1]["rich_parameter_values"].compact == #"[{"name":"a","value":"b=c"}]"#)
        let current = try Deployment(.init(transition: "start", status: "running"))
        #expect(await current.run("update", "dev").output == "The dev workspace is up to date.\n")
        #expect(try current.builds.isEmpty)
    }

    @Test(
        arguments: [("connecting", 120), ("timeout", 30), ("disconnected", 30), ("connected", nil)]
            as [(String, Int?)])
    func patienceIsBounded(_ status: String, _ seconds: Int?) {
        #expect(AgentPatience.limit(status) == seconds.map { Duration.seconds($0) })
    }
}

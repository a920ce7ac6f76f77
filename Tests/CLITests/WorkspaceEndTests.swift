// SPDX-License-Identifier: Apache-2.0

import CLI
import Testing

/// When a workspace is no longer the one that a session began in. A stop ends what is forwarded when it is asked for
/// (`asked`), and a session when it is done (`done`).
@Suite struct WorkspaceEndTests {
    struct Case: CustomTestStringConvertible {
        var transition: String
        var status: String
        var build = "b2"
        var asked: WorkspaceEnd?
        var done: WorkspaceEnd?
        var testDescription: String { "\(transition), \(status), build \(build)" }
    }

    static let cases: [Case] = [
        Case(transition: "start", status: "running", build: "b1"),
        Case(transition: "start", status: "failed", build: "b1"),
        Case(transition: "start", status: "running", build: ""),
        Case(transition: "start", status: "pending", asked: .startedAnew, done: .startedAnew),
        Case(transition: "start", status: "starting", asked: .startedAnew, done: .startedAnew),
        Case(transition: "start", status: "running", asked: .startedAnew, done: .startedAnew),
        Case(transition: "stop", status: "pending", asked: .stopped),
        Case(transition: "stop", status: "stopping", asked: .stopped),
        Case(transition: "stop", status: "failed", asked: .stopped),
        Case(transition: "stop", status: "stopped", asked: .stopped, done: .stopped),
        Case(transition: "stop", status: "stopped", build: "b1", asked: .stopped, done: .stopped),
        Case(transition: "delete", status: "deleting", asked: .deleted),
        Case(transition: "delete", status: "deleted", asked: .deleted, done: .deleted),
        Case(transition: "", status: ""),
    ]

    @Test(arguments: cases) func whatEndsASession(_ item: Case) throws {
        let (build, transition, status) = (item.build, item.transition, item.status)
        let workspace =
            #"{"latest_build":{"id":"\#(build)","transition":"\#(transition)","status":"\#(status)"}}"#
        let json = try JSON.parse(workspace.utf8)
        for (moment, end) in [(WorkspaceEnd.Moment.asked, item.asked), (.done, item.done)] {
            #expect(WorkspaceEnd(of: json, since: "b1", when: moment) == end)
            #expect(WorkspaceEnd(status: 200, workspace.utf8, since: "b1", when: moment) == end)
            #expect(WorkspaceEnd(status: 502, workspace.utf8, since: "b1", when: moment) == nil)
        }
    }

    /// Only a server that says so itself has lost the workspace, not a proxy on the way to it.
    @Test(
        arguments: [
            (404, #"{"message":"m"}"#, .deleted), (410, #"{"message":"m"}"#, .deleted), (404, "{}", nil),
            (410, "{}", nil), (404, "<html>", nil), (401, #"{"message":"m"}"#, nil), (502, "null", nil),
            (200, "", nil),
        ] as [(Int, String, WorkspaceEnd?)])
    func answersAboutIt(_ status: Int, _ body: String, _ end: WorkspaceEnd?) {
        for moment in [WorkspaceEnd.Moment.asked, .done] {
            #expect(WorkspaceEnd(status: status, body.utf8, since: "b1", when: moment) == end)
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

import CLI
import Testing

/// What a session does when its workspace changes.
@Suite struct WatchTests {
    static let states: [(transition: String, build: String, reason: String?)] = [
        ("start", "b1", nil), ("start", "b2", "the workspace \"dev\" was started anew"),
        ("stop", "b2", "the workspace \"dev\" was stopped"),
        ("delete", "b2", "the workspace \"dev\" was deleted"),
    ]

    @Test(arguments: states.indices) func onlyAnEndIsAnEnd(_ index: Int) throws {
        let (transition, build, reason) = Self.states[index]
        let workspace = try JSON.parse(
            #"{"name":"dev","latest_build":{"id":"\#(build)","transition":"\#(transition)"}}"#.utf8)
        #expect(WorkspaceWatch.end(of: workspace, since: "b1") == reason)
    }
}

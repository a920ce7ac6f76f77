// SPDX-License-Identifier: Apache-2.0

import Foundation
import TestSupport
import Testing

/// `coder agent` as the first process of a container.
@Suite(.enabled(if: getuid() == 0, "needs root for a namespace of processes")) struct InitProcessTests {
    /// Orphans of the container are reaped, and a stop signal ends the agent and with it the container.
    @Test func orphansAreReapedAndStopSignalsArePassedOn() async throws {
        let folder = FileManager.default.temporaryDirectory.appending(path: "coder-init-\(getpid())")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        // The shell becomes the agent: process 1. Nobody answers at the URL; it goes on trying.
        let agent = try Command(
            [
                "unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c",
                "exec \(Deployment.binary) agent",
            ],
            environment: [
                "CODER_AGENT_URL": "http://127.0.0.1:1", "CODER_AGENT_LOG_DIR": folder.path,
                "CODER_AGENT_TOKEN": "00000000-0000-0000-0000-000000000001", "HOME": folder.path,
                "CODER_AGENT_SCRIPT_DATA_DIR": folder.path,
            ])
        defer { agent.signal(SIGKILL) }
        let child = "pgrep -P \(agent.pid) | head -1"
        #expect(try await Command.eventually(within: 20) { agent.errorText.contains("starting agent") })
        let inside = "nsenter -t $(\(child)) -p -m sh -c"
        _ = try await Command.run(["sh", "-c", "\(inside) '(sleep 0.3 &) ; (sleep 0.3 &)'"])
        let count = ["sh", "-c", "\(inside) 'cat /proc/[0-9]*/status' | grep -c '^State:.Z'"]
        // Nothing of it is left, not even as a zombie.
        try await Task.sleep(for: .milliseconds(500))
        #expect(
            try await Command.eventually(within: 20) { try await Command.run(count).text == "0\n" },
            "orphans stay zombies")
        _ = try await Command.run(["sh", "-c", "kill -TERM $(\(child))"])
        let outcome = try await agent.finish(timeout: 20)
        #expect(outcome.status == 0, "\(outcome)")
        #expect(outcome.errorText.contains("agent stopped"), "\(outcome)")
    }
}

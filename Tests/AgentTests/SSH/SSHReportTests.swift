// SPDX-License-Identifier: Apache-2.0

import Agent
import Glibc
import LinuxIO
import SSH
import Testing

/// What is told about sessions. agent.md §6.
@Suite(.serialized) struct SSHReportTests {
    /// JetBrains' sessions are not counted: forwards to a port of its back end are, while they last.
    @Test func jetBrainsIsAForwardToItsBackEnd() throws {
        let harness = try SSHHarness()
        let script = """
            import socket, time
            s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()
            print(s.getsockname()[1], flush=True); time.sleep(60)
            """
        let (reading, writing) = try Descriptor.pipe().release()
        let null = open("/dev/null", O_RDWR | O_CLOEXEC)
        let server = try Program.start(
            ["/usr/bin/python3", "-c", script, "remote-dev-server"], .descriptors(null, writing, null))
        defer {
            server.signal(SIGKILL)
            _ = Program.wait(server, until: .max)
            close(reading)
        }
        close(writing)
        close(null)
        var text = [UInt8](repeating: 0, count: 16)
        let count = Glibc.read(reading, &text, 16)
        let port = try #require(UInt32(String(decoding: text.prefix(max(0, count) - 1), as: UTF8.self)))
        let client = try RawClient(harness.service)
        let channel = try client.open(
            .directTCPIP(host: "127.0.0.1", port: port, originHost: "127.0.0.1", originPort: 1))
        #expect(SSHHarness.eventually { harness.sessionReports.map(\.kind) == [.jetbrains] })
        client.ssh.close(channel)
        try client.flushAll()
        #expect(SSHHarness.eventually { harness.sessionReports.map(\.exitStatus) == [nil, 0] })
        let outcome = try harness.ssh(["true"], extra: ["-o", "SetEnv=CODER_SSH_SESSION_TYPE=JetBrains"])
        #expect(outcome.status == 0)
        #expect(harness.sessionReports.count == 2)
    }
}

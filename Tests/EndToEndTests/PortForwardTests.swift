// SPDX-License-Identifier: Apache-2.0

import Foundation
import TestSupport
import Testing

/// `coder port-forward`, and what commands say when the agent is not there.
extension EndToEndTests {
    /// Sends back each line of a unix socket or TCP port, turned round.
    private static let mirror = """
        import socket, sys, threading
        s = socket.socket(socket.AF_UNIX if sys.argv[1][0] == '/' else socket.AF_INET)
        s.bind(sys.argv[1] if sys.argv[1][0] == '/' else ('127.0.0.1', int(sys.argv[1])))
        s.listen(200)
        def serve(c):
            for line in c.makefile('rb'): c.sendall(line.strip()[::-1] + b'\\n')
            c.close()
        while True: threading.Thread(target=serve, args=(s.accept()[0],), daemon=True).start()
        """

    /// Asks a mirror, at a path or port of the user's machine.
    private static let ask = """
        import socket, sys
        for where in sys.argv[1:]:
            s = socket.socket(socket.AF_UNIX if where[0] == '/' else socket.AF_INET)
            s.settimeout(10)
            s.connect(where if where[0] == '/' else ('127.0.0.1', int(where)))
            s.sendall(b'abc\\n' * 1000)
            s.shutdown(socket.SHUT_WR)
            answer = b''.join(iter(lambda: s.recv(65536), b''))
            print(answer == b'cba\\n' * 1000)
        """

    @Test func unixSocketsAreForwardedInAllDirections() async throws {
        let folder = lab.folder.path
        let (there, here, direct) = ("\(folder)/m.sock", "\(folder)/p.sock", "\(folder)/u.sock")
        let mirrors = try [there, "8083"].map {
            try Command(lab.lab["agent"].on(["python3", "-c", Self.mirror, $0]))
        }
        let forward = try lab.start([
            "port-forward", "dev", "--tcp", "\(here):8083,18083:\(there)", "--tcp", "\(direct):\(there)",
        ])
        defer { for command in mirrors { command.signal(SIGTERM) } }
        #expect(try await Command.eventually(within: 20) { forward.errorText.contains("Ready!") })
        #expect(try FileManager.default.attributesOfItem(atPath: here)[.posixPermissions] as? Int == 0o600)
        let asked = try await Command.run(
            lab.lab["client"].on(["python3", "-c", Self.ask, here, "18083", direct, direct]), timeout: 60)
        #expect(asked.text == "True\nTrue\nTrue\nTrue\n", "\(asked) \(forward.errorText)")
        // Nobody listens there: that connection ends, and is told of.
        mirrors[0].signal(SIGKILL)
        let refused = try await Command.run(
            lab.lab["client"].on(["python3", "-c", Self.ask, "18083"]), timeout: 60)
        #expect(refused.text != "True\n", "\(refused)")
        #expect(
            try await Command.eventually(within: 10) {
                forward.errorText.contains("Failed to dial 'unix://\(there)'")
            }, "\(forward.errorText)")
        forward.signal(SIGTERM)
        #expect(try await forward.finish(timeout: 20).status == 0)
        #expect(!FileManager.default.fileExists(atPath: here))
    }

    @Test func tooManyConnectionsWaitWithoutBurningTheProcessor() async throws {
        let mirror = try Command(lab.lab["agent"].on(["python3", "-c", Self.mirror, "8084"]))
        defer { mirror.signal(SIGTERM) }
        let forward = try lab.onClient([
            "sh", "-c", "ulimit -n 60; exec \"$@\"", "sh", Deployment.binary, "port-forward", "dev", "--tcp",
            "18084:8084",
        ])
        #expect(try await Command.eventually(within: 20) { forward.errorText.contains("Ready!") })
        let crowd = try lab.onClient([
            "python3", "-c",
            """
            import socket, time
            all = [socket.create_connection(('127.0.0.1', 18084), 10) for i in range(100)]
            print('all', flush=True)
            time.sleep(600)
            """,
        ])
        #expect(
            try await Command.eventually(within: 20) { forward.errorText.contains("Too many connections") },
            "\(forward.errorText)")
        let before = try processorTicks(forward.pid)
        try await Task.sleep(for: .seconds(3))
        let used = try processorTicks(forward.pid) - before
        #expect(used < 60, "\(used) ticks of 10 ms in 3 seconds")
        crowd.signal(SIGKILL)
        let isServed = try await Command.eventually(within: 40) {
            try await Command.run(
                self.lab.lab["client"].on(["python3", "-c", Self.ask, "18084"]), timeout: 20
            ).text == "True\n"
        }
        #expect(isServed, "\(forward.errorText.suffix(2_000))")
        forward.signal(SIGTERM)
        #expect(try await forward.finish(timeout: 20).status == 0)
    }

    /// Time on the processor, user and system.
    private func processorTicks(_ process: Int32) throws -> Int {
        let text = try String(contentsOfFile: "/proc/\(process)/stat", encoding: .utf8)
        let fields = text.split(separator: ")").last.map { $0.split(separator: " ") } ?? []
        return try #require(Int(fields[11])) + #require(Int(fields[12]))
    }

    @Test func anAgentThatIsGoneIsTold() async throws {
        let forward = try lab.start(["port-forward", "dev", "--tcp", "18085:8085"])
        #expect(try await Command.eventually(within: 20) { forward.errorText.contains("Ready!") })
        try await lab.agent().signal(SIGKILL)
        #expect(
            try await Command.eventually(within: 25) {
                forward.errorText.contains("connection lost, waiting")
            }, "\(forward.errorText)")
        // Without a terminal nobody waits for ever: one line says why.
        let attempts = try [
            ["ssh", "dev", "--", "true"], ["ssh", "--stdio", "dev"],
            ["port-forward", "dev", "--tcp", "18086:1"],
        ].map { try lab.start($0) }
        for attempt in attempts {
            let outcome = try await attempt.finish(timeout: 90)
            #expect(outcome.status == 1 && outcome.output.isEmpty, "\(outcome)")
            let errors = outcome.errorText.split(separator: "\n").filter { $0.hasPrefix("error: ") }
            #expect(errors.count == 1 && errors[0].contains("is not connected"), "\(outcome)")
        }
        try await lab.startAgent(token: lab.token)
        #expect(
            try await Command.eventually(within: 60) {
                forward.errorText.contains("connection is back after")
            }, "\(forward.errorText)")
        forward.signal(SIGTERM)
        #expect(try await forward.finish(timeout: 20).status == 0)
    }

    @Test func aStoppedWorkspaceEndsItsForwards() async throws {
        let forward = try lab.start(["port-forward", "dev", "--tcp", "18087:8087"])
        #expect(try await Command.eventually(within: 20) { forward.errorText.contains("Ready!") })
        let stop = try await lab.coder(["stop", "dev", "--yes"])
        #expect(stop.status == 0 && stop.text.contains("has been stopped"), "\(stop)")
        let ended = try await forward.finish(timeout: 30)
        #expect(
            ended.status == 1 && ended.errorText.contains("error: the workspace \"dev\" was stopped\n"),
            "\(ended)")
        // Who connects starts it, but its machine needs the new token.
        let session = try await lab.coder(["ssh", "dev", "--", "true"])
        #expect(
            session.status == 1 && session.output.isEmpty && session.errorText.contains("new token"),
            "\(session)")
        let restart = try await lab.coder(["restart", "dev", "--yes"])
        #expect(restart.status == 0 && restart.text.contains("has been restarted"), "\(restart)")
        let token = try Deployment.token(in: restart.errorText)
        try Data(restart.errorText.utf8).write(to: lab.folder.appending(path: "instructions"))
        let old = try await lab.agent()
        old.signal(SIGKILL)
        try await lab.startAgent(token: token)
        #expect(
            try await Command.eventually(within: 40) {
                try await self.lab.coder(["ssh", "dev", "--", "true"], timeout: 40).status == 0
            })
    }
}

// SPDX-License-Identifier: Apache-2.0

import Foundation
import TestSupport
import Testing

/// The product as its users meet it: server, agent and user on three hosts, real programs all the way.
@Suite(.serialized, .enabled(if: Lab.isPossible, "needs root and iproute2"))
struct EndToEndTests {
    private static let shared = Task {
        let deployment = try await Deployment(network: 77)
        atexit {
            // Only reached at the end of the test process, where nothing can be awaited any more.
            for name in ["switch", "server", "agent", "client"] {
                _ = system(
                    "ip netns pids cdr77-\(name) 2>/dev/null | xargs -r kill -9;"
                        + "ip netns delete cdr77-\(name) 2>/dev/null"
                )
            }
        }
        return deployment
    }
    let lab: Deployment

    init() async throws { lab = try await Self.shared.value }

    // MARK: Session and workspaces

    @Test func theInstructionsNameTheTwoLines() throws {
        let text = try String(contentsOf: lab.folder.appending(path: "instructions"), encoding: .utf8)
        #expect(text.contains("CODER_AGENT_URL") && text.contains(lab.url))
        #expect(text.contains("CODER_AGENT_TOKEN") && text.contains("coder agent"))
    }

    @Test func listShowAndWhoami() async throws {
        let list = try await lab.coder(["list"])
        #expect(list.status == 0 && list.text.contains("ann/dev"), "\(list)")
        let json = try await lab.coder(["list", "-o", "json"])
        let workspaces = try #require(try JSONSerialization.jsonObject(with: json.output) as? [[String: Any]])
        #expect(workspaces.first?["name"] as? String == "dev")
        let show = try await lab.coder(["show", "dev"])
        #expect(show.status == 0 && show.text.contains("connected"), "\(show)")
        let who = try await lab.coder(["whoami"])
        #expect(who.status == 0 && who.text.contains("ann"), "\(who)")
    }

    static let mistakes: [[String]] = [
        ["ssh", "nosuch", "--", "true"], ["show", "nosuch"], ["ping", "nosuch"],
        ["port-forward", "nosuch", "--tcp", "1"],
        ["no-such-command"], ["list", "--no-such-flag"], ["port-forward", "dev", "--tcp", "nonsense"],
    ]

    @Test(arguments: mistakes) func aMistakeIsOneClearLine(_ arguments: [String]) async throws {
        let outcome = try await lab.coder(arguments)
        #expect(outcome.status == 1, "\(outcome)")
        #expect(outcome.output.isEmpty, "\(outcome)")
        #expect(
            !outcome.errorText.isEmpty && outcome.errorText.split(separator: "\n").count <= 2, "\(outcome)")
    }

    /// The command line, as a user on another machine.
    private func login(_ folder: String, password: String) async throws -> Command.Outcome {
        try await Command.run(
            lab.lab["client"].on([
                Deployment.binary, "login", lab.url, "--first-user-email", "ann@example.org",
                "--first-user-password", password,
            ]),
            environment: [
                "CODER_CONFIG_DIR": lab.folder.appending(path: folder).path, "HOME": lab.folder.path,
            ])
    }

    @Test func wrongPasswordAndRevokedToken() async throws {
        let other = ["CODER_CONFIG_DIR": lab.folder.appending(path: "other").path, "HOME": lab.folder.path]
        let wrong = try await login("other", password: "wrong")
        #expect(wrong.status == 1 && wrong.output.isEmpty, "\(wrong)")
        let lines = wrong.errorText.split(separator: "\n").filter { !$0.hasPrefix("Attempting to") }
        #expect(lines == ["error: Incorrect email or password."], "\(wrong)")
        let revoked = try await Command.run(
            lab.lab["client"].on([Deployment.binary, "list"]),
            environment: other.merging([
                "CODER_URL": lab.url, "CODER_SESSION_TOKEN": "aaaaaaaaaa-bbbbbbbbbbbbbbbbbbbbbb",
            ]) { $1 })
        #expect(
            revoked.status == 1 && revoked.output.isEmpty && revoked.errorText.contains("login"), "\(revoked)"
        )
    }

    // MARK: ssh

    @Test func aCommandKeepsItsStreamsApart() async throws {
        let outcome = try await lab.coder(["ssh", "dev", "--", "echo out; echo err >&2; exit 7"])
        #expect(
            outcome.status == 7 && outcome.text == "out\n" && outcome.errorText.contains("err\n"),
            "\(outcome)")
    }

    @Test func inputEndsWhereTheUserEndsIt() async throws {
        let outcome = try await lab.coder(
            ["ssh", "dev", "--", "wc", "-c"], input: Data(repeating: 65, count: 3_000_000))
        #expect(outcome.status == 0 && outcome.text.contains("3000000"), "\(outcome)")
    }

    @Test func aTerminalResizesSignalsAndEndsSane() async throws {
        let script = """
            import os, pty, sys, time, struct, fcntl, termios, select, signal
            pid, fd = pty.fork()
            if pid == 0:
                os.execvp(sys.argv[1], sys.argv[1:])
            def size(r, c): fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack('HHHH', r, c, 0, 0))
            size(33, 101)
            seen = b''
            def until(mark, limit=20):
                global seen
                end = time.time() + limit
                while mark not in seen and time.time() < end:
                    if select.select([fd], [], [], 0.2)[0]:
                        try: data = os.read(fd, 65536)
                        except OSError: break
                        if not data: break
                        seen += data
                if mark not in seen: print('MISSING', mark, seen[-2000:]); sys.exit(1)
                seen = seen[seen.index(mark) + len(mark):]
            def say(text): os.write(fd, text.encode())
            say("PS1='> '; stty -echo; echo re''ady\\n"); until(b'ready')
            say('stty size\\n'); until(b'33 101')
            size(44, 120); time.sleep(0.5); say('stty size\\n'); until(b'44 120')
            say('echo grüße-$((6*7))\\n'); until('grüße-42'.encode())
            say('sleep 60; echo status=$?\\n'); time.sleep(0.7); say('\\x03'); time.sleep(0.3)
            say('echo after=$((1+1))\\n'); until(b'after=2')
            say('tty; echo $TERM\\n'); until(b'/dev/pts/')
            say('exit 5\\n')
            status = os.waitpid(pid, 0)[1]
            print('EXIT', os.waitstatus_to_exitcode(status))
            """
        let run = try lab.onClient(["python3", "-c", script, Deployment.binary, "ssh", "dev"])
        let outcome = try await run.finish(timeout: 60)
        #expect(outcome.text.contains("EXIT 5"), "\(outcome)")
    }

    @Test func openSSHGoesThroughUs() async throws {
        let exec = try await lab.onClient(["ssh"] + lab.sshOptions + ["x", "echo out; echo err >&2; exit 3"])
            .finish()
        #expect(exec.status == 3 && exec.text == "out\n" && exec.errorText.contains("err"), "\(exec)")

        let file = lab.folder.appending(path: "original").path
        try Data((0..<5_000_000).map { UInt8(truncatingIfNeeded: $0 &* 2_654_435_761 >> 7) }).write(
            to: URL(filePath: file))
        for (index, protocolFlag) in [["-s"], ["-O"]].enumerated() {
            let up = try await lab.onClient(
                ["scp"] + protocolFlag + lab.sshOptions + [file, "x:copy\(index)"]
            ).finish()
            #expect(up.status == 0, "scp \(protocolFlag) up: \(up)")
            let back = lab.folder.appending(path: "back\(index)").path
            let down = try await lab.onClient(
                ["scp"] + protocolFlag + lab.sshOptions + ["x:copy\(index)", back]
            ).finish()
            #expect(down.status == 0, "scp \(protocolFlag) down: \(down)")
            #expect(try Data(contentsOf: URL(filePath: back)) == Data(contentsOf: URL(filePath: file)))
        }
        let batch = """
            mkdir d
            put \(file) d/a
            rename d/a d/b
            chmod 600 d/b
            ls -l d
            get d/b \(lab.folder.appending(path: "sftp-back").path)
            rm d/b
            rmdir d
            """
        let sftp = try await lab.onClient(
            ["sftp"] + lab.sshOptions + ["-b", "-", "x"], input: Data(batch.utf8)
        ).finish()
        #expect(sftp.status == 0, "\(sftp)")
        #expect(
            try Data(contentsOf: lab.folder.appending(path: "sftp-back"))
                == Data(contentsOf: URL(filePath: file)))
    }

    @Test func manySessionsAtOnceAreExact() async throws {
        let sum = "dd if=/dev/urandom bs=1M count=20 2>/dev/null | tee >(sha256sum >&2)"
        let sessions = try (0..<24).map { _ in
            try lab.start(["ssh", "dev", "--", "bash", "-c", "'\(sum); sleep 0.3'"])
        }
        for session in sessions {
            let outcome = try await session.finish(timeout: 240)
            #expect(
                outcome.status == 0 && outcome.output.count == 20 << 20,
                "\(outcome.status) \(outcome.output.count) \(outcome.errorText)")
            let local = try await Command.run(["sha256sum"], input: outcome.output)
            #expect(outcome.errorText.contains(local.text.prefix(64)), "\(outcome.errorText)")
        }
    }

    // MARK: Ports

    @Test func portsAreForwarded() async throws {
        let web = try Command(
            lab.lab["agent"].on([
                "python3", "-m", "http.server", "8081", "--bind", "127.0.0.1", "--directory",
                "/usr/share/common-licenses",
            ]))
        let echo = try Command(
            lab.lab["agent"].on([
                "python3", "-c",
                """
                import socket
                s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                s.bind(('127.0.0.1', 5354))
                while True:
                    d, a = s.recvfrom(2000)
                    s.sendto(d[::-1], a)
                """,
            ]))
        let forward = try lab.start(["port-forward", "dev", "--tcp", "18080:8081", "--udp", "15353:5354"])
        defer { for command in [web, echo, forward] { command.signal(SIGTERM) } }
        let fetched = try await Command.eventually(within: 20) {
            try await Command.run(
                lab.lab["client"].on([
                    "python3", "-c",
                    """
                    import urllib.request as r, sys
                    sys.stdout.buffer.write(r.urlopen('http://127.0.0.1:18080/GPL-3', timeout=3).read())
                    """,
                ])
            ).output == (try Data(contentsOf: URL(filePath: "/usr/share/common-licenses/GPL-3")))
        }
        #expect(fetched, "\(forward.errorText)")
        let answer = try await Command.run(
            lab.lab["client"].on([
                "python3", "-c",
                """
                import socket
                s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                s.settimeout(5)
                s.sendto(b'abc', ('127.0.0.1', 15353))
                print(s.recvfrom(100)[0])
                """,
            ]))
        #expect(answer.text.contains("cba"), "\(answer) \(forward.errorText)")
    }

    // MARK: Faults

    @Test func garbageOnTheServersPortHurtsNobody() async throws {
        let script = """
            import os, socket, random
            random.seed(7)
            get = b'GET /derp HTTP/1.1\\r\\nHost: x\\r\\nConnection: Upgrade\\r\\nUpgrade: '
            ws = b'websocket\\r\\nSec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\\r\\n'
            heads = [b'', get + b'DERP\\r\\n\\r\\n', get + ws + b'Sec-WebSocket-Protocol: derp\\r\\n\\r\\n']
            server = '\(lab.lab["server"].address)'
            for i in range(60):
                s = socket.create_connection((server, 3000), 3); s.settimeout(1)
                try:
                    s.sendall(heads[i % 3] + random.randbytes(random.randrange(1, 5000)))
                    s.recv(100)
                except OSError: pass
                s.close()
            u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            for i in range(500): u.sendto(random.randbytes(random.randrange(1, 1400)), (server, 3478))
            """
        let run = try await lab.onClient(["python3", "-c", script]).finish(timeout: 90)
        #expect(run.status == 0, "\(run)")
        let server = try await lab.server()
        #expect(server.isRunning)
        let after = try await lab.coder(["ssh", "dev", "--", "echo", "alive"])
        #expect(after.text == "alive\n", "\(after)")
    }

    @Test func aSecondServerOnOneFolderIsRefused() async throws {
        let second = try await Command.run(
            lab.lab["server"].on([
                Deployment.binary, "server", "--http-address", "0.0.0.0:3001", "--global-config",
                lab.folder.appending(path: "server").path,
            ]), timeout: 30)
        #expect(second.status == 1 && !second.errorText.isEmpty, "\(second)")
        let taken = try await Command.run(
            lab.lab["server"].on([
                Deployment.binary, "server", "--http-address", "0.0.0.0:3000", "--global-config",
                lab.folder.appending(path: "server2").path,
            ]), timeout: 60)
        #expect(taken.status == 1 && taken.errorText.contains("3000"), "\(taken)")
    }

    @Test func aSessionOutlivesTheServer() async throws {
        try await lab.lab.setUDPBlocked(false, between: "agent", and: "client")
        #expect(
            try await Command.eventually(within: 20) {
                try await self.lab.coder(["ping", "dev", "-n", "3"]).text.contains("p2p")
            })
        let session = try lab.start([
            "ssh", "dev", "--", "for i in $(seq 1 60); do echo $i; sleep 0.25; done",
        ])
        #expect(try await Command.eventually(within: 15) { session.text.contains("5\n") })
        try await lab.stopServer()
        try await Task.sleep(for: .seconds(2))
        try await lab.startServer()
        let outcome = try await session.finish(timeout: 60)
        #expect(outcome.status == 0 && outcome.text.hasSuffix("59\n60\n"), "\(outcome)")
        // The agent comes back by itself and takes new sessions.
        #expect(
            try await Command.eventually(within: 40) {
                try await self.lab.coder(["ssh", "dev", "--", "true"], timeout: 20).status == 0
            })
    }

    @Test func theClientSaysSoWhenTheAgentIsGone() async throws {
        let session = try lab.start(["ssh", "dev", "--", "echo up; sleep 600"])
        #expect(try await Command.eventually(within: 20) { session.text.contains("up") })
        let agent = try await lab.agent()
        agent.signal(SIGKILL)
        #expect(
            try await Command.eventually(within: 25) { session.errorText.contains("connection lost") },
            "\(session.errorText)")
        // Its sessions died with it: the client finds that out, and ends.
        try await lab.startAgent(token: lab.token)
        let outcome = try await session.finish(timeout: 45)
        #expect(outcome.status == 255 && outcome.errorText.contains("restarted"), "\(outcome)")
        #expect(
            try await Command.eventually(within: 40) {
                try await self.lab.coder(["ssh", "dev", "--", "true"], timeout: 20).status == 0
            })
    }

    @Test func logoutEndsTheSession() async throws {
        let config = lab.folder.appending(path: "second-user").path
        let environment = ["CODER_CONFIG_DIR": config, "HOME": lab.folder.path]
        let token = try await lab.coder(["tokens", "create", "--name", "e2e"])
        #expect(token.status == 0, "\(token)")
        let key = token.text.trimmingCharacters(in: .whitespacesAndNewlines)
        let login = try await Command.run(
            lab.lab["client"].on([Deployment.binary, "login", lab.url, "--token", key]),
            environment: environment)
        #expect(login.status == 0, "\(login)")
        let logout = try await Command.run(
            lab.lab["client"].on([Deployment.binary, "logout", "--yes"]), environment: environment)
        #expect(logout.status == 0, "\(logout)")
        let after = try await Command.run(
            lab.lab["client"].on([Deployment.binary, "list"]), environment: environment)
        #expect(after.status == 1 && after.output.isEmpty, "\(after)")
        // And in again, with nothing but the password.
        #expect(try await self.login("second-user", password: Deployment.password).status == 0)
        let again = try await Command.run(
            lab.lab["client"].on([Deployment.binary, "list"]), environment: environment)
        #expect(again.status == 0 && again.text.contains("ann/dev"), "\(again)")
    }
}

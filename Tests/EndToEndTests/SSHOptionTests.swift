// SPDX-License-Identifier: Apache-2.0

import Foundation
import TestSupport
import Testing

/// Options of `coder ssh` that people and editors count on, and terminals that are whole afterwards.
extension EndToEndTests {
    @Test func theUsersAgentIsOfferedWhenAsked() async throws {
        let script = """
            set -e
            dir=$(mktemp -d); trap 'kill $SSH_AGENT_PID; rm -rf $dir' EXIT
            eval "$(ssh-agent -a $dir/socket)" >/dev/null
            ssh-keygen -q -t ed25519 -N '' -C e2e-key -f $dir/key; ssh-add -q $dir/key
            coder() { '\(Deployment.binary)' ssh "$@" dev -- 'ssh-add -l 2>&1 || true'; }
            coder -A | sed 's/^/A: /'
            CODER_SSH_IDENTITY_AGENT=$dir/socket coder | sed 's/^/env: /'
            SSH_AUTH_SOCK= coder -A --identity-agent $dir/socket | sed 's/^/both: /'
            """
        let outcome = try await lab.onClient(["bash", "-c", script]).finish(timeout: 60)
        let lines = outcome.text.split(separator: "\n")
        #expect(lines.contains { $0.hasPrefix("A: ") && $0.contains("e2e-key") }, "\(outcome)")
        #expect(lines.contains { $0.hasPrefix("both: ") && $0.contains("e2e-key") }, "\(outcome)")
        #expect(!lines.contains { $0.hasPrefix("env: ") && $0.contains("e2e-key") }, "\(outcome)")
    }

    @Test(.enabled(if: exists("/usr/bin/gpg"), "no gpg")) func theUsersKeysSignThere() async throws {
        let script = """
            set -e
            export GNUPGHOME=$(mktemp -d /tmp/gpg-XXXXXX); trap 'gpgconf --kill all; rm -rf $GNUPGHOME' EXIT
            gpg --batch --quiet --passphrase '' --quick-gen-key 'E2E <e2e@example.org>' ed25519 sign never
            '\(Deployment.binary)' ssh -G dev -- \
                'echo text | gpg --batch --clearsign 2>&1' | tee $GNUPGHOME/out
            sed -n '/BEGIN/,/END PGP SIGNATURE/p' $GNUPGHOME/out | gpg --verify 2>&1
            """
        let outcome = try await lab.onClient(["bash", "-c", script]).finish(timeout: 60)
        #expect(outcome.status == 0 && outcome.text.contains("Good signature from \"E2E"), "\(outcome)")
    }

    @Test func portsAndSocketsAreLedBack() async throws {
        let folder = lab.folder.appending(path: "led-back").path
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        let service = """
            import http.server, os, socketserver, threading
            class Handler(http.server.BaseHTTPRequestHandler):
                def do_GET(self): self.send_response(200); self.end_headers(); self.wfile.write(b'from here')
                def address_string(self): return 'x'
                def log_message(self, *a): pass
            class Unix(socketserver.ThreadingMixIn, socketserver.UnixStreamServer): pass
            unix = Unix('\(folder)/s', Handler)
            threading.Thread(target=unix.serve_forever, daemon=True).start()
            http.server.ThreadingHTTPServer(('127.0.0.1', 18321), Handler).serve_forever()
            """
        let server = try lab.onClient(["python3", "-c", service])
        defer { server.signal(SIGTERM) }
        let isUp = try await Command.eventually(within: 20) {
            FileManager.default.fileExists(atPath: "\(folder)/s")
        }
        #expect(isUp, "\(server.errorText)")
        let fetch =
            "curl -sS --retry 5 --retry-all-errors http://127.0.0.1:18444/; echo;"
            + " curl -sS --unix-socket /tmp/coder-e2e-back.sock http://x/; rm -f /tmp/coder-e2e-back.sock"
        let outcome = try await lab.coder([
            "ssh", "-R", "18444:localhost:18321", "-R", "/tmp/coder-e2e-back.sock:\(folder)/s", "dev", "--",
            fetch,
        ])
        #expect(outcome.text == "from here\nfrom here", "\(outcome)")
    }

    @Test func variablesLogsAndTheNetworksFile() async throws {
        let logs = lab.folder.appending(path: "logs").path
        let info = lab.folder.appending(path: "info").path
        let session = try lab.start([
            "ssh", "-e", "FOO=bar", "-e", "OTHER=1 2", "--log-dir", logs, "--network-info-dir", info,
            "--network-info-interval", "300ms", "dev", "--", "echo \"$FOO-$OTHER\"; sleep 3",
        ])
        let file = URL(filePath: "\(info)/\(getpid()).json")
        let isThere = try await Command.eventually(within: 20) {
            (try? Data(contentsOf: file)) != nil && session.text == "bar-1 2\n"
        }
        #expect(isThere, "\(session.text) \(session.errorText)")
        let json = try #require(
            try JSONSerialization.jsonObject(with: Data(contentsOf: file)) as? [String: Any])
        #expect(
            Set(json.keys) == [
                "p2p", "latency", "preferred_derp", "derp_latency", "upload_bytes_sec", "download_bytes_sec",
                "using_coder_connect",
            ])
        #expect((json["latency"] as? Double ?? 0) > 0 && json["p2p"] is Bool, "\(json)")
        let first = try FileManager.default.attributesOfItem(atPath: file.path)[.systemFileNumber] as? Int
        let isWritten = try await Command.eventually(within: 5) {
            try FileManager.default.attributesOfItem(atPath: file.path)[.systemFileNumber] as? Int != first
        }
        #expect(isWritten, "the file is not written again")
        let outcome = try await session.finish(timeout: 30)
        #expect(outcome.status == 0, "\(outcome)")
        let names = try FileManager.default.contentsOfDirectory(atPath: logs)
        let name = try #require(
            names.first { $0.wholeMatch(of: /coder-ssh-\d{8}-\d{6}-[a-z]{5}\.log/) != nil })
        let path = "\(logs)/\(name)"
        let mode = try FileManager.default.attributesOfItem(atPath: path)[.posixPermissions] as? Int
        #expect(mode == 0o600)
        let text = try String(contentsOfFile: path, encoding: .utf8)
        for part in ["GET /api/v2/users/me/workspace/dev", "status=200", "[info] ended"] {
            #expect(text.contains(part), "no \(part) in \(text)")
        }
    }

    /// As versions of VS Code's extension before 1.9 start it.
    @Test func oldEditorsGetThrough() async throws {
        let info = lab.folder.appending(path: "old-info").path
        let url = lab.folder.appending(path: "url-file").path
        try "\(lab.url)\n".write(toFile: url, atomically: true, encoding: .utf8)
        let proxy =
            "\(Deployment.binary) vscodessh --network-info-dir \(info) --log-dir \(info) --url-file \(url)"
            + " --session-token-file \(lab.folder.path)/user/session %h"
        let session = try lab.onClient([
            "ssh", "-F", "none", "-o", "ProxyCommand=\(proxy)", "-o", "StrictHostKeyChecking=no", "-o",
            "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "coder-vscode--ann--dev",
            "echo $USER-in; sleep 2",
        ])
        let files = ["\(info)/\(session.pid).json", "\(info)/\(session.pid).log"]
        let isThere = try await Command.eventually(within: 20) {
            files.allSatisfy { FileManager.default.fileExists(atPath: $0) }
        }
        #expect(isThere, "\(files): \(session.errorText)")
        let outcome = try await session.finish(timeout: 30)
        #expect(outcome.status == 0 && outcome.text.contains("-in\n"), "\(outcome)")
    }

    /// An agent that hangs up ends the connection, also when whoever runs us keeps its side open.
    @Test func theAgentsEndIsPassedOn() async throws {
        let raw = try lab.start(["ssh", "--stdio", "dev"], openInput: true)
        #expect(try await Command.eventually(within: 20) { raw.text.hasPrefix("SSH-2.0-") })
        try raw.write("GET / HTTP/1.1\r\n\r\n")
        let outcome = try await raw.finish(timeout: 30)
        #expect(outcome.status == 0, "\(outcome)")
    }

    /// A reader that does not read cannot hold a session that is told to stop.
    @Test func aSignalEndsABlockedSession() async throws {
        let script = """
            import os, signal, subprocess, sys, time
            p = subprocess.Popen(sys.argv[1:] + ['head -c 30000000 /dev/zero'], stdout=subprocess.PIPE)
            time.sleep(3); p.send_signal(signal.SIGTERM)
            try: print('status', p.wait(15))
            except subprocess.TimeoutExpired: p.kill(); print('still there')
            """
        let outcome = try await lab.onClient(
            ["python3", "-c", script, Deployment.binary, "ssh", "dev", "--"]
        ).finish(timeout: 40)
        #expect(outcome.text == "status 143\n", "\(outcome)")
    }

    // MARK: Terminals

    /// Starts a session in a terminal whose other end stays open, and checks its settings at the end.
    private static let terminal = """
        import fcntl, os, pty, select, signal, subprocess, sys, termios, time
        # The runtime's own report of a crash would wait for an answer.
        os.environ['SWIFT_BACKTRACE'] = 'enable=no'
        master, slave = pty.openpty()
        def isRaw(): return not termios.tcgetattr(slave)[3] & (termios.ICANON | termios.ECHO)
        def until(mark, limit=30):
            seen, end = b'', time.time() + limit
            while mark not in seen:
                if not select.select([master], [], [], max(0, end - time.time()))[0]:
                    sys.exit(f'no {mark} in {seen[-1500:]}')
                seen += os.read(master, 65536)
            return seen
        def say(text): os.write(master, text)
        def launch(words):
            return subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave,
                start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        def start():
            p = launch(sys.argv[1:])
            say(b"PS1='pro''mpt> '; echo re''ady\\r"); until(b'ready')
            if not isRaw(): sys.exit('not raw')
            return p
        def end(p, what, status):
            try: got = p.wait(20)
            except subprocess.TimeoutExpired: p.kill(); sys.exit(what + ': still there')
            if got not in status: sys.exit(f'{what}: status {got}')
            if isRaw(): sys.exit(what + ': the terminal stays raw')
            while select.select([master], [], [], 0.1)[0]: os.read(master, 65536)

        """

    @Test func aTerminalIsWholeAfterEverySignal() async throws {
        let script =
            Self.terminal + """
                for name, status in [('SIGTERM', 143), ('SIGHUP', 129), ('SIGINT', 130), ('SIGQUIT', -3),
                        ('SIGSEGV', -11), ('SIGABRT', -6)]:
                    p = start(); p.send_signal(getattr(signal, name)); end(p, name, [status])
                print('fine')
                """
        let outcome = try await lab.onClient(
            ["python3", "-c", script, Deployment.binary, "ssh", "dev"]
        ).finish(timeout: 100)
        #expect(outcome.text == "fine\n", "\(outcome)")
    }

    /// The notice, `~?` and `~.` in front of a network that is gone.
    @Test func aPersonCanLeaveALostSession() async throws {
        let script =
            Self.terminal + """
                p = start()
                open(os.environ['MARK'], 'w').close()
                until(b'connection lost, waiting', 60)
                say(b'\\r~?'); until(b'Supported escape')
                say(b'\\r~.'); end(p, 'tilde dot', [130])
                print('fine')
                """
        let mark = lab.folder.appending(path: "tilde-mark").path
        let run = try lab.onClient([
            "env", "MARK=\(mark)", "python3", "-c", script, Deployment.binary, "ssh", "dev",
        ])
        let isUp = try await Command.eventually(within: 40) {
            FileManager.default.fileExists(atPath: mark)
        }
        #expect(isUp, "\(run.text)")
        try await lab.lab.setIsolated(true, host: "client")
        let outcome = try await run.finish(timeout: 90)
        try await lab.lab.setIsolated(false, host: "client")
        #expect(outcome.text == "fine\n", "\(outcome)")
    }

    @Test func forwardsComeAndGoInASession() async throws {
        let script =
            Self.terminal + """
                import socket, threading
                def serve(text):
                    s = socket.create_server(('127.0.0.1', 0))
                    def run():
                        while True:
                            c, _ = s.accept(); c.sendall(text); c.close()
                    threading.Thread(target=run, daemon=True).start()
                    return s.getsockname()[1]
                here = serve(b'this side')
                p = start()
                say(b"cd; python3 -m http.server 8093 --bind 127.0.0.1 >/dev/null 2>&1 & echo st''arted\\r")
                until(b'started'); time.sleep(1)
                say(b'\\r~C'); until(b'ssh> '); say(b'-L 18793:localhost:8093\\r'); until(b'Forwarding')
                def fetch():
                    for i in range(50):
                        try:
                            c = socket.create_connection(('127.0.0.1', 18793), 5); c.settimeout(20)
                            c.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n'); answer = c.recv(100); c.close()
                            if answer: return answer
                        except ConnectionRefusedError: return b''
                        except OSError: pass
                        time.sleep(0.2)
                if b'200 OK' not in fetch(): sys.exit('no answer through -L')
                say(b'\\r~C'); until(b'ssh> '); say(b'-KL 18793\\r'); until(b'Canceled')
                if fetch() != b'': sys.exit('still there')
                say(b'\\r~C'); until(b'ssh> '); say(f'-R 18794:localhost:{here}\\r'.encode()); until(b'Forwarding')
                look = "import socket; print(socket.create_connection(('127.0.0.1', 18794)).recv(99))"
                say(f'python3 -c "{look}"\\r'.encode())
                until(b"b'this side'")
                say(b'kill %1; exit 4\\r'); end(p, 'exit', [4])
                print('fine')
                """
        let outcome = try await lab.onClient(
            ["python3", "-c", script, Deployment.binary, "ssh", "dev"]
        ).finish(timeout: 90)
        #expect(outcome.text == "fine\n", "\(outcome)")
    }

    /// `~v`, `~V`, and `~&` in a shell with job control: its prompt is back, what was forwarded goes on, and when that
    /// ends the job does.
    @Test func aSessionGoesToTheBackground() async throws {
        let script =
            Self.terminal + #"""
                import socket
                p = launch(['bash', '--norc', '-i'])
                say(b"PS1='pro''mpt> '\r"); until(b'prompt> ')
                say(sys.argv[1].encode() + b' ssh dev\r')
                say(b"PS1='re''mote> '; cd\r"); until(b'remote> ')
                echo = ('import socket; s = socket.create_server(("127.0.0.1", 8096)); '
                    'print("liste" + "ning", flush=True); c = s.accept()[0]; s.close(); '
                    '[c.sendall(b) for b in iter(lambda: c.recv(9), b"")]')
                say(f"setsid -f python3 -c '{echo}'\r".encode()); until(b'listening')
                say(b'\r~v'); until(b'[LogLevel VERBOSE]')
                say(b'~v'); until(b'[LogLevel DEBUG]')
                say(b'\r~C'); until(b'ssh> '); say(b'-L 18796:localhost:8096\r'); until(b'Forwarding')
                c = socket.create_connection(('127.0.0.1', 18796)); c.settimeout(30)
                c.sendall(b'a'); assert c.recv(9) == b'a'
                until(b': open')
                say(b'\r~V'); until(b'[LogLevel VERBOSE]')
                say(b'\r~&')
                if b'[backgrounded]' not in until(b'prompt> '): sys.exit('not said')
                say(b"echo lo''cal $(jobs | wc -l)\r"); until(b'local 1')
                c.sendall(b'b'); assert c.recv(9) == b'b'
                try: socket.create_connection(('127.0.0.1', 18796)); sys.exit('it listens still')
                except ConnectionRefusedError: pass
                c.close()
                say(b"for i in $(seq 300); do kill -0 %1 2>/dev/null || break; sleep 0.1; done; jobs; echo ov''er $i\r")
                if b'over 300' in until(b'over '): sys.exit('the job stays')
                say(b'exit 3\r'); end(p, 'exit', [3])
                print('fine')
                """#
        let outcome = try await lab.onClient(
            ["python3", "-c", script, Deployment.binary]
        ).finish(timeout: 120)
        #expect(outcome.text == "fine\n", "\(outcome)")
    }

    // MARK: Workspaces that go away

    @Test func aStoppedWorkspaceIsNotWaitedFor() async throws {
        let create = try await lab.coder(["external-workspaces", "create", "passing", "--yes"])
        #expect(create.status == 0, "\(create)")
        let home = lab.folder.appending(path: "passing-home")
        try FileManager.default.createDirectory(at: home, withIntermediateDirectories: true)
        let agent = try Command(
            lab.lab["agent"].on([Deployment.binary, "agent", "--log-dir", home.path]),
            environment: [
                "CODER_AGENT_URL": lab.url, "CODER_AGENT_TOKEN": try Deployment.token(in: create.text),
                "HOME": home.path, "CODER_AGENT_PROMETHEUS_ADDRESS": "", "CODER_AGENT_PPROF_ADDRESS": "",
                "CODER_AGENT_DEBUG_ADDRESS": "",
            ])
        let session = try lab.start(["ssh", "passing", "--", "echo up; sleep 600"])
        let isUp = try await Command.eventually(within: 40) { session.text == "up\n" }
        #expect(isUp, "\(session.errorText) \(agent.errorText.suffix(2000))")
        agent.signal(SIGKILL)
        let stop = """
            import json, urllib.request as r
            def call(method, route, body=None):
                q = r.Request('\(lab.url)/api/v2/' + route, body and json.dumps(body).encode(), method=method,
                    headers={'Coder-Session-Token': open('\(lab.folder.path)/user/session').read().strip()})
                return json.load(r.urlopen(q))
            id = call('GET', 'users/me/workspace/passing')['id']
            call('POST', f'workspaces/{id}/builds', {'transition': 'stop'})
            """
        let stopped = try await lab.onClient(["python3", "-c", stop]).finish()
        #expect(stopped.status == 0, "\(stopped)")
        let outcome = try await session.finish(timeout: 60)
        #expect(outcome.status == 255, "\(outcome)")
        #expect(outcome.errorText.contains("connection lost: the workspace was stopped"), "\(outcome)")
        let delete = try await lab.coder(["delete", "passing", "--yes"])
        #expect(delete.status == 0, "\(delete)")
    }
}

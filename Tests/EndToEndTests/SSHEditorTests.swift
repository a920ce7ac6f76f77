// SPDX-License-Identifier: Apache-2.0

import Foundation
import TestSupport
import Testing

/// What editors and browsers do: servers that stay behind, forwarded ports, terminals that wait.
extension EndToEndTests {
    /// The way VS Code's Remote-SSH starts its server: a script for `sh` on standard input, with markers around the
    /// answer, a line longer than any terminal's, and a server that goes on when the connection is gone.
    private static let startScript = #"""
        id=6f1b7e0c-marker
        echo "$id: running"
        # The real one carries certificates and hashes in lines like this.
        long=LONG
        echo "long==${#long}=="
        dir="$HOME/.editor-server"; log="$dir/log"; pidfile="$dir/pid"
        mkdir -p "$dir"; umask 077
        if [ -f "$pidfile" ] && kill -0 "$(cat "$pidfile")" 2>/dev/null; then
            echo "Found running server..."
        else
            cat >"$dir/server.py" <<'EOF'
        import http.server, sys
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200); self.end_headers(); self.wfile.write(b'editor at ' + self.path.encode())
            def log_message(self, *a): pass
        server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        print('Extension host agent listening on', server.server_port, flush=True)
        server.serve_forever()
        EOF
            python3 "$dir/server.py" >"$log" 2>&1 </dev/null &
            echo $! >"$pidfile"
        fi
        for i in $(seq 1 200); do
            port=$(sed -n 's/.*listening on \([0-9]*\)$/\1/p' "$log")
            [ -n "$port" ] && break
            sleep 0.05
        done
        echo "$id: start"
        echo "SSH_AUTH_SOCK==$SSH_AUTH_SOCK=="
        echo "listeningOn==$port=="
        echo "osReleaseId==$(. /etc/os-release && echo "$ID")=="
        echo "arch==$(uname -m)=="
        echo "$id: end"
        """#

    @Test func anEditorsServerStaysBehind() async throws {
        let script =
            Self.startScript.replacing("LONG", with: String(repeating: "0123456789abcdef", count: 6_000))
            + "\n"
        func start(_ options: [String]) async throws -> (Command, port: String) {
            let session = try lab.onClient(
                ["ssh"] + lab.sshOptions + options + ["-T", "x", "sh"], openInput: true)
            try session.write(script)
            let isDone = try await Command.eventually(within: 30) { session.text.contains(": end\n") }
            try #require(isDone, "\(session.text.suffix(500)) \(session.errorText)")
            #expect(session.text.hasPrefix("6f1b7e0c-marker: running\nlong==96000==\n"))
            let port = try #require(session.text.firstMatch(of: /listeningOn==(\d+)==/), "\(session.text)")
            return (session, String(port.1))
        }
        func fetch(_ options: [String]) async throws -> Command.Outcome {
            try await lab.onClient(
                ["curl", "-sS", "--retry", "20", "--retry-all-errors", "--retry-delay", "1"] + options
            ).finish(timeout: 40)
        }
        let (first, port) = try await start(["-D", "127.0.0.1:11090"])
        let page = try await fetch(["--socks5-hostname", "127.0.0.1:11090", "http://localhost:\(port)/one"])
        #expect(page.text == "editor at /one", "\(page)")
        #expect(first.isRunning)
        try first.closeInput()
        let end = try await first.finish(timeout: 20)
        #expect(end.status == 0, "\(end)")

        let (second, again) = try await start([])
        #expect(again == port)
        #expect(second.text.contains("Found running server"))
        try second.closeInput()
        try await second.finish(timeout: 20)
        let forward = try lab.start(["port-forward", "dev", "--tcp", "18099:\(port)"])
        defer { forward.signal(SIGTERM) }
        let other = try await fetch(["http://127.0.0.1:18099/two"])
        #expect(other.text == "editor at /two", "\(other) \(forward.errorText)")
        let kill = try await lab.coder(["ssh", "dev", "--", "kill $(cat .editor-server/pid)"])
        #expect(kill.status == 0, "\(kill)")
    }

    /// Port 2, as the web terminal uses it: over the mesh itself, and over a stream that is resumable.
    @Test(arguments: ["true", "false"]) func aTerminalWaitsForItsViewers(noResume: String) async throws {
        let local = noResume == "true" ? "11002" : "11003"
        let forward = try lab.onClient([
            "env", "CODER_NO_RESUME=\(noResume)", Deployment.binary, "port-forward", "dev", "--tcp",
            "\(local):2",
        ])
        defer { forward.signal(SIGTERM) }
        let script = """
            import json, socket, struct, sys, time, uuid
            def connect():
                for _ in range(200):
                    try: return socket.create_connection(('127.0.0.1', \(local)), 20)
                    except OSError: time.sleep(0.1)
                sys.exit('no listener')
            def attach(name, rows, columns):
                s = connect(); s.settimeout(20)
                body = json.dumps({'ID': name, 'Height': rows, 'Width': columns, 'Command': '', 'Container': '',
                    'ContainerUser': '', 'BackendType': ''}).encode()
                s.sendall(struct.pack('<H', len(body)) + body)
                return s
            def until(s, mark, seen=b''):
                while mark not in seen:
                    try: data = s.recv(65536)
                    except OSError as e: sys.exit(f'{e}: no {mark} in {seen[-500:]}')
                    if not data: sys.exit(f'end: no {mark} in {seen[-500:]}')
                    seen += data
                return seen
            def say(s, **message): s.sendall(json.dumps(message).encode())
            name = str(uuid.uuid4())
            a = attach(name, 24, 80)
            say(a, data="X=42; echo size $(stty size) grü\\u00dfe-$X\\r"); until(a, 'size 24 80 grüße-42'.encode())
            a.close(); time.sleep(1)
            b, c = attach(name, 33, 101), attach(name, 33, 101)
            until(b, 'size 24 80 grüße-42'.encode()); until(c, 'size 24 80 grüße-42'.encode())
            say(b, data='echo both-$((X+1)) $(stty size)\\r')
            until(b, b'both-43 33 101'); until(c, b'both-43 33 101')
            say(c, height=40, width=120); say(c, data='stty size\\r'); until(b, b'40 120')
            say(b, data='exit\\r')
            for s in (b, c):
                try:
                    while s.recv(65536): pass
                except OSError: pass
            d = attach(name, 24, 80); say(d, data='echo new-$X-shell\\r'); seen = until(d, b'new--shell')
            assert b'both' not in seen
            say(d, data='exit\\r'); print('fine')
            """
        let outcome = try await lab.onClient(["python3", "-c", script]).finish(timeout: 60)
        #expect(outcome.text == "fine\n", "\(outcome) \(forward.errorText)")
    }

    /// A link as mosh was made for: one datagram in ten is lost each way.
    @Test func aLossyLinkIsSlowAndExact() async throws {
        try await lab.lab.setUDPBlocked(false, between: "agent", and: "client")
        #expect(
            try await Command.eventually(within: 20) {
                try await self.lab.coder(["ping", "dev", "-n", "3"]).text.contains("p2p")
            })
        try await lab.lab.setUDPLoss(percent: 10, between: "agent", and: "client")
        let outcome = try await typeAndCopy()
        try await lab.lab.setUDPLoss(percent: 0, between: "agent", and: "client")
        #expect(outcome.status == 0 && outcome.text.contains("fine"), "\(outcome)")
    }

    private func typeAndCopy() async throws -> Command.Outcome {
        let script = """
            import os, pty, select, subprocess, sys, time
            pipe, coder = subprocess.PIPE, [sys.argv[1], 'ssh', 'dev', '--']
            copy = subprocess.Popen(coder + ['cat'], stdin=pipe, stdout=pipe)
            data = os.urandom(1 << 20)
            if os.fork() == 0:
                copy.stdin.write(data); copy.stdin.close(); os._exit(0)
            copy.stdin.close()
            pid, fd = pty.fork()
            if pid == 0: os.execvp(coder[0], coder + ['stty raw -echo; echo ready; exec cat'])
            def until(mark):
                seen, end = b'', time.time() + 30
                while mark not in seen:
                    if not select.select([fd], [], [], max(0, end - time.time()))[0]: sys.exit(f'no {mark} in {seen}')
                    seen += os.read(fd, 65536)
            until(b'ready')
            times = []
            for i in range(60):
                begin = time.time(); os.write(fd, b'k'); until(b'k'); times.append(time.time() - begin)
            times.sort(); print('echo ms', round(times[30] * 1e3, 1), round(times[57] * 1e3, 1))
            back = copy.stdout.read()
            assert back == data and copy.wait() == 0
            assert times[30] < 5
            print('fine')
            os.kill(pid, 15)
            """
        return try await lab.onClient(["python3", "-c", script, Deployment.binary]).finish(timeout: 110)
    }
}

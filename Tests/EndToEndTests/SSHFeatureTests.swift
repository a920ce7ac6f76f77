// SPDX-License-Identifier: Apache-2.0

import Foundation
import TestSupport
import Testing

/// What sessions offer beyond commands and files, by other people's programs over the mesh. The table that names these
/// tests is docs/SSH.md.
extension EndToEndTests {
    private func onClient(_ script: String, timeout: Double = 60) async throws -> Command.Outcome {
        try await lab.onClient(["bash", "-c", script]).finish(timeout: timeout)
    }

    private func python(_ script: String, timeout: Double = 60) async throws -> Command.Outcome {
        try await lab.onClient(["/usr/bin/python3", "-W", "ignore", "-c", script]).finish(timeout: timeout)
    }

    /// The words of `ssh` as one shell text.
    private var shell: String { (["ssh"] + lab.sshOptions).map { "'\($0)'" }.joined(separator: " ") }

    private static func isThere(_ path: String) -> Bool { FileManager.default.fileExists(atPath: path) }

    /// dropbear's client: a terminal, and forwards in both directions.
    @Test(.enabled(if: isThere("/usr/bin/dbclient"), "no dropbear")) func dropbearTerminalAndForwards()
        async throws
    {
        let script = """
            db() { dbclient -y -y -J '\(Deployment.binary) ssh --stdio dev' "$@" 2>/dev/null; }
            wait_for() { for i in $(seq 100); do "$@" >/dev/null 2>&1 && return 0; sleep 0.1; done; return 1; }
            # It wants a terminal of its own for that.
            script -qec "dbclient -y -y -t -J '\(Deployment.binary) ssh --stdio dev' u@x tty" /dev/null </dev/null |
                grep -o /dev/pts/
            cd /usr/share/common-licenses
            python3 -m http.server 18093 --bind 127.0.0.1 >/dev/null 2>&1 & web=$!
            db -N -R 127.0.0.1:18094:127.0.0.1:18093 -L 127.0.0.1:18095:127.0.0.1:18094 u@x & tunnel=$!
            # Our port, the workspace's port, and back to the server here.
            wait_for curl -sf http://127.0.0.1:18095/GPL-3
            curl -s http://127.0.0.1:18095/GPL-3 | cmp - GPL-3 && echo same
            kill $tunnel $web
            """
        let outcome = try await onClient(script)
        #expect(outcome.text == "/dev/pts/\nsame\n", "\(outcome)")
    }

    /// The user's keys stay with the user: ssh-agent is reached from the workspace.
    @Test func agentForwarding() async throws {
        let key = lab.folder.appending(path: "agent-key").path
        let script = """
            eval $(ssh-agent) >/dev/null; trap 'kill $SSH_AGENT_PID' EXIT
            ssh-keygen -q -t ed25519 -N '' -C the-key -f \(key); ssh-add -q \(key)
            \(shell) -A x 'ssh-add -l'
            """
        let outcome = try await onClient(script)
        #expect(outcome.text.contains("the-key"), "\(outcome)")
    }

    /// X11 with real `xauth` at both ends: the program presents the cookie of the session, the display gets its own.
    @Test(.enabled(if: isThere("/usr/bin/xauth"), "no xauth")) func displays() async throws {
        let program = """
            import os, re, socket, struct, subprocess
            name = os.environ['DISPLAY']
            number = int(name.split(':')[1].split('.')[0])
            line = subprocess.run(['xauth', '-n', 'list'], capture_output=True, text=True).stdout
            cookie = bytes.fromhex(re.search(r':%d\\s+MIT-MAGIC-COOKIE-1\\s+(\\w+)' % number, line)[1])
            s = socket.create_connection(('localhost', 6000 + number))
            s.sendall(struct.pack('<BBHHHHH', 0x6c, 0, 11, 0, 18, 16, 0) + b'MIT-MAGIC-COOKIE-1\\0\\0' + cookie)
            print(s.recv(100).decode())
            """
        let file = lab.folder.appending(path: "x-client.py").path
        try Data(program.utf8).write(to: URL(filePath: file))
        let authority = lab.folder.appending(path: "client.Xauthority").path
        let script = """
            import os, socket, subprocess
            s = socket.socket(); s.bind(('127.0.0.1', 6077)); s.listen(1); s.settimeout(30)
            cookie = 'ab' * 16
            os.environ.update(DISPLAY='127.0.0.1:77', XAUTHORITY='\(authority)')
            subprocess.run(['xauth', '-q', 'add', '127.0.0.1:77', '.', cookie], check=True)
            p = subprocess.Popen(['ssh', '-Y'] + \(Self.pythonList(lab.sshOptions)) + ['x', 'python3 \(file)'],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            c, _ = s.accept(); data = c.recv(4096)
            c.sendall(b'genuine' if bytes.fromhex(cookie) in data else b'foreign'); c.close()
            print(p.communicate(timeout=30)[0].decode(), end='')
            """
        let outcome = try await python(script)
        #expect(outcome.text == "genuine\n", "\(outcome)")
    }

    private static func pythonList(_ words: [String]) -> String {
        "[" + words.map { "'\($0)'" }.joined(separator: ", ") + "]"
    }

    /// `GIT_SSH_COMMAND` of a session: git reaches a foreign server with the key that Coder keeps for the user.
    @Test func gitOverTheKeyOfTheUser() async throws {
        let folder = lab.folder.appending(path: "gitssh")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        let fetch = """
            curl -s -H "Coder-Session-Token: $CODER_AGENT_TOKEN" $CODER_AGENT_URL/api/v2/workspaceagents/me/gitsshkey |
            python3 -c 'import json, sys; print(json.load(sys.stdin)["public_key"])' > \(folder.path)/authorized_keys
            """
        let key = try await lab.coder(["ssh", "dev", "--", fetch])
        #expect(key.status == 0, "\(key)")
        let options = [
            "Port=2299", "ListenAddress=127.0.0.1", "HostKey=\(folder.path)/host", "StrictModes=no",
            "UsePAM=no",
            "PermitRootLogin=yes", "AuthorizedKeysFile=\(folder.path)/authorized_keys",
            "PidFile=\(folder.path)/pid",
        ].map { "-o \($0)" }.joined(separator: " ")
        let server = """
            ssh-keygen -q -t ed25519 -N '' -f \(folder.path)/host; mkdir -p /run/sshd
            git init -q --bare \(folder.path)/repo.git; exec /usr/sbin/sshd -D -e -f /dev/null \(options)
            """
        let sshd = try Command(lab.lab["agent"].on(["sh", "-c", server]))
        defer { sshd.signal(SIGTERM) }
        let work = """
            set -e
            test "${GIT_SSH_COMMAND% gitssh --}" != "$GIT_SSH_COMMAND"
            for i in $(seq 100); do test -e \(folder.path)/pid && break; sleep 0.1; done
            export GIT_SSH_COMMAND="$GIT_SSH_COMMAND -p 2299 -o StrictHostKeyChecking=no"
            export GIT_SSH_COMMAND="$GIT_SSH_COMMAND -o UserKnownHostsFile=/dev/null"
            export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
            rm -rf gitssh-work; git init -q gitssh-work; cd gitssh-work; echo text > file; git add .
            git commit -q -m one; git push -q root@127.0.0.1:\(folder.path)/repo.git HEAD:main
            git ls-remote root@127.0.0.1:\(folder.path)/repo.git | cut -f 2
            """
        let outcome = try await lab.coder(["ssh", "dev", "--", work])
        #expect(outcome.text.contains("refs/heads/main"), "\(outcome) \(sshd.errorText)")
    }

    /// The modes of the user's terminal are those of the session's (RFC 4254 §8).
    @Test func terminalModes() async throws {
        let script = """
            import os, pty, termios
            pid, fd = pty.fork()
            if pid == 0:
                a = termios.tcgetattr(0)
                a[0] = a[0] & ~termios.IXON & ~termios.ICRNL | termios.IXANY | termios.INLCR
                a[1] &= ~termios.ONLCR
                a[3] = a[3] & ~termios.ECHOK & ~termios.ECHOCTL | termios.TOSTOP
                a[6][termios.VERASE] = b'\\x08'; a[6][termios.VINTR] = b'\\x18'; a[6][termios.VKILL] = b'\\x0b'
                termios.tcsetattr(0, termios.TCSANOW, a)
                os.execvp('ssh', ['ssh', '-tt'] + \(Self.pythonList(lab.sshOptions)) + ['x', 'stty -a'])
            text = b''
            while True:
                try: piece = os.read(fd, 4096)
                except OSError: break
                if not piece: break
                text += piece
            words = text.decode().replace(';', ' ').split()
            joined = ' '.join(words)
            wanted = ['erase = ^H', 'intr = ^X', 'kill = ^K']
            flags = '-ixon -icrnl ixany inlcr -onlcr -echok -echoctl tostop echo isig'.split()
            print([w for w in wanted if w not in joined] + [w for w in flags if w not in words])
            """
        let outcome = try await python(script)
        #expect(outcome.text == "[]\n", "\(outcome)")
    }
}

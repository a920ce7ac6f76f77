// SPDX-License-Identifier: Apache-2.0

import Foundation
import TestSupport
import Testing

/// Other people's clients through `coder ssh --stdio`: what they do all day.
extension EndToEndTests {
    private func ssh(
        _ words: [String], input: Data? = nil, timeout: Double = 60
    ) async throws -> Command.Outcome {
        try await lab.onClient(words, input: input).finish(timeout: timeout)
    }

    /// One shell word for programs that take a command line.
    private var shell: String { (["ssh"] + lab.sshOptions).map { "'\($0)'" }.joined(separator: " ") }

    @Test func openSSHForwardsInAllWays() async throws {
        let web = try Command(
            lab.lab["agent"].on([
                "python3", "-m", "http.server", "8082", "--bind", "127.0.0.1", "--directory",
                "/usr/share/common-licenses",
            ]))
        defer { web.signal(SIGTERM) }
        let control = lab.folder.appending(path: "control").path
        let master = try lab.onClient(
            ["ssh"] + lab.sshOptions
                + [
                    "-M", "-S", control, "-N", "-D", "127.0.0.1:11080", "-L",
                    "127.0.0.1:18082:localhost:8082", "-L",
                    "\(control).l:/tmp/coder-e2e.sock", "-R", "/tmp/coder-e2e.sock:127.0.0.1:18082", "x",
                ])
        defer { master.signal(SIGTERM) }
        let ready =
            "for i in $(seq 200); do ssh -S \(control) -O check x 2>&1 && exit 0; sleep 0.1; done; exit 1"
        let check = try await ssh(["bash", "-c", ready])
        #expect(check.status == 0, "\(check) \(master.errorText)")
        let expected = try Data(contentsOf: URL(filePath: "/usr/share/common-licenses/GPL-3"))
        let curl = ["curl", "-sS", "--retry", "15", "--retry-all-errors", "--retry-delay", "1"]
        // Local port; SOCKS; local socket to remote socket to local port to remote port.
        for options in [
            ["http://127.0.0.1:18082/GPL-3"],
            ["--socks5-hostname", "127.0.0.1:11080", "http://localhost:8082/GPL-3"],
            ["--unix-socket", "\(control).l", "http://localhost/GPL-3"],
        ] {
            let outcome = try await ssh(curl + options)
            #expect(outcome.output == expected, "\(options): \(outcome.errorText) \(master.errorText)")
        }
        // -W, and sessions beside the forwards on the same connection.
        let request = Data("GET /GPL-3 HTTP/1.0\r\n\r\n".utf8)
        let direct = try await ssh(["ssh"] + lab.sshOptions + ["-W", "localhost:8082", "x"], input: request)
        #expect(direct.output.suffix(expected.count) == expected, "\(direct.errorText)")
        let shared = try await ssh(["ssh", "-S", control, "x", "echo shared"])
        #expect(shared.text == "shared\n", "\(shared)")
    }

    @Test func rsyncAndGit() async throws {
        let source = lab.folder.appending(path: "tree")
        for index in 0..<10_000 {
            let folder = source.appending(path: "\(index / 100)")
            try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
            try Data("file \(index)\n".utf8).write(to: folder.appending(path: "\(index)"))
        }
        let back = lab.folder.appending(path: "tree-back").path
        let script = """
            set -e
            rsync -a -e "\(shell)" \(source.path)/ x:tree-copy/
            rsync -a -e "\(shell)" x:tree-copy/ \(back)/
            diff -r \(source.path) \(back)
            export GIT_SSH_COMMAND="\(shell)" GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a \
            GIT_COMMITTER_EMAIL=a@b
            \(shell) x 'git init -q --bare repo.git'
            cd \(source.path) && git init -q . && git add . && git commit -q -m one
            git push -q x:repo.git HEAD:main
            git clone -q -b main x:repo.git \(back).git
            diff -r -x .git \(source.path) \(back).git
            """
        let outcome = try await ssh(["bash", "-c", script], timeout: 180)
        #expect(outcome.status == 0, "\(outcome)")
    }

    static func exists(_ path: String) -> Bool { FileManager.default.fileExists(atPath: path) }

    @Test(.enabled(if: exists("/usr/bin/dbclient"), "no dropbear")) func dropbear() async throws {
        let outcome = try await ssh(
            [
                "dbclient", "-y", "-y", "-J", "\(Deployment.binary) ssh --stdio dev", "u@x",
                "echo out; cat; exit 4",
            ], input: Data("typed\n".utf8))
        #expect(outcome.status == 4 && outcome.text == "out\ntyped\n", "\(outcome)")
    }

    @Test(.enabled(if: exists("/usr/lib/python3/dist-packages/paramiko"), "no paramiko"))
    func paramiko() async throws {
        let script = """
            import os, paramiko
            proxy = paramiko.ProxyCommand('\(Deployment.binary) ssh --stdio dev')
            t = paramiko.Transport(proxy); t.start_client(timeout=30); t.auth_none('u')
            c = t.open_session(); c.exec_command('cat; exit 5')
            data = os.urandom(300000); c.sendall(data); c.shutdown_write()
            back = b''
            while len(back) < len(data):
                piece = c.recv(65536)
                if not piece: break
                back += piece
            assert back == data and c.recv_exit_status() == 5
            s = paramiko.SFTPClient.from_transport(t)
            with s.open('paramiko.bin', 'wb') as f: f.write(data)
            assert s.stat('paramiko.bin').st_size == len(data)
            s.rename('paramiko.bin', 'p2.bin')
            with s.open('p2.bin', 'rb') as f: assert f.read() == data
            assert 'p2.bin' in s.listdir('.'); s.remove('p2.bin'); t.close(); print('fine')
            """
        let outcome = try await ssh(["/usr/bin/python3", "-W", "ignore", "-c", script])
        #expect(outcome.text == "fine\n", "\(outcome)")
    }

    @Test(.enabled(if: exists("/usr/lib/python3/dist-packages/asyncssh"), "no asyncssh"))
    func asyncSSH() async throws {
        let script = """
            import asyncio, asyncssh, os
            async def main():
                async with asyncssh.connect('x', username='u', known_hosts=None, client_keys=None, config=None,
                        proxy_command=['\(Deployment.binary)', 'ssh', '--stdio', 'dev']) as c:
                    r = await asyncio.gather(*(c.run(f'echo {i}; exit {i}') for i in range(10)))
                    assert [(x.stdout, x.exit_status) for x in r] == [(f'{i}\\n', i) for i in range(10)], r
                    data = os.urandom(400000)
                    p = await c.run('cat', input=data, encoding=None); assert p.stdout == data
                    p = await c.create_process('sleep 60'); p.send_signal('TERM'); await p.wait()
                    assert p.exit_signal and p.exit_signal[0] == 'TERM', p.exit_signal
                    async with c.start_sftp_client() as s:
                        async with s.open('async.bin', 'wb') as f: await f.write(data)
                        async with s.open('async.bin', 'rb') as f: assert await f.read() == data
                        await s.posix_rename('async.bin', 'a2.bin'); await s.remove('a2.bin')
                    p = await c.run('tty; stty size', term_type='xterm', term_size=(91, 27))
                    assert '27 91' in p.stdout, p.stdout
            asyncio.run(asyncio.wait_for(main(), 50)); print('fine')
            """
        let outcome = try await ssh(["/usr/bin/python3", "-W", "ignore", "-c", script])
        #expect(outcome.text == "fine\n", "\(outcome)")
    }

    /// A person at a terminal, by tmux: an editor, a pager, a window that changes its size all the time.
    @Test(.enabled(if: exists("/usr/bin/tmux"), "no tmux")) func terminalPrograms() async throws {
        let socket = "coder-e2e-\(getpid())"
        let script = """
            set -e
            t() { tmux -L \(socket) -f /dev/null "$@"; }
            wait_for() { for i in $(seq 1 300); do t capture-pane -p | grep -qF -- "$1" && return 0; sleep 0.05; done
                echo "MISSING $1"; t capture-pane -p; exit 1; }
            trap 't kill-server' EXIT
            t new-session -d -x 80 -y 24 "\(Deployment.binary) ssh dev"
            t send-keys "PS1='pro''mpt> '; cd" Enter; wait_for 'prompt>'
            t send-keys "clear; vi -u NONE -N e2e.txt; echo do''ne1" Enter; wait_for '[New'
            t send-keys i "hello from vim" Escape ":wq" Enter; wait_for 'done1'
            t send-keys "clear; cat e2e.txt" Enter; wait_for 'hello from vim'
            t send-keys "clear; seq 1 5000 | less; echo do''ne2" Enter; wait_for '23'
            t send-keys G; wait_for '5000'; t send-keys q; wait_for 'done2'
            for i in $(seq 1 40); do t resize-window -x $((60 + i)) -y $((20 + i % 10)); done
            if command -v htop >/dev/null; then
                t send-keys "clear; htop; echo do''ne3" Enter; wait_for 'Load average'
                t resize-window -x 90 -y 30; wait_for 'Quit'; t send-keys q; wait_for 'done3'
            fi
            t resize-window -x 97 -y 31; sleep 1; t send-keys "clear; echo size \\$(stty size) end" Enter
            wait_for 'size 31 97 end'
            t send-keys "echo go''ing; sleep 100" Enter; wait_for going
            t send-keys C-c; t send-keys "echo al''ive" Enter; wait_for alive
            t send-keys Enter '~?'; wait_for 'Supported escape'
            t send-keys Enter '~#'; wait_for 'connections are open'
            t send-keys "exit" Enter
            for i in $(seq 1 100); do t has-session 2>/dev/null || { trap - EXIT; echo fine; exit 0; }; sleep 0.05; done
            echo 'still there'; exit 1
            """
        let outcome = try await ssh(["bash", "-c", script])
        #expect(outcome.text.hasSuffix("fine\n"), "\(outcome)")
    }

    // MARK: Outages

    /// The client's network is dead for longer than any carrier lives: a copy, a session and a forwarded port go on,
    /// each byte in its place.
    @Test func streamsOutliveANetworkThatIsGone() async throws {
        try await lab.lab.setUDPBlocked(false, between: "agent", and: "client")
        let file = lab.folder.appending(path: "large").path
        let bytes = Data((0..<(60 << 20)).map { UInt8(truncatingIfNeeded: ($0 &* 2_654_435_761) >> 13) })
        try bytes.write(to: URL(filePath: file))
        let session = try lab.start([
            "ssh", "dev", "--", "for i in $(seq 1 150); do echo $i; sleep 0.1; done",
        ])
        let copy = try lab.onClient(["scp", "-l", "40000"] + lab.sshOptions + [file, "x:large-copy"])
        #expect(try await Command.eventually(within: 20) { session.text.contains("9\n") })
        try await lab.lab.setIsolated(true, host: "client")
        #expect(
            try await Command.eventually(within: 30) { session.errorText.contains("connection lost") },
            "nobody said that the connection is lost")
        try await Task.sleep(for: .seconds(2))
        try await lab.lab.setIsolated(false, host: "client")
        let outcome = try await session.finish(timeout: 60)
        #expect(outcome.status == 0, "\(outcome)")
        #expect(outcome.text == (1...150).map { "\($0)\n" }.joined(), "\(outcome)")
        let copied = try await copy.finish(timeout: 90)
        #expect(copied.status == 0, "\(copied)")
        let sum = try await lab.coder(["ssh", "dev", "--", "sha256sum < large-copy; rm large-copy"])
        let own = try await Command.run(["sha256sum", file])
        #expect(sum.text.prefix(64) == own.text.prefix(64), "\(sum)")
    }
}

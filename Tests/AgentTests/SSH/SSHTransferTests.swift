// SPDX-License-Identifier: Apache-2.0

import Agent
import Glibc
import LinuxIO
import SSH
import Testing

/// Files and forwards with OpenSSH's programs.
@Suite(.serialized, .enabled(if: access("/usr/bin/ssh", X_OK) == 0, "no OpenSSH client"))
struct SSHTransferTests {
    @Test(arguments: [[String](), ["-O"]]) func scpBothWays(mode: [String]) throws {
        let harness = try SSHHarness()
        let data = SSHSessionTests.noise(20 << 20)
        try harness.write(data, to: "source")
        let scp = ["/usr/bin/scp"] + mode + harness.options + ["-P", "\(harness.port)"]
        let up = try Program.run(scp + ["-p", harness.path("source"), "u@127.0.0.1:\(harness.path("up"))"])
        #expect(up.status == 0, "\(up.errorText)")
        #expect(try harness.read("up") == data)
        let down = try Program.run(scp + ["u@127.0.0.1:up", harness.path("down")])
        #expect(down.status == 0, "\(down.errorText)")
        #expect(try harness.read("down") == data)
    }

    @Test func scpOfADirectory() throws {
        let harness = try SSHHarness()
        _ = try Program.run(["/bin/mkdir", "-p", harness.path("tree/a/b")])
        for number in 0..<50 { try harness.write(Array("file \(number)".utf8), to: "tree/a/b/f\(number) ü") }
        let outcome = try Program.run(
            ["/usr/bin/scp", "-r"] + harness.options
                + ["-P", "\(harness.port)", harness.path("tree"), "u@127.0.0.1:copy"])
        #expect(outcome.status == 0, "\(outcome.errorText)")
        let difference = try Program.run(["/usr/bin/diff", "-r", harness.path("tree"), harness.path("copy")])
        #expect(difference.status == 0, "\(difference.text)")
    }

    @Test func sftpBatch() throws {
        let harness = try SSHHarness()
        try harness.write(Array("hello\n".utf8), to: "local")
        let batch = """
            pwd
            mkdir dir
            put \(harness.path("local")) dir/one
            rename dir/one dir/two
            symlink two dir/link
            ln dir/two dir/hard
            chmod 600 dir/two
            ls -l dir
            df dir
            get dir/two \(harness.path("back"))
            cd dir
            rm link
            rm hard
            rm two
            cd ..
            rmdir dir
            -ls missing
            """
        try harness.write(Array(batch.utf8), to: "batch")
        let outcome = try Program.run(
            ["/usr/bin/sftp"] + harness.options
                + ["-P", "\(harness.port)", "-b", harness.path("batch"), "u@127.0.0.1"])
        #expect(outcome.status == 0, "\(outcome.text)\n\(outcome.errorText)")
        #expect(outcome.text.contains("Remote working directory: \(harness.directory)"))
        #expect(outcome.text.contains("-rw-------"))
        #expect(outcome.text.contains("lrwxrwxrwx"))
        #expect(outcome.errorText.contains("missing"))
        #expect(try harness.read("back") == Array("hello\n".utf8))
        #expect(access(harness.path("dir"), F_OK) != 0)
    }

    /// OpenSSH's extensions over files of this machine.
    @Test func sftpExtensions() throws {
        let harness = try SSHHarness {
            $0.account = UserAccount(name: "u", home: "\($0.directory)/home", shell: "/bin/sh")
        }
        try harness.write(SSHSessionTests.noise(20_000_000), to: "large")
        mkdir(harness.path("home"), 0o700)
        try harness.write(Array("of the home\n".utf8), to: "home/mine")
        let batch = """
            put -f \(harness.path("large")) synced
            chmod 640 synced
            cp synced copied
            cp synced itself
            -cp itself itself
            -cp synced missing/copied
            ln -s missing dangling
            -get dangling nowhere
            ln copied linked
            -rename copied linked
            rename copied renamed
            df synced
            -chmod -h 600 dangling
            ls -l synced
            """
        let outcome = try Program.run(
            ["/usr/bin/sftp"] + harness.options + ["-P", "\(harness.port)", "-b", "-", "u@127.0.0.1"],
            input: Array(batch.utf8))
        #expect(outcome.status == 0, "\(outcome.text)\n\(outcome.errorText)")
        #expect(outcome.text.contains("-rw-r-----"))
        #expect(outcome.errorText.contains("Couldn't copy file \"\(harness.path("itself"))\""))
        let large = try harness.read("large")
        for name in ["synced", "renamed", "linked"] { #expect(try harness.read(name) == large) }
        // scp has homes of other users expanded; this one's is /usr/sbin.
        let mine = "~daemon/../..\(harness.path("home/mine"))"
        for (path, isThere) in [(mine, true), ("~nobody-of-that-name/mine", false)] {
            let copy = try Program.run(
                ["/usr/bin/scp"] + harness.options
                    + ["-P", "\(harness.port)", "u@127.0.0.1:\(path)", harness.path("from-home")])
            #expect((copy.status == 0) == isThere, "\(copy.errorText)")
        }
        #expect(try harness.read("from-home") == Array("of the home\n".utf8))
        #expect(access(harness.path("nowhere"), F_OK) != 0)
    }

    // MARK: Forwards

    /// A TCP server that sends back what it gets, upper-case, until the end.
    private func echoServer() throws -> UInt16 {
        let listener = try StreamSocket.listen(on: .loopback(v4: true, port: 0), bothFamilies: false)
        let port = try StreamSocket.localAddress(listener.number).port
        let number = listener.release()
        try DedicatedThread(name: "echo") {
            let listener = OwnedDescriptor(taking: number)
            for _ in 0..<2 {
                var wait = pollfd(fd: listener.number, events: Int16(POLLIN), revents: 0)
                guard poll(&wait, 1, 20_000) > 0, let accepted = StreamSocket.accept(listener.number) else {
                    return
                }
                Self.echo(accepted.take())
            }
        }.detach()
        return port
    }

    private static func echo(_ socket: consuming OwnedDescriptor) {
        try? Descriptor.setNonBlocking(socket.number, false)
        var buffer = [UInt8](repeating: 0, count: 65536)
        while true {
            let count = Glibc.read(socket.number, &buffer, buffer.count)
            guard count > 0 else { return }
            for index in 0..<count where (97...122).contains(buffer[index]) { buffer[index] -= 32 }
            buffer[..<count].withUnsafeBytes { try? Descriptor.writeAll(socket.number, $0) }
        }
    }

    private static func exchange(_ socket: consuming OwnedDescriptor, _ data: [UInt8]) throws -> [UInt8] {
        var wait = pollfd(fd: socket.number, events: Int16(POLLOUT), revents: 0)
        _ = poll(&wait, 1, 5_000)
        try Descriptor.setNonBlocking(socket.number, false)
        let writer = try socket.duplicate().release()
        let thread = try DedicatedThread(name: "writer") {
            let writer = OwnedDescriptor(taking: writer)
            data.withUnsafeBytes { try? Descriptor.writeAll(writer.number, $0) }
            Descriptor.finishWriting(writer.number)
        }
        var result: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 65536)
        while true {
            let count = Glibc.read(socket.number, &buffer, buffer.count)
            guard count > 0 else { break }
            result += buffer[..<count]
        }
        thread.join()
        return result
    }

    private func freePort() throws -> UInt16 {
        let listener = try StreamSocket.listen(on: .loopback(v4: true, port: 0), bothFamilies: false)
        return try StreamSocket.localAddress(listener.number).port
    }

    private func client(_ harness: SSHHarness, _ arguments: [String]) throws -> TerminalProgram {
        let program = try TerminalProgram(
            ["/usr/bin/ssh"] + harness.options + arguments
                + [
                    "-o", "ExitOnForwardFailure=yes", "-p", "\(harness.port)", "u@127.0.0.1",
                    "echo up; sleep 50",
                ])
        #expect(program.expect("up"))
        return program
    }

    @Test(arguments: ["-L", "-R"], ["127.0.0.1", "localhost"]) func tcpForward(
        direction: String, host: String
    ) throws {
        let harness = try SSHHarness()
        let target = try echoServer(), port = try freePort()
        let program = try client(harness, [direction, "127.0.0.1:\(port):\(host):\(target)"])
        let data = SSHSessionTests.noise(3 << 20).map { $0 % 26 + 97 }
        let result = try Self.exchange(StreamSocket.connect(to: .loopback(v4: true, port: port)), data)
        #expect(result == data.map { $0 - 32 })
        program.child.signal(SIGTERM)
        _ = program.end()
    }

    @Test func remoteForwardOfPortZero() throws {
        let harness = try SSHHarness()
        let target = try echoServer()
        let program = try client(harness, ["-o", "LogLevel=INFO", "-R", "0:127.0.0.1:\(target)"])
        program.child.signal(SIGTERM)
        _ = program.end()
        #expect(harness.logLines.isEmpty)
    }

    @Test(arguments: ["-L", "-R"]) func unixForward(direction: String) throws {
        let harness = try SSHHarness()
        let target = try echoServer()
        // One end of each forward is a unix socket: -L reaches one on the server, -R makes one there.
        let socket = harness.path("s/forward.sock")
        let program: TerminalProgram
        let connection: OwnedDescriptor
        if direction == "-R" {
            program = try client(harness, ["-R", "\(socket):127.0.0.1:\(target)"])
            connection = try StreamSocket.connect(toPath: Array(socket.utf8))
        } else {
            let port = try freePort()
            mkdir(harness.path("s"), 0o700)
            let listener = try StreamSocket.listen(onPath: Array(socket.utf8)).release()
            try DedicatedThread(name: "echo") {
                let listener = OwnedDescriptor(taking: listener)
                var wait = pollfd(fd: listener.number, events: Int16(POLLIN), revents: 0)
                _ = poll(&wait, 1, 20_000)
                if let accepted = StreamSocket.accept(listener.number) { Self.echo(accepted.take()) }
            }.detach()
            program = try client(harness, ["-L", "127.0.0.1:\(port):\(socket)"])
            connection = try StreamSocket.connect(to: .loopback(v4: true, port: port))
        }
        let result = try Self.exchange(connection, Array("hello".utf8))
        #expect(result == Array("HELLO".utf8))
        program.child.signal(SIGTERM)
        _ = program.end()
        if direction == "-R" { #expect(SSHHarness.eventually { access(socket, F_OK) != 0 }) }
    }

    @Test func stdioForwardAndRefusedTarget() throws {
        let harness = try SSHHarness()
        let target = try echoServer()
        let good = try harness.ssh([], input: Array("abc".utf8), extra: ["-W", "127.0.0.1:\(target)"])
        #expect(good.text == "ABC")
        let bad = try harness.ssh([], extra: ["-W", "127.0.0.1:\(try freePort())"])
        #expect(bad.status == 255)
        let unknown = try harness.ssh([], extra: ["-W", "no-such-host.invalid:80"])
        #expect(unknown.status == 255)
    }

    @Test(.enabled(if: access("/usr/bin/ssh-agent", X_OK) == 0, "no ssh-agent")) func agentForwarding() throws
    {
        let harness = try SSHHarness()
        let socket = harness.path("agent.sock"), key = harness.path("key")
        let agent = try Program.start(
            ["/usr/bin/ssh-agent", "-D", "-a", socket], .descriptors(0, 1, 2))
        defer {
            agent.signal(SIGKILL)
            _ = Program.wait(agent, until: .max)
        }
        #expect(SSHHarness.eventually { access(socket, F_OK) == 0 })
        let variables = ["SSH_AUTH_SOCK=\(socket)"]
        _ = try Program.run([
            "/usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "the-key", "-f", key,
        ])
        #expect(try Program.run(["/usr/bin/ssh-add", "-q", key], environment: variables).status == 0)
        let outcome = try Program.run(
            ["/usr/bin/ssh"] + harness.options + [
                "-A", "-p", "\(harness.port)", "u@127.0.0.1", "ssh-add -l",
            ],
            environment: variables)
        #expect(outcome.text.contains("the-key"), "\(outcome.errorText)")
    }
}

/// Several channels of one connection share its outgoing buffer.
@Suite(.serialized, .enabled(if: access("/usr/bin/ssh", X_OK) == 0, "no OpenSSH client"))
struct SSHSharingTests {
    @Test func anEchoComesThroughBesideABulkTransfer() throws {
        let harness = try SSHHarness()
        let master = harness.path("master")
        let options =
            ["-F", "/dev/null", "-o", "ControlPath=\(master)"]
            + ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"].flatMap {
                ["-o", $0]
            }
        let ssh = ["/usr/bin/ssh"] + options + ["-p", "\(harness.port)", "u@127.0.0.1"]
        // The master's own session fills all the room there is, as fast as the client takes it.
        let words = ssh.prefix(1) + ["-o", "ControlMaster=yes"] + ssh.dropFirst() + ["'cat /dev/zero'"]
        let bulk = try TerminalProgram(["/bin/sh", "-c", "exec \(words.joined(separator: " ")) >/dev/null"])
        #expect(SSHHarness.eventually { access(master, F_OK) == 0 })
        usleep(300_000)
        let echo = try Program.run(ssh + ["cat"], input: Array("ping\n".utf8), seconds: 10)
        #expect(echo.text == "ping\n", "\(echo.errorText)")
        bulk.child.signal(SIGKILL)
        _ = bulk.end()
        #expect(SSHHarness.eventually { harness.service.connectionCount == 0 })
    }
}

// SPDX-License-Identifier: Apache-2.0

import Agent
import Glibc
import LinuxIO
import SSH
import Testing

/// X11 forwarding and sftp's copy-data with OpenSSH's programs.
@Suite(.serialized, .enabled(if: access("/usr/bin/ssh", X_OK) == 0, "no OpenSSH client"))
struct SSHDisplayTests {
    /// A program in the session opens its display with the cookie of `~/.Xauthority`; what it says arrives at the
    /// client's X server, and the answer comes back.
    @Test func aDisplayLeadsToTheClient() throws {
        let harness = try SSHHarness {
            $0.account = UserAccount(name: "u", home: $0.directory, shell: "/bin/sh")
        }
        let server = """
            import os, socket, subprocess, sys
            s = socket.socket()
            for number in range(300, 400):
                try: s.bind(('127.0.0.1', 6000 + number)); break
                except OSError: pass
            s.listen(1)
            os.environ['DISPLAY'] = f'127.0.0.1:{number}.0'
            p = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE)
            s.settimeout(20)
            c, _ = s.accept()
            data = c.recv(4096)
            c.sendall(b'welcome' + data[:1]); c.close()
            sys.stdout.write(p.communicate(timeout=20)[0].decode())
            """
        let program = """
            import os, socket, struct
            name = os.environ['DISPLAY']
            number = int(name.split(':')[1].split('.')[0])
            file = open(os.environ['HOME'] + '/.Xauthority', 'rb').read()
            assert os.stat(os.environ['HOME'] + '/.Xauthority').st_mode & 0o777 == 0o600
            fields, at = [], 2
            for _ in range(4):
                size = struct.unpack('>H', file[at:at + 2])[0]
                fields.append(file[at + 2:at + 2 + size]); at += 2 + size
            assert fields[1].decode() == str(number) and fields[2] == b'MIT-MAGIC-COOKIE-1', fields
            assert len(fields[3]) == 16, fields
            pad = lambda b: b + bytes(-len(b) % 4)
            s = socket.create_connection(('localhost', 6000 + number))
            head = struct.pack('<BBHHHHH', 0x6c, 0, 11, 0, len(fields[2]), 16, 0)
            s.sendall(head + pad(fields[2]) + fields[3])
            print(name.split(':')[0], s.recv(100).decode())
            """
        try harness.write(Array(program.utf8), to: "x.py")
        let outcome = try Program.run(
            ["/usr/bin/python3", "-c", server, "/usr/bin/ssh"] + harness.options + [
                "-o", "XAuthLocation=/nonexistent", "-Y", "-p", "\(harness.port)", "u@127.0.0.1",
                "/usr/bin/python3 x.py",
            ])
        #expect(outcome.text == "localhost welcomel\n", "\(outcome.errorText) \(harness.logLines)")
        #expect(SSHHarness.eventually { harness.service.connectionCount == 0 })
    }

    /// All displays but one are taken: the second session gets it, the first one loses it.
    @Test func theOldestDisplayMakesRoom() throws {
        let harness = try SSHHarness {
            $0.account = UserAccount(name: "u", home: $0.directory, shell: "/bin/sh")
        }
        var taken: [Int32] = []
        defer { for number in taken { close(number) } }
        let client = try RawClient(harness.service)
        let request = ChannelRequest.x11(
            singleConnection: false, protocol: "MIT-MAGIC-COOKIE-1",
            cookie: String(repeating: "ab", count: 16),
            screen: 0)
        let first = try client.open(.session)
        #expect(try client.request(first, request))
        for port in UInt16(6_010)...6_200 {
            guard
                let listener = try? StreamSocket.listen(
                    on: .loopback(v4: true, port: port), bothFamilies: false)
            else { continue }
            taken.append(listener.release())
        }
        let second = try client.open(.session)
        #expect(try client.request(second, request))
        let stranger = try RawClient(harness.service)
        let third = try stranger.open(.session)
        #expect(try !stranger.request(third, request))
    }

    /// OpenSSH's `cp` inside sftp uses copy-data.
    @Test func aFileIsCopiedOnTheServer() throws {
        let harness = try SSHHarness()
        let bytes = (0..<3_000_000).map { UInt8(truncatingIfNeeded: $0 &* 31 >> 3) }
        try harness.write(bytes, to: "a")
        let outcome = try Program.run(
            ["/usr/bin/sftp"] + harness.options + ["-P", "\(harness.port)", "-b", "-", "u@127.0.0.1"],
            input: Array("cp a b\n".utf8))
        #expect(outcome.status == 0, "\(outcome.errorText)")
        #expect(try harness.read("b") == bytes)
    }

    /// Signals, break and exit-signal as OpenSSH's peers send and expect them.
    @Test func aBreakInterruptsTheTerminal() throws {
        let harness = try SSHHarness()
        let ssh = try TerminalProgram(
            ["/usr/bin/ssh"] + harness.options + ["-tt", "-p", "\(harness.port)", "u@127.0.0.1"]
                + ["trap 'echo interrupted; exit 3' INT; echo ready; while :; do sleep 0.1; done"])
        #expect(ssh.expect("ready"))
        try ssh.type("\r~B")
        #expect(ssh.expect("interrupted"))
        #expect(ssh.end() == 3)
    }
}

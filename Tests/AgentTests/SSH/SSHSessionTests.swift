// SPDX-License-Identifier: Apache-2.0

import Agent
import Glibc
import LinuxIO
import SSH
import Testing

/// Sessions as OpenSSH's client sees them.
@Suite(.serialized, .enabled(if: access("/usr/bin/ssh", X_OK) == 0, "no OpenSSH client"))
struct SSHSessionTests {
    static func noise(_ count: Int) -> [UInt8] {
        var state: UInt64 = 0x1234_5678_9abc_def1
        var bytes: [UInt8] = []
        bytes.reserveCapacity(count)
        while bytes.count < count {
            state ^= state << 13
            state ^= state >> 7
            state ^= state << 17
            withUnsafeBytes(of: state) { bytes += $0 }
        }
        return bytes
    }

    @Test func streamsStayApartAndStatusIsPassedOn() throws {
        let harness = try SSHHarness()
        let outcome = try harness.ssh(["echo out; echo err >&2; exit 3"])
        #expect(outcome.text == "out\n")
        #expect(outcome.errorText == "err\n")
        #expect(outcome.status == 3)
        #expect(harness.sessionReports.map(\.exitStatus) == [nil, 3])
    }

    @Test(arguments: [
        ("true", 0), ("kill -TERM $$", 255), ("no-such-command-at-all", 127), ("exit 255", 255),
    ])
    func exitStatus(command: String, status: Int32) throws {
        let harness = try SSHHarness()
        #expect(try harness.ssh([command]).status == status)
    }

    @Test func aShellThatCannotStartGives229() throws {
        let harness = try SSHHarness { $0.account.shell = "/no/such/shell" }
        let outcome = try harness.ssh(["true"])
        #expect(outcome.status == 229)
        #expect(outcome.errorText.contains("No such file"))
    }

    @Test func endOfInputReachesTheProgram() throws {
        let harness = try SSHHarness()
        #expect(try harness.ssh(["cat; echo done"], input: Array("hi\n".utf8)).text == "hi\ndone\n")
        // A program that stops reading stops the client's sending, too.
        let outcome = try harness.ssh(["head -c 5"], input: Self.noise(3_000_000))
        #expect(outcome.output == Array(Self.noise(5)[..<5]))
    }

    @Test func aShellWithoutTerminalReadsCommands() throws {
        let harness = try SSHHarness()
        #expect(try harness.ssh([], input: Array("echo one; exit 4\n".utf8)).text == "one\n")
    }

    @Test(arguments: ["chacha20-poly1305@openssh.com", "aes256-gcm@openssh.com"], ["default", "64K"])
    func twentyMebibytesBothWays(cipher: String, rekey: String) throws {
        let harness = try SSHHarness()
        let data = Self.noise(20 << 20)
        let limit = rekey == "default" ? [] : ["-o", "RekeyLimit=1M"]
        let outcome = try harness.ssh(["cat"], input: data, extra: ["-c", cipher] + limit)
        #expect(outcome.output == data)
        #expect(outcome.status == 0)
    }

    @Test func theServerRenewsKeysUnderLoad() throws {
        var limits = SSHLimits()
        limits.rekeyBytes = 1 << 20
        let harness = try SSHHarness(limits: limits)
        let data = Self.noise(10 << 20)
        #expect(try harness.ssh(["cat"], input: data).output == data)
        #expect(harness.logLines.isEmpty)
    }

    @Test func terminalSizeResizeAndUTF8() throws {
        let harness = try SSHHarness()
        let client = try TerminalProgram(
            ["/usr/bin/ssh"] + harness.options + ["-tt", "-p", "\(harness.port)", "u@127.0.0.1"], rows: 31,
            columns: 97)
        try client.type("PS1='ready> '; stty size; echo $TERM; tty\r")
        #expect(client.expect("31 97"))
        #expect(client.expect("xterm"))
        #expect(client.expect("/dev/pts/"))
        client.terminal.resize(rows: 40, columns: 120, pixelWidth: 0, pixelHeight: 0)
        client.child.signal(SIGWINCH)
        usleep(300_000)
        try client.type("stty size\r")
        #expect(client.expect("40 120"))
        try client.type("printf 'a\\303\\244%s\\n' '→日本'\r")
        #expect(client.expect("aä→日本"))
        // Ctrl-C ends the command, not the shell.
        try client.type("sleep 100\r")
        usleep(300_000)
        try client.type("\u{3}")
        try client.type("echo st=$?\r")
        #expect(client.expect("st=130"))
        try client.type("exit 7\r")
        #expect(client.end() == 7)
    }

    @Test func terminalEndsWithTheCommandAlthoughABackgroundProcessHoldsIt() throws {
        let harness = try SSHHarness()
        let outcome = try harness.ssh(
            ["(trap '' HUP; exec sleep 600) & echo pid $!; seq 1 2000; exit 6"], extra: ["-tt"])
        #expect(outcome.status == 6)
        #expect(outcome.text.contains("\r\n2000\r\n"))
        let line = outcome.text.split(whereSeparator: \.isNewline).first { $0.hasPrefix("pid ") }
        let background = try #require(line.flatMap { pid_t($0.dropFirst(4)) })
        #expect(kill(background, SIGKILL) == 0, "it runs on")
    }

    @Test func environmentReachesTheProgram() throws {
        let harness = try SSHHarness {
            $0.manifestVariables = ["FROM_MANIFEST": "<$FROM_AGENT>", "CODER": "mine"]
            $0.workspaceName = "dev"
            $0.scriptBinDirectory = "/scripts"
        }
        let outcome = try harness.ssh(
            ["env; pwd"],
            extra: ["-o", "SetEnv=FROM_CLIENT=c FROM_AGENT=overridden CODER_SSH_SESSION_TYPE=vscode"])
        let lines = Set(outcome.text.split(separator: "\n").map(String.init))
        for expected in [
            "FROM_AGENT=agent", "FROM_CLIENT=c", "FROM_MANIFEST=<agent>", "CODER=mine",
            "CODER_WORKSPACE_NAME=dev",
            "PATH=/scripts:/usr/bin:/bin", "GIT_ASKPASS=/opt/coder", "GIT_SSH_COMMAND=/opt/coder gitssh --",
            "SSH_CONNECTION=0.0.0.0 0 0.0.0.0 0", harness.directory,
        ] {
            #expect(lines.contains(expected), "\(expected) in \(outcome.text)")
        }
        #expect(!outcome.text.contains("CODER_SSH_SESSION_TYPE"))
        #expect(harness.sessionReports.first?.kind == .vscode)
    }

    @Test func bannersAndMessageOfTheDay() throws {
        let harness = try SSHHarness {
            $0.banners = ["  Attention  "]
            $0.motdPath = $0.directory + "/motd"
            $0.account.home = $0.directory
        }
        try harness.write(Array("line one\nline two\n".utf8), to: "motd")
        let first = try harness.ssh([], input: Array("exit\n".utf8), extra: ["-tt"])
        #expect(first.text.hasPrefix("Attention\r\n\r\nline one\r\nline two\r\n"))
        try harness.write([], to: ".hushlogin")
        #expect(!(try harness.ssh([], input: Array("exit\n".utf8), extra: ["-tt"]).text.contains("line one")))
        #expect(try harness.ssh(["true"], extra: ["-tt"]).text.isEmpty)
    }

    @Test func fileTransferCanBeBlocked() throws {
        let harness = try SSHHarness { $0.blocksFileTransfer = true }
        for command in ["scp -t /tmp", "/usr/bin/rsync --server", "nc -h"] {
            let outcome = try harness.ssh([command])
            #expect(outcome.status == 65)
            #expect(outcome.text == "\u{2}File transfer has been disabled.\n")
        }
        #expect(try harness.ssh(["-s", "sftp"]).status == 65)
        #expect(try harness.ssh(["echo scp"]).text == "scp\n")
    }

    @Test func unknownSubsystem() throws {
        let harness = try SSHHarness()
        #expect(try harness.ssh(["-s", "netconf"]).status == 1)
    }

    @Test func tenSessionsAtOnce() async throws {
        let harness = try SSHHarness()
        let data = Self.noise(1 << 20)
        let good = try await withThrowingTaskGroup(of: Bool.self) { group in
            for number in 0..<10 {
                group.addTask {
                    let outcome = try harness.ssh(["cat; exit \(number)"], input: data)
                    return outcome.output == data && outcome.status == number
                }
            }
            return try await group.reduce(0) { $0 + ($1 ? 1 : 0) }
        }
        #expect(good == 10)
        #expect(SSHHarness.eventually { harness.service.connectionCount == 0 })
    }

    /// Processes that run `sleep` with this argument, zombies included.
    private func sleepers(_ argument: String) throws -> Int {
        let outcome = try Program.run(["/bin/ps", "-eo", "stat,args"])
        return outcome.text.split(separator: "\n").filter {
            $0.contains("sleep \(argument)") && !$0.contains("ssh")
        }.count
    }

    private func zombies() throws -> Int {
        let outcome = try Program.run(["/bin/ps", "--ppid", "\(getpid())", "-o", "stat,comm"])
        return outcome.text.split(separator: "\n").filter { $0.hasPrefix("Z") }.count
    }

    @Test(.enabled(if: access("/bin/ps", X_OK) == 0, "no ps")) func aKilledClientLeavesNothingBehind() throws
    {
        let harness = try SSHHarness()
        let client = try TerminalProgram(
            ["/usr/bin/ssh"] + harness.options
                + ["-tt", "-p", "\(harness.port)", "u@127.0.0.1", "echo up; exec sleep 98765"])
        #expect(client.expect("up"))
        client.child.signal(SIGKILL)
        _ = client.end()
        #expect(SSHHarness.eventually { harness.service.connectionCount == 0 })
        #expect(SSHHarness.eventually { (try? sleepers("98765")) == 0 })
        #expect(SSHHarness.eventually { (try? zombies()) == 0 })
    }

    @Test(.enabled(if: access("/bin/ps", X_OK) == 0, "no ps")) func aProgramWithoutTerminalOutlivesItsClient()
        throws
    {
        let harness = try SSHHarness()
        let client = try TerminalProgram(
            ["/usr/bin/ssh"] + harness.options
                + ["-T", "-p", "\(harness.port)", "u@127.0.0.1", "echo up; exec sleep 87654"])
        #expect(client.expect("up"))
        client.child.signal(SIGKILL)
        _ = client.end()
        #expect(SSHHarness.eventually { harness.service.connectionCount == 0 })
        usleep(300_000)
        #expect(try sleepers("87654") == 1)
        harness.service.stop()
        #expect(SSHHarness.eventually { (try? sleepers("87654")) == 0 })
        #expect(SSHHarness.eventually { (try? zombies()) == 0 })
    }

    @Test func garbageIsRefused() throws {
        let harness = try SSHHarness()
        let socket = try StreamSocket.connect(to: .loopback(v4: true, port: harness.port))
        usleep(50_000)
        try Array("GET / HTTP/1.0\r\n\r\n".utf8).withUnsafeBytes {
            try Descriptor.writeAll(socket.number, $0)
        }
        #expect(SSHHarness.eventually { harness.logLines.contains { $0.contains("badVersion") } })
        #expect(SSHHarness.eventually { harness.service.connectionCount == 0 })
        #expect(harness.service.counters.accepted == 1)
        #expect(harness.service.counters.failed == 1)
    }
}

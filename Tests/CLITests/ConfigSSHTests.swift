// SPDX-License-Identifier: Apache-2.0

import CLI
import Glibc
import LinuxIO
import Testing

/// `coder config-ssh` against a server that answers what a test wants, and what ssh makes of it.
@Suite(.timeLimit(.minutes(1))) struct ConfigSSHTests {
    private static let usual =
        #"{"hostname_prefix":"coder.","hostname_suffix":"coder","ssh_config_options":{"ForwardAgent":"yes"}}"#

    private struct Run {
        var outcome: Outcome
        var text: String
        var folder: String
    }

    /// Runs it once on a file with this text.
    private func run(
        _ status: Int = 200, _ body: String = ConfigSSHTests.usual, file: String? = nil, flags: [String] = [],
        program: String = "/opt/100% coder/coder"
    ) async throws -> Run {
        let server = try StubServer { request in
            request.line == "GET /api/v2/deployment/ssh" ? (status, body) : (404, #"{"message":"no"}"#)
        }
        let folder = temporaryDirectory()
        let path = "\(folder)/config"
        if let file { try write(file, path) }
        let outcome = await coder(
            ["config-ssh", "--yes", "--ssh-config-file", path, "--coder-binary-path", program] + flags,
            environment: ["CODER_URL": server.url, "CODER_SESSION_TOKEN": "t"], directory: "/conf")
        return Run(outcome: outcome, text: read(path) ?? "", folder: folder)
    }

    private func write(_ text: String, _ path: String) throws {
        let file = try #require(fopen(path, "w"))
        fputs(text, file)
        fclose(file)
    }

    private func read(_ path: String) -> String? {
        guard let file = fopen(path, "r") else { return nil }
        defer { fclose(file) }
        var bytes: [UInt8] = []
        while case let byte = getc(file), byte != EOF { bytes.append(UInt8(truncatingIfNeeded: byte)) }
        return String(decoding: bytes, as: UTF8.self)
    }

    @Test func theSectionIsAsRecorded() async throws {
        let flags = [
            "--wait", "yes", "--disable-autostart", "-o", "ServerAliveInterval=9", "-o", "LogLevel=",
            "--header", "a=b c", "--header-command", "date +%s",
        ]
        let run = try await run(file: "Host other\n", flags: flags)
        #expect(run.outcome.status == 0, "\(run.outcome)")
        #expect(run.text == golden("config-ssh-section.txt"), "\(run.text)")
        #expect(run.outcome.output.contains("Connect to a workspace with: ssh coder.<workspace>\n"))
        // The same again, by what is stored in the section.
        let again = try await self.run(file: run.text, flags: ["--use-previous-options"])
        #expect(again.outcome.output == "No changes to make.\n", "\(again.outcome)")
        // Back to the defaults, and what stood around it is untouched.
        let plain = try await self.run(file: run.text + "Host last\n")
        #expect(plain.text.hasPrefix("Host other\n\n# ---"))
        #expect(plain.text.hasSuffix("Host last\n") && !plain.text.contains("# :"), "\(plain.text)")
    }

    /// OpenSSH's own reading of the file.
    @Test func sshReadsIt() async throws {
        let run = try await run(flags: ["--wait", "no"], program: "/bin/false")
        func options(_ host: String) throws -> [String] {
            let text = try Self.output(["ssh", "-G", "-F", "\(run.folder)/config", host])
            return text.split(separator: "\n").map(String.init)
        }
        let common = [
            "connecttimeout 0", "stricthostkeychecking false", "userknownhostsfile /dev/null",
            "loglevel ERROR", "forwardagent yes",
        ]
        let command = "proxycommand /bin/false --global-config /conf ssh --stdio --wait=no"
        let prefixed = try options("coder.dev")
        #expect(Set(prefixed).isSuperset(of: common), "\(prefixed)")
        #expect(prefixed.contains("\(command) --ssh-host-prefix coder. %h"), "\(prefixed)")
        let suffixed = try options("main.dev.ann.coder")
        #expect(Set(suffixed).isSuperset(of: common), "\(suffixed)")
        #expect(suffixed.contains("\(command) --hostname-suffix coder %h"), "\(suffixed)")
        let other = try options("example.org")
        #expect(!other.contains { $0.hasPrefix("proxycommand") }, "\(other)")
        // Where the VPN has the host, ssh goes there by itself.
        let vpn = try await self.run(program: "/bin/true")
        let direct = try Self.output(["ssh", "-G", "-F", "\(vpn.folder)/config", "main.dev.ann.coder"])
        #expect(!direct.contains("\nproxycommand"), "\(direct)")
        let skipped = try await self.run(flags: ["--skip-proxy-command"])
        #expect(skipped.outcome.status == 0 && !skipped.text.contains("ProxyCommand"))
    }

    /// An expired token or a broken server is no reason to rewrite the file.
    @Test(arguments: [
        (401, #"{"message":"expired"}"#), (500, #"{"message":"broken"}"#), (502, "<html>"), (200, "<html>"),
    ])
    func onlyAnOldServerIsWithoutTheRoute(_ status: Int, _ body: String) async throws {
        let run = try await run(status, body, file: "Host a\n")
        #expect(run.outcome.status == 1 && run.text == "Host a\n", "\(run)")
    }

    @Test func anOldServerHasThePrefixOnly() async throws {
        let run = try await run(404, #"{"message":"Route not found."}"#)
        #expect(run.outcome.status == 0 && run.text.contains("\nHost coder.*\n"), "\(run)")
        #expect(!run.text.contains("Host *."))
    }

    /// What a server may not do to the user's machine.
    @Test(arguments: [
        #"{"hostname_prefix":"coder.;curl${IFS}x|sh;"}"#, #"{"hostname_prefix":"a&b"}"#,
        #"{"hostname_prefix":"`x`"}"#, #"{"hostname_prefix":"a,b"}"#, #"{"hostname_prefix":"-x"}"#,
        #"{"hostname_prefix":"%h"}"#, #"{"hostname_suffix":"$(x)"}"#, #"{"hostname_suffix":"a b"}"#,
        #"{"hostname_prefix":"c.","ssh_config_options":{"ProxyCommand":"x"}}"#,
        #"{"hostname_prefix":"c.","ssh_config_options":{"localcommand":"x"}}"#,
        #"{"hostname_prefix":"c.","ssh_config_options":{"KnownHostsCommand":"x"}}"#,
        #"{"hostname_prefix":"c.","ssh_config_options":{"Host":"*"}}"#,
        #"{"hostname_prefix":"c.","ssh_config_options":{"Match":"all"}}"#,
        #"{"hostname_prefix":"c.","ssh_config_options":{"Include":"/x"}}"#,
        #"{"hostname_prefix":"c.","ssh_config_options":{"Host *":""}}"#,
        #"{"hostname_prefix":"c.","ssh_config_options":{"User=x\nHost":"y"}}"#,
        #"{"hostname_prefix":"c.","ssh_config_options":{"User":"x\nHost *"}}"#,
        #"{"hostname_prefix":"c.","ssh_config_options":{"":"x"}}"#,
    ])
    func aServerCannotReachFurther(_ body: String) async throws {
        let run = try await run(200, body, file: "Host a\n")
        #expect(run.outcome.status == 1 && run.text == "Host a\n", "\(run)")
    }

    @Test func theUserMayAndMayLeaveOut() async throws {
        let body = #"{"hostname_prefix":"c.","ssh_config_options":{"ProxyJump":"x"}}"#
        let run = try await run(200, body, flags: ["-o", "ProxyJump=", "-o", "LocalCommand=mine"])
        #expect(run.outcome.status == 0, "\(run.outcome)")
        #expect(run.text.contains("\tLocalCommand mine\n") && !run.text.contains("ProxyJump x"))
    }

    @Test func aSymbolicLinkStaysOne() async throws {
        let folder = temporaryDirectory()
        try write("Host a\n", "\(folder)/real")
        #expect(symlink("\(folder)/real", "\(folder)/link") == 0)
        let server = try StubServer { _ in (200, Self.usual) }
        let outcome = await coder(
            ["config-ssh", "--yes", "--ssh-config-file", "\(folder)/link"],
            environment: ["CODER_URL": server.url, "CODER_SESSION_TOKEN": "t"])
        #expect(outcome.status == 0, "\(outcome)")
        #expect(read("\(folder)/real")?.contains("START-CODER") == true)
        var buffer = [CChar](repeating: 0, count: 256)
        #expect(readlink("\(folder)/link", &buffer, 255) > 0)
    }

    /// Standard output of a program.
    private static func output(_ words: [String]) throws -> String {
        let line = words.map { "'\($0)'" }.joined(separator: " ")
        let pipe = try #require(popen(line, "r"))
        var bytes: [UInt8] = []
        while case let byte = getc(pipe), byte != EOF { bytes.append(UInt8(truncatingIfNeeded: byte)) }
        #expect(pclose(pipe) == 0, "\(line)")
        return String(decoding: bytes, as: UTF8.self)
    }
}

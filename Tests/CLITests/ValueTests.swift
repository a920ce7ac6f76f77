// SPDX-License-Identifier: Apache-2.0

import CLI
import Glibc
import LinuxIO
import Mesh
import Testing

@Suite struct ValueTests {
    // MARK: JSON

    @Test func jsonKeepsOrderAndNumbers() throws {
        let text = #"{"b":1.50,"a":[true,null,"é\n\u00e9😀"],"c":{},"d":[]}"#
        let json = try JSON.parse(text.utf8)
        #expect(json.compact == #"{"b":1.50,"a":[true,null,"é\né😀"],"c":{},"d":[]}"#)
        #expect(json["a"].pretty == "[\n  true,\n  null,\n  \"é\\né😀\"\n]")
        #expect(json["missing"] == .null)
    }

    @Test(arguments: [
        "", "{", "[1,]", "{\"a\"}", "tru", "1 2", "\"\u{1}\"", "\"\\x\"", "\"\\ud800\\u0041\"", "+1", "[",
        "nul", ".5",
        "{\"a\":1,}",
    ])
    func badJSONIsRefused(_ text: String) {
        #expect(throws: JSON.ParseError.self) { try JSON.parse(text.utf8) }
    }

    @Test func deepJSONIsRefused() {
        #expect(throws: JSON.ParseError.self) { try JSON.parse(String(repeating: "[", count: 100_000).utf8) }
    }

    @Test func truncatedJSONNeverCrashes() throws {
        let whole = Array(#"{"a":[1,-2.5e3,"x\u00e9\ud83d\ude00"],"b":{"c":false}}"#.utf8)
        _ = try JSON.parse(whole)
        for length in 0..<whole.count {
            #expect(throws: JSON.ParseError.self) { try JSON.parse(whole[..<length]) }
        }
    }

    // MARK: Tables

    @Test func tablesPadEachCell() {
        let text = Table.text(
            names: ["name", "last used"], columns: ["last_used", "Name"],
            rows: [["a", "b"], ["long\u{1b}[m", "日本"]])
        #expect(text == "LAST USED  NAME     \nb          a        \n日本       long [m  \n")
    }

    // MARK: Names

    @Test(
        arguments: [
            ("dev", "me", "dev", nil), ("ann/dev", "ann", "dev", nil), ("dev.main", "me", "dev", "main"),
            ("ann/dev.main", "ann", "dev", "main"),
        ] as [(String, String, String, String?)])
    func workspaceNames(_ text: String, _ owner: String, _ workspace: String, _ agent: String?) throws {
        let name = try WorkspaceName(text)
        #expect(name.owner == owner && name.workspace == workspace && name.agent == agent)
        #expect(try WorkspaceName(host: text, prefix: "", suffix: "") == name)
    }

    @Test(
        arguments: [
            ("ann--dev", "ann", "dev", nil), ("ann--dev.main", "ann", "dev", "main"),
            ("ann--dev--main", "ann", "dev", "main"),
            ("ann/dev--main", "ann", "dev", "main"), ("main.dev.ann", "ann", "dev", "main"),
            ("coder.dev", "me", "dev", nil), ("dev.coder", "me", "dev", nil),
            ("main.dev.ann.coder", "ann", "dev", "main"),
            ("my-dev", "me", "my-dev", nil),
        ] as [(String, String, String, String?)])
    func hostNames(_ text: String, _ owner: String, _ workspace: String, _ agent: String?) throws {
        let name = try WorkspaceName(host: text, prefix: "coder.", suffix: "coder")
        #expect(name.owner == owner && name.workspace == workspace && name.agent == agent)
    }

    @Test(arguments: ["", "/", "a/b/c/d", "a b", "dev\u{1b}", "a--b--c--d", "../x", "a/", ".x", "dév"])
    func badNamesAreRefused(_ text: String) {
        #expect(throws: (any Error).self) { try WorkspaceName(text) }
        #expect(throws: (any Error).self) { try WorkspaceName(host: text, prefix: "", suffix: "") }
    }

    // MARK: Ports

    @Test(arguments: [
        ("8080", ["8080>8080"]), ("8080:80", ["8080>80"]), ("0.0.0.0:53:5353", ["0.0.0.0:53>5353"]),
        ("[::1]:22", ["[::1]:22>22"]), ("[::1]:22:23", ["[::1]:22>23"]), ("127.0.0.1:9", ["127.0.0.1:9>9"]),
        ("9000-9002:8000-8002", ["9000>8000", "9001>8001", "9002>8002"]), ("1-2", ["1>1", "2>2"]),
        ("65535", ["65535>65535"]),
    ])
    func portForwards(_ text: String, _ expected: [String]) throws {
        let result = try PortSpec.parse([text], .tcp).map { forward in
            guard case .port(let local, let address) = forward.local, case .port(let remote) = forward.remote
            else { return "not ports" }
            return (address.map { SocketAddress($0, port: local).description } ?? "\(local)") + ">\(remote)"
        }
        #expect(result == expected)
        try PortSpec.check(PortSpec.parse([text], .udp))
    }

    @Test(arguments: [
        "", "0", "65536", "a", "1:2:3", "1-2:3", "2-1", "1-", "-1", "::1:22", "[1.2.3.4]:5", "1.2.3:4",
        "[::1]", "[::1]:",
        "localhost:80", "1.2.3.4", "+1", "1,2",
    ])
    func badPortForwardsAreRefused(_ text: String) {
        #expect(throws: (any Error).self) { try PortSpec.parse([text], .tcp) }
    }

    static let sockets: [(text: String, local: PortForward.Local, remote: PortForward.Remote)] = [
        ("/a:80", .socket("/a"), .port(80)), ("80:/run/b", .port(80, on: nil), .socket("/run/b")),
        ("/a/b:/c", .socket("/a/b"), .socket("/c")),
        ("127.0.0.2:8:/c", .port(8, on: IPAddress(v4: 0x7f00_0002)), .socket("/c")),
        ("[::1]:8:/c", .port(8, on: IPAddress(high: 0, low: 1)), .socket("/c")),
    ]

    @Test(arguments: sockets.indices) func eitherSideMayBeASocket(_ index: Int) throws {
        let (text, local, remote) = Self.sockets[index]
        let forwards = try PortSpec.parse([text], .tcp)
        #expect(forwards.map(\.local) == [local])
        #expect(forwards.map(\.remote) == [remote])
        #expect(throws: (any Error).self) { try PortSpec.parse([text], .udp) }
    }

    @Test(arguments: [
        "/a", "/:80", "/a:", "/a:/", "/a:80-81", "1-2:/c", ":/c", "/a:b:80", "/a:80:/c", "/a:0", "x:/c",
        "/\(String(repeating: "a", count: 107)):80", "/a\n:80",
    ])
    func badSocketsAreRefused(_ text: String) {
        #expect(throws: (any Error).self) { try PortSpec.parse([text], .tcp) }
    }

    @Test func onePortIsForwardedOnce() throws {
        let twice = try PortSpec.parse(["8080:80", "8080:81"], .tcp)
        #expect(throws: (any Error).self) { try PortSpec.check(twice) }
        #expect(throws: (any Error).self) { try PortSpec.check([]) }
        let sockets = try PortSpec.parse(["/a:80", "/a:/b"], .tcp)
        #expect(throws: (any Error).self) { try PortSpec.check(sockets) }
        try PortSpec.check(PortSpec.parse(["53"], .udp) + PortSpec.parse(["53"], .tcp))
    }

    // MARK: Times

    @Test(
        arguments: [
            ("1970-01-01T00:00:00Z", 0), ("2026-02-01T10:00:00.5Z", 1_769_940_000.5),
            ("2024-02-29T23:59:59+01:00", 1_709_247_599),
            ("0001-01-01T00:00:00Z", -62_135_596_800), ("2026-02-01", nil), ("2026-13-01T00:00:00Z", nil),
            ("2026-02-01T10:00:00", nil), ("2026-02-01T10:00:00.Z", nil), ("x026-02-01T10:00:00Z", nil),
        ] as [(String, Double?)])
    func timestamps(_ text: String, _ seconds: Double?) {
        #expect(Timestamp(text)?.seconds == seconds)
        if let seconds, seconds.rounded() == seconds, text.hasSuffix("Z"), seconds >= 0 {
            #expect(Timestamp(text)?.text() == text)
        }
    }

    @Test(arguments: [
        (59, "<1m"), (60, "1m"), (3_720, "1h2m"), (3_600, "1h"), (273_600, "3d4h"), (86_400, "1d"),
    ])
    func shortDurations(_ seconds: Int, _ text: String) {
        #expect(shortDuration(.seconds(seconds)) == text)
    }

    // MARK: Escape

    @Test func tildeDotEndsASession() {
        func run(_ pieces: [String]) -> [EscapeFilter.Action] {
            var filter = EscapeFilter()
            return pieces.flatMap { filter.filter(Array($0.utf8)[...]) }
        }
        func pass(_ text: String) -> EscapeFilter.Action { .pass(Array(text.utf8)) }
        #expect(run(["~."]) == [.disconnect])
        #expect(run(["ls\r", "~", "."]) == [pass("ls\r"), .disconnect])
        #expect(run(["a~."]) == [pass("a~.")])
        #expect(run(["~~x"]) == [pass("~x")])
        #expect(run(["~x"]) == [pass("~x")])
        #expect(run(["~?~#~\u{1a}ls"]) == [.help, .list, .suspend, pass("ls")])
        #expect(run(["x\n~#y"]) == [pass("x\n"), .list, pass("y")])
        #expect(
            run(["~C-L\u{7f}R \r~B"]) == [
                .prompt, .echo([45]), .echo([76]), .echo([8, 32, 8]), .echo([82]), .echo([32]),
                .command("-R "), .break,
            ])
        #expect(run(["ls~\r~Cx\u{3}ls"]) == [pass("ls~\r"), .prompt, .echo([120]), .command(""), pass("ls")])
        #expect(run(["~B~R~~B"]) == [.break, .rekey, pass("~B")])
        #expect(run(["~v~v~Vls"]) == [.louder, .louder, .quieter, pass("ls")])
        // What follows is nobody's: the terminal is given back.
        #expect(run(["ls\r~&ls"]) == [pass("ls\r"), .background])
    }

    /// `~?` names what there is, and nothing else.
    @Test func helpListsEveryEscape() {
        let listed = EscapeFilter.helpText.split(separator: "\n").compactMap { line -> String? in
            let word = line.split(separator: " ").first.map(String.init) ?? ""
            return word.hasPrefix("~") ? String(word.dropFirst()) : nil
        }
        let known = (UInt8.min...UInt8.max).filter { byte in
            var filter = EscapeFilter()
            return filter.filter([UInt8(ascii: "~"), byte]) != [.pass([UInt8(ascii: "~"), byte])]
        }
        let names = known.map { $0 == 0x1a ? "^Z" : String(decoding: [$0], as: UTF8.self) }
        #expect(listed.sorted() == names.sorted())
    }

    /// OpenSSH's names, in its order; the ends are ends.
    @Test func logLevelsOfASession() {
        var level = SessionLogLevel.quiet
        #expect(level.quieter == level)
        var names = [level.name]
        while level.louder != level {
            #expect(level.louder.quieter == level)
            level = level.louder
            names.append(level.name)
        }
        #expect(
            names == ["QUIET", "FATAL", "ERROR", "INFO", "VERBOSE", "DEBUG", "DEBUG2", "DEBUG3"])
    }

    /// Text of ours among the workspace's: the window is widened by the workspace's bytes alone, and by all of them.
    @Test func textOfOursIsNotThePeers() throws {
        let pipe = try Descriptor.pipe()
        var queue = OutputQueue(number: pipe.second.number)
        queue.append([UInt8](repeating: 1, count: 200_000))
        var told = queue.takeWritten()
        #expect(0 < told && told < 200_000, "the pipe took all of it")
        queue.appendOwn([UInt8](repeating: 2, count: 5_000))
        queue.append([UInt8](repeating: 1, count: 10))
        var buffer = [UInt8](repeating: 0, count: 1_000)
        var seen = 0
        while seen < 205_010 {
            seen += read(pipe.first.number, &buffer, buffer.count)
            queue.flush()
            told += queue.takeWritten()
            #expect(told <= min(seen + 65_536 + 4_096, 200_010))
        }
        #expect(queue.isEmpty && told == 200_010)
    }

    @Test(
        arguments: [
            ("8080:localhost:80", "remote port 8080 to localhost:80"),
            ("0:[::1]:22", "remote port 0 to ::1:22"),
            ("/run/a.sock:/tmp/b.sock", "remote socket /run/a.sock to /tmp/b.sock"), ("8080:80", nil),
            ("8080::80", nil), ("x:localhost:80", nil), ("8080:localhost:0", nil),
            ("70000:localhost:80", nil),
            ("/a:b", nil), ("/:/b", nil), ("80:a\u{1b}[2J:80", nil), ("", nil),
        ] as [(String, String?)])
    func remoteForwards(_ text: String, _ meaning: String?) {
        guard let meaning else {
            #expect(throws: (any Error).self) { try RemoteForward(text) }
            return
        }
        #expect((try? RemoteForward(text))?.description == meaning)
    }

    @Test func commandsOfASession() throws {
        let forward = try RemoteForward("8080:localhost:80")
        #expect(try SessionCommand(" -L 8080:localhost:80") == .local(forward))
        #expect(try SessionCommand("-R8080:localhost:80 ") == .remote(forward))
        #expect(try SessionCommand("-KL 8080") == .cancelLocal(8080))
        #expect(try SessionCommand("-KR8080") == .cancelRemote(8080))
        #expect(try SessionCommand("-h") == .help && SessionCommand(" ") == .nothing)
        for text in ["-D 1080", "-L 80", "-KL", "-KR x", "exit"] {
            #expect(throws: (any Error).self) { try SessionCommand(text) }
        }
    }

    // MARK: ssh configuration

    @Test func theSectionIsReplacedAndNothingElse() throws {
        let section = "\(ConfigSSHCommand.startToken)\nnew\n\(ConfigSSHCommand.endToken)"
        #expect(try ConfigSSHCommand.replaceSection(in: "", with: section) == section + "\n")
        #expect(
            try ConfigSSHCommand.replaceSection(in: "Host a\n", with: section) == "Host a\n\n\(section)\n")
        let old = "Host a\n\n\(ConfigSSHCommand.startToken)\nold\n\(ConfigSSHCommand.endToken)\nHost b\r\n"
        let new = try ConfigSSHCommand.replaceSection(in: old, with: section)
        #expect(new == "Host a\n\n\(section)\nHost b\r\n")
        #expect(try ConfigSSHCommand.replaceSection(in: new, with: section) == new)
        for broken in [
            "\(ConfigSSHCommand.startToken)\n",
            "\(ConfigSSHCommand.endToken)\n\(ConfigSSHCommand.startToken)\n",
            old + old,
        ] {
            #expect(throws: (any Error).self) {
                try ConfigSSHCommand.replaceSection(in: broken, with: section)
            }
        }
    }
}

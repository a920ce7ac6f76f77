// SPDX-License-Identifier: Apache-2.0

import CLI
import Mesh
import Testing

/// What shells, editors and people are offered.
@Suite struct CompletionTests {
    static let lines: [(words: [String], candidates: [String])] = [
        (["por"], ["port-forward"]),
        (["external-workspaces", ""], ["agent-instructions", "create", "list"]),
        (["ssh", "--wai"], ["--wait"]), (["ssh", "--wait", ""], ["auto", "no", "yes"]),
        (["ssh", "--wait=n"], ["--wait=no"]), (["tunnel", "--t"], ["--tcp", "--token"]),
        (["--url", "x", "speedtest", "dev", "-d", "--direction", "u"], ["up"]),
        (["ssh", "dev", "--", "l"], []),
        (["tokens", "rm", "x"], []), (["vscodess"], []),
    ]

    @Test(arguments: lines.indices) func candidatesAreLines(_ index: Int) async {
        let (words, candidates) = Self.lines[index]
        let outcome = await coder(words, environment: ["COMPLETION_MODE": "1"])
        #expect(outcome.status == 0)
        #expect(outcome.output == candidates.map { $0 + "\n" }.joined())
    }

    @Test func eachShellHasAScript() async {
        for shell in ["bash", "zsh", "fish", "powershell"] {
            let outcome = await coder(["completion", "--shell", shell])
            #expect(outcome.output.contains("COMPLETION_MODE"), "\(shell)")
        }
        #expect(await coder(["completion"], environment: ["SHELL": "/usr/bin/fish"]).status == 0)
        let unknown = await coder(["completion"], environment: ["SHELL": "/bin/rc"])
        #expect(unknown.status == 1)
        #expect(unknown.output == "")
    }

    @Test func linksForEditors() throws {
        #expect(
            OpenCommand.link([("url", "http://h:1"), ("agent", "a"), ("folder", "/a b")])
                == "vscode://coder.coder-remote/open?agent=a&folder=%2Fa%20b&url=http%3A%2F%2Fh%3A1")
        #expect(try OpenCommand.directory("", in: "/home/u") == "/home/u")
        #expect(try OpenCommand.directory("/x", in: "/home/u") == "/x")
        #expect(try OpenCommand.directory("src/../lib/./x", in: "/home/u") == "/home/u/lib/x")
        #expect(throws: (any Error).self) { try OpenCommand.directory("~/x", in: "/home/u") }
        #expect(throws: (any Error).self) { try OpenCommand.directory("x", in: "") }
    }

    @Test func hintsNameTheCause() {
        let none = PingHints.lines(.timeout, isDisabledHere: false, narrow: [])
        #expect(none.isEmpty)
        #expect(PingHints.lines(.policy, isDisabledHere: true, narrow: [])[0].contains("locally"))
        #expect(PingHints.lines(.policy, isDisabledHere: false, narrow: [])[0].contains("administrator"))
        let both = PingHints.lines(.udpBlocked, isDisabledHere: false, narrow: [("wg0", 1_300)])
        #expect(both.count == 2 && both[0].contains("udp-blocked") && both[1].contains("1300"))
    }
}

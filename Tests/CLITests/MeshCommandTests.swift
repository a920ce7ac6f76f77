// SPDX-License-Identifier: Apache-2.0

import CLI
import Glibc
import Testing

/// `coder mesh` in this process: two nodes on loopback, and the client of their control sockets.
@Suite(.timeLimit(.minutes(1))) struct MeshCommandTests {
    private let directory = temporaryDirectory()

    private func write(_ name: String, _ text: String) -> String {
        let path = "\(directory)/\(name)"
        let file = fopen(path, "w")
        fputs(text, file)
        fclose(file)
        return path
    }

    private func ask(_ node: String, _ words: String...) async throws -> JSON {
        let outcome = await coder(["mesh", "--control", "\(directory)/\(node).sock"] + words)
        guard outcome.status == 0 else { throw Refusal(text: outcome.errors) }
        return try JSON.parse(outcome.output.utf8)
    }

    private struct Refusal: Error { var text: String }

    @Test func twoNodesReachEachOther() async throws {
        var nodes: [Task<Outcome, Never>] = []
        defer { for node in nodes { node.cancel() } }
        for name in ["a", "b"] {
            let file = write(
                "\(name).json",
                """
                {"addresses": ["fd7a:115c:a1e0::\(name)"], "udp": "loopback", "services":
                    [{"kind": "sink", "port": 1}, {"kind": "source", "port": 2}, {"kind": "echo", "port": 3}]}
                """)
            let socket = "\(directory)/\(name).sock"
            nodes.append(Task { await coder(["mesh", "--config", file, "--control", socket]) })
            for _ in 0..<500 where access(socket, F_OK) != 0 { try await Task.sleep(for: .milliseconds(10)) }
            var information = stat()
            #expect(stat(socket, &information) == 0 && information.st_mode & 0o777 == 0o600)
        }
        let (a, b) = (try await ask("a", "node"), try await ask("b", "node"))
        #expect(a["key"].string?.hasPrefix("nodekey:") == true && a["endpoints"] != b["endpoints"])
        _ = try await ask("a", "peers", "add", b.compact)
        _ = try await ask("b", "peers", "set", "[\(a.compact)]")
        let reached = try await ask("b", "reach", "fd7a:115c:a1e0::a", "20")
        #expect(reached["latency_ms"] != .null)
        #expect(try await ask("b", "ping", "fd7a:115c:a1e0::a")["path"].string == "direct")
        for words in [
            ["up", "[fd7a:115c:a1e0::a]:1", "bytes=3M", "streams=3"],
            ["down", "[fd7a:115c:a1e0::a]:2", "bytes=3M", "streams=2"],
            ["both", "[fd7a:115c:a1e0::a]:3", "bytes=1M"],
        ] {
            let outcome = await coder(["mesh", "--control", "\(directory)/b.sock", "load"] + words)
            let result = try JSON.parse(outcome.output.utf8)
            #expect(result["exact"] == .bool(true), "\(outcome)")
            #expect(result["bytes"].int == (words[0] == "both" ? 1 : 3) << 20, "\(outcome)")
        }
        let questions = try await ask("b", "load", "rr", "[fd7a:115c:a1e0::a]:3", "count=20")
        #expect(questions["count"].int == 20 && questions["lost"].int == 0)
        await #expect(throws: Refusal.self) { try await ask("b", "ping", "fd7a:115c:a1e0::77") }
        await #expect(throws: Refusal.self) { try await ask("b", "no-such-command") }
        await #expect(throws: Refusal.self) {
            try await ask("b", "peers", "add", "{\"key\": \"nodekey:12\"}")
        }
        // A second node does not take the socket of one that lives.
        let second = await coder([
            "mesh", "--config", "\(directory)/a.json", "--control", "\(directory)/a.sock",
        ])
        #expect(second.status == 1 && second.errors.contains("cannot listen"))
    }

    static let mistakes: [(String, String)] = [
        ("[]", "object"), ("{}", "addresses"), (#"{"addresses": ["nonsense"]}"#, "nonsense"),
        (#"{"addresses": ["fd00::1"], "adresses": []}"#, "adresses"), ("{", "bad JSON"),
        (#"{"addresses": ["fd00::1"], "node_key": "privkey:12"}"#, "64"),
        (#"{"addresses": ["fd00::1"], "listen_port": 70000}"#, "65535"),
        (#"{"addresses": ["fd00::1"], "services": [{"kind": "chess", "port": 1}]}"#, "chess"),
        (#"{"addresses": ["fd00::1"], "peers": [{"key": "x"}]}"#, "nodekey:"),
    ]

    @Test(arguments: mistakes) func aBadFileIsOneClearLine(_ text: String, _ word: String) async {
        let outcome = await coder(["mesh", "--config", write("bad.json", text)])
        #expect(outcome.status == 1 && outcome.output.isEmpty)
        #expect(
            outcome.errors.contains(word) && outcome.errors.filter { $0 == "\n" }.count == 1, "\(outcome)")
    }

    @Test func keysAreMade() async throws {
        let outcome = await coder(["mesh", "genkey"])
        let made = try JSON.parse(outcome.output.utf8)
        #expect(made["node_key"].string?.utf8.count == 72 && made["key"].string?.utf8.count == 72)
    }
}

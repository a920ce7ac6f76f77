// SPDX-License-Identifier: Apache-2.0

import Foundation
import TestSupport
import Testing

/// The program in the place of wireguard-go: started by hand, by Debian's `wg-quick`, and ended in every way.
@Suite(
    .serialized, .timeLimit(.minutes(4)),
    .enabled(
        if: QuickTools.arePresent, "needs root, ip, wg, wg-quick, wireguard-go, the built program"))
struct WireGuardQuickTests {
    static let coder = Deployment.binary
    private let folder = FileManager.default.temporaryDirectory.appending(path: "coder-wgq-\(getpid())")
    private var program: String { folder.appending(path: "coder-wireguard").path }

    /// Makes the link under which wg-quick starts the program.
    private func prepare() throws {
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        if !FileManager.default.fileExists(atPath: program) {
            try FileManager.default.createSymbolicLink(atPath: program, withDestinationPath: Self.coder)
        }
    }

    private func must(_ arguments: [String], environment: [String: String] = [:]) async throws -> String {
        let outcome = try await Command.run(arguments, environment: environment, timeout: 40)
        guard outcome.status == 0 else {
            throw LabError(what: arguments.joined(separator: " "), outcome: outcome)
        }
        return outcome.text
    }

    private func socket(_ name: String) -> String { "/var/run/wireguard/\(name).sock" }

    private func isGone(_ host: Lab.Host, _ name: String) async throws -> Bool {
        try await Command.eventually(within: 10) {
            let link = try await Command.run(host.on(["ip", "link", "show", name]))
            return link.status != 0 && !FileManager.default.fileExists(atPath: socket(name))
        }
    }

    @Test func startAndEnd() async throws {
        try prepare()
        let lab = try await Lab(["a"], network: 71)
        defer { try? FileManager.default.removeItem(at: folder) }
        let host = lab["a"]
        let name = "cwq\(getpid() % 100_000)"
        for start in [[program, name], [Self.coder, "wireguard", name]] {
            let begun = try await Command.run(host.on(start))
            #expect(begun.status == 0 && !begun.errorText.contains("error"), "\(begun)")
            // Ready means ready: the socket answers, the interface exists.
            #expect(try await must(host.on(["wg", "show", name])).contains("interface: \(name)"))
            let again = try await Command.run(host.on([program, name]))
            #expect(again.status == 1, "\(again)")
            #expect(
                again.errorText.split(separator: "\n").count == 1
                    && again.errorText.contains("exists already"))
            _ = try await must(host.on(["ip", "link", "delete", name]))
            #expect(try await isGone(host, name), "the interface was deleted")
        }
        _ = try await must(host.on([program, name]))
        try FileManager.default.removeItem(atPath: socket(name))
        #expect(try await isGone(host, name), "the socket was removed")

        for signal in [SIGTERM, SIGINT] {
            let process = try Command(host.on([program, "-f", name]), environment: ["LOG_LEVEL": "verbose"])
            #expect(
                try await Command.eventually(within: 10) {
                    try await Command.run(host.on(["wg", "show", name])).status == 0
                })
            process.signal(signal)
            let outcome = try await process.finish(timeout: 10)
            #expect(outcome.status == 0 && outcome.errorText.contains("is ready"), "\(outcome)")
            #expect(try await isGone(host, name), "signal \(signal)")
        }
        try await tells(host, name)
        try await servesAGivenSocket(host, name)
        let version = try await must([program, "--version"])
        #expect(version.contains("v2."))
        for wrong in [[], ["a/b"], ["sixteen-bytes-xx"]] {
            let outcome = try await Command.run(host.on([program] + wrong))
            #expect(outcome.status == 1 && outcome.errorText.hasPrefix("error: "), "\(wrong): \(outcome)")
        }
        await Lab.demolish(prefix: lab.prefix)
    }

    /// What fails is told at the usual level, and what was counted when it is asked for.
    private func tells(_ host: Lab.Host, _ name: String) async throws {
        let log = folder.appending(path: "log")
        let names = [name, "\(name.prefix(14))x"]
        let processes = try names.map {
            try Command(
                host.on([program, "-f", $0]),
                environment: ["LOG_LEVEL": "error", "CODER_WIREGUARD_LOG_FILE": log.path])
        }
        func isLogged(_ text: String) async throws -> Bool {
            try await Command.eventually(within: 10) {
                String(decoding: (try? Data(contentsOf: log)) ?? Data(), as: UTF8.self).contains(text)
            }
        }
        for name in names {
            #expect(
                try await Command.eventually(within: 10) {
                    try await Command.run(host.on(["wg", "show", name])).status == 0
                })
            _ = try await must(host.on(["wg", "set", name, "listen-port", "51999"]))
            _ = try await must(host.on(["ip", "link", "set", name, "up"]))
        }
        #expect(try await isLogged("UDP port 51999 cannot be had"))
        processes[0].signal(SIGUSR1)
        #expect(try await isLogged("counters: "))
        for process in processes {
            process.signal(SIGTERM)
            #expect(try await process.finish(timeout: 10).status == 0)
        }
    }

    /// A listener that the parent made serves also in the background.
    private func servesAGivenSocket(_ host: Lab.Host, _ name: String) async throws {
        let script = """
            import os, socket, sys
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(sys.argv[1])
            listener.listen()
            os.set_inheritable(listener.fileno(), True)
            os.environ["WG_UAPI_FD"] = str(listener.fileno())
            os.execv(sys.argv[2], sys.argv[2:])
            """
        _ = try await must(host.on(["python3", "-c", script, socket(name), program, name]))
        #expect(try await must(host.on(["wg", "show", name])).contains("interface: \(name)"))
        _ = try await must(host.on(["ip", "link", "delete", name]))
        #expect(try await isGone(host, name))
    }

    /// One end of a tunnel.
    private typealias End = (host: Lab.Host, name: String, key: String, publicKey: String)

    private func ends(_ lab: Lab, _ mark: String) async throws -> [End] {
        var ends: [End] = []
        for letter in ["a", "b"] {
            let key = try await must(["wg", "genkey"]).trimmingCharacters(in: .whitespacesAndNewlines)
            let outcome = try await Command.run(["wg", "pubkey"], input: Data(key.utf8))
            let publicKey = outcome.text.trimmingCharacters(in: .whitespacesAndNewlines)
            ends.append((lab[letter], "cwq\(getpid() % 10_000)\(mark)\(letter)", key, publicKey))
        }
        return ends
    }

    private func file(_ end: End) -> URL { folder.appending(path: "\(end.name).conf") }

    private func up(_ end: End, _ text: String, by program: String) async throws {
        let path = file(end)
        try Data("[Interface]\nPrivateKey = \(end.key)\n\(text)\n".utf8).write(to: path)
        try FileManager.default.setAttributes([.posixPermissions: 0o600], ofItemAtPath: path.path)
        _ = try await must(
            end.host.on(["wg-quick", "up", path.path]),
            environment: [
                "WG_QUICK_USERSPACE_IMPLEMENTATION": program,
                "WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD": "1",
            ])
    }

    /// One answer is enough: a busy kernel leaves many echoes unanswered, also its own.
    private func ping(_ end: End, _ address: String) async throws {
        _ = try await must(end.host.on(["ping", "-c", "12", "-i", "0.1", "-W", "4", address]))
    }

    /// A second of TCP each way.
    private func iperf(_ client: End, _ server: End, _ address: String) async throws {
        let process = try Command(server.host.on(["iperf3", "-s", "-B", address]))
        defer { process.signal(SIGKILL) }
        for direction in [[], ["-R"]] {
            let isThrough = try await Command.eventually(within: 10) {
                let words = ["iperf3", "-J", "-t", "1", "-c", address] + direction
                let text = try await Command.run(client.host.on(words), timeout: 20).text
                return text.contains("\"sum_received\"") && !text.contains("\"error\"")
            }
            #expect(isThrough, "\(direction)")
        }
    }

    /// `wg syncconf` with what `wg-quick strip` gives changes what is different and keeps the session; then
    /// one end moves to another port, and the other follows.
    private func changeWhileRunning(_ ends: [End]) async throws {
        func handshake(_ end: End) async throws -> String {
            try await must(end.host.on(["wg", "show", end.name, "latest-handshakes"]))
        }
        let before = try await handshake(ends[0])
        for end in ends {
            let text = try String(contentsOf: file(end), encoding: .utf8).replacing("= 25", with: "= 21")
            try Data(text.utf8).write(to: file(end))
            let stripped = folder.appending(path: "\(end.name).stripped").path
            let line = "wg-quick strip \(file(end).path) > \(stripped) && wg syncconf \(end.name) \(stripped)"
            _ = try await must(end.host.on(["sh", "-c", line]))
            let shown = try await must(end.host.on(["wg", "showconf", end.name]))
            #expect(shown.contains("PersistentKeepalive = 21"), "\(shown)")
        }
        #expect(try await handshake(ends[0]) == before)
        try await ping(ends[0], "10.86.0.2")
        _ = try await must(ends[0].host.on(["wg", "set", ends[0].name, "listen-port", "40001"]))
        try await ping(ends[0], "10.86.0.2")
        let places = try await must(ends[1].host.on(["wg", "show", ends[1].name, "endpoints"]))
        #expect(places.contains("\(ends[0].host.address):40001"), "\(places)")
        try await ping(ends[1], "10.86.0.1")
    }

    /// All of a host's traffic through the tunnel: `wg-quick` marks the tunnel's own packets and routes by
    /// that.
    @Test func fullTunnel() async throws {
        try prepare()
        let lab = try await Lab(["a", "b"], network: 73)
        defer { try? FileManager.default.removeItem(at: folder) }
        let ends = try await ends(lab, "f")
        _ = try await must(ends[1].host.on(["ip", "address", "add", "10.222.0.1/32", "dev", "lo"]))
        for (index, end) in ends.enumerated() {
            let peer = ends[1 - index]
            try await up(
                end,
                """
                ListenPort = 51820
                Address = 10.85.0.\(index + 1)/24
                [Peer]
                PublicKey = \(peer.publicKey)
                AllowedIPs = \(index == 0 ? "0.0.0.0/0" : "10.85.0.1/32")
                Endpoint = \(peer.host.address):51820
                """, by: program)
        }
        #expect(try await must(ends[0].host.on(["wg", "show", ends[0].name, "fwmark"])).contains("0xca6c"))
        // An address that only the other end has, and no route leads to but the tunnel's.
        try await ping(ends[0], "10.222.0.1")
        try await iperf(ends[0], ends[1], "10.222.0.1")
        for end in ends {
            _ = try await must(end.host.on(["wg-quick", "down", file(end).path]))
            #expect(try await isGone(end.host, end.name))
        }
        await Lab.demolish(prefix: lab.prefix)
    }

    /// `wg-quick up` on both ends, ours on one and Debian's on the other; then down.
    @Test(arguments: [false, true]) func wgQuick(swapped: Bool) async throws {
        try prepare()
        let lab = try await Lab(["a", "b"], network: 72)
        defer { try? FileManager.default.removeItem(at: folder) }
        let programs = swapped ? ["wireguard-go", program] : [program, "wireguard-go"]
        let sides = try await ends(lab, "q")
        for (index, side) in sides.enumerated() {
            let peer = sides[1 - index]
            try await up(
                side,
                """
                ListenPort = 51820
                Address = 10.86.0.\(index + 1)/24, fd00:86::\(index + 1)/64
                MTU = 1400
                Table = off
                [Peer]
                PublicKey = \(peer.publicKey)
                PresharedKey = \(Data(repeating: 5, count: 32).base64EncodedString())
                AllowedIPs = 10.86.0.\(2 - index)/32, fd00:86::\(2 - index)/128
                Endpoint = \(peer.host.address):51820
                PersistentKeepalive = 25
                """, by: programs[index])
        }
        for (index, side) in sides.enumerated() {
            for address in ["10.86.0.\(2 - index)", "fd00:86::\(2 - index)"] {
                try await ping(side, address)
            }
            #expect(try await must(side.host.on(["wg", "show", side.name])).contains("latest handshake"))
        }
        let first = sides[0]
        #expect(
            try await must(first.host.on(["wg", "showconf", first.name])).contains("PersistentKeepalive = 25")
        )
        try await iperf(sides[0], sides[1], "10.86.0.2")
        try await changeWhileRunning(sides)
        for side in sides {
            _ = try await must(side.host.on(["wg-quick", "down", file(side).path]))
            #expect(try await isGone(side.host, side.name))
        }
        await Lab.demolish(prefix: lab.prefix)
    }
}

/// What the suite needs. Not a member of it: a suite's own attribute cannot ask the suite.
private enum QuickTools {
    static var arePresent: Bool {
        let tools = [
            "/usr/bin/wg", "/usr/bin/wg-quick", "/usr/bin/wireguard-go", "/usr/bin/iperf3", "/dev/net/tun",
            Deployment.binary,
        ]
        return Lab.isPossible && tools.allSatisfy { FileManager.default.fileExists(atPath: $0) }
    }
}

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
            #expect(begun.status == 0 && begun.errorText.isEmpty, "\(begun)")
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
        let version = try await must([program, "--version"])
        #expect(version.contains("v2."))
        for wrong in [[], ["a/b"], ["sixteen-bytes-xx"]] {
            let outcome = try await Command.run(host.on([program] + wrong))
            #expect(outcome.status == 1 && outcome.errorText.hasPrefix("error: "), "\(wrong): \(outcome)")
        }
        await Lab.demolish(prefix: lab.prefix)
    }

    /// `wg-quick up` on both ends, ours on one and Debian's on the other; then down.
    @Test(arguments: [false, true]) func wgQuick(swapped: Bool) async throws {
        try prepare()
        let lab = try await Lab(["a", "b"], network: 72)
        defer { try? FileManager.default.removeItem(at: folder) }
        let programs = swapped ? ["wireguard-go", program] : [program, "wireguard-go"]
        let id = getpid() % 10_000
        var sides: [(host: Lab.Host, name: String, key: String, publicKey: String)] = []
        for letter in ["a", "b"] {
            let key = try await must(["wg", "genkey"]).trimmingCharacters(in: .whitespacesAndNewlines)
            let outcome = try await Command.run(["wg", "pubkey"], input: Data(key.utf8))
            let publicKey = outcome.text.trimmingCharacters(in: .whitespacesAndNewlines)
            sides.append((lab[letter], "cwq\(id)\(letter)", key, publicKey))
        }
        for (index, side) in sides.enumerated() {
            let other = sides[1 - index]
            let text = """
                [Interface]
                PrivateKey = \(side.key)
                ListenPort = 51820
                Address = 10.86.0.\(index + 1)/24, fd00:86::\(index + 1)/64
                MTU = 1400
                Table = off
                [Peer]
                PublicKey = \(other.publicKey)
                PresharedKey = \(Data(repeating: 5, count: 32).base64EncodedString())
                AllowedIPs = 10.86.0.\(2 - index)/32, fd00:86::\(2 - index)/128
                Endpoint = \(other.host.address):51820
                PersistentKeepalive = 25
                """
            let file = folder.appending(path: "\(side.name).conf")
            try Data(text.utf8).write(to: file)
            try FileManager.default.setAttributes([.posixPermissions: 0o600], ofItemAtPath: file.path)
            _ = try await must(
                side.host.on(["wg-quick", "up", file.path]),
                environment: [
                    "WG_QUICK_USERSPACE_IMPLEMENTATION": programs[index],
                    "WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD": "1",
                ])
        }
        for (index, side) in sides.enumerated() {
            for address in ["10.86.0.\(2 - index)", "fd00:86::\(2 - index)"] {
                let text = try await must(side.host.on(["ping", "-c", "3", "-i", "0.1", "-W", "7", address]))
                #expect(text.contains(" 0% packet loss"), "\(text)")
            }
            #expect(try await must(side.host.on(["wg", "show", side.name])).contains("latest handshake"))
        }
        let first = sides[0]
        #expect(
            try await must(first.host.on(["wg", "showconf", first.name])).contains("PersistentKeepalive = 25")
        )
        for side in sides {
            let file = folder.appending(path: "\(side.name).conf").path
            _ = try await must(side.host.on(["wg-quick", "down", file]))
            #expect(try await isGone(side.host, side.name))
        }
        await Lab.demolish(prefix: lab.prefix)
    }
}

/// What the suite needs. Not a member of it: a suite's own attribute cannot ask the suite.
private enum QuickTools {
    static var arePresent: Bool {
        let tools = [
            "/usr/bin/wg", "/usr/bin/wg-quick", "/usr/bin/wireguard-go", "/dev/net/tun", Deployment.binary,
        ]
        return Lab.isPossible && tools.allSatisfy { FileManager.default.fileExists(atPath: $0) }
    }
}

// SPDX-License-Identifier: Apache-2.0

import Foundation
import TestSupport
import Testing

/// A server, an agent and a user's machine on three hosts, as a new user would set them up.
final class Deployment: Sendable {
    /// The program that was built together with these tests.
    static let binary: String = {
        let beside = URL(filePath: "/proc/self/exe").resolvingSymlinksInPath().deletingLastPathComponent()
        let candidates = [
            beside.appending(path: "coder"),
            URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
                .deletingLastPathComponent().appending(path: ".build/release/coder"),
        ]
        return (candidates.first { FileManager.default.fileExists(atPath: $0.path) } ?? candidates[1]).path
    }()
    static let password = "Correct-Horse-7-Battery"

    let lab: Lab
    let folder: URL
    let url: String
    private let processes = Processes()

    /// The long-running ones, replaced when a test restarts them.
    actor Processes {
        var running: [String: Command] = [:]
        func set(_ name: String, _ command: Command?) { running[name] = command }
        func get(_ name: String) -> Command? { running[name] }
    }

    init(network: Int) async throws {
        lab = try await Lab(["server", "agent", "client"], network: network)
        folder = FileManager.default.temporaryDirectory.appending(path: "coder-lab-\(network)")
        try? FileManager.default.removeItem(at: folder)
        try FileManager.default.createDirectory(
            at: folder, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o755])
        url = "http://\(lab["server"].address):3000"
        try await startServer()
        let login = try await coder([
            "login", url, "--first-user-username", "ann", "--first-user-email", "ann@example.org",
            "--first-user-password", Self.password, "--first-user-trial=false",
        ])
        guard login.status == 0 else { throw LabError(what: "login", outcome: login) }
        let create = try await coder(["external-workspaces", "create", "dev", "--yes"])
        guard create.status == 0 else { throw LabError(what: "create", outcome: create) }
        try Data(create.output).write(to: folder.appending(path: "instructions"))
        try await startAgent(token: Self.token(in: create.text))
        let isUp = try await Command.eventually(within: 30) {
            try await self.coder(["ssh", "dev", "--", "true"], timeout: 30).status == 0
        }
        guard isUp else {
            let log = await processes.get("agent")?.errorText ?? ""
            let serverLog = await processes.get("server")?.errorText ?? ""
            throw LabError(
                what: "agent log:\n\(log.suffix(3000))\nserver log:\n\(serverLog.suffix(3000))",
                outcome: try await coder(["ssh", "dev", "--", "true"], timeout: 30))
        }
    }

    /// The agent's token out of the lines that `external-workspaces create` prints.
    static func token(in text: String) throws -> String {
        let match = text.firstMatch(of: /CODER_AGENT_TOKEN="?([0-9a-f-]{36})/)
        return String(try #require(match, "no token in: \(text)").1)
    }

    var token: String {
        get throws {
            try Self.token(in: String(contentsOf: folder.appending(path: "instructions"), encoding: .utf8))
        }
    }

    // MARK: Parts

    func startServer() async throws {
        let command = try Command(
            lab["server"].on([
                Self.binary, "server", "--http-address", "0.0.0.0:3000", "--access-url", url,
                "--global-config",
                folder.appending(path: "server").path,
            ]), environment: ["HOME": folder.path])
        await processes.set("server", command)
        let ready = try await Command.eventually(within: 60) {
            try await Command.run(
                lab["client"].on([
                    "python3", "-c", "import urllib.request as r; r.urlopen('\(url)/healthz', timeout=2)",
                ])
            ).status == 0
        }
        guard ready else { throw LabError(what: "server", outcome: try await command.finish(timeout: 1)) }
    }

    func stopServer(_ signal: Int32 = SIGTERM) async throws {
        let server = try #require(await processes.get("server"))
        // `ip netns exec` replaces itself by the server: the pid is the server's own.
        server.signal(signal)
        try await server.finish(timeout: 20)
    }

    func startAgent(token: String) async throws {
        let home = folder.appending(path: "agent-home")
        try? FileManager.default.createDirectory(at: home, withIntermediateDirectories: true)
        await processes.set(
            "agent",
            try Command(
                lab["agent"].on([Self.binary, "agent"]),
                environment: [
                    "CODER_AGENT_URL": url, "CODER_AGENT_TOKEN": token, "HOME": home.path,
                    "CODER_AGENT_LOG_DIR": home.path,
                ]))
    }

    func agent() async throws -> Command { try #require(await processes.get("agent")) }
    func server() async throws -> Command { try #require(await processes.get("server")) }

    // MARK: The user's machine

    var userEnvironment: [String: String] {
        ["CODER_CONFIG_DIR": folder.appending(path: "user").path, "HOME": folder.path, "NO_COLOR": "1"]
    }

    func coder(
        _ arguments: [String], input: Data? = nil, timeout: Double = 60
    ) async throws -> Command.Outcome {
        try await start(arguments, input: input).finish(timeout: timeout)
    }

    /// Starts `coder` on the user's machine.
    func start(_ arguments: [String], input: Data? = nil, openInput: Bool = false) throws -> Command {
        try onClient([Self.binary] + arguments, input: input, openInput: openInput)
    }

    /// Starts any program on the user's machine.
    func onClient(_ arguments: [String], input: Data? = nil, openInput: Bool = false) throws -> Command {
        try Command(
            lab["client"].on(arguments), environment: userEnvironment, input: input, openInput: openInput)
    }

    /// Options that make OpenSSH's programs go through `coder ssh --stdio`.
    var sshOptions: [String] {
        [
            "-F", "none", "-o", "ProxyCommand=\(Self.binary) ssh --stdio dev", "-o",
            "StrictHostKeyChecking=no", "-o",
            "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
        ]
    }

    /// Stops everything and removes namespaces and files.
    func remove() async {
        for name in ["agent", "server"] {
            await processes.get(name)?.signal(SIGTERM)
            _ = try? await processes.get(name)?.finish(timeout: 15)
        }
        await Lab.demolish(prefix: lab.prefix)
        try? FileManager.default.removeItem(at: folder)
    }
}

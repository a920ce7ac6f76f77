// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import HTTPTransport
internal import LinuxIO
internal import Mesh
internal import Tailnet

/// `coder mesh`: one mesh node from a file, without any server; and the client of its control socket.
enum MeshCommand {
    static let command = Command(
        name: "mesh", usage: "[command...]",
        summary: "Run one mesh node from a file, or ask a running one.",
        details: """
            Run a node; each change of it is one line of JSON on standard output:
              coder mesh --config a.json --control a.sock
            Make it known to another node, and see how they reach each other:
              coder mesh --control b.sock peers add "$(coder mesh --control a.sock node)"
              coder mesh --control b.sock ping fd7a:115c:a1e0::a
            Commands: \(MeshRequests.summary)
            """,
        arguments: .atLeast(0),
        options: [
            CommandOption(
                "config", help: "File of the node to run: see docs/MESH.md. \"-\" is standard input."),
            CommandOption(
                "control", help: "Unix socket that the node is asked on; only its owner may use it."),
        ], run: run)

    @Sendable static func run(_ invocation: Invocation) async throws -> Int32 {
        let (config, control) = (invocation.values.string("config"), invocation.values.string("control"))
        if invocation.words == ["genkey"] { return generateKey(invocation) }
        guard !config.isEmpty else {
            guard !control.isEmpty, !invocation.words.isEmpty else {
                throw CommandError("--config FILE runs a node, --control SOCKET with a command asks one")
            }
            invocation.console.say(try await MeshControl.ask(path: control, invocation.words).compact)
            return 0
        }
        guard invocation.words.isEmpty else { throw CommandError("--config takes no command") }
        let json: JSON
        do { json = try JSON.parse(try read(config)) } catch { throw CommandError("\(config): \(error)") }
        let file: MeshFile
        do { file = try MeshFile(json) } catch { throw CommandError("\(config): \(error)") }
        return try await run(file, control: control, invocation)
    }

    private static func generateKey(_ invocation: Invocation) -> Int32 {
        var generator = SystemRandomNumberGenerator()
        let key = PrivateKey(using: &generator)
        let text = key.withUnsafeBytes { Hex.text($0) }
        invocation.console.say(
            JSON.record([
                "node_key": .string("privkey:\(text)"), "key": .string(key.nodePublicKey.text),
                "disco": .string(key.discoPublicKey.text),
            ]).compact)
        return 0
    }

    private static func read(_ path: String) throws -> [UInt8] {
        let number = path == "-" ? dup(0) : open(path, O_RDONLY | O_CLOEXEC)
        guard number >= 0 else { throw SystemError(call: "open") }
        let socket = OwnedDescriptor(taking: number)
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 65_536)
        while bytes.count <= MeshControl.lineLimit {
            let count = Glibc.read(socket.number, &buffer, buffer.count)
            guard count != 0 else { return bytes }
            guard count > 0 else { throw SystemError(call: "read") }
            bytes += buffer[..<count]
        }
        throw CommandError("larger than \(MeshControl.lineLimit) bytes")
    }

    private static func run(
        _ file: MeshFile, control path: String, _ invocation: Invocation
    ) async throws -> Int32 {
        var configuration = file.configuration
        if !configuration.derpMap.relayRegionIDs.isEmpty {
            configuration.relayDialer = RelayConnector(
                client: try invocation.http(), forcesWebSockets: file.forcesWebSockets)
        }
        let console = invocation.console
        if invocation.values.bool("verbose") {
            configuration.log = { message, metadata in
                console.note("\(message)" + metadata.map { " \($0.0)=\($0.1)" }.joined())
            }
        }
        // Each connection takes one or two.
        DescriptorLimit.raise()
        let control = path.isEmpty ? nil : try MeshControl(path: path)
        let node = try Node(configuration)
        node.setPeers(file.peers)
        let services = MeshServices(node: node)
        for service in file.services { try await services.start(service) }
        let requests = MeshRequests(node: node, nodeID: file.nodeID, services: services, peers: file.peers)
        // Most of the code that was touched so far is not needed again.
        ProgramMemory.releaseFree()
        _ = try await untilStopped {
            try await withThrowingTaskGroup(of: Void.self) { group in
                group.addTask {
                    for await own in node.ownNodeUpdates() {
                        console.say(MeshNode.json(own, id: file.nodeID).compact)
                    }
                }
                if let control { group.addTask { await control.run { await requests.answer($0) } } }
                try await group.waitForAll()
            }
        }
        await node.close()
        return 0
    }
}

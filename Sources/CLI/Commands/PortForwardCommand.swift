// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Mesh

/// `coder port-forward`.
enum PortForwardCommand {
    static let command = Command(
        name: "port-forward", aliases: ["tunnel"], usage: "<workspace>",
        summary: "Forward local ports to a workspace.",
        details: """
            A port, or a range of ports, optionally with the local address and another remote port:
              coder port-forward dev --tcp 8080
              coder port-forward dev --tcp 0.0.0.0:8080:80 --udp 5353:53
              coder port-forward dev --tcp 9000-9010:8000-8010,[::1]:22
            """,
        arguments: .exactly(1),
        options: [
            CommandOption(
                "tcp", short: "p", env: "CODER_PORT_FORWARD_TCP", .stringArray,
                help: "TCP ports to forward; repeatable."),
            CommandOption(
                "udp", env: "CODER_PORT_FORWARD_UDP", .stringArray, help: "UDP ports to forward; repeatable."),
            CommandOption(
                "disable-autostart", env: "CODER_SSH_DISABLE_AUTOSTART", .bool,
                help: "Do not start a stopped workspace."),
        ], run: run)

    @Sendable static func run(_ invocation: Invocation) async throws -> Int32 {
        let values = invocation.values
        let forwards =
            try PortSpec.parse(values.list("tcp"), .tcp) + PortSpec.parse(values.list("udp"), .udp)
        try PortSpec.check(forwards)
        let client = try invocation.client()
        let finder = AgentFinder(invocation: invocation, client: client)
        let (workspace, agent) = try await finder.find(
            WorkspaceName(invocation.words[0]), autostart: !values.bool("disable-autostart"))
        try await finder.waitUntilReady(agent, wait: "no")
        let listeners = try PortListeners(forwards, invocation.console)
        let link = try await AgentLink.open(invocation, client, agent)
        let usage = Usage.report(client, workspace, nil, app: "ssh")
        defer { usage.cancel() }
        do {
            let signal = try await untilStopped {
                try await link.reach(agent.name, invocation.console)
                let forwarder = try PortForwarder(listeners, link, invocation.console)
                invocation.console.note("Ready!")
                // Most of the code that was touched so far is not needed again.
                ProgramMemory.releaseFree()
                await forwarder.run()
            }
            if signal != nil {
                invocation.console.note("\nReceived signal, closing all listeners and active connections")
            }
            await link.close()
            return 0
        } catch {
            await link.close()
            throw error
        }
    }
}

/// Bound sockets of all forwards, opened before anything else so that a taken port is told at once.
struct PortListeners: Sendable {
    struct Listener: Sendable {
        var forward: PortForward
        var number: Int32
    }

    private(set) var all: [Listener] = []

    init(_ forwards: [PortForward], _ console: Console) throws {
        for forward in forwards {
            let addresses =
                forward.address.map { [$0] } ?? [IPAddress(high: 0, low: 1), IPAddress(v4: 0x7f00_0001)]
            for address in addresses {
                let local = SocketAddress(address, port: forward.local)
                let name = "\(forward.network.rawValue)://\(local)"
                do {
                    all.append(
                        Listener(forward: forward, number: try LocalSocket.listen(forward.network, local)))
                } catch {
                    // IPv6 loopback is tried only: containers often have none.
                    if forward.address == nil, !address.isV4 { continue }
                    all.forEach { close($0.number) }
                    throw CommandError("cannot listen on \(name): \(String(cString: strerror(error.code)))")
                }
                console.note(
                    "Forwarding '\(name)' locally to '\(forward.network.rawValue)://127.0.0.1:\(forward.remote)'"
                        + " in the workspace")
            }
        }
    }
}

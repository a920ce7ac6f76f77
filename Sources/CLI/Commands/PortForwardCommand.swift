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
            With --tcp either side may be a unix socket, by its absolute path:
              coder port-forward dev --tcp /tmp/docker.sock:/var/run/docker.sock
              coder port-forward dev --tcp 8080:/run/app.sock,/tmp/web.sock:80
            """,
        arguments: .exactly(1),
        options: [
            CommandOption(
                "tcp", short: "p", env: "CODER_PORT_FORWARD_TCP", .stringArray,
                help: "TCP ports or unix sockets to forward; repeatable."),
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
        DescriptorLimit.raise()
        let listeners = try PortListeners(forwards, invocation.console)
        let link: AgentLink
        do {
            link = try await AgentLink.open(invocation, client, agent)
        } catch {
            listeners.closeAll()
            throw error
        }
        let usage = Usage.report(client, workspace, nil, app: "ssh")
        defer { usage.cancel() }
        do {
            let forwarder = try PortForwarder(listeners, link, invocation.console)
            let signal = try await untilStopped {
                do {
                    try await link.reach(agent.name, invocation.console)
                } catch {
                    listeners.closeAll()
                    throw error
                }
                invocation.console.note("Ready!")
                // Most of the code that was touched so far is not needed again.
                ProgramMemory.releaseFree()
                try await forward(forwarder, workspace, client, link, invocation.console)
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

    /// Forwards until the task is cancelled or the workspace ends, and tells when it is out of reach.
    private static func forward(
        _ forwarder: PortForwarder, _ workspace: Workspace, _ client: APIClient, _ link: AgentLink,
        _ console: Console
    ) async throws {
        try await withThrowingTaskGroup(of: Void.self) { group in
            group.addTask { await forwarder.run() }
            group.addTask { throw CommandError(try await WorkspaceWatch.waitForEnd(of: workspace, client)) }
            group.addTask { try await PeerWatch.run(link, LossNotice(console)) }
            try await group.next()
            group.cancelAll()
        }
    }
}

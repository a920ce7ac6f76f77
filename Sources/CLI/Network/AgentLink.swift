// SPDX-License-Identifier: Apache-2.0

internal import HTTPTransport
internal import LinuxIO
internal import Logging
internal import Mesh
internal import RPC
internal import Tailnet

/// A node on the mesh that may talk to one agent.
struct AgentLink: Sendable {
    let node: Node
    /// The agent's address in the tunnel.
    let address: IPAddress
    /// The agent as a peer of the node.
    let peer: MeshPeerID
    /// Region names by number.
    let regionNames: @Sendable (Int) -> String
    let plainAgent: PlainAgent
    private let tailnet: ClientTailnet
    private let recordOnSignal: RecordOnSignal

    /// What is recorded of this connection.
    var records: PathRecords { PathRecords(node: node, address: address, peer: peer) }

    /// Joins the mesh, with the tunnel to the agent asked for. `reach` then waits for the agent. `connection` is what
    /// the server says about relays, if it was asked already; `capture` gets each packet of the tunnel.
    static func open(
        _ invocation: Invocation, _ client: APIClient, _ agent: WorkspaceAgent, connection: JSON? = nil,
        logger: Logger? = nil, capture: PacketCapture? = nil
    ) async throws -> AgentLink {
        guard let id = RawUUID(agent.id), let token = client.token else {
            throw CommandError("the server named an agent without identifier")
        }
        let connection =
            if let connection { connection } else {
                try await client.get("workspaceagents/\(agent.id)/connection")
            }
        let map = DERPMap(json: connection["derp_map"])
        var configuration = ClientTailnet.Configuration(
            client: client.http, serverURL: client.base, sessionToken: token, agentID: id, derpMap: map,
            logger: logger ?? invocation.logger)
        configuration.forcesWebSockets = connection["derp_force_websockets"].bool
        configuration.blocksDirect =
            connection["disable_direct_connections"].bool
            || invocation.values.bool("disable-direct-connections")
        if let capture { configuration.packetTap = { capture.take($0) } }
        let names = map.regions.mapValues(\.name)
        let tailnet = try await ClientTailnet.open(configuration)
        let peer = MeshPeerID(high: id.high, low: id.low)
        let records = PathRecords(node: tailnet.node, address: tailnet.agentAddress, peer: peer)
        return AgentLink(
            node: tailnet.node, address: tailnet.agentAddress, peer: peer,
            regionNames: { names[$0] ?? "region \($0)" },
            plainAgent: PlainAgent(invocation.environment["CODER_NO_RESUME"] == "true"), tailnet: tailnet,
            recordOnSignal: RecordOnSignal(
                records, directory: invocation.config.path, invocation.console))
    }

    /// Lets `stream` come to its end, says good-bye to the coordinator and ends the node. In this order: the agent
    /// forgets us at the good-bye, and whatever it still has to say with it.
    func close(settling stream: AgentStream? = nil) async {
        recordOnSignal.stop()
        await stream?.settle(within: .milliseconds(500))
        await tailnet.close()
    }

    /// Waits until the agent answers in the tunnel, with a line for people who wait longer than a second.
    func reach(_ name: String, _ console: Console, within limit: Interval = .seconds(60)) async throws {
        let notice = Task {
            try await Task.sleep(for: .seconds(1))
            console.note("==> ⧗ Connecting to the workspace agent \(name)")
        }
        defer { notice.cancel() }
        do {
            try await tailnet.reachAgent(within: limit)
        } catch NodeError.timedOut {
            throw CommandError(
                "the workspace agent \(name) does not answer: it may have stopped, or no relay reaches it;"
                    + " 'coder netcheck' shows this side")
        }
    }

    /// What carries packets to the agent now, for people.
    func describe(_ path: PeerPath) -> String {
        switch path {
        case .direct(let address): return "p2p via \(address)"
        case .relay(let region): return "proxied via DERP(\(regionNames(region)))"
        case .none: return "via an unknown path"
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

import Coordinator
import RPC
import Testing

@Suite struct CoordinatorTests {
    enum Step: CaseIterable { case tunnel, clientNode, agentNode }

    // coordinator.md §10, case 1
    @Test(arguments: [
        [Step.tunnel, .clientNode, .agentNode], [.tunnel, .agentNode, .clientNode],
        [.clientNode, .tunnel, .agentNode], [.agentNode, .tunnel, .clientNode],
        [.clientNode, .agentNode, .tunnel], [.agentNode, .clientNode, .tunnel],
    ])
    func `in any order both learn of each other exactly once`(order: [Step]) throws {
        let hub = Hub()
        let agent = try hub.connect(agentID, .agent)
        let client = try hub.connect(clientID, .clientOfAgent(agentID))
        for step in order {
            switch step {
            case .tunnel: try hub.handle(.tunnel(agentID), client)
            case .clientNode: try hub.handle(.node(clientNode), client)
            case .agentNode: try hub.handle(.node(agentNode), agent)
            }
        }
        #expect(hub.log == [agent: ["node \(clientID)"], client: ["node \(agentID)"]])
    }

    // case 2
    @Test func `equal nodes are sent once, a lost peer's node again`() throws {
        let hub = Hub()
        var agent = try hub.connect(agentID, .agent)
        let client = try hub.connect(clientID, .clientOfAgent(agentID))
        try hub.handle(.tunnel(agentID), client)
        hub.lose(agent)
        #expect(hub.log.isEmpty, "no LOST for a peer that was never sent")
        agent = try hub.connect(agentID, .agent)
        try hub.handle(.node(agentNode), agent)
        try hub.handle(.node(agentNode), agent)
        var changed = agentNode
        changed.preferredDerp = 7
        try hub.handle(.node(changed), agent)
        hub.lose(agent)
        agent = try hub.connect(agentID, .agent)
        try hub.handle(.node(changed), agent)
        #expect(
            hub.log == [client: ["node \(agentID)", "node \(agentID)", "lost \(agentID)", "node \(agentID)"]])
    }

    // case 3
    @Test func `a disconnect is told apart from a broken stream, and is answered by hanging up`() throws {
        let hub = Hub()
        let agent = try hub.connect(agentID, .agent)
        let client = try hub.connect(clientID, .clientOfAgent(agentID))
        try hub.handle(.tunnel(agentID), client)
        try hub.handle(.node(clientNode), client)
        try hub.handle(.goodbye, client)
        #expect(hub.closed == [client])
        #expect(hub.log[agent] == ["node \(clientID)", "disconnected \(clientID)"])
        #expect(hub.tunnelCount == 0)
        let again = try hub.connect(clientID, .clientOfAgent(agentID))
        try hub.handle(.tunnel(agentID), again)
        try hub.handle(.node(clientNode), again)
        hub.lose(again)
        #expect(hub.log[agent]?.suffix(2) == ["node \(clientID)", "lost \(clientID)"])
    }

    // case 4
    @Test func `a newer connection replaces the older one, tunnels survive`() throws {
        let hub = Hub()
        let agent = try hub.connect(agentID, .agent)
        let client = try hub.connect(clientID, .clientOfAgent(agentID))
        try hub.handle(.tunnel(agentID), client)
        try hub.handle(.node(agentNode), agent)
        let newer = try hub.connect(clientID, .clientOfAgent(agentID))
        #expect(hub.log[client]?.last == "error peer ID overwritten by new connection")
        #expect(hub.closed == [client])
        #expect(hub.log[newer] == ["node \(agentID)"])
        try hub.handle(.node(clientNode), client)
        #expect(hub.log[agent] == nil, "the old connection has no say")
        hub.lose(client)
        try hub.handle(.node(clientNode), newer)
        #expect(hub.log[agent] == ["node \(clientID)"])
        #expect(hub.tunnelCount == 1)
    }

    @Test func `nobody takes up an agent's id in another role, nor an agent a client's`() throws {
        let hub = Hub()
        let agent = try hub.connect(agentID, .agent)
        #expect(throws: Refusal.self) { try hub.connect(agentID, .clientOfAgent(agentID)) }
        #expect(throws: Refusal.self) { try hub.connect(agentID, .clientOfUser) }
        #expect(hub.closed.isEmpty)
        try hub.handle(.node(agentNode), agent)
        _ = try hub.connect(clientID, .clientOfAgent(agentID))
        #expect(throws: Refusal.self) { try hub.connect(clientID, .agent) }
    }

    @Test func `a removed tunnel is told to both, unless there is another one`() throws {
        let hub = Hub()
        let server = try hub.connect(serverID, .server)
        let agent = try hub.connect(agentID, .agent)
        try hub.handle(.node(agentNode), agent)
        try hub.handle(.node(clientNode), server)
        try hub.handle(.tunnel(agentID), server)
        try hub.handle(.removeTunnel(agentID), server)
        try hub.handle(.removeTunnel(agentID), server)
        #expect(hub.log[server] == ["node \(agentID)", "disconnected \(agentID)"])
        #expect(hub.log[agent] == ["node \(serverID)", "disconnected \(serverID)"])
    }

    // case 5
    @Test(arguments: [
        Rule("agent, own address", .agent, .node(agentNode), nil),
        Rule("agent, Coder prefix", .agent, .node(["fd60:627a:a42b:4708:890a:b0c:d0e:f10/128"]), nil),
        Rule("agent, legacy", .agent, .node(["fd7a:115c:a1e0:49d6:b259:b7ac:b1b2:48f4/128"]), nil),
        Rule(
            "agent, foreign address", .agent, .node(["fd7a:115c:a1e0::1/128"]),
            "invalid node address, got fd7a:115c:a1e0::1"),
        Rule(
            "agent, /64", .agent, .node(["fd7a:115c:a1e0:4708::/64"]),
            "invalid address bits, expected 128, got 64"),
        Rule("agent, IPv4", .agent, .node(["10.0.0.1/32"]), "invalid address bits, expected 128, got 32"),
        Rule("agent, no prefix", .agent, .node(["fd7a::1"]), "parse node address: \"fd7a::1\""),
        Rule("agent, tunnel", .agent, .tunnel(clientID), "agents cannot open tunnels"),
        Rule("client, tunnel", .clientOfAgent(agentID), .tunnel(agentID), nil),
        Rule(
            "client, other tunnel", .clientOfAgent(agentID), .tunnel(serverID),
            "invalid agent id, expected \(agentID), got \(serverID)"),
        Rule("client, any /128", .clientOfAgent(agentID), .node(["fd7a:115c:a1e0::1/128"]), nil),
        Rule(
            "client, IPv4", .clientOfUser, .node(["10.0.0.1/32"]),
            "invalid address bits, expected 128, got 32"),
        Rule("client, ready", .clientOfUser, .ready(agentID), "clients may not send ready_for_handshake"),
        Rule("user's client, tunnel", .clientOfUser, .tunnel(serverID), nil),
        Rule("server, anything", .server, .node(["10.0.0.0/8"]), nil),
        Rule("server, tunnel", .server, .tunnel(agentID), nil),
        Rule(
            "client, foreign allowed ip", .clientOfUser,
            .node(["fd7a:115c:a1e0::1/128"], allowed: ["fd7a:115c:a1e0::2/128"]),
            "invalid allowed ip, got fd7a:115c:a1e0::2/128, which is no address of the node"),
        Rule(
            "client, wide allowed ip", .clientOfUser,
            .node(["fd7a:115c:a1e0::1/128"], allowed: ["fd7a:115c:a1e0::1/128", "::/0"]),
            "invalid allowed ip, got ::/0, which is no address of the node"),
        Rule("update without node", .agent, .emptyUpdate, "update_self without node"),
        Rule("malformed tunnel", .server, .badTunnel, "parse add tunnel id: invalid UUID (got 3 bytes)"),
    ])
    func `each role may do what it may`(rule: Rule) throws {
        let hub = Hub()
        let other = try hub.connect(otherID, .server)
        let peer = try hub.connect(agentID, rule.role)
        if let refusal = rule.refusal {
            #expect(throws: Refusal.self) { try hub.handle(rule.request, peer) }
            #expect(hub.log[peer] == ["error authorization: \(refusal)"])
            #expect(hub.closed == [peer])
            #expect(hub.peerCount == 1)
            try hub.handle(.node(clientNode), other)
        } else {
            try hub.handle(rule.request, peer)
            #expect(hub.closed.isEmpty)
            #expect(hub.peerCount == 2)
        }
    }

    @Test func `a refused request has no effect at all`() throws {
        let hub = Hub()
        let client = try hub.connect(clientID, .clientOfAgent(agentID))
        let agent = try hub.connect(agentID, .agent)
        try hub.handle(.tunnel(agentID), client)
        var request = TailnetCoordinateRequest.node(clientNode)
        request.readyForHandshake = TailnetCoordinateRequest.ready(agentID).readyForHandshake
        #expect(throws: Refusal.self) { try hub.handle(request, client) }
        #expect(hub.log[agent] == nil)
    }

    // case 6
    @Test func `readiness is delivered along tunnels only`() throws {
        let hub = Hub()
        let agent = try hub.connect(agentID, .agent)
        let client = try hub.connect(clientID, .clientOfAgent(agentID))
        try hub.handle(.ready(clientID), agent)
        #expect(
            hub.log[agent] == [
                "error ready for handshake error: you do not share a tunnel with \"\(clientID)\""
            ])
        #expect(hub.closed.isEmpty)
        try hub.handle(.tunnel(agentID), client)
        try hub.handle(.ready(clientID), agent)
        #expect(hub.log[client] == ["ready \(agentID)"])
        var malformed = TailnetCoordinateRequest.ready(clientID)
        malformed.readyForHandshake[0].id.removeLast()
        #expect(throws: Refusal.self) { try hub.handle(malformed, agent) }
        #expect(hub.closed == [agent])
    }

    @Test func `closing tells everybody`() throws {
        let hub = Hub()
        let agent = try hub.connect(agentID, .agent)
        let client = try hub.connect(clientID, .clientOfAgent(agentID))
        try hub.handle(.tunnel(agentID), client)
        try hub.handle(.node(agentNode), agent)
        hub.close()
        #expect(hub.log[client] == ["node \(agentID)", "lost \(agentID)", "error coordinator closed"])
        #expect(Set(hub.closed) == [agent, client])
        #expect(throws: Refusal.self) { _ = try hub.connect(clientID, .server) }
    }

    @Test func `tables are bounded`() throws {
        var limits = Coordinator.Limits()
        limits.peers = 2
        limits.tunnelsPerSource = 1
        let hub = Hub(limits)
        let server = try hub.connect(serverID, .server)
        _ = try hub.connect(clientID, .server)
        #expect(throws: Refusal.self) { _ = try hub.connect(agentID, .agent) }
        try hub.handle(.tunnel(agentID), server)
        try hub.handle(.tunnel(agentID), server)
        #expect(throws: Refusal.self) { try hub.handle(.tunnel(clientID), server) }
        #expect(hub.tunnelCount == 0, "the tunnels of a cut peer go with it")
    }
}

struct Rule: CustomTestStringConvertible, Sendable {
    let name: String
    let role: PeerRole
    let request: TailnetCoordinateRequest
    let refusal: String?
    init(_ name: String, _ role: PeerRole, _ request: TailnetCoordinateRequest, _ refusal: String?) {
        (self.name, self.role, self.request, self.refusal) = (name, role, request, refusal)
    }
    var testDescription: String { name }
}

let agentID = RawUUID("b1e2c3d4-0506-4708-890a-0b0c0d0e0f10") ?? .zero
let clientID = RawUUID(high: 1, low: 1)
let serverID = RawUUID(high: 2, low: 2)
let otherID = RawUUID(high: 3, low: 3)
let agentNode = node(["fd7a:115c:a1e0:4708:890a:b0c:d0e:f10/128"], region: 1)
let clientNode = node(["fd7a:115c:a1e0::77/128"], region: 2)

func node(_ addresses: [String], allowed: [String]? = nil, region: Int32 = 1) -> TailnetNode {
    var node = TailnetNode()
    node.preferredDerp = region
    node.addresses = addresses
    node.allowedIps = allowed ?? addresses
    return node
}

extension TailnetCoordinateRequest {
    static func node(_ node: TailnetNode) -> Self {
        var request = Self()
        request.updateSelf.node = node
        return request
    }
    static func node(_ addresses: [String], allowed: [String]? = nil) -> Self {
        .node(makeNode(addresses, allowed))
    }
    static func tunnel(_ id: RawUUID) -> Self {
        var request = Self()
        request.addTunnel.id = id.bytes()
        return request
    }
    static func removeTunnel(_ id: RawUUID) -> Self {
        var request = Self()
        request.removeTunnel.id = id.bytes()
        return request
    }
    static func ready(_ id: RawUUID) -> Self {
        var request = Self()
        var ready = ReadyForHandshake()
        ready.id = id.bytes()
        request.readyForHandshake = [ready]
        return request
    }
    static var goodbye: Self {
        var request = Self()
        request.disconnect = Disconnect()
        return request
    }
    static var emptyUpdate: Self {
        var request = Self()
        request.updateSelf = UpdateSelf()
        return request
    }
    static var badTunnel: Self {
        var request = Self()
        request.addTunnel.id.append(contentsOf: [1, 2, 3])
        return request
    }
}

private func makeNode(_ addresses: [String], _ allowed: [String]?) -> TailnetNode {
    node(addresses, allowed: allowed)
}

/// A coordinator behind a reference that keeps what each connection was sent, in short words.
final class Hub {
    private var coordinator: Coordinator
    private(set) var log: [Coordinator.ConnectionID: [String]] = [:]
    private(set) var closed: [Coordinator.ConnectionID] = []

    init(_ limits: Coordinator.Limits = .init()) { coordinator = Coordinator(limits: limits) }

    var peerCount: Int { coordinator.peerCount }
    var tunnelCount: Int { coordinator.tunnelCount }

    func connect(_ id: RawUUID, _ role: PeerRole) throws -> Coordinator.ConnectionID {
        defer { collect() }
        return try coordinator.connect(id, role: role, name: "")
    }
    func handle(_ request: TailnetCoordinateRequest, _ connection: Coordinator.ConnectionID) throws {
        defer { collect() }
        try coordinator.handle(request, from: connection)
    }
    func lose(_ connection: Coordinator.ConnectionID) {
        coordinator.lose(connection)
        collect()
    }
    func close() {
        coordinator.close()
        collect()
    }

    private func collect() {
        for output in coordinator.takeOutputs() {
            switch output {
            case .close(let id): closed.append(id)
            case .send(let id, let response):
                if !response.error.isEmpty { log[id, default: []].append("error \(response.error)") }
                log[id, default: []] += response.peerUpdates.map { update in
                    let peer = RawUUID(update.id).map { "\($0)" } ?? "?"
                    switch update.kind {
                    case .node: return "node \(peer)"
                    case .lost: return "lost \(peer)"
                    case .disconnected: return "disconnected \(peer)"
                    case .readyForHandshake: return "ready \(peer)"
                    default: return "? \(peer)"
                    }
                }
            }
        }
    }
}

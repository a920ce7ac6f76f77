// SPDX-License-Identifier: Apache-2.0

import Coordinator
import DERPRelay
import Glibc
import HTTPTransport
import LinuxIO
import Logging
import Mesh
import RPC
import Tailnet
import Testing

/// An agent and a client, each with a real node, meet through a real coordinator and a real relay.
@Suite(.timeLimit(.minutes(1)), .serialized) struct MeetingTests {
    private let agentID = RawUUID("b1e2c3d4-0506-4708-890a-0b0c0d0e0f10") ?? .zero
    private let clientID = RawUUID(high: 1, low: 1)

    @Test(arguments: [false, true])
    func `bytes travel from client to agent`(relayOnly: Bool) async throws {
        let host = try RelayHost()
        let service = CoordinatorService()
        try await withTailnets(host, relayOnly: relayOnly) { agent, client in
            try await withThrowingTaskGroup(of: Void.self) { group in
                group.addTask { await agent.run() }
                group.addTask { await client.run() }
                group.addTask { try await coordinate(agent, service, agentID, .agent) }
                group.addTask { try await coordinate(client, service, clientID, .clientOfAgent(agentID)) }
                group.addTask {
                    for await stream in try await agent.node.listenAny() {
                        let socket = try stream.descriptor()
                        try Array("hello".utf8).withUnsafeBytes { try Descriptor.writeAll(socket.number, $0) }
                    }
                }
                await client.addTunnel(agentID)
                try await client.waitForPeer(agentID)
                try await client.node.reachable(agentID.tailnetAddress, within: .seconds(20))
                let socket = try await client.node.dial(SocketAddress(agentID.coderAddress, port: 8_080))
                let number = socket.number
                #expect(try await DedicatedThread.run { readAll(number) } == Array("hello".utf8))
                socket.close()
                let path = try await client.node.ping(agentID.meshID).path
                if relayOnly { #expect(path == .relay(999)) }
                group.cancelAll()
            }
        }
        host.close()
    }

    /// Peers that know no resumable streams, and such that answer badly: what the user wrote is left for a plain one.
    @Test(arguments: ["refuses", "other service", "hangs up"])
    func `a resumable stream is asked for`(_ peer: String) async throws {
        let host = try RelayHost()
        let service = CoordinatorService()
        try await withTailnets(host, relayOnly: false) { agent, client in
            try await withThrowingTaskGroup(of: Void.self) { group in
                group.addTask { await agent.run() }
                group.addTask { await client.run() }
                group.addTask { try await coordinate(agent, service, agentID, .agent) }
                group.addTask { try await coordinate(client, service, clientID, .clientOfAgent(agentID)) }
                let carriers = try await agent.node.listen(port: peer == "refuses" ? 1 : ResumingStream.port)
                group.addTask {
                    for await stream in carriers {
                        let socket = try stream.descriptor()
                        guard peer == "other service" else { continue }
                        let answer = Array("HTTP/1.1 400 Bad Request\r\n\r\n".utf8)
                        try answer.withUnsafeBytes { try Descriptor.writeAll(socket.number, $0) }
                        let number = socket.number
                        _ = try await DedicatedThread.run { readAll(number) }
                    }
                }
                await client.addTunnel(agentID)
                try await client.waitForPeer(agentID)
                try await client.node.reachable(agentID.tailnetAddress, within: .seconds(20))
                let (local, user) = try Descriptor.socketPair(nonBlocking: true).release()
                #expect(send(user, "early", 5, 0) == 5)
                var unused: [Int32] = []
                let opening = try await ResumingStream.open(
                    client.node, agentID.coderAddress, port: 1, local: [local], unused: &unused)
                switch (opening, peer) {
                case (.unknown, "refuses"), (.unknown, "other service"), (.unavailable, "hangs up"): break
                default: Issue.record("\(peer): \(opening)")
                }
                #expect(unused == [local])
                var text = [UInt8](repeating: 0, count: 16)
                #expect(read(local, &text, 16) == 5)
                for number in [local, user] { close(number) }
                group.cancelAll()
            }
        }
        host.close()
    }

    private func coordinate(
        _ tailnet: Tailnet, _ service: CoordinatorService, _ id: RawUUID, _ role: PeerRole
    ) async throws {
        var handlers = RPCHandlers()
        handlers.bidirectional(TailnetMethods.coordinate) { stream in
            try await service.serve(stream, id: id, role: role)
        }
        let connection = RPCConnection(role: .client)
        let server = RPCConnection(role: .server, handlers: handlers)
        let (up, toServer) = AsyncStream.makeStream(of: [UInt8].self)
        let (down, toClient) = AsyncStream.makeStream(of: [UInt8].self)
        try await withThrowingTaskGroup(of: Void.self) { group in
            group.addTask { try await server.run(read: { await first(up) }, write: { toClient.yield($0) }) }
            group.addTask {
                try await connection.run(read: { await first(down) }, write: { toServer.yield($0) })
            }
            group.addTask { try await tailnet.coordinate(on: connection) }
            defer { group.cancelAll() }
            try await group.next()
        }
    }

    private func withTailnets(
        _ host: RelayHost, relayOnly: Bool, _ body: (Tailnet, Tailnet) async throws -> Void
    ) async throws {
        let client = HTTPClient()
        let url = HTTPURL(scheme: .http, host: "127.0.0.1", port: Int(host.port))
        let logger = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }
        var configurations = [
            Tailnet.Configuration.agent(agentID, client: client, serverURL: url, logger: logger),
            Tailnet.Configuration.client(client, serverURL: url, logger: logger),
        ]
        for index in configurations.indices {
            var node = DERPMap.Node(name: "999b", regionID: 999, hostName: "elsewhere.example")
            node.stunPort = -1
            configurations[index].derpMap = DERPMap(
                regions: [999: .init(id: 999, code: "c", name: "n", isEmbeddedRelay: true, nodes: [node])])
            configurations[index].blocksDirect = relayOnly
        }
        let (first, second) = (try Tailnet(configurations[0]), try Tailnet(configurations[1]))
        do {
            try await body(first, second)
        } catch {
            Issue.record(error)
        }
        await first.close()
        await second.close()
        await client.shutDown()
    }
}

private func first(_ stream: AsyncStream<[UInt8]>) async -> [UInt8]? {
    for await element in stream { return element }
    return nil
}

private func readAll(_ number: Int32) -> [UInt8] {
    var result: [UInt8] = []
    var piece = [UInt8](repeating: 0, count: 4_096)
    while true {
        let count = read(number, &piece, piece.count)
        guard count > 0 else { return result }
        result += piece[..<count]
    }
}

/// Just enough HTTP to be the server of a relay: `/derp` and `/derp/latency-check`, a thread per connection.
private final class RelayHost: Sendable {
    let port: UInt16
    private let listener: Int32
    private let relay: Relay

    init() throws {
        var generator = SystemRandomNumberGenerator()
        let relay = try Relay(
            Relay.Configuration(privateKey: PrivateKey(using: &generator)), generator: &generator)
        let listener = try StreamSocket.listen(on: .loopback(v4: true), bothFamilies: false).release()
        try Descriptor.setNonBlocking(listener, false)
        self.relay = relay
        self.listener = listener
        port = try StreamSocket.localAddress(listener).port
        try DedicatedThread(name: "relay-host") {
            while true {
                let number = accept(listener, nil, nil)
                guard number >= 0 else { return }
                do {
                    try DedicatedThread(name: "relay-http") { Self.serve(number, relay) }.detach()
                } catch {
                    Glibc.close(number)
                }
            }
        }.detach()
    }

    func close() {
        shutdown(listener, Int32(SHUT_RDWR))
        Glibc.close(listener)
        relay.close()
    }

    private static func serve(_ number: Int32, _ relay: Relay) {
        let socket = OwnedDescriptor(taking: number)
        while true {
            var head: [UInt8] = []
            var byte: UInt8 = 0
            while !head.suffix(4).elementsEqual(Array("\r\n\r\n".utf8)) {
                guard read(number, &byte, 1) == 1 else { return }
                head.append(byte)
            }
            let text = String(decoding: head, as: UTF8.self)
            let isUpgrade = text.hasPrefix("GET /derp HTTP/1.1")
            let answer =
                isUpgrade
                ? "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n"
                : "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
            guard (try? Array(answer.utf8).withUnsafeBytes { try Descriptor.writeAll(number, $0) }) != nil
            else {
                return
            }
            if isUpgrade { return relay.adopt(socket) }
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

import HTTPTransport
import Logging
import Mesh
import RPC
import Synchronization
import Tailnet
import Testing

/// A real mesh node, held against a coordinator in memory.
@Suite(.timeLimit(.minutes(1))) struct TailnetTests {
    private let peer = RawUUID(high: 5, low: 6)

    @Test func `an agent configures peers, confirms them, and keeps them when the server goes away`()
        async throws
    {
        let requests = Recorder()
        var handlers = RPCHandlers()
        handlers.bidirectional(TailnetMethods.coordinate) { stream in
            try await stream.send(nodeUpdate(RawUUID(high: 5, low: 6)))
            while let request = try await stream.next() {
                requests.add(request)
                if request.hasDisconnect { return }
            }
        }
        try await withTailnet(destinations: []) { tailnet in
            try await joined(handlers) { connection in
                async let hasFailed = fails { try await tailnet.coordinate(on: connection) }
                try await eventually { requests.all.contains { !$0.readyForHandshake.isEmpty } }
                #expect(RawUUID(requests.all[0].readyForHandshake[0].id) == peer)
                #expect(try await tailnet.node.status().peers.map(\.id) == [peer.meshID])
                connection.close()
                let isFailure = await hasFailed
                #expect(isFailure)
            }
            #expect(try await tailnet.node.status().peers.count == 1, "lost, not removed")
            try await joined(handlers) { connection in
                async let coordination: Void = tailnet.coordinate(on: connection)
                try await eventually { requests.all.count { !$0.readyForHandshake.isEmpty } == 2 }
                await tailnet.leave()
                try await coordination
                #expect(requests.all.last?.hasDisconnect == true)
            }
        }
    }

    @Test func `a client asks for its tunnel on each connection and waits for READY`() async throws {
        let requests = Recorder()
        var handlers = RPCHandlers()
        handlers.bidirectional(TailnetMethods.coordinate) { stream in
            while let request = try await stream.next() {
                requests.add(request)
                guard request.hasAddTunnel else { continue }
                let id = RawUUID(request.addTunnel.id) ?? .zero
                try await stream.send(nodeUpdate(id))
                try await Task.sleep(for: .milliseconds(100))
                var ready = nodeUpdate(id)
                ready.peerUpdates[0].clearNode()
                ready.peerUpdates[0].kind = .readyForHandshake
                try await stream.send(ready)
            }
        }
        try await withTailnet(destinations: [peer]) { tailnet in
            for round in 1...2 {
                try await joined(handlers) { connection in
                    async let hasFailed = fails { try await tailnet.coordinate(on: connection) }
                    try await tailnet.waitForPeer(peer)
                    try await eventually { requests.all.count { $0.hasAddTunnel } == round }
                    connection.close()
                    let isFailure = await hasFailed
                    #expect(isFailure)
                }
            }
            #expect(requests.all.allSatisfy { $0.readyForHandshake.isEmpty }, "clients never confirm")
        }
    }

    @Test func `relay maps are followed, the embedded relay is where the server is`() async throws {
        var handlers = RPCHandlers()
        handlers.serverStream(TailnetMethods.streamDERPMaps) { _, stream in
            var map = TailnetDERPMap()
            var node = TailnetDERPMap.Region.Node()
            node.name = "999b"
            node.hostName = "inside.example"
            node.stunPort = -1
            var region = TailnetDERPMap.Region()
            region.regionID = 999
            region.embeddedRelay = true
            region.nodes = [node]
            map.regions[999] = region
            try await stream.send(map)
        }
        try await withTailnet(destinations: []) { tailnet in
            try await joined(handlers) { connection in
                await #expect(throws: RPCError.self) { try await tailnet.followDERPMaps(on: connection) }
            }
        }
        var region = DERPMap.Region(id: 999, code: "c", name: "n", isEmbeddedRelay: true, nodes: [])
        region.nodes = [DERPMap.Node(name: "999b", regionID: 999, hostName: "inside.example")]
        let map = DERPMap(regions: [999: region]).rewritingEmbeddedRelay(
            host: "seen", port: 3_000, isTLS: false)
        #expect(map.regions[999]?.nodes[0].hostName == "seen")
        #expect(map.regions[999]?.nodes[0].forcesHTTP == true)
    }
}

private func nodeUpdate(_ id: RawUUID) -> TailnetCoordinateResponse {
    var update = TailnetCoordinateResponse.PeerUpdate()
    update.id = id.bytes()
    update.kind = .node
    update.node = sampleNode(key: 9)
    var response = TailnetCoordinateResponse()
    response.peerUpdates = [update]
    return response
}

private final class Recorder: Sendable {
    private let requests = Mutex<[TailnetCoordinateRequest]>([])
    var all: [TailnetCoordinateRequest] { requests.withLock { $0 } }
    func add(_ request: TailnetCoordinateRequest) { requests.withLock { $0.append(request) } }
}

private func fails(_ body: @Sendable () async throws -> Void) async -> Bool {
    do { try await body() } catch { return true }
    return false
}

private func eventually(_ condition: () -> Bool) async throws {
    for _ in 0..<2_000 where !condition() { try await Task.sleep(for: .milliseconds(5)) }
    #expect(condition())
}

private func withTailnet(
    destinations: [RawUUID], _ body: (Tailnet) async throws -> Void
) async throws {
    let client = HTTPClient()
    let url = HTTPURL(scheme: .http, host: "127.0.0.1", port: 9)
    let logger = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }
    var configuration = Tailnet.Configuration.agent(
        RawUUID(high: 1, low: 2), client: client, serverURL: url, logger: logger)
    configuration.confirmsPeers = destinations.isEmpty
    let tailnet = try Tailnet(configuration)
    for destination in destinations { await tailnet.addTunnel(destination) }
    try await body(tailnet)
    await tailnet.close()
    await client.shutDown()
}

/// A client joined to a server with these handlers by queues in memory.
private func joined(_ handlers: RPCHandlers, _ body: (RPCConnection) async throws -> Void) async throws {
    let client = RPCConnection(role: .client)
    let server = RPCConnection(role: .server, handlers: handlers)
    let (up, toServer) = AsyncStream.makeStream(of: [UInt8].self)
    let (down, toClient) = AsyncStream.makeStream(of: [UInt8].self)
    try await withThrowingTaskGroup(of: Void.self) { group in
        group.addTask {
            defer { toClient.finish() }
            try await server.run(read: { await first(up) }, write: { toClient.yield($0) })
        }
        group.addTask {
            defer { toServer.finish() }
            try await client.run(read: { await first(down) }, write: { toServer.yield($0) })
        }
        try await body(client)
        client.close()
        try await group.waitForAll()
    }
}

private func first(_ stream: AsyncStream<[UInt8]>) async -> [UInt8]? {
    for await element in stream { return element }
    return nil
}

// SPDX-License-Identifier: Apache-2.0

import Coordinator
import RPC
import Testing

@Suite(.timeLimit(.minutes(1))) struct ServiceTests {
    // coordinator.md §10, case 7
    @Test func `a peer that does not read is cut, others are not`() async throws {
        let service = CoordinatorService()
        let slow = try await service.connect(clientID, role: .clientOfAgent(agentID))
        let quick = try await service.connect(otherID, role: .clientOfAgent(agentID))
        let agent = try await service.connect(agentID, role: .agent)
        await service.handle(.tunnel(agentID), from: slow)
        await service.handle(.tunnel(agentID), from: quick)
        var received = quick.responses.makeAsyncIterator()
        for region in 1...513 {
            var changed = agentNode
            changed.preferredDerp = Int32(region)
            await service.handle(.node(changed), from: agent)
            let update = await received.next()
            #expect(update?.peerUpdates.first?.node.preferredDerp == Int32(region))
        }
        #expect(await service.isConnected(clientID) == false)
        #expect(await service.isConnected(otherID))
        #expect(await service.slowPeers == 1)
        var queued = 0
        for await _ in slow.responses { queued += 1 }
        #expect(queued == 512)
    }

    @Test func `the server decides about the tunnels of a user's client`() async throws {
        let service = CoordinatorService()
        let agent = try await service.connect(agentID, role: .agent)
        await service.handle(.node(agentNode), from: agent)
        let authorize: TunnelAuthorizer = { $0 == agentID ? nil : "no permission" }
        let client = try await service.connect(clientID, role: .clientOfUser, authorize: authorize)
        await service.handle(.tunnel(agentID), from: client)
        await service.handle(.tunnel(otherID), from: client)
        var seen: [String] = []
        for await response in client.responses {
            seen.append(response.error.isEmpty ? "update" : response.error)
        }
        #expect(seen == ["update", "authorization: no permission"])
        #expect(await service.peerCount == 1)
    }

    @Test func `over RPC: a graceful disconnect ends the call, a lost connection is noticed`() async throws {
        let service = CoordinatorService()
        var handlers = RPCHandlers()
        handlers.bidirectional(TailnetMethods.coordinate) { stream in
            try await service.serve(stream, id: clientID, role: .clientOfAgent(agentID))
        }
        let agent = try await service.connect(agentID, role: .agent)
        try await joined(handlers) { connection in
            try await connection.bidirectional(TailnetMethods.coordinate) { stream in
                var request = TailnetCoordinateRequest.node(clientNode)
                request.addTunnel.id = agentID.bytes()
                try await stream.send(request)
                await service.handle(.node(agentNode), from: agent)
                let update = try await stream.next()
                #expect(update?.peerUpdates.first?.kind == .node)
                try await stream.send(.goodbye)
                let end = try await stream.next()
                #expect(end == nil)
            }
            try await connection.bidirectional(TailnetMethods.coordinate) { stream in
                try await stream.send(.node(clientNode))
                while await !service.isConnected(clientID) { await Task.yield() }
            }
            while await service.isConnected(clientID) { await Task.yield() }
        }
    }
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

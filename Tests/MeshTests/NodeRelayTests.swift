// SPDX-License-Identifier: Apache-2.0

import LinuxIO
import Mesh
import Testing

/// Two regions with a relay each; the first is nearer.
struct TwoRegions: RelayDialer {
    let relays: [Int: NodeTestRelay]

    init(_ first: NodeTestRelay, _ second: NodeTestRelay) { relays = [1: first, 2: second] }

    static var map: DERPMap {
        var map = NodeTestRelay.map
        var node = DERPMap.Node(name: "2a", regionID: 2, hostName: "127.0.0.2")
        node.stunPort = -1
        map.regions[2] = DERPMap.Region(id: 2, code: "second", name: "Second", nodes: [node])
        return map
    }

    func connect(region: DERPMap.Region) async throws -> OwnedDescriptor {
        guard let relay = relays[region.id] else { throw NodeError.closed }
        return try await relay.connect(region: region)
    }

    func measureLatency(region: DERPMap.Region) async throws -> RelayLatency {
        guard let relay = relays[region.id] else { throw NodeError.closed }
        _ = try await relay.measureLatency(region: region)
        return RelayLatency(roundTrip: .milliseconds(region.id == 1 ? 3 : 30), isV4: true)
    }
}

/// What a node does about its home relay.
@Suite(.serialized, .timeLimit(.minutes(3))) struct NodeRelayTests {
    /// Tells each side of the other's changes, as a coordinator does.
    private func coordinate(_ pair: NodePair) -> [Task<Void, Never>] {
        let (client, server) = (pair.client, pair.server)
        return [
            Task {
                for await own in client.ownNodeUpdates() {
                    server.updatePeer(NodePair.peer(NodePair.clientID, own, NodePair.clientAddress))
                }
            },
            Task {
                for await own in server.ownNodeUpdates() {
                    client.updatePeer(NodePair.peer(NodePair.serverID, own, NodePair.serverAddress))
                }
            },
        ]
    }

    @Test func aDeadHomeRelayIsReplacedAtOnce() async throws {
        let (first, second) = (NodeTestRelay(), NodeTestRelay())
        let pair = try await NodePair(relay: first, isDirectBlocked: true) {
            $0.relayDialer = TwoRegions(first, second)
            $0.derpMap = TwoRegions.map
        }
        let tasks = coordinate(pair) + [try await pair.serveEcho()]
        let descriptor = try await pair.client.dial(
            SocketAddress(NodePair.serverAddress, port: NodePair.echoPort))
        let number = descriptor.number
        let isOver = Flag()
        async let result = NodePair.echoes(number, count: 1 << 20, seed: 8, until: isOver)
        try await Task.sleep(for: .milliseconds(200))
        first.cut(refusing: true)
        // By itself the node measures once a minute.
        let isMoved = try await pair.waitForPath(seconds: 10) { $0 == .relay(2) }
        isOver.set()
        #expect(isMoved)
        #expect(await result, "the stream lives, and lost nothing")
        descriptor.close()
        for task in tasks { task.cancel() }
        await pair.close()
    }
}

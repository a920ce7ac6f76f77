// SPDX-License-Identifier: Apache-2.0

import HTTPTransport
import LinuxIO
import Mesh
import Tailnet
import Testing

/// Relays of one region, of which the first does not answer.
@Suite struct DeadRelayTests {
    private func node(_ name: String, _ port: Int) -> DERPMap.Node {
        var node = DERPMap.Node(name: name, regionID: 7, hostName: "127.0.0.1")
        node.derpPort = port
        node.forcesHTTP = true
        return node
    }

    @Test func onlyTheLastRelayGetsTheWholeTime() {
        var stunOnly = node("s", 3)
        stunOnly.isSTUNOnly = true
        let region = DERPMap.Region(
            id: 7, code: "x", name: "X", nodes: [node("a", 1), node("b", 2), stunOnly])
        let attempts = RelayConnector.attempts(region, lastFor: .seconds(10))
        #expect(attempts.map(\.node.name) == ["a", "b"])
        #expect(attempts.map(\.patience) == [.milliseconds(1_500), .seconds(10)])
        #expect(
            RelayConnector.attempts(region, lastFor: .seconds(1)).map(\.patience) == [
                .seconds(1), .seconds(1),
            ])
    }

    @Test func theNextRelayIsTakenWhereOneIsDead() async throws {
        let hole = try #require(try BlackHole())
        defer { hole.close() }
        let good = try stubRelay()
        let http = HTTPClient()
        let connector = RelayConnector(client: http)
        let region = DERPMap.Region(
            id: 7, code: "x", name: "X", nodes: [node("a", Int(hole.port)), node("b", Int(good.port))])
        try await connector.connect(region: region).close()
        await http.shutDown()
        good.listener.close()
    }
}

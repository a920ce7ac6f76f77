// SPDX-License-Identifier: Apache-2.0

import Glibc
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

    private func port(of number: Int32) throws -> Int { Int(try StreamSocket.localAddress(number).port) }

    /// A listener whose queue is full: the system drops what else comes, as a dead host does.
    private func blackHole() throws -> [Int32] {
        let listener = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
        let bound = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(listener, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        try #require(bound == 0 && listen(listener, 0) == 0)
        let target = KernelAddress.loopback(v4: true, port: UInt16(try port(of: listener)))
        return [listener] + (try (0..<4).map { _ in try StreamSocket.connect(to: target).release() })
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
        let hole = try blackHole()
        defer { for number in hole { close(number) } }
        let good = try StreamSocket.listen(on: .loopback(v4: true), bothFamilies: false)
        let number = good.number
        try DedicatedThread(name: "stub-relay") {
            var wait = pollfd(fd: number, events: Int16(POLLIN), revents: 0)
            guard poll(&wait, 1, 30_000) > 0, let accepted = StreamSocket.accept(number) else { return }
            let client = accepted.take()
            let answer = Array(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n".utf8)
            _ = send(client.number, answer, answer.count, Int32(MSG_NOSIGNAL))
            _ = poll(nil, 0, 1_000)
        }.detach()
        let http = HTTPClient()
        let connector = RelayConnector(client: http)
        let region = DERPMap.Region(
            id: 7, code: "x", name: "X",
            nodes: [node("a", try port(of: hole[0])), node("b", try port(of: number))])
        try await connector.connect(region: region).close()
        await http.shutDown()
        good.close()
    }
}

// SPDX-License-Identifier: Apache-2.0

import HTTPTransport
import LinuxIO
import Mesh
import Tailnet
import Testing

/// A relay with an address of each family, of which one is broken.
@Suite(.timeLimit(.minutes(1)), .enabled(if: hasV6Loopback, "needs ::1"))
struct RelayRaceTests {
    private func region(_ port: UInt16, v4: String = "127.0.0.1", v6: String = "::1") -> DERPMap.Region {
        var node = DERPMap.Node(name: "a", regionID: 7, hostName: "127.0.0.1")
        node.derpPort = Int(port)
        node.forcesHTTP = true
        node.ipv4 = v4
        node.ipv6 = v6
        return DERPMap.Region(id: 7, code: "x", name: "X", nodes: [node])
    }

    private func connect(_ region: DERPMap.Region) async throws -> Duration {
        let http = HTTPClient()
        let clock = ContinuousClock()
        let start = clock.now
        do {
            try await RelayConnector(client: http).connect(region: region).close()
        } catch {
            await http.shutDown()
            throw error
        }
        await http.shutDown()
        return clock.now - start
    }

    /// Packets of one family vanish. The time-out of a whole attempt is ten seconds.
    @Test(arguments: [true, false]) func aBlackHoleCostsAMoment(brokenV4: Bool) async throws {
        var found: (hole: BlackHole, port: UInt16)?
        for _ in 0..<20 where found == nil {
            // The port must be free in both families.
            guard let hole = try BlackHole(v4: brokenV4) else { continue }
            guard let good = try? stubRelay(v4: !brokenV4, port: hole.port) else {
                hole.close()
                continue
            }
            // It serves one connection, and is left open.
            _ = good.listener.release()
            found = (hole, hole.port)
        }
        let (hole, port) = try #require(found)
        defer { hole.close() }
        #expect(try await connect(region(port)) < .seconds(5))
    }

    @Test(arguments: [true, false]) func whereOneFamilyRefusesTheOtherIsTaken(brokenV4: Bool) async throws {
        let good = try stubRelay(v4: !brokenV4)
        #expect(try await connect(region(good.port)) < .seconds(5))
        good.listener.close()
    }

    // derp.md §7.1: another word than an address turns the family off; empty asks the resolver.
    @Test func aFamilyThatIsOffIsNotUsed() async throws {
        let good = try stubRelay(v4: true)
        for (v4, v6) in [("none", "::1"), ("none", ""), ("none", "none")] {
            await #expect(throws: HTTPError.self) {
                _ = try await connect(region(good.port, v4: v4, v6: v6))
            }
        }
        _ = try await connect(region(good.port, v4: "127.0.0.1", v6: "none"))
        good.listener.close()
    }

    @Test(arguments: [true, false]) func theFamilyThatAnsweredIsTold(v4: Bool) async throws {
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        let first = try stubRelay(v4: v4, answers: [ok, ok])
        let http = HTTPClient()
        let latency = try? await RelayConnector(client: http).measureLatency(region: region(first.port))
        await http.shutDown()
        first.listener.close()
        #expect(latency?.isV4 == v4)
    }
}

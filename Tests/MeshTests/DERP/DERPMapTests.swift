// SPDX-License-Identifier: Apache-2.0

import FoundationEssentials
import Mesh
import Testing

@Suite struct DERPMapTests {
    private let json = """
        {"Regions":{"999":{"EmbeddedRelay":true,"RegionID":999,"RegionCode":"coder",\
        "RegionName":"Coder Embedded Relay","Nodes":[{"Name":"999b","RegionID":999,"HostName":"a.example",\
        "STUNPort":-1,"DERPPort":8080,"ForceHTTP":true}]},"1000":{"EmbeddedRelay":false,"RegionID":1000,\
        "RegionCode":"coder_stun_1000","RegionName":"Coder STUN 1000","Nodes":[{"Name":"1000stun0",\
        "RegionID":1000,"HostName":"stun.example","STUNPort":19302,"STUNOnly":true}]}}}
        """

    @Test func goJSONRoundTrips() throws {
        let map = try JSONDecoder().decode(DERPMap.self, from: Data(json.utf8))
        #expect(map.regionIDs == [999, 1000])
        #expect(map.relayRegionIDs == [999])
        let again = try JSONDecoder().decode(DERPMap.self, from: JSONEncoder().encode(map))
        #expect(again == map)
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys]
        let text = String(decoding: try encoder.encode(map), as: UTF8.self)
        // Nothing that Go leaves out, and object keys rather than pairs.
        #expect(
            text.contains("\"999\":{\"EmbeddedRelay\":true,\"Nodes\":[{\"DERPPort\":8080,\"ForceHTTP\":true,")
        )
        #expect(!text.contains("CertName") && !text.contains("Avoid") && !text.contains("HomeParams"))
        #expect(throws: Never.self) {
            try JSONDecoder().decode(DERPMap.self, from: Data("{\"Regions\":null}".utf8))
        }
    }

    // stun-netcheck.md N7
    @Test func stunServers() throws {
        var map = try JSONDecoder().decode(DERPMap.self, from: Data(json.utf8))
        #expect(map.stunServers.map(\.node) == ["1000stun0"])
        #expect(map.stunServers[0].port == 19302 && map.stunServers[0].hostName == "stun.example")
        map.regions[999]?.nodes[0].stunPort = 0
        map.regions[999]?.nodes[0].ipv4 = "192.0.2.1"
        map.regions[999]?.nodes[0].ipv6 = "none"
        let server = try #require(map.stunServers.first)
        #expect(
            server.addresses == [IPAddress("192.0.2.1")!] && server.hostName.isEmpty && server.port == 3478)
        map.regions[999]?.nodes[0].stunPort = 70_000
        #expect(map.stunServers.count == 1)
    }

    @Test func embeddedRelayIsReachedAsTheServer() throws {
        let map = try JSONDecoder().decode(DERPMap.self, from: Data(json.utf8))
        let mine = map.rewritingEmbeddedRelay(host: "10.0.0.9", port: 3000, isTLS: false)
        #expect(mine.regions[999]?.nodes[0].hostName == "10.0.0.9")
        #expect(mine.regions[999]?.nodes[0].derpPort == 3000)
        #expect(mine.regions[1000] == map.regions[1000])
    }
}

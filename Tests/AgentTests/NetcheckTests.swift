// SPDX-License-Identifier: Apache-2.0

import Agent
import Foundation
import Testing

/// `/api/v0/netcheck` as upstream's `coder ping` reads it (`healthsdk.AgentNetcheckReport`).
@Suite struct NetcheckTests {
    private func text(_ report: AgentNetcheck) throws -> String {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys]
        return String(decoding: try encoder.encode(report), as: UTF8.self)
    }

    @Test func aNodeWithANarrowInterface() throws {
        let report = AgentNetcheck(
            home: 1, latencies: ["1-v4": 0.5], forced: [3: "blocked"],
            interfaces: [.init(name: "eth0", mtu: 1_280, addresses: ["10.0.0.2"])])
        let interfaces =
            #"{"dismissed":false,"interfaces":[{"addresses":["10.0.0.2"],"mtu":1280,"name":"eth0"}],"#
            + #""severity":"warning","warnings":[{"code":"EIF01","message":"eth0 has MTU 1280, below 1378: "#
            + #"direct paths may suffer"}]}"#
        let info =
            #"{"DERPForcedWebsocket":{"3":"blocked"},"DERPLatency":{"1-v4":0.5},"PreferredDERP":1,"#
            + #""WorkingIPv6":false,"WorkingUDP":true}"#
        let expected =
            "{\"dismissed\":false,\"interfaces\":\(interfaces),\"net_info\":\(info),"
            + "\"severity\":\"ok\",\"warnings\":[]}"
        #expect(try text(report) == expected)
    }

    @Test func noNodeYet() throws {
        let report = AgentNetcheck(home: nil, latencies: [:], forced: [:], interfaces: [])
        #expect(
            try text(report)
                == #"{"dismissed":false,"interfaces":{"dismissed":false,"interfaces":[],"severity":"ok","#
                + #""warnings":[]},"severity":"error","warnings":[]}"#)
    }
}

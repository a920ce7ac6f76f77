// SPDX-License-Identifier: Apache-2.0

import CLI
import Testing

/// What answers of routers mean for `coder netcheck`.
@Suite struct RouterProbeTests {
    private func outcome(_ bytes: [UInt8], _ port: UInt16) -> RouterProbe.Outcome {
        var outcome = RouterProbe.Outcome()
        (outcome.upnp, outcome.pmp, outcome.pcp) = (false, false, false)
        RouterProbe.note(bytes, fromPort: port, &outcome)
        return outcome
    }

    // RFC 6887 §14.1.1: an ANNOUNCE answer is a bare header.
    @Test func aRouterThatAnnouncesSpeaksPCP() {
        let answer: [UInt8] = [2, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9] + [UInt8](repeating: 0, count: 12)
        #expect(outcome(answer, 5_351).pcp == true)
        // Result 1: unsupported version.
        var refused = answer
        refused[3] = 1
        #expect(outcome(refused, 5_351).pcp == false)
        #expect(outcome(Array(answer.dropLast()), 5_351).pcp == false)
    }

    // RFC 6886 §3.2
    @Test func aRouterThatTellsItsAddressSpeaksNATPMP() {
        let answer: [UInt8] = [0, 0x80, 0, 0, 0, 0, 0, 9, 192, 0, 2, 1]
        #expect(outcome(answer, 5_351).pmp == true)
        #expect(outcome(answer, 5_351).pcp == false)
        #expect(outcome(answer, 1_900).pmp == false)
        // It knows PCP only, or is not allowed to tell.
        #expect(outcome([0, 0x80, 0, 1, 0, 0, 0, 9], 5_351).pmp == false)
    }

    @Test func onlyGatewaysCountForUPnP() {
        let answer = { (what: String) in
            Array(
                "HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1:5000/d.xml\r\nST: \(what)\r\n\r\n".utf8)
        }
        #expect(outcome(answer("urn:schemas-upnp-org:device:InternetGatewayDevice:1"), 1_900).upnp == true)
        #expect(outcome(answer("urn:schemas-upnp-org:device:MediaServer:1"), 1_900).upnp == false)
    }
}

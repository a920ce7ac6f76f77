// SPDX-License-Identifier: Apache-2.0

import Foundation
import HTTPTransport
import LinuxIO
import Server
import TestSupport
import Testing

/// What changes while a relay runs, and how it ends.
extension StandaloneRelayTests {
    /// A new certificate in the same files is served within seconds, and its end of life is shown.
    @Test func certificatesAreReadAgain() async throws {
        let folder = try TestServer.temporaryDirectory()
        let relay = try await secureRelay(folder)
        func serial() async throws -> String {
            let peer = try await Command.run([
                "/bin/sh", "-c",
                "openssl s_client -connect 127.0.0.1:\(relay.ports[1]) </dev/null 2>/dev/null"
                    + " | openssl x509 -noout -serial",
            ])
            return peer.text
        }
        let old = try await serial()
        #expect(old.hasPrefix("serial="))
        try await makeCertificate(folder)
        #expect(
            try await Command.eventually(within: 30) {
                let present = try await serial()
                return present.hasPrefix("serial=") && present != old
            })
        let http = HTTPClient()
        let url = try #require(HTTPURL("http://127.0.0.1:\(relay.ports[0])/metrics"))
        let text = try await http.request("GET", url).text
        let line = try #require(
            text.split(separator: "\n").first { $0.hasPrefix("coder_tls_certificate_expiry_seconds ") })
        let left = (Double(line.split(separator: " ")[1]) ?? 0) - Date.now.timeIntervalSince1970
        #expect((86_400...3 * 86_400).contains(left), "\(line)")
        await http.shutDown()
        await relay.stop()
        try FileManager.default.removeItem(atPath: folder)
    }

    /// A relay that stops waits for the clients that it told to leave, and no longer.
    @Test func aDrainEndsWithItsClients() async throws {
        let relay = try await self.relay { $0.drainSeconds = 60 }
        let http = HTTPClient()
        let url = try #require(HTTPURL("http://127.0.0.1:\(relay.ports[0])/derp"))
        let client = try RelayClientStub(try await http.upgrade(url, protocol: "DERP").release())
        try await client.logIn()
        async let stopped: Void = relay.stop()
        try await client.waitForRestart()
        await #expect(throws: (any Error).self, "new clients go elsewhere") {
            _ = try await http.upgrade(url, protocol: "DERP").release()
        }
        client.close()
        let start = ContinuousClock.now
        await stopped
        #expect(ContinuousClock.now - start < .seconds(30))
        await http.shutDown()
    }
}

// SPDX-License-Identifier: Apache-2.0

import Foundation
import HTTPTransport
import Server
import Testing

/// How often one may ask. A server of its own: others of this suite would be limited, too.
@Suite struct LimitTests {
    @Test func everybodyHasTheirOwnLimit() async throws {
        let directory = try TestServer.temporaryDirectory()
        defer { try? FileManager.default.removeItem(atPath: directory) }
        var options = TestServer.options(directory)
        options.apiRateLimit = 20
        options.trustedProxyHeaders = ["X-Forwarded-For"]
        options.trustedProxyOrigins = ["127.0.0.0/8"]
        let hosted = try await HostedServer(options)
        let client = HTTPClient()
        func ask(
            _ path: String, from address: String, token: String = "", count: Int = 1
        ) async throws -> [Int] {
            let url = try #require(HTTPURL("http://127.0.0.1:\(hosted.ports[0])\(path)"))
            var statuses: [Int] = []
            for _ in 0..<count {
                let answer = try await client.request(
                    "GET", url, headers: ["X-Forwarded-For": address, "Coder-Session-Token": token])
                if answer.status == 429 {
                    #expect(
                        answer.headers["Retry-After"].flatMap { Int($0) }.map { (1...60).contains($0) }
                            == true)
                    #expect(answer.headers["X-RateLimit-Limit"] == "20")
                }
                statuses.append(answer.status)
            }
            return statuses
        }
        // A new minute may begin in between: then twice as much is let through.
        let route = "/api/v2/buildinfo"
        #expect(try await ask(route, from: "203.0.113.1", count: 41).contains(429))
        // Another way to write the path, and another address of the same network, are no way out.
        let source = "2001:db8:0:1::"
        let turns = (0..<41).map {
            $0 % 2 == 0 ? ("//api//v2/buildinfo/", "\(source)\($0)") : (route, "\(source)f")
        }
        var seen: [Int] = []
        for (path, address) in turns { seen += try await ask(path, from: address) }
        #expect(seen.contains(429))
        // Everybody else is served, and a list is read from its end.
        #expect(try await ask(route, from: "2001:db8:0:2::1") == [200])
        #expect(try await ask(route, from: "203.0.113.1, 203.0.113.2, 127.0.0.9") == [200])
        #expect(try await ask("/api/v2/updatecheck", from: "203.0.113.1") == [200])
        // Guessing keys ends, too.
        #expect(
            try await ask("/api/v2/users/me", from: "203.0.113.3", token: "guess", count: 41).contains(429))
        await client.shutDown()
        await hosted.stop()
    }
}

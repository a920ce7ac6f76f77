// SPDX-License-Identifier: Apache-2.0

import Glibc
import HTTPTransport
import Testing

/// Runs `body` with a client, and ends its thread.
func withClient(
    _ configuration: HTTPClient.Configuration = HTTPClient.Configuration(),
    _ body: (HTTPClient) async throws -> Void
) async throws {
    let client = HTTPClient(configuration: configuration)
    do {
        try await body(client)
        await client.shutDown()
    } catch {
        await client.shutDown()
        throw error
    }
}

func url(_ port: Int, _ path: String = "/", scheme: HTTPURL.Scheme = .http) -> HTTPURL {
    HTTPURL(scheme: scheme, host: "127.0.0.1", port: port, path: path)
}

@Suite(.timeLimit(.minutes(1))) struct RequestTests {
    @Test func keepsTheConnection() async throws {
        let server = try ScriptedServer { peer in
            var number = 0
            while let head = peer.readHead() {
                number += 1
                let body = "\(number) \(head.split(separator: " ")[1])"
                peer.write("HTTP/1.1 200 OK\r\nContent-Length: \(body.utf8.count)\r\nX-A: b\r\n\r\n\(body)")
            }
        }
        try await withClient { client in
            let first = try await client.request("GET", url(server.port, "/a"))
            let second = try await client.request("GET", url(server.port, "/b"))
            #expect(first.text == "1 /a")
            #expect(second.text == "2 /b")
            #expect(second.headers["x-a"] == "b")
            #expect(server.connectionCount == 1)
        }
    }

    @Test func sendsAgainWhenTheKeptConnectionWasClosed() async throws {
        let server = try ScriptedServer { peer in
            guard peer.readHead() != nil else { return }
            peer.write("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            // Takes the second request and hangs up without an answer.
            _ = peer.readHead()
        }
        try await withClient { client in
            for _ in 0..<3 {
                let response = try await client.request("GET", url(server.port))
                #expect(response.status == 200)
            }
            #expect(server.connectionCount == 3)
        }
    }

    @Test func readsChunksHoweverTheyArrive() async throws {
        let server = try ScriptedServer { peer in
            guard let head = peer.readHead() else { return }
            let length = head.split(separator: "\r\n").first { $0.lowercased().hasPrefix("content-length") }
            let body = peer.readBytes(5)
            peer.trickle(Array("HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n".utf8))
            peer.trickle(Array("3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: t\r\n\r\n".utf8))
            _ = (length, body)
        }
        try await withClient { client in
            let response = try await client.request("POST", url(server.port), body: Array("hello".utf8))
            #expect(response.status == 201)
            #expect(response.text == "abcde")
        }
    }

    @Test func refusesALongBody() async throws {
        let server = try ScriptedServer { peer in
            _ = peer.readHead()
            peer.write("HTTP/1.1 200 OK\r\n\r\n")
            for _ in 0..<64 { peer.write([UInt8](repeating: 65, count: 1_024)) }
        }
        try await withClient { client in
            let error = await #expect(throws: HTTPError.self) {
                try await client.request("GET", url(server.port), bodyLimit: 10_000)
            }
            #expect(error?.kind == .tooLarge)
        }
    }

    @Test func saysWhatWentWrong() async throws {
        let silent = try ScriptedServer { peer in _ = peer.readBytes(100_000) }
        let rude = try ScriptedServer { peer in
            _ = peer.readHead()
            peer.write("SSH-2.0-x\r\n")
        }
        let plain = try ScriptedServer { peer in
            peer.write("HTTP/1.1 400 Bad Request\r\n\r\n")
            _ = peer.readBytes(100_000)
        }
        let closed = try ScriptedServer { _ in }
        // Bound, so that nobody else gets it, but nobody listens.
        let bound = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        defer { close(bound) }
        let freePort = try Int(bindToLoopback(bound))
        try await withClient { client in
            func failure(_ url: HTTPURL, timeout: Duration = .seconds(5)) async -> HTTPError? {
                await #expect(throws: HTTPError.self) {
                    try await client.request("GET", url, timeout: timeout)
                }
            }
            let refused = await failure(url(freePort))
            #expect(
                refused?.description
                    == "connection refused by http://127.0.0.1:\(freePort): nothing listens there")
            #expect(await failure(url(silent.port), timeout: .milliseconds(200))?.kind == .timedOut)
            #expect(await failure(url(rude.port))?.kind == .protocolViolation)
            #expect(await failure(url(closed.port))?.kind == .connectionLost)
            #expect(
                await failure(HTTPURL(scheme: .http, host: "no-such-host.invalid"))?.kind == .nameNotFound)
            #expect(await failure(url(plain.port, scheme: .https))?.kind == .tls)
        }
        try await withClient { client in
            await #expect(throws: HTTPError.self) {
                try await client.request("GET", url(1), headers: ["X": "a\r\nEvil: b"])
            }
        }
    }

    @Test func cancellationEndsTheWait() async throws {
        let silent = try ScriptedServer { peer in _ = peer.readBytes(100_000) }
        try await withClient { client in
            let target = url(silent.port)
            let task = Task { try await client.request("GET", target) }
            task.cancel()
            let error = await #expect(throws: HTTPError.self) { try await task.value }
            #expect(error?.kind == .cancelled)
        }
    }

    @Test func plainRequestsGoToTheProxyWhole() async throws {
        let proxy = try ScriptedServer { peer in
            guard let head = peer.readHead() else { return }
            let line = head.split(separator: "\r\n")[0]
            let hasCredentials = head.contains("Proxy-Authorization: Basic dTpwIQ==")
            let body = "\(line) \(hasCredentials)"
            peer.write("HTTP/1.1 200 OK\r\nContent-Length: \(body.utf8.count)\r\n\r\n\(body)")
        }
        var configuration = HTTPClient.Configuration()
        configuration.proxies = ProxySettings(environment: [
            "HTTP_PROXY": "http://u:p%21@127.0.0.1:\(proxy.port)"
        ])
        try await withClient(configuration) { client in
            let response = try await client.request(
                "GET", HTTPURL(scheme: .http, host: "far.example", path: "/x"))
            #expect(response.text == "GET http://far.example/x HTTP/1.1 true")
        }
    }
}

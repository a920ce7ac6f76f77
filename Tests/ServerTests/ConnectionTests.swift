// SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc
import HTTPTransport
import Server
import Testing

/// The connection loop, byte by byte, and what happens to strangers.
@Suite(.server) struct ConnectionTests {
    let server: TestServer

    init() throws { server = try TestServer.shared() }

    private func request(_ path: String, _ extra: String = "") -> String {
        "GET \(path) HTTP/1.1\r\nHost: 127.0.0.1:\(server.port)\r\n\(extra)\r\n"
    }

    private let webSocket = """
        Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n
        """

    @Test func requestsShareAConnection() async throws {
        let connection = try RawConnection(port: server.port)
        await connection.send(request("/healthz") + request("//api//v2///buildinfo/"))
        #expect(await connection.readResponse().body == "OK")
        #expect(await connection.readResponse().body.contains("\"version\":\"v2.30."))
        for byte in Array(request("/healthz").utf8) { await connection.send([byte]) }
        #expect(await connection.readResponse().body == "OK")
        await connection.send("GET /healthz HTTP/1.0\r\n\r\n")
        #expect(await connection.readResponse().body == "OK")
        #expect(await connection.isClosed())
    }

    @Test func aWebSocketMayFollowPlainRequests() async throws {
        let connection = try RawConnection(port: server.port)
        await connection.send(request("/healthz"))
        _ = await connection.readResponse()
        await connection.send(request("/api/v2/derp-map", webSocket))
        let head = await connection.readResponse().head
        #expect(head.hasPrefix("HTTP/1.1 101 "))
        // RFC 6455 §1.3: the answer to the sample key.
        #expect(head.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"))
        let frame = await connection.read(4)
        #expect(frame[0] == 0x82)
        let length = frame[1] < 126 ? Int(frame[1]) : Int(frame[2]) << 8 | Int(frame[3])
        let rest = await connection.read(frame[1] < 126 ? length - 2 : length)
        #expect(
            String(decoding: frame.suffix(frame[1] < 126 ? 2 : 0) + rest, as: UTF8.self).contains("\"999\""))
        await connection.send([0x88, 0x80, 0, 0, 0, 0])
        #expect(await connection.read(2)[0] == 0x88)
    }

    @Test(arguments: [
        ("/api/v2/tailnet", 401), ("/api/v2/nothing", 404),
        ("/api/v2/workspaceagents/11111111-1111-4111-8111-111111111111/coordinate", 401),
    ]) func aRefusedUpgradeIsAnsweredInJSON(_ test: (path: String, status: Int)) async throws {
        let connection = try RawConnection(port: server.port)
        await connection.send(request(test.path, webSocket))
        let answer = await connection.readResponse()
        #expect(answer.head.hasPrefix("HTTP/1.1 \(test.status) "))
        #expect(answer.body.contains("\"message\""))
        await connection.send(request("/healthz"))
        #expect(await connection.readResponse().body == "OK")
    }

    static let garbage: [(name: String, bytes: [UInt8])] = [
        ("TLS", [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3] + Array(repeating: 7, count: 500)),
        ("zeros", Array(repeating: 0, count: 4000)), ("text", Array("hello\r\n\r\n".utf8)),
        ("version", Array("GET / HTTP/3.0\r\n\r\n".utf8)),
        (
            "both lengths",
            Array("POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n".utf8)
        ),
        ("two lengths", Array("POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n".utf8)),
        ("signed length", Array("POST / HTTP/1.1\r\nContent-Length: +3\r\n\r\n".utf8)),
        ("space before colon", Array("GET / HTTP/1.1\r\nHost : x\r\n\r\n".utf8)),
        ("folded", Array("GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n".utf8)),
        ("chunk", Array("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".utf8)),
        ("huge chunk", Array("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n".utf8)),
        (
            "long extension",
            Array("POST /api/v2/users/login HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;a=".utf8)
                + Array(repeating: 65, count: 4000)
        ),
        (
            "many extensions",
            Array("POST /api/v2/users/login HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".utf8)
                + (0..<100).flatMap { _ in Array("1;a=\(String(repeating: "b", count: 900))\r\nx\r\n".utf8) }
        ),
        (
            "many trailers",
            Array("POST /api/v2/users/login HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n".utf8)
                + (0..<5000).flatMap { _ in Array("Trailer: x\r\n".utf8) }
        ),
        ("huge head", Array("GET / HTTP/1.1\r\nA: ".utf8) + Array(repeating: 65, count: 80_000)),
        ("huge body", Array("POST /api/v2/users/login HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n".utf8)),
    ]

    @Test(arguments: garbage) func garbageIsRefusedAndForgotten(
        _ test: (name: String, bytes: [UInt8])
    ) async throws {
        let connection = try RawConnection(port: server.port)
        await connection.send(test.bytes)
        let head = await connection.readResponse().head
        #expect(head.hasPrefix("HTTP/1.1 4") || head.hasPrefix("HTTP/1.1 5"), "\(test.name): \(head)")
        #expect(await connection.isClosed())
        #expect(try await server.client.request("GET", server.url("/healthz")).status == 200)
    }

    @Test func chunkedBodiesAreRead() async throws {
        let connection = try RawConnection(port: server.port)
        await connection.send(
            "POST /api/v2/users/validate-password HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        await connection.send("5\r\n{\"pas\r\nF;x=y\r\nsword\":\"short\"}\r\n0\r\nTrailer: z\r\n\r\n")
        let answer = await connection.readResponse()
        #expect(answer.head.hasPrefix("HTTP/1.1 200 "))
        #expect(answer.body.contains("\"valid\":false"))
        await connection.send(request("/healthz"))
        #expect(await connection.readResponse().body == "OK")
    }

    @Test func manySmallChunksAreOneBody() async throws {
        let connection = try RawConnection(port: server.port)
        await connection.send(
            "POST /api/v2/authcheck HTTP/1.1\r\nCoder-Session-Token: \(server.token)\r\n"
                + "Transfer-Encoding: chunked\r\n\r\n")
        let body = Array("{\"checks\":{}".utf8) + Array(repeating: 32, count: 1_000_000) + [0x7d]
        var chunks: [UInt8] = []
        for byte in body { chunks += [0x31, 13, 10, byte, 13, 10] }
        await connection.send(chunks + Array("0\r\n\r\n".utf8))
        let answer = await connection.readResponse()
        #expect(answer.head.hasPrefix("HTTP/1.1 200 "))
        #expect(answer.body == "{}\n")
    }

    /// Strangers cannot make the server wait for, or keep, a body: it is looked at after who sends it.
    @Test(arguments: [
        ("POST", "/api/v2/users/me/keys", "", 5_000_000, 401),
        ("POST", "/api/v2/nothing", "", 5_000_000, 404),
        ("POST", "/nothing", "", 5_000_000, 404), ("POST", "/api/v2/users/login", "", 70_000, 413),
        ("POST", "/api/v2/users/me/keys", "Expect: 100-continue\r\n", 10, 401),
    ]) func bodiesAreReadLast(
        _ test: (method: String, path: String, field: String, length: Int, status: Int)
    ) async throws {
        let connection = try RawConnection(port: server.port)
        await connection.send(
            "\(test.method) \(test.path) HTTP/1.1\r\nContent-Length: \(test.length)\r\n\(test.field)\r\n")
        let answer = await connection.readResponse()
        #expect(answer.head.hasPrefix("HTTP/1.1 \(test.status) "))
        #expect(answer.head.contains("Connection: close\r\n"))
        #expect(await connection.isClosed())
    }

    @Test func aShortBodyThatNobodyWantsIsSkipped() async throws {
        let connection = try RawConnection(port: server.port)
        await connection.send("POST /nothing HTTP/1.1\r\nContent-Length: 5\r\n\r\n")
        #expect(await connection.readResponse().head.hasPrefix("HTTP/1.1 404 "))
        await connection.send("GET /" + request("/healthz"))
        #expect(await connection.readResponse().body == "OK")
    }

    @Test func leaveToSendABodyIsGiven() async throws {
        let connection = try RawConnection(port: server.port)
        await connection.send(
            "POST /api/v2/users/validate-password HTTP/1.1\r\nContent-Length: 16\r\nExpect: 100-continue\r\n\r\n"
        )
        #expect(await connection.readResponse().head == "HTTP/1.1 100 Continue\r\n\r\n")
        await connection.send("{\"password\":\"x\"}")
        #expect(await connection.readResponse().head.hasPrefix("HTTP/1.1 200 "))
    }

    @Test func relayRefusesWhoDoesNotUpgrade() async throws {
        #expect(try await server.client.request("GET", server.url("/derp")).status == 426)
        #expect(try await server.client.request("GET", server.url("/derp/latency-check")).status == 200)
    }

    @Test func garbageForTheRelayIsDropped() async throws {
        let before = server.hosted.relay.refused
        let connection = try RawConnection(port: server.port)
        await connection.send(request("/derp", "Upgrade: DERP\r\nConnection: Upgrade\r\n"))
        let head = await connection.readResponse().head
        #expect(head.hasPrefix("HTTP/1.1 101 "))
        #expect(head.contains("Derp-Version: 2\r\n"))
        // ServerKey: type 1, length 40, magic "DERP🔑", key. derp.md §3.
        let hello = await connection.read(45)
        #expect(hello.prefix(13) == [1, 0, 0, 0, 40, 0x44, 0x45, 0x52, 0x50, 0xf0, 0x9f, 0x94, 0x91])
        await connection.send(Array(repeating: 0xff, count: 500))
        #expect(await connection.isClosed())
        #expect(server.hosted.relay.refused > before)
        #expect(server.hosted.relay.clients == 0)
    }

    @Test func aSecondServerIsRefused() async throws {
        await #expect {
            _ = try await HostedServer(TestServer.options(server.directory))
        } throws: {
            "\($0)".hasPrefix("another server is already running on \(server.directory)")
        }
    }

    @Test func aPortInUseIsNamed() async throws {
        let directory = try TestServer.temporaryDirectory()
        defer { try? FileManager.default.removeItem(atPath: directory) }
        var options = TestServer.options(directory)
        options.httpAddress = "127.0.0.1:\(server.port)"
        await #expect {
            _ = try await HostedServer(options)
        } throws: {
            "\($0)" == "cannot listen on 127.0.0.1:\(options.httpAddress.split(separator: ":")[1]): "
                + "the port is already in use by another program"
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc
import HTTPTransport
import LinuxIO
import Mesh
import Server
import TLS
import TestSupport
import Testing

/// The relay's own TLS: clients of other makes, ordinary HTTP behind it, and those who mean no good.
extension StandaloneRelayTests {
    /// `body` with a relay that has TLS; afterwards a client is still served there.
    private func withSecureRelay(_ body: (HostedRelay, HTTPClient) async throws -> Void) async throws {
        let folder = try TestServer.temporaryDirectory()
        let relay = try await secureRelay(folder)
        let http = HTTPClient()
        try await body(relay, http)
        let client = try await secureClient(relay, http)
        try await client.send([1, 2, 3], to: client.key)
        #expect(try await client.packet().bytes == [1, 2, 3])
        client.close()
        await relay.stop()
        await http.shutDown()
        try FileManager.default.removeItem(atPath: folder)
    }

    private func secureClient(_ relay: HostedRelay, _ http: HTTPClient) async throws -> RelayClientStub {
        let url = try #require(HTTPURL("https://127.0.0.1:\(relay.ports[1])/derp"))
        var anyone = ConnectOptions()
        anyone.acceptsAnyCertificate = true
        let client = try RelayClientStub(
            try await http.upgrade(url, protocol: "DERP", options: anyone).release())
        try await client.logIn()
        return client
    }

    private func metrics(_ relay: HostedRelay, _ http: HTTPClient) async throws -> String {
        let url = try #require(HTTPURL("http://127.0.0.1:\(relay.ports[0])/metrics"))
        return try await http.request("GET", url).text
    }

    /// OpenSSL's client: an ordinary request, with both versions; older ones are refused.
    @Test func openSSLIsServed() async throws {
        try await withSecureRelay { relay, _ in
            func ask(_ options: String, after command: String = "", _ text: String) async throws -> String {
                // The input stays open until the answer is there: its end would end the connection.
                let peer = try await Command.run([
                    "/bin/sh", "-c",
                    "(printf '\(command)'; sleep 0.5; printf '\(text)'; sleep 2) | openssl s_client"
                        + " -connect 127.0.0.1:\(relay.ports[1])"
                        + " \(options) -alpn h2,http/1.1 2>&1",
                ])
                return peer.text
            }
            let request = "GET /healthz HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n"
            for version in ["-tls1_2", "-tls1_3"] {
                let text = try await ask(version, request)
                #expect(text.contains("ALPN protocol: http/1.1"), "\(text)")
                #expect(
                    text.contains("HTTP/1.1 200 OK") && text.contains("\r\n\r\nOK"), "\(version): \(text)")
            }
            let old = try await ask("-tls1_1 -cipher ALL:@SECLEVEL=0", request)
            #expect(!old.contains("200 OK"), "\(old)")
            // A line of R or K alone makes this client renegotiate, or change keys.
            let renegotiated = try await ask("-tls1_2", after: "R\\n", request)
            #expect(!renegotiated.contains("200 OK"), "\(renegotiated)")
            let changed = try await ask("-tls1_3", after: "K\\n", request)
            #expect(changed.contains("KEYUPDATE") && changed.contains("200 OK"), "\(changed)")
        }
    }

    /// Requests that are none for the relay, several on one connection, refused upgrades and long heads among them.
    @Test func ordinaryRequestsAreServed() async throws {
        try await withSecureRelay { relay, http in
            var anyone = ConnectOptions()
            anyone.acceptsAnyCertificate = true
            let base = "https://127.0.0.1:\(relay.ports[1])"
            for (path, status) in [("/derp/latency-check", 200), ("/derp", 426), ("/", 200), ("/no", 404)] {
                let url = try #require(HTTPURL(base + path))
                let answer = try await http.request("GET", url, options: anyone)
                #expect(answer.status == status, "\(path)")
            }
            let head = "GET /healthz HTTP/1.1\r\nHost: x\r\n"
            let connection = try await SealedConnection.open(relay.ports[1])
            for length in [0, 3_000, 20_000, 60_000] {
                let field = length == 0 ? "" : "X-Filler: \(String(repeating: "x", count: length))\r\n"
                await connection.send(Array("\(head)\(field)\r\n".utf8))
                let answer = await connection.readResponse()
                #expect(answer.hasPrefix("HTTP/1.1 200") && answer.hasSuffix("OK"), "\(length): \(answer)")
            }
            let asked = try await SealedConnection.open(relay.ports[1])
            await asked.send(Array("GET /derp HTTP/1.1\r\nHost: x\r\nUpgrade: nothing\r\n\r\n".utf8))
            #expect(await asked.readResponse().hasPrefix("HTTP/1.1 426"))
            await asked.send(Array("\(head)\r\n".utf8))
            #expect(await asked.readResponse().hasPrefix("HTTP/1.1 200"))
        }
    }

    /// derp.md D1: handshake in pieces of a few bytes, then request, login and a packet at once.
    @Test(arguments: [3, 100_000]) func fastStartWithTLS(_ piece: Int) async throws {
        try await withSecureRelay { relay, http in
            let text = try await http.request(
                "GET", try #require(HTTPURL("http://127.0.0.1:\(relay.ports[0])/"))
            ).text
            let hex = try #require(text.split(separator: "<code>").dropFirst().first?.prefix(64))
            let hello = DERPServerSession.serverKeyFrame(try NodePublicKey(hex: hex))
            let (login, key) = try RelayClientStub.login(after: hello)
            let connection = try await SealedConnection.open(relay.ports[1], piece: piece)
            let request =
                "GET /derp HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n"
                + "Derp-Fast-Start: 1\r\n\r\n"
            let packet = DERP.frame(.sendPacket, key.bytes, [UInt8](repeating: 5, count: 30_000))
            await connection.send(Array(request.utf8) + login + packet)
            #expect(await connection.read(hello.count) == hello)
            let info = await connection.read(5)
            try #require(info.count == 5 && info[0] == DERPFrameType.serverInfo.rawValue)
            _ = await connection.read(Int(info[3]) << 8 | Int(info[4]))
            #expect(
                await connection.read(packet.count)
                    == DERP.frame(.receivePacket, key.bytes, packet.suffix(30_000)))
        }
    }

    /// Bytes of other protocols, handshakes that are cut short or damaged, and clients that say nothing.
    @Test func strangersAtTheTLSDoor() async throws {
        try await withSecureRelay { relay, http in
            let (hello, _) = try SealedConnection.hello()
            var quiet: [RawConnection] = []
            for length in [0, 1, 5, 50, hello.count] {
                let connection = try RawConnection(port: relay.ports[1])
                if length > 0 { await connection.send(Array(hello.prefix(length))) }
                quiet.append(connection)
            }
            var damaged = hello
            damaged[5] ^= 0x55  // the handshake's type
            for bytes in [Array("GET / HTTP/1.1\r\n\r\n".utf8), damaged, [UInt8](repeating: 0, count: 100)] {
                let connection = try RawConnection(port: relay.ports[1])
                await connection.send(bytes)
                _ = await connection.read(1_000)
                #expect(await connection.isClosed())
            }
            let text = try await metrics(relay, http)
            #expect(text.contains("\ncoder_relay_door_failed_handshakes_total 3\n"))
            withExtendedLifetime(quiet) {}
        }
    }

    /// Many that say nothing after their login, then each is heard.
    @Test func manyIdleClients() async throws {
        try await withSecureRelay { relay, http in
            var clients: [RelayClientStub] = []
            for _ in 0..<200 { clients.append(try await secureClient(relay, http)) }
            #expect(try await metrics(relay, http).contains("\ncoder_derp_clients 200\n"))
            for (index, client) in clients.enumerated() {
                let next = clients[(index + 1) % clients.count]
                try await client.send([UInt8(index)], to: next.key)
                #expect(try await next.packet().bytes == [UInt8(index)])
            }
            for client in clients { client.close() }
            #expect(
                try await Command.eventually(within: 30) {
                    try await metrics(relay, http).contains("\ncoder_derp_connections 0\n")
                })
        }
    }
}

/// The server itself with TLS: its pages, and the relay inside it, behind one listener.
@Suite struct SecureServerTests {
    @Test func pagesAndRelay() async throws {
        let folder = try TestServer.temporaryDirectory()
        try await StandaloneRelayTests().makeCertificate(folder)
        let server = try await TestServer.start {
            $0.tlsEnable = true
            $0.tlsAddress = "127.0.0.1:0"
            $0.tlsCertificateFiles = ["\(folder)/cert.pem"]
            $0.tlsKeyFiles = ["\(folder)/key.pem"]
        }
        var anyone = ConnectOptions()
        anyone.acceptsAnyCertificate = true
        let base = try #require(HTTPURL("https://127.0.0.1:\(server.hosted.ports[1])"))
        for _ in 0..<3 {
            let answer = try await server.client.request(
                "GET", base.appending("api/v2/buildinfo"), options: anyone)
            #expect(answer.status == 200)
        }
        let long = try await server.client.request(
            "POST", base.appending("api/v2/users/login"), body: [UInt8](repeating: 32, count: 60_000),
            options: anyone)
        #expect(long.status == 400)
        let door = base.appending("derp")
        let clients = [
            try RelayClientStub(
                try await server.client.upgrade(door, protocol: "DERP", options: anyone).release()),
            try RelayClientStub(try await server.client.derpWebSocket(door, options: anyone).release()),
        ]
        for client in clients { try await client.logIn() }
        for (sender, receiver) in [(clients[0], clients[1]), (clients[1], clients[0])] {
            try await sender.send([UInt8](repeating: 9, count: 50_000), to: receiver.key)
            #expect(try await receiver.packet().bytes.count == 50_000)
        }
        for client in clients { client.close() }
        await server.stop()
        try FileManager.default.removeItem(atPath: folder)
    }
}

/// A client with TLS on a blocking socket.
final class SealedConnection: Sendable {
    private let raw: RawConnection
    private let session: TLSSession
    private let piece: Int
    private let inbox = Inbox()

    private actor Inbox {
        var bytes: [UInt8] = []
        func add(_ more: [UInt8]) { bytes += more }
        func take(_ count: Int) -> [UInt8] {
            defer { bytes.removeFirst(min(count, bytes.count)) }
            return Array(bytes.prefix(count))
        }
    }

    /// What a client says first, and the client.
    static func hello() throws -> ([UInt8], TLSSession) {
        let session = try #require(TLSSession(try TLSContext(believingAnyoneBy: "X25519")))
        var hello: [UInt8] = []
        _ = take([], session, &hello)
        return (hello, session)
    }

    /// Connects and shakes hands, in pieces of `piece` bytes.
    static func open(_ port: Int, piece: Int = .max) async throws -> SealedConnection {
        let (hello, session) = try hello()
        let connection = SealedConnection(try RawConnection(port: port), session, piece)
        await connection.write(hello)
        while session.phase == .handshake { try #require(await connection.fill()) }
        return connection
    }

    private init(_ raw: RawConnection, _ session: TLSSession, _ piece: Int) {
        (self.raw, self.session, self.piece) = (raw, session, piece)
    }

    func send(_ bytes: [UInt8]) async {
        var sealed: [UInt8] = []
        _ = bytes.withUnsafeBytes { session.seal($0, output: &sealed) }
        await write(sealed)
    }

    /// Bytes until `count` have come or the server closed.
    func read(_ count: Int) async -> [UInt8] {
        while await inbox.bytes.count < count, await fill() {}
        return await inbox.take(count)
    }

    /// One response, with a body as long as Content-Length says.
    func readResponse() async -> String {
        var text = ""
        while !text.hasSuffix("\r\n\r\n") {
            let byte = await read(1)
            guard !byte.isEmpty else { return text }
            text += String(decoding: byte, as: UTF8.self)
        }
        let field = text.lowercased().split(separator: "\r\n").first { $0.hasPrefix("content-length: ") }
        let count = field.flatMap { Int($0.dropFirst("content-length: ".count)) } ?? 0
        return text + String(decoding: await read(count), as: UTF8.self)
    }

    private func write(_ bytes: [UInt8]) async {
        var rest = bytes[...]
        while !rest.isEmpty {
            await raw.send(Array(rest.prefix(piece)))
            rest = rest.dropFirst(piece)
        }
    }

    /// False at the end.
    private func fill() async -> Bool {
        let head = await raw.read(5)
        guard head.count == 5 else { return false }
        let record = head + (await raw.read(Int(head[3]) << 8 | Int(head[4])))
        var answer: [UInt8] = []
        await inbox.add(Self.take(record, session, &answer))
        if !answer.isEmpty { await write(answer) }
        return !session.isOver
    }

    private static func take(_ sealed: [UInt8], _ session: TLSSession, _ answer: inout [UInt8]) -> [UInt8] {
        var plain = [UInt8](repeating: 0, count: sealed.count + TLSSession.heldBytes)
        let count = sealed.withUnsafeBytes { sealed in
            plain.withUnsafeMutableBytes { session.receive(sealed, into: $0, output: &answer) }
        }
        return Array(plain[..<count])
    }
}

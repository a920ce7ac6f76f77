// SPDX-License-Identifier: Apache-2.0

import Glibc
import HTTPTransport
import LinuxIO
import Testing

let switching = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n"

@Suite(.timeLimit(.minutes(1))) struct UpgradeTests {
    /// Reads from a blocking descriptor.
    private func read(_ descriptor: borrowing OwnedDescriptor, _ count: Int) async throws -> String {
        let number = descriptor.number
        return try await DedicatedThread.run {
            var buffer = [UInt8](repeating: 0, count: count)
            var total = 0
            while total < count {
                let got = buffer.withUnsafeMutableBytes {
                    Glibc.read(number, $0.baseAddress! + total, count - total)
                }
                guard got > 0 else { break }
                total += got
            }
            return String(decoding: buffer[..<total], as: UTF8.self)
        }
    }

    @Test(arguments: [false, true])
    func bytesBehindTheHeadAreNotLost(_ isTrickled: Bool) async throws {
        let server = try ScriptedServer { peer in
            guard let head = peer.readHead(), head.contains("Upgrade: DERP"), head.hasPrefix("GET /derp ")
            else { return }
            let bytes = Array((switching + "early").utf8)
            if isTrickled { peer.trickle(bytes) } else { peer.write(bytes) }
            peer.write(peer.readBytes(4))
        }
        try await withClient { client in
            let descriptor = try await client.upgrade(url(server.port, "/derp"), protocol: "DERP")
            #expect(try await read(descriptor, 5) == "early")
            _ = write(descriptor.number, "pong", 4)
            #expect(try await read(descriptor, 4) == "pong")
            #expect(try await read(descriptor, 1) == "")
            // It is the TCP socket itself.
            var address = sockaddr_in()
            var length = socklen_t(MemoryLayout<sockaddr_in>.size)
            let family = withUnsafeMutablePointer(to: &address) { pointer in
                pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    getpeername(descriptor.number, $0, &length)
                }
            }
            #expect(family == 0 && address.sin_family == sa_family_t(AF_INET))
        }
    }

    @Test func refusedUpgradesCarryTheAnswer() async throws {
        let server = try ScriptedServer { peer in
            _ = peer.readHead()
            peer.write("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 3\r\n\r\nno!")
        }
        let chunked = try ScriptedServer { peer in
            _ = peer.readHead()
            peer.write(
                "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n1\r\n!\r\n0\r\n\r\n")
        }
        try await withClient { client in
            for (port, status) in [(server.port, 426), (chunked.port, 404)] {
                let error = await #expect(throws: HTTPError.self) {
                    _ = try await client.upgrade(url(port), protocol: "DERP")
                }
                #expect(error?.kind == .upgradeRefused)
                #expect(error?.response?.status == status)
                #expect(error?.response?.text == "no!")
                let second = await #expect(throws: HTTPError.self) {
                    _ = try await client.webSocket(url(port))
                }
                #expect(second?.response?.status == status)
                #expect(second?.response?.text == "no!")
            }
        }
    }

    @Test func aSilentServerTimesOut() async throws {
        let half = try ScriptedServer { peer in
            _ = peer.readHead()
            peer.write("HTTP/1.1 101 Swi")
            _ = peer.readBytes(1)
        }
        try await withClient { client in
            let error = await #expect(throws: HTTPError.self) {
                _ = try await client.upgrade(url(half.port), protocol: "DERP", timeout: .milliseconds(200))
            }
            #expect(error?.kind == .timedOut)
        }
    }

    @Test func upgradesGoThroughAProxysTunnel() async throws {
        let proxy = try ScriptedServer { peer in
            guard let connect = peer.readHead(), connect.hasPrefix("CONNECT far.example:80 HTTP/1.1\r\n")
            else { return }
            peer.trickle(Array("HTTP/1.1 200 Fine\r\nVia: p\r\n\r\n".utf8))
            guard let head = peer.readHead(), head.contains("Host: far.example\r\n") else { return }
            peer.write(switching + "hi")
        }
        let refusing = try ScriptedServer { peer in
            _ = peer.readHead()
            peer.write("HTTP/1.1 407 Who are you\r\n\r\n")
        }
        func client(_ port: Int) -> HTTPClient.Configuration {
            var configuration = HTTPClient.Configuration()
            configuration.proxies = ProxySettings(environment: ["HTTP_PROXY": "127.0.0.1:\(port)"])
            return configuration
        }
        let far = HTTPURL(scheme: .http, host: "far.example", path: "/derp")
        try await withClient(client(proxy.port)) { client in
            let descriptor = try await client.upgrade(far, protocol: "DERP")
            #expect(try await read(descriptor, 2) == "hi")
        }
        try await withClient(client(refusing.port)) { client in
            let error = await #expect(throws: HTTPError.self) {
                _ = try await client.upgrade(far, protocol: "DERP")
            }
            #expect(error?.kind == .proxy)
            #expect(error?.detail.contains("407") == true)
        }
    }

    @Test func tlsIsBridged() async throws {
        let server = try await TLSServer.start { head in
            head.contains("Upgrade: DERP")
                ? switching + "early" : "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        }
        defer { server.stop() }
        var options = ConnectOptions()
        options.acceptsAnyCertificate = true
        try await withClient { client in
            let target = url(server.port, "/derp", scheme: .https)
            let plain = try await client.request("GET", target, options: options)
            #expect(plain.text == "ok")
            let distrust = await #expect(throws: HTTPError.self) { try await client.request("GET", target) }
            #expect(distrust?.kind == .tls)
            let descriptor = try await client.upgrade(target, protocol: "DERP", options: options)
            #expect(try await read(descriptor, 5) == "early")
            // The server echoes: many times the buffers in between, so that back-pressure must hold.
            let size = 8 << 20
            let number = descriptor.number
            async let written: Void = DedicatedThread.run {
                let block = [UInt8](repeating: 0x5a, count: size)
                try block.withUnsafeBytes { try Descriptor.writeAll(number, $0) }
            }
            #expect(try await read(descriptor, size).utf8.count == size)
            try await written
        }
    }
}

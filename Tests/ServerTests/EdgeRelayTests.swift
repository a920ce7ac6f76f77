// SPDX-License-Identifier: Apache-2.0

import Foundation
import HTTPTransport
import LinuxIO
import Mesh
import Server
import TestSupport
import Testing

/// Relays at the edge: how they are made known, register, appear in the DERP map, mesh, and leave.
@Suite(.server, .serialized) struct EdgeRelayTests {
    let server: TestServer
    let shapes: Shapes

    init() throws {
        server = try TestServer.shared()
        shapes = try Shapes()
    }

    private func create(_ name: String) async throws -> (id: String, token: String) {
        let made = try await server.call(
            "POST", "workspaceproxies", ["name": name, "display_name": "Edge \(name)", "icon": ""])
        #expect(made.status == 201, "\(made.response.text)")
        #expect(shapes.complaints(made.json, "UpdateWorkspaceProxyResponse") == [])
        let proxy = made.object["proxy"] as? [String: Any]
        return (proxy?["id"] as? String ?? "", made.text("proxy_token"))
    }

    private func options(_ token: String) -> RelayOptions {
        var options = RelayOptions()
        options.httpAddress = "127.0.0.1:0"
        options.primaryURL = "http://127.0.0.1:\(server.port)"
        options.proxyToken = token
        options.registrationSeconds = 1
        options.drainSeconds = 0
        return options
    }

    /// Codes of the regions in the map that clients get.
    private func regions() async throws -> [String: [String: Any]] {
        let map =
            try await server.call("GET", "workspaceagents/connection").object["derp_map"] as? [String: Any]
        var result: [String: [String: Any]] = [:]
        for case let region as [String: Any] in (map?["Regions"] as? [String: Any] ?? [:]).values {
            result[region["RegionCode"] as? String ?? ""] = region
        }
        return result
    }

    private func eventually(_ condition: () async throws -> Bool) async throws -> Bool {
        for _ in 0..<150 {
            if try await condition() { return true }
            try await Task.sleep(for: .milliseconds(100))
        }
        return false
    }

    @Test func administratorsKeepTheList() async throws {
        let (id, token) = try await create("alpha")
        #expect(token.hasPrefix("\(id):") && token.utf8.count == 36 + 1 + 64)
        let list = try await server.call("GET", "workspaceproxies")
        #expect(shapes.complaints(list.json, "RegionsResponse[WorkspaceProxy]") == [])
        let names = (list.object["regions"] as? [[String: Any]] ?? []).compactMap { $0["name"] as? String }
        #expect(names.first == "primary" && names.contains("alpha"))
        let one = try await server.call("GET", "workspaceproxies/alpha")
        #expect(shapes.complaints(one.json, "WorkspaceProxy") == [] && one.text("id") == id)
        #expect((one.object["status"] as? [String: Any])?["status"] as? String == "unregistered")
        #expect(try await server.call("POST", "workspaceproxies", ["name": "Alpha"]).status == 409)
        for bad in ["", "primary", "-x", "a b"] {
            #expect(try await server.call("POST", "workspaceproxies", ["name": bad]).status == 400, "\(bad)")
        }
        let patched = try await server.call(
            "PATCH", "workspaceproxies/\(id)",
            ["name": "beta", "display_name": "B", "icon": "", "regenerate_token": true])
        #expect(patched.status == 200 && patched.text("proxy_token") != token)
        #expect(try await register(token).status == 401)
        #expect(try await server.call("DELETE", "workspaceproxies/beta").status == 200)
        #expect(try await server.call("GET", "workspaceproxies/beta").status == 404)
        #expect(try await register(patched.text("proxy_token")).status == 401)
        #expect(try await server.call("GET", "workspaceproxies", token: "").status == 401)
    }

    private func register(_ token: String, _ changes: [String: Any] = [:]) async throws -> TestServer.Answer {
        let body: [String: Any] = [
            "access_url": "http://127.0.0.1:9", "wildcard_hostname": "", "derp_enabled": true,
            "derp_only": true, "replica_id": UUID().uuidString, "hostname": "h", "replica_error": "",
            "replica_relay_address": "http://127.0.0.1:9", "version": "v2.30.0",
        ]
        return try await server.call(
            "POST", "workspaceproxies/me/register", body.merging(changes) { $1 }, token: "",
            headers: ["Coder-External-Proxy-Token": token])
    }

    @Test func registrationIsChecked() async throws {
        let (id, token) = try await create("gamma")
        let good = try await register(token)
        #expect(good.status == 201, "\(good.response.text)")
        #expect((good.object["derp_region_id"] as? Int ?? 0) > 10_000)
        #expect(good.text("derp_mesh_key").utf8.count == 32)
        #expect((good.object["sibling_replicas"] as? [Any])?.count == 0)
        #expect(good.object["derp_map"] is [String: Any])
        // A second process of the same proxy hears of the first.
        let second = try await register(token)
        let siblings = second.object["sibling_replicas"] as? [[String: Any]] ?? []
        #expect(siblings.first?["relay_address"] as? String == "http://127.0.0.1:9")
        #expect(shapes.complaints(siblings, "[Replica]") == [])
        #expect(try await register("\(id):" + String(repeating: "0", count: 64)).status == 401)
        #expect(try await register("").status == 401)
        for bad: [String: Any] in [
            ["access_url": "ftp://x"], ["replica_id": UUID(uuid: UUID_NULL).uuidString],
            ["derp_enabled": false], ["replica_id": "x"],
        ] {
            #expect(try await register(token, bad).status == 400, "\(bad)")
        }
        // What upstream's proxies ask beside that: there are no applications here.
        for (method, path, status) in [
            ("GET", "crypto-keys", 200), ("POST", "issue-signed-app-token", 400), ("GET", "coordinate", 400),
        ] {
            let answer = try await server.call(
                method, "workspaceproxies/me/\(path)", method == "POST" ? [:] : nil, token: "",
                headers: ["Coder-External-Proxy-Token": token])
            #expect(answer.status == status, "\(path)")
            let stranger = try await server.call(method, "workspaceproxies/me/\(path)", token: "")
            #expect(stranger.status == 401, "\(path)")
        }
        // Nothing listens at that URL: it must not come into the map.
        #expect(
            try await eventually {
                let one = try await server.call("GET", "workspaceproxies/gamma")
                return (one.object["status"] as? [String: Any])?["status"] as? String == "unreachable"
            })
        #expect(try await regions()["coder_gamma"] == nil)
    }

    /// Two replicas with one token: in the map, meshed, and gone from it when they stop.
    @Test func relaysComeAndGo() async throws {
        let (_, token) = try await create("delta")
        let first = try await HostedRelay(options(token))
        #expect(try await eventually { try await regions()["coder_delta"] != nil })
        let node = (try await regions()["coder_delta"]?["Nodes"] as? [[String: Any]])?.first
        #expect(node?["DERPPort"] as? Int == first.ports[0])
        #expect(node?["ForceHTTP"] as? Bool == true && node?["STUNPort"] as? Int == -1)
        let second = try await HostedRelay(options(token))
        // The second was told of the first at once; the first hears of it with its next registration.
        #expect(try await eventually { second.mesh.links == 1 && first.mesh.watchers == 1 })
        #expect(try await eventually { first.mesh.links == 1 && second.mesh.watchers == 1 })
        await first.stop()
        await second.stop()
        #expect(try await eventually { try await regions()["coder_delta"] == nil })
    }

    /// derp.md §4 at the server's own relay, whose door is the HTTP server.
    @Test func fastStart() async throws {
        let plain = try RawConnection(port: server.port)
        try await RelayClientStub.fastStart(at: server.port, after: plain)
    }

    @Test func aRelayWithoutValidTokenDoesNotStart() async throws {
        await #expect(throws: (any Error).self) {
            _ = try await HostedRelay(options("\(UUID().uuidString):" + String(repeating: "a", count: 64)))
        }
        await #expect(throws: (any Error).self) { _ = try await HostedRelay(options("nonsense")) }
    }
}

private let UUID_NULL: uuid_t = (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)

/// A relay of its own, without server: its doors, and packets through each.
@Suite(.serialized) struct StandaloneRelayTests {
    /// A relay with a listener for TLS beside the plain one; its certificate lies in `folder`.
    func secureRelay(_ folder: String) async throws -> HostedRelay {
        try await makeCertificate(folder)
        return try await relay {
            $0.tlsAddress = "127.0.0.1:0"
            $0.certificateFiles = ["\(folder)/cert.pem"]
            $0.keyFiles = ["\(folder)/key.pem"]
        }
    }

    /// A certificate of two days, and its key.
    func makeCertificate(_ folder: String) async throws {
        let certificate = try await Command.run([
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-keyout", "\(folder)/key.pem", "-out", "\(folder)/cert.pem", "-days", "2", "-subj",
            "/CN=localhost",
        ])
        try #require(certificate.status == 0, "\(certificate)")
    }

    func relay(_ change: (inout RelayOptions) -> Void = { _ in }) async throws -> HostedRelay {
        var options = RelayOptions()
        options.isStandalone = true
        options.httpAddress = "127.0.0.1:0"
        options.drainSeconds = 0
        change(&options)
        return try await HostedRelay(options)
    }

    private func get(_ client: HTTPClient, _ relay: HostedRelay, _ path: String) async throws -> HTTPResponse
    {
        let url = try #require(HTTPURL("http://127.0.0.1:\(relay.ports[0])\(path)"))
        return try await client.request("GET", url, headers: ["X-Tailscale-Challenge": "ts_a.b-c"])
    }

    @Test func pages() async throws {
        let relay = try await relay()
        let client = HTTPClient()
        for (path, status) in [
            ("/derp", 426), ("/derp/latency-check", 200), ("/derp/probe", 200), ("/generate_204", 204),
            ("/healthz", 200), ("/healthz-report", 200), ("/", 200), ("/nothing", 404),
        ] {
            #expect(try await get(client, relay, path).status == status, "\(path)")
        }
        let portal = try await get(client, relay, "/generate_204")
        #expect(portal.headers["X-Tailscale-Response"] == "response ts_a.b-c")
        let metrics = try await get(client, relay, "/metrics").text
        #expect(metrics.contains("\ncoder_derp_connections 0\n"))
        await client.shutDown()
        await relay.stop()
    }

    /// D1, D2: request, login and a packet in one write; no HTTP answer.
    @Test func fastStart() async throws {
        let relay = try await relay()
        let plain = try RawConnection(port: relay.ports[0])
        try await RelayClientStub.fastStart(at: relay.ports[0], after: plain)
        await relay.stop()
    }

    @Test func doorsOfAllKindsLeadToOneRelay() async throws {
        let folder = try TestServer.temporaryDirectory()
        let relay = try await secureRelay(folder)
        let http = HTTPClient()
        var anyone = ConnectOptions()
        anyone.acceptsAnyCertificate = true
        let plain = try #require(HTTPURL("http://127.0.0.1:\(relay.ports[0])/derp"))
        let secure = try #require(HTTPURL("https://127.0.0.1:\(relay.ports[1])/derp"))
        let clients = [
            try RelayClientStub(try await http.upgrade(plain, protocol: "DERP").release()),
            try RelayClientStub(try await http.upgrade(secure, protocol: "DERP", options: anyone).release()),
            try RelayClientStub(try await http.derpWebSocket(plain).release()),
            try RelayClientStub(try await http.derpWebSocket(secure, options: anyone).release()),
        ]
        for client in clients { try await client.logIn() }
        let payload = (0..<30_000).map { UInt8(truncatingIfNeeded: $0 &* 31) }
        for sender in clients {
            for receiver in clients where receiver !== sender {
                try await sender.send(payload, to: receiver.key)
                guard let packet = try? await receiver.packet() else {
                    let names = clients.map { ObjectIdentifier($0) }
                    let metrics = try await get(http, relay, "/metrics").text
                    Issue.record(
                        """
                        from \(names.firstIndex(of: ObjectIdentifier(sender)) ?? -1) \
                        to \(names.firstIndex(of: ObjectIdentifier(receiver)) ?? -1): nothing; \(metrics)
                        """)
                    continue
                }
                #expect(packet.from == sender.key && packet.bytes == payload)
            }
        }
        for client in clients { client.close() }
        await relay.stop()
        await http.shutDown()
        try FileManager.default.removeItem(atPath: folder)
    }

    @Test func twoRelaysMeshByFile() async throws {
        let folder = try TestServer.temporaryDirectory()
        let file = "\(folder)/mesh.key"
        try Data("0123456789abcdef0123\n".utf8).write(to: URL(fileURLWithPath: file))
        let first = try await relay { $0.meshKeyFile = file }
        let url = "http://127.0.0.1:\(first.ports[0])"
        let second = try await relay {
            $0.meshKeyFile = file
            $0.meshWith = [url]
        }
        for _ in 0..<100 where first.mesh.watchers == 0 { try await Task.sleep(for: .milliseconds(50)) }
        #expect(first.mesh.watchers == 1 && second.mesh.links == 1)
        await #expect(throws: (any Error).self) { _ = try await self.relay { $0.meshWith = [url] } }
        await second.stop()
        await first.stop()
        try FileManager.default.removeItem(atPath: folder)
    }
}

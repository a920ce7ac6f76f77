// SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc
import HTTPTransport
import LinuxIO
import Mesh
import Server
import Synchronization
import TestSupport
import Testing

/// Edge relays and their server when one of them is away, or something between them is not what it should be.
@Suite(.serialized) struct EdgeRelayFaultTests {
    private static let token = "\(UUID().uuidString.lowercased()):" + String(repeating: "a", count: 64)

    private func options(_ port: Int, _ token: String = Self.token) -> RelayOptions {
        var options = RelayOptions()
        options.httpAddress = "127.0.0.1:0"
        options.primaryURL = "http://127.0.0.1:\(port)"
        options.proxyToken = token
        options.registrationSeconds = 1
        options.drainSeconds = 0
        return options
    }

    private func get(_ port: Int, _ path: String) async throws -> HTTPResponse {
        let client = HTTPClient()
        let url = try #require(HTTPURL("http://127.0.0.1:\(port)\(path)"))
        do {
            let answer = try await client.request("GET", url)
            await client.shutDown()
            return answer
        } catch {
            await client.shutDown()
            throw error
        }
    }

    /// Whether a region is in the map that the server hands out.
    private func isInMap(_ code: String, _ server: TestServer) async throws -> [String: Any]? {
        let map = try await server.call("GET", "workspaceagents/connection").object["derp_map"]
        let regions = (map as? [String: Any])?["Regions"] as? [String: [String: Any]] ?? [:]
        return regions.values.first { $0["RegionCode"] as? String == code }
    }

    /// The server restarts under two meshed relays, while a third one starts: nobody loses a region or a link, nobody
    /// opens a second one, and the third is there before the server is.
    @Test func relaysOutliveTheirServer() async throws {
        let map = "\(try TestServer.temporaryDirectory())/map.json"
        try Data(
            """
            {"Regions":{"5":{"RegionID":5,"RegionCode":"other","RegionName":"Other",
            "Nodes":[{"Name":"5a","RegionID":5,"HostName":"relay.example.org"}]}}}
            """.utf8
        ).write(to: URL(filePath: map))
        let server = try await TestServer.start {
            $0.prometheusEnable = true
            $0.prometheusAddress = "127.0.0.1:0"
            $0.derpConfigPath = map
        }
        #expect(try await isInMap("other", server) != nil)
        #expect(try await isInMap("coder", server) != nil)
        let made = try await server.call("POST", "workspaceproxies", ["name": "omega"])
        let token = made.text("proxy_token")
        let first = try await HostedRelay(options(server.port, token))
        let second = try await HostedRelay(options(server.port, token))
        #expect(
            try await Command.eventually(within: 30) {
                first.mesh == (1, 1) && second.mesh == (1, 1)
            })
        #expect(try await Command.eventually(within: 30) { try await isInMap("coder_omega", server) != nil })
        let metrics = try await get(server.hosted.ports[1], "/metrics")
        for name in ["coder_derp_connections", "coder_coordinator_peers", "process_open_fds"] {
            #expect(metrics.text.contains("\n\(name) "), "\(name)")
        }
        #expect(try await get(server.hosted.ports[1], "/").status == 404)

        await server.hosted.stop()
        let third = try await HostedRelay(options(server.port, token))
        #expect(try await get(third.ports[0], "/healthz").status == 200)
        #expect(try await get(third.ports[0], "/healthz-report").text.contains("failed in a row"))

        let again = try await server.restarted()
        // Before anybody was asked how they are.
        #expect(try await isInMap("coder_omega", again) != nil)
        #expect(
            try await Command.eventually(within: 40) {
                first.mesh == (2, 2) && second.mesh == (2, 2) && third.mesh == (2, 2)
            })
        // Three more registrations change nothing.
        try await Task.sleep(for: .seconds(3))
        for relay in [first, second, third] { #expect(relay.mesh == (2, 2), "\(relay.mesh)") }
        for relay in [first, second, third] { await relay.stop() }
        await again.stop()
    }

    /// What stands before the server answers in its place; then the server itself refuses, twice.
    @Test func onlyTheServerItselfEndsARelay() async throws {
        let good = """
            {"derp_mesh_key":"0123456789abcdef0123456789abcdef","derp_region_id":10001,"sibling_replicas":[]}
            """
        let stub = try StubHTTP { request, number in
            guard request.path.hasSuffix("/register") else { return StubHTTP.Answer(status: 204) }
            switch number {
            case 1: return StubHTTP.Answer(status: 404, body: "<html>default backend - 404</html>")
            case 2: return StubHTTP.Answer(status: 403, body: "denied")
            case 3:
                return StubHTTP.Answer(
                    status: 400, body: #"{"message":"Too many replicas of this workspace proxy."}"#)
            case 4: return StubHTTP.Answer(status: 401, body: #"{"message":"Invalid external proxy token"}"#)
            case 6...:
                return StubHTTP.Answer(status: 401, body: #"{"message":"Invalid external proxy token"}"#)
            default: return StubHTTP.Answer(status: 201, body: good)
            }
        }
        let relay = try await HostedRelay(options(stub.port))
        await relay.failed()
        // Two refusals in a row, after all else.
        #expect(stub.count == 8)
        await relay.stop()
        stub.stop()
    }

    /// One missed answer takes nobody's relay away; a relay that says that it stops goes at once. Beside it: the port
    /// of STUN, and what is wrong with the mesh.
    @Test func oneMissedHealthCheckIsForgiven() async throws {
        let server = try await TestServer.start { _ in }
        let state = Mutex((status: 200, body: #"{"errors":[],"warnings":[]}"#, failures: 0))
        let stub = try StubHTTP { _, _ in
            state.withLock { state in
                guard state.failures == 0 else {
                    state.failures -= 1
                    return nil
                }
                return StubHTTP.Answer(status: state.status, body: state.body)
            }
        }
        let made = try await server.call("POST", "workspaceproxies", ["name": "psi"])
        let registered = try await server.call(
            "POST", "workspaceproxies/me/register",
            [
                "access_url": "http://127.0.0.1:\(stub.port)", "derp_enabled": true, "derp_only": true,
                "replica_id": UUID().uuidString, "hostname": "h1", "replica_relay_address": "",
                "replica_error": "a sibling cannot be reached", "derp_stun_port": 3478, "version": "v1",
            ], token: "", headers: ["Coder-External-Proxy-Token": made.text("proxy_token")])
        #expect(registered.status == 201)
        #expect(try await Command.eventually(within: 20) { try await isInMap("coder_psi", server) != nil })
        let node = (try await isInMap("coder_psi", server)?["Nodes"] as? [[String: Any]])?.first
        #expect(node?["STUNPort"] as? Int == 3478)
        let proxy = try await server.call("GET", "workspaceproxies/psi").object["status"] as? [String: Any]
        let warnings = (proxy?["report"] as? [String: Any])?["warnings"] as? [String]
        #expect(warnings == ["h1 and its siblings: a sibling cannot be reached"])

        state.withLock { $0.failures = 1 }
        await server.hosted.checkRelays()
        #expect(state.withLock { $0.failures } == 0)
        #expect(try await isInMap("coder_psi", server) != nil)
        state.withLock { $0.body = #"{"errors":["draining"],"warnings":[]}"# }
        await server.hosted.checkRelays()
        #expect(try await isInMap("coder_psi", server) == nil)
        await server.stop()
        stub.stop()
    }

    @Test func mapsAreChecked() async throws {
        let folder = try TestServer.temporaryDirectory()
        let map = "\(folder)/map.json"
        for (text, disables) in [
            ("{\"Regions\":{}}", true), ("nonsense", false),
            (#"{"Regions":{"999":{"RegionID":999,"RegionCode":"x","Nodes":[]}}}"#, false),
            (#"{"Regions":{"5":{"RegionID":6,"RegionCode":"x","Nodes":[]}}}"#, false),
        ] {
            try Data(text.utf8).write(to: URL(filePath: map))
            await #expect(throws: (any Error).self, "\(text)") {
                var options = TestServer.options(folder)
                options.derpConfigPath = map
                options.derpEnable = !disables
                try await HostedServer(options).stop()
            }
        }
        try FileManager.default.removeItem(atPath: folder)
    }

    /// The hook is asked for each client, and once more when the connection breaks.
    @Test func theVerifyHookIsAsked() async throws {
        let welcome = Mutex<String>("")
        let stub = try StubHTTP { request, number in
            guard number > 0 else { return nil }
            let isWelcome = request.body.contains(welcome.withLock { $0 })
            return StubHTTP.Answer(body: "{\"Allow\":\(isWelcome)}")
        }
        var options = RelayOptions()
        options.isStandalone = true
        options.httpAddress = "127.0.0.1:0"
        options.verifyURL = "http://127.0.0.1:\(stub.port)/verify"
        options.verifyFailsOpen = false
        options.drainSeconds = 0
        let relay = try await HostedRelay(options)
        let http = HTTPClient()
        let url = try #require(HTTPURL("http://127.0.0.1:\(relay.ports[0])/derp"))
        func connect() async throws -> RelayClientStub {
            try RelayClientStub(try await http.upgrade(url, protocol: "DERP").release())
        }
        let good = try await connect()
        welcome.withLock { $0 = good.key.hex }
        try await good.logIn()
        #expect(stub.count == 2 && stub.requests[1].body.contains(#""Source":"127.0.0.1""#))
        let bad = try await connect()
        await #expect(throws: (any Error).self) { try await bad.logIn() }
        let text = try await get(relay.ports[0], "/metrics").text
        #expect(text.contains("coder_relay_verify_total{result=\"allowed\"} 1\n"))
        #expect(text.contains("coder_relay_verify_total{result=\"denied\"} 1\n"))
        for client in [good, bad] { client.close() }
        await http.shutDown()
        await relay.stop()
        stub.stop()
    }

    @Test func stunThatCannotBeHadIsAnError() async throws {
        let taken = try UDPSocket(bindingTo: .loopback(v4: true))
        var options = RelayOptions()
        options.isStandalone = true
        options.httpAddress = "127.0.0.1:0"
        options.stunAddress = "127.0.0.1:\(taken.localAddress.port)"
        await #expect(throws: (any Error).self) { _ = try await HostedRelay(options) }
        options.stunAddress = "127.0.0.1:0"
        let relay = try await HostedRelay(options)
        #expect(try await get(relay.ports[0], "/").text.contains("STUN answers on UDP port"))
        await relay.stop()
        _ = consume taken
    }

    // MARK: Processes

    private func start(_ arguments: [String], shell: String = "") throws -> Command {
        let relay = [Self.binary, "relay", "--http-address", "127.0.0.1:0"] + arguments
        return try Command(
            shell.isEmpty ? relay : ["/bin/sh", "-c", "\(shell); exec \"$@\"", "sh"] + relay,
            environment: ["NO_COLOR": "1"])
    }

    private static let binary = URL(filePath: "/proc/self/exe").resolvingSymlinksInPath()
        .deletingLastPathComponent().appending(path: "coder").path

    private func port(of relay: Command) async throws -> Int {
        var port: Int?
        _ = try await Command.eventually(within: 20) {
            port = relay.text.firstMatch(of: /127\.0\.0\.1:([0-9]+)\/derp/).flatMap { Int($0.1) }
            return port != nil
        }
        return try #require(port, "\(relay.errorText)")
    }

    /// The server takes the connection and says nothing: the relay serves, and ends when told to.
    @Test func aRelayThatWaitsForItsServerCanBeStopped() async throws {
        let silent = try StreamSocket.listen(on: .loopback(v4: true), bothFamilies: false)
        let server = try StreamSocket.localAddress(silent.number).port
        let relay = try start([
            "--primary-access-url", "http://127.0.0.1:\(server)", "--proxy-session-token", Self.token,
        ])
        #expect(try await get(try await port(of: relay), "/healthz").status == 200)
        relay.signal(SIGTERM)
        let outcome = try await relay.finish(timeout: 8)
        #expect(outcome.status == 0, "\(outcome)")
        _ = consume silent
    }

    /// More connections than descriptors: the relay waits for room without burning a processor, and recovers.
    @Test func withoutDescriptorsNothingSpins() async throws {
        let relay = try start(["--standalone"], shell: "ulimit -n 64")
        let port = try await port(of: relay)
        var held = try (0..<100).map { _ in try RawConnection(port: port) }
        try await Task.sleep(for: .milliseconds(500))
        func ticks() throws -> Int {
            let text = try String(contentsOfFile: "/proc/\(relay.pid)/stat", encoding: .utf8)
            let fields = text.split(separator: " ")
            return (Int(fields[13]) ?? 0) + (Int(fields[14]) ?? 0)
        }
        let before = try ticks()
        try await Task.sleep(for: .seconds(2))
        // Of some 200.
        let spent = try ticks() - before
        #expect(spent < 60)
        #expect(held.count == 100)
        held = []
        #expect(
            try await Command.eventually(within: 20) {
                (try? await get(port, "/healthz").status) == 200
            })
        relay.signal(SIGTERM)
        #expect(try await relay.finish(timeout: 10).status == 0)
    }
}

// SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc
import HTTPTransport
import LinuxIO
import RPC
import Server
import SwiftProtobuf
import Testing

/// What agents and clients of the mesh find behind the server's doors.
@Suite(.server) struct MeshDoorTests {
    let server: TestServer

    init() throws { server = try TestServer.shared() }

    /// Opens an RPC session, runs `body` with it, and ends it.
    private func session<R: Sendable>(
        _ path: String, token: String, _ body: @escaping @Sendable (RPCConnection) async throws -> R
    ) async throws -> R {
        let socket = try await server.client.webSocket(
            server.url("/api/v2/\(path)"), headers: ["Coder-Session-Token": token])
        let connection = RPCConnection(role: .client)
        return try await withThrowingTaskGroup(of: R?.self) { group in
            group.addTask {
                try? await connection.run(
                    read: { try await socket.receive() }, write: { try await socket.send($0) })
                return nil
            }
            group.addTask { try await body(connection) }
            while let result = try await group.next() {
                guard let result else { continue }
                connection.close()
                await socket.close()
                group.cancelAll()
                return result
            }
            throw RPCError.connectionClosed("before the test was over")
        }
    }

    private func workspace(_ name: String) async throws -> (id: String, agent: String, token: String) {
        let made = try await server.makeWorkspace(name)
        let id = made["id"] as? String ?? ""
        let token = try await server.call("GET", "workspaces/\(id)/external-agent/main/credentials").text(
            "agent_token")
        return (id, TestServer.agent(of: made)["id"] as? String ?? "", token)
    }

    @Test func anAgentReportsAndIsSeen() async throws {
        let (id, agent, token) = try await workspace("reports")
        let server = server
        try await session("workspaceagents/me/rpc?version=2.7", token: token) { connection in
            let manifest = try await connection.unary(AgentMethods.getManifest)
            #expect(RawUUID(manifest.agentID)?.description == agent)
            #expect(RawUUID(manifest.workspaceID)?.description == id)
            #expect(manifest.agentName == "main")
            #expect(manifest.workspaceName == "reports")
            #expect(manifest.ownerUsername == "ann")
            #expect(manifest.derpMap.hasHomeParams)
            #expect(manifest.derpMap.regions[999]?.nodes.first?.name == "999b")

            var startup = AgentUpdateStartupRequest()
            startup.startup.version = "v2.30.0-test"
            startup.startup.expandedDirectory = "/home/ann"
            _ = try await connection.unary(AgentMethods.updateStartup, startup)
            var lifecycle = AgentUpdateLifecycleRequest()
            lifecycle.lifecycle.state = .ready
            _ = try await connection.unary(AgentMethods.updateLifecycle, lifecycle)
            var logs = AgentBatchCreateLogsRequest()
            // A quote with an accent on it is one character, and still a quote.
            let texts = ["one", "two \"quoted\", {braced} \\", "\"\u{301}\\\u{301},", "\u{600}\"", ""]
            logs.logs = texts.map { text in
                var log = AgentLog()
                log.output = text
                log.level = .warn
                return log
            }
            #expect(try await connection.unary(AgentMethods.batchCreateLogs, logs).logLimitExceeded == false)

            let seen = try await server.call("GET", "workspaceagents/\(agent)")
            #expect(try Shapes().complaints(seen.json, "WorkspaceAgent") == [])
            #expect(seen.text("status") == "connected")
            #expect(seen.text("lifecycle_state") == "ready")
            #expect(seen.text("version") == "v2.30.0-test")
            #expect(seen.text("api_version") == "2.7")
            #expect(seen.text("expanded_directory") == "/home/ann")
            let lines = try await server.call("GET", "workspaceagents/\(agent)/logs")
            #expect(try Shapes().complaints(lines.json, "[WorkspaceAgentLog]") == [])
            #expect(lines.list.map { $0["output"] as? String } == texts)
        }
        // The end of the connection is recorded at once.
        for _ in 0..<50 {
            if try await server.call("GET", "workspaceagents/\(agent)").text("status") == "disconnected" {
                break
            }
            try await Task.sleep(for: .milliseconds(100))
        }
        #expect(try await server.call("GET", "workspaceagents/\(agent)").text("status") == "disconnected")
    }

    @Test func aFullLogTakesNoMore() async throws {
        let (_, agent, token) = try await workspace("chatty")
        try await session("workspaceagents/me/rpc?version=2.7", token: token) { connection in
            var request = AgentBatchCreateLogsRequest()
            var log = AgentLog()
            log.output = String(repeating: "x", count: 400_000)
            request.logs = [log]
            for exceeded in [false, false, true, true] {
                let answer = try await connection.unary(AgentMethods.batchCreateLogs, request)
                #expect(answer.logLimitExceeded == exceeded)
            }
        }
        #expect(
            try await server.call("GET", "workspaceagents/\(agent)").object["logs_overflowed"] as? Bool
                == true)
    }

    @Test func clientAndAgentHearOfEachOther() async throws {
        let (_, agent, token) = try await workspace("meets")
        let (server, userToken) = (server, server.token)
        let agentID = try #require(RawUUID(agent))
        try await session("workspaceagents/me/rpc?version=2.7", token: token) { agentSide in
            try await agentSide.bidirectional(TailnetMethods.coordinate) { agentStream in
                var request = TailnetCoordinateRequest()
                request.updateSelf.node = Self.node("fd7a:115c:a1e0" + Self.suffix(of: agent) + "/128")
                try await agentStream.send(request)
                let path = "workspaceagents/\(agent)/coordinate?version=2.0"
                try await session(path, token: userToken) { clientSide in
                    let token = try await clientSide.unary(TailnetMethods.refreshResumeToken)
                    #expect(token.token.split(separator: ".").count == 3)
                    #expect(token.refreshIn.seconds == 43_200)
                    try await clientSide.bidirectional(TailnetMethods.coordinate) { clientStream in
                        var open = TailnetCoordinateRequest()
                        open.updateSelf.node = Self.node("fd7a:115c:a1e0:1:2:3:4:5/128")
                        open.addTunnel.id = agentID.bytes()
                        try await clientStream.send(open)
                        let heard = try await clientStream.next()
                        #expect(heard?.peerUpdates.first?.id == agentID.bytes())
                        #expect(heard?.peerUpdates.first?.kind == .node)
                    }
                }
                let heard = try await agentStream.next()
                #expect(heard?.peerUpdates.first?.node.addresses == ["fd7a:115c:a1e0:1:2:3:4:5/128"])
                let latency = try await server.call("GET", "workspaceagents/\(agent)").object["latency"]
                #expect(
                    (latency as? [String: [String: Any]])?["Coder Embedded Relay"]?["preferred"] as? Bool
                        == true)
            }
        }
    }

    private static func node(_ address: String) -> TailnetNode {
        var node = TailnetNode()
        node.id = 1
        node.key = Data([0x6e, 0x70] + Array(repeating: 7, count: 32))
        node.disco = "discokey:" + String(repeating: "07", count: 32)
        node.preferredDerp = 999
        node.derpLatency = ["999-v4": 0.0015]
        node.addresses = [address]
        node.allowedIps = [address]
        return node
    }

    /// Last ten bytes of a UUID in the form of an IPv6 address.
    private static func suffix(of id: String) -> String {
        let digits = id.filter { $0 != "-" }.dropFirst(12)
        return stride(from: 0, to: 20, by: 4).map { start in
            let group = digits.dropFirst(start).prefix(4).drop { $0 == "0" }
            return ":" + (group.isEmpty ? "0" : String(group))
        }.joined()
    }

    @Test func theResumeTokenKeepsTheNameOrIsRefused() async throws {
        let (_, agent, _) = try await workspace("resume")
        let path = "workspaceagents/\(agent)/coordinate?version=2.0"
        let token = try await session(path, token: server.token) {
            try await $0.unary(TailnetMethods.refreshResumeToken).token
        }
        let again = try await session("\(path)&resume_token=\(token)", token: server.token) {
            try await $0.unary(TailnetMethods.refreshResumeToken).token
        }
        func subject(_ token: String) -> String {
            var middle = String(token.split(separator: ".")[1]).replacing("-", with: "+").replacing(
                "_", with: "/")
            while middle.count % 4 != 0 { middle += "=" }
            let claims = Data(base64Encoded: middle).flatMap { try? JSONSerialization.jsonObject(with: $0) }
            return (claims as? [String: Any])?["sub"] as? String ?? ""
        }
        #expect(subject(token) == subject(again))
        #expect(subject(token).count == 36)
        let bad = try await server.call("GET", "\(path)&resume_token=\(token)x")
        #expect(bad.status == 401)
        #expect((bad.object["validations"] as? [[String: String]])?.first?["field"] == "resume_token")
    }

    @Test func aRevokedKeyEndsItsSessions() async throws {
        let (_, agent, _) = try await workspace("revoked")
        let key = try await server.call("POST", "users/me/keys/tokens", ["token_name": "short"]).text("key")
        let server = server
        try await session("workspaceagents/\(agent)/coordinate?version=2.0", token: key) { connection in
            _ = try await connection.unary(TailnetMethods.refreshResumeToken)
            let id = key.prefix { $0 != "-" }
            #expect(try await server.call("DELETE", "users/me/keys/\(id)").status == 204)
            await connection.waitUntilClosed()
        }
        #expect(try await server.call("GET", "users/me", token: key).status == 401)
    }

    @Test func aUserHearsOfTheirWorkspaces() async throws {
        let server = server
        let made = try await server.makeWorkspace("desktop")
        let id = try #require((made["id"] as? String).flatMap { RawUUID($0) })
        let agent = try #require((TestServer.agent(of: made)["id"] as? String).flatMap { RawUUID($0) })
        var request = TailnetWorkspaceUpdatesRequest()
        request.workspaceOwnerID = try #require((made["owner_id"] as? String).flatMap { RawUUID($0) }).bytes()
        let asked = request
        try await session("tailnet?version=2.3", token: server.token) { connection in
            try await connection.serverStream(TailnetMethods.workspaceUpdates, asked) { stream in
                let first = try #require(try await stream.next())
                #expect(first.upsertedWorkspaces.contains { $0.id == id.bytes() && $0.status == .running })
                #expect(
                    first.upsertedAgents.contains { $0.id == agent.bytes() && $0.workspaceID == id.bytes() })
                _ = try await server.call("POST", "workspaces/\(id)/builds", ["transition": "stop"])
                // Other tests' workspaces come and go, too.
                while let update = try await stream.next() {
                    guard update.upsertedWorkspaces.contains(where: { $0.id == id.bytes() }) else { continue }
                    #expect(
                        update.upsertedWorkspaces.contains { $0.id == id.bytes() && $0.status == .stopped })
                    #expect(update.deletedAgents.contains { $0.id == agent.bytes() })
                    break
                }
            }
        }
    }

    @Test func aResumeTokenIsForOneUserAndNoAgent() async throws {
        let (_, agent, agentToken) = try await workspace("resume-other")
        await #expect(throws: (any Error).self) {
            try await session("workspaceagents/me/rpc?version=2.7", token: agentToken) {
                try await $0.unary(TailnetMethods.refreshResumeToken).token
            }
        }
        let token = try await session("tailnet?version=2.0", token: server.token) {
            try await $0.unary(TailnetMethods.refreshResumeToken).token
        }
        try await server.hosted.execute(
            """
            INSERT INTO users (id, email, username, hashed_password, created_at, updated_at, status, rbac_roles)
            SELECT gen_random_uuid(), 'oz@example.org', 'oz', hashed_password, now(), now(), 'active', rbac_roles
            FROM users WHERE username = 'ann'
            """)
        let other = try await server.call(
            "POST", "users/login", ["email": "oz@example.org", "password": TestServer.password], token: ""
        ).text("session_token")
        let path = "workspaceagents/\(agent)/coordinate?version=2.0&resume_token=\(token)"
        #expect(try await server.call("GET", path, token: other).status == 401)
        // For its own user it is good, and only the upgrade is missing.
        #expect(try await server.call("GET", path).status == 400)
    }

    @Test(arguments: [
        ("", "version 1.0 is no longer supported"), ("?version=2.8", "behind requested minor version 2.8"),
        ("?version=3.0", "behind requested major version 3.0"), ("?version=2", "invalid version string: 2"),
        ("?version=2.x", "invalid minor version: 2.x"),
    ]) func versionsAreChecked(_ test: (query: String, detail: String)) async throws {
        let agent = TestServer.agent(of: try await server.makeWorkspace("v\(UUID().uuidString.prefix(8))"))
        let answer = try await server.call(
            "GET", "workspaceagents/\(agent["id"] ?? "")/coordinate\(test.query)")
        #expect(answer.status == 400)
        #expect(answer.text("message") == "Unknown or unsupported API version")
        let complaint = (answer.object["validations"] as? [[String: String]])?.first
        #expect(complaint?["field"] == "version")
        #expect(complaint?["detail"]?.hasSuffix(test.detail) == true)
    }

    @Test func agentsNeedTheirToken() async throws {
        let user = try await server.call("GET", "workspaceagents/me/rpc?version=2.7")
        #expect(user.status == 401)
        #expect(user.text("message") == "Workspace agent token invalid.")
        let unknown = try await server.call(
            "GET", "workspaceagents/me/rpc?version=2.7", token: "11111111-1111-4111-8111-111111111111")
        #expect(unknown.text("message") == "Workspace agent not authorized.")
        let none = try await server.call("GET", "workspaceagents/me/rpc?version=2.7", token: "")
        #expect(none.text("message") == "Cookie \"coder_session_token\" must be provided.")
    }

    @Test func garbageInAnRPCSessionEndsItAlone() async throws {
        let (_, _, token) = try await workspace("noise")
        let socket = try await server.client.webSocket(
            server.url("/api/v2/workspaceagents/me/rpc?version=2.7"), headers: ["Coder-Session-Token": token])
        try await socket.send(Array(repeating: 0xee, count: 5000))
        await #expect(throws: (any Error).self) {
            while try await socket.receive() != nil {}
        }
        #expect(try await server.call("GET", "users/me").status == 200)
    }

    @Test func stoppingAWorkspaceCutsItsAgent() async throws {
        let (id, _, token) = try await workspace("stopped")
        let server = server
        try await session("workspaceagents/me/rpc?version=2.7", token: token) { connection in
            _ = try await connection.unary(AgentMethods.getManifest)
            _ = try await server.call("POST", "workspaces/\(id)/builds", ["transition": "stop"])
            await connection.waitUntilClosed()
        }
        #expect(try await server.call("GET", "appearance", token: token).status == 401)
    }

    @Test func theRelayTakesBothFormsOfUpgrade() async throws {
        for isWebSocket in [false, true] {
            let descriptor =
                isWebSocket
                ? try await server.client.derpWebSocket(server.url("/derp"))
                : try await server.client.upgrade(server.url("/derp"), protocol: "DERP")
            let hello = try await Self.read(45, from: descriptor.number)
            #expect(hello.prefix(9) == [1, 0, 0, 0, 40, 0x44, 0x45, 0x52, 0x50])
        }
    }

    /// Reads on a thread of its own: the server under test needs the shared ones.
    private static func read(_ count: Int, from number: Int32) async throws -> [UInt8] {
        try await DedicatedThread.run {
            var bytes: [UInt8] = []
            var buffer = [UInt8](repeating: 0, count: count)
            while bytes.count < count {
                let got = Glibc.read(number, &buffer, count - bytes.count)
                guard got > 0 else { break }
                bytes += buffer[..<got]
            }
            return bytes
        }
    }
}

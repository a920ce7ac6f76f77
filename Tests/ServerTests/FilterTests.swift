// SPDX-License-Identifier: Apache-2.0

import Foundation
import HTTPTransport
import Testing

/// Lists that are narrowed, and what agents tell users.
@Suite(.server) struct FilterTests {
    @Test(arguments: [
        ("workspaces?q=shared:true", 0), ("workspaces?q=has-ai-task:1", 0), ("workspaces?q=param:x", 0),
        ("workspaces?q=has-agent:connected", 0), ("workspaces?q=has-agent:connecting%20name:filtered", 1),
        ("workspaces?q=last_used_after:%222099-01-01T00:00:00Z%22", 0),
        ("workspaces?q=last_used_before:%222099-01-01T00:00:00Z%22%20name:filtered", 1),
        ("workspaces?q=outdated:f%20name:filtered", 1), ("workspaces?q=dormant:1", 0),
        ("workspaces?q=status:nonsense", -1), ("workspaces?q=outdated:maybe", -1),
        ("workspaces?q=last_used_after:soon", -1),
    ]) func filtersOfWorkspacesCount(_ test: (path: String, count: Int)) async throws {
        let server = try TestServer.shared()
        _ = try? await server.call(
            "POST", "users/me/workspaces",
            [
                "template_id": try #require(try await server.call("GET", "templates").list.first)["id"] ?? "",
                "name": "filtered",
            ])
        let answer = try await server.call("GET", test.path)
        #expect(answer.status == (test.count < 0 ? 400 : 200), "\(answer.response.text)")
        if test.count >= 0 { #expect(answer.object["count"] as? Int == test.count) }
    }

    @Test(arguments: [
        ("has_external_agent:true", 1), ("has_external_agent:0", 0), ("has-ai-task:true", 0),
        ("author:ann", 1), ("author_id:me", 1), ("deleted:true", 0), ("exact_display_name:nonsense", 0),
        ("ids:11111111-1111-4111-8111-111111111111", 0),
    ]) func filtersOfTemplatesCount(_ test: (query: String, count: Int)) async throws {
        let answer = try await TestServer.shared().call("GET", "templates?q=\(test.query)")
        #expect(answer.status == 200)
        #expect(answer.list.count == test.count)
    }

    @Test(arguments: [
        ("CRON_TZ=Europe/Berlin 30 9 * * 1-5", 201), ("0 9,17 * * mon-fri", 201), ("*/15 * * * *", 201),
        ("30 9 1 * *", 400), ("30 9 * 2 *", 400), ("60 9 * * *", 400), ("30 24 * * *", 400),
        ("30 9 * * 7", 400), ("30 9 * *", 400), ("nonsense", 400), ("CRON_TZ=$(x) 30 9 * * 1", 400),
        ("5-1 9 * * *", 400), ("/2 9 * * *", 400),
    ]) func schedulesAreChecked(_ test: (schedule: String, status: Int)) async throws {
        let server = try TestServer.shared()
        let template = try #require(try await server.call("GET", "templates").list.first)
        let made = try await server.call(
            "POST", "users/me/workspaces",
            [
                "template_id": template["id"] ?? "", "name": "s\(UUID().uuidString.prefix(8))",
                "autostart_schedule": test.schedule,
            ])
        #expect(made.status == test.status)
    }

    @Test func metadataOfAnAgentIsAnEmptyStream() async throws {
        let server = try TestServer.shared()
        let agent = TestServer.agent(of: try await server.makeWorkspace("watched"))["id"] as? String ?? ""
        let connection = try RawConnection(port: server.port)
        let path = "/api/v2/workspaceagents/\(agent)/watch-metadata"
        await connection.send(
            "GET \(path)-ws HTTP/1.1\r\nHost: x\r\nCoder-Session-Token: \(server.token)\r\n"
                + "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                + "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
        #expect(await connection.readResponse().head.hasPrefix("HTTP/1.1 101 "))
        let message = #"{"type":"data","data":[]}"#
        #expect(
            await connection.read(message.utf8.count + 2) == [0x81, UInt8(message.utf8.count)] + message.utf8)
        let events = try RawConnection(port: server.port)
        await events.send("GET \(path) HTTP/1.1\r\nCoder-Session-Token: \(server.token)\r\n\r\n")
        #expect(await events.readResponse().head.contains("text/event-stream"))
        let event = "event: data\ndata: []\n\n"
        let chunk = String(event.utf8.count, radix: 16) + "\r\n" + event
        #expect(await events.read(chunk.utf8.count) == Array(chunk.utf8))
        for route in ["listening-ports", "containers"] {
            #expect(try await server.call("GET", "workspaceagents/\(agent)/\(route)").status == 400)
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

import Foundation
import HTTPTransport
import Testing

/// The HTTP API of a real server, request by request.
@Suite(.server) struct APITests {
    let shapes: Shapes

    init() throws { shapes = try Shapes() }

    /// Path, who asks, and the type of the answer.
    static let reads: [(path: String, type: String)] = [
        ("buildinfo", "BuildInfoResponse"), ("users/me", "User"), ("users/ann", "User"),
        ("users/me/organizations", "[Organization]"), ("organizations", "[Organization]"),
        ("organizations/default", "Organization"), ("organizations/coder", "Organization"),
        ("entitlements", "Entitlements"), ("appearance", "AppearanceConfig"),
        ("deployment/ssh", "SSHConfigResponse"),
        ("templates", "[Template]"), ("organizations/default/templates", "[Template]"),
        ("organizations/coder/templates/external", "Template"),
        ("workspaces?q=owner:me", "WorkspacesResponse"),
        ("users/me/keys/tokens", "[APIKeyWithOwner]"), ("users/me/keys/tokens/tokenconfig", "TokenConfig"),
        ("users/me/gitsshkey", "GitSSHKey"), ("users/authmethods", "AuthMethods"),
        ("workspaceagents/connection", "AgentConnectionInfo"), ("updatecheck", "UpdateCheckResponse"),
        ("experiments", "[string]"), ("users/me/roles", "UserRoles"),
        ("users/me/login-type", "UserLoginType"),
    ]

    @Test(arguments: reads) func answersHaveThePublishedShape(
        _ read: (path: String, type: String)
    ) async throws {
        let server = try TestServer.shared()
        if read.path.hasPrefix("workspaces") { _ = try await server.makeWorkspace("shape") }
        let answer = try await server.call("GET", read.path)
        #expect(answer.status == 200, "\(answer.response.text)")
        #expect(shapes.complaints(answer.json, read.type) == [])
        #expect(answer.response.headers["X-Coder-Build-Version"]?.hasPrefix("v2.30.") == true)
        #expect(answer.response.headers["X-Content-Type-Options"] == "nosniff")
        #expect(answer.response.headers["Content-Type"] == "application/json; charset=utf-8")
        #expect(answer.response.headers["X-Coder-Request-Id"]?.count == 36)
    }

    @Test func aWorkspaceLivesAndDies() async throws {
        let server = try TestServer.shared()
        let made = try await server.makeWorkspace("dev")
        #expect(shapes.complaints(made, "Workspace") == [])
        let id = made["id"] as? String ?? ""
        let agent = TestServer.agent(of: made)
        #expect(agent["status"] as? String == "connecting")

        let read = try await server.call("GET", "users/me/workspace/DEV")
        #expect(read.text("id") == id)
        let listed = try await server.call("GET", "workspaces?q=owner:me%20name:dev")
        #expect((listed.object["workspaces"] as? [[String: Any]])?.count == 1)
        let twice = try await server.call(
            "POST", "users/me/workspaces", ["template_id": made["template_id"] ?? "", "name": "Dev"])
        #expect(twice.status == 409)
        #expect((twice.object["validations"] as? [[String: String]])?.first?["field"] == "name")

        let credentials = try await server.call("GET", "workspaces/\(id)/external-agent/main/credentials")
        #expect(shapes.complaints(credentials.json, "ExternalAgentCredentials") == [])
        #expect(credentials.text("command").contains(credentials.text("agent_token")))

        let build = made["latest_build"] as? [String: Any] ?? [:]
        for (path, type) in [
            ("", "WorkspaceBuild"), ("/logs", "[ProvisionerJobLog]"), ("/resources", "[WorkspaceResource]"),
        ] {
            let answer = try await server.call("GET", "workspacebuilds/\(build["id"] ?? "")\(path)")
            #expect(shapes.complaints(answer.json, type) == [])
        }
        let version = try await server.call("GET", "templateversions/\(build["template_version_id"] ?? "")")
        #expect(shapes.complaints(version.json, "TemplateVersion") == [])
        #expect(version.object["has_external_agent"] as? Bool == true)

        let stopped = try await server.call("POST", "workspaces/\(id)/builds", ["transition": "stop"])
        #expect(stopped.status == 201)
        #expect(stopped.text("status") == "stopped")
        #expect(stopped.object["build_number"] as? Int == 2)
        let deleted = try await server.call("POST", "workspaces/\(id)/builds", ["transition": "delete"])
        #expect(deleted.text("status") == "deleted")
        #expect(try await server.call("GET", "workspaces/\(id)").status == 410)
        #expect(try await server.call("GET", "workspaces/\(id)?include_deleted=true").status == 200)
        #expect(try await server.call("GET", "users/me/workspace/dev").status == 404)
    }

    @Test func startingAgainMakesTheOldTokenUseless() async throws {
        let server = try TestServer.shared()
        let id = try await server.makeWorkspace("again")["id"] as? String ?? ""
        let path = "workspaces/\(id)/external-agent/main/credentials"
        let old = try await server.call("GET", path).text("agent_token")
        #expect(try await server.call("GET", "appearance", token: old).status == 200)
        #expect(
            try await server.call("POST", "workspaces/\(id)/builds", ["transition": "start"]).status == 201)
        let new = try await server.call("GET", path).text("agent_token")
        #expect(new != old)
        #expect(try await server.call("GET", "appearance", token: old).status == 401)
        #expect(try await server.call("GET", "appearance", token: new).status == 200)
    }

    @Test func theDryRunThatCreateAsksForWorks() async throws {
        let server = try TestServer.shared()
        let template = try #require(try await server.call("GET", "templates").list.first)
        let path = "templateversions/\(template["active_version_id"] ?? "")/dry-run"
        let job = try await server.call("POST", path, ["workspace_name": "x"])
        #expect(job.status == 201)
        #expect(shapes.complaints(job.json, "ProvisionerJob") == [])
        #expect(job.text("status") == "succeeded")
        let resources = try await server.call("GET", "\(path)/\(job.text("id"))/resources")
        #expect(resources.list.first?["type"] as? String == "coder_external_agent")
    }

    @Test(arguments: [
        ("workspaces?q=foo:bar", 400, "foo"), ("workspaces?q=a:b:c", 400, "q"),
        ("workspaces?limit=-1", 400, "limit"),
        ("workspaces/nonsense", 400, "workspace"), ("templates?q=nope:1", 400, "nope"),
    ]) func badQueriesNameTheField(_ test: (path: String, status: Int, field: String)) async throws {
        let answer = try await TestServer.shared().call("GET", test.path)
        #expect(answer.status == test.status)
        #expect((answer.object["validations"] as? [[String: String]])?.first?["field"] == test.field)
        #expect(shapes.complaints(answer.json, "Response") == [])
    }

    @Test(arguments: [
        ("GET", "nothing/here", 404), ("GET", "users/nobody", 400), ("POST", "buildinfo", 404),
        ("GET", "workspaces/11111111-1111-4111-8111-111111111111", 404),
        ("GET", "workspaceagents/11111111-1111-4111-8111-111111111111", 404),
        ("GET", "organizations/nope", 404), ("GET", "users/me/workspace/nope", 404),
        ("GET", "init-script/plan9/mips", 400),
    ]) func errorsAreJSON(_ test: (method: String, path: String, status: Int)) async throws {
        let answer = try await TestServer.shared().call(test.method, test.path)
        #expect(answer.status == test.status)
        #expect(shapes.complaints(answer.json, "Response") == [])
    }

    @Test func theProgramIsServedWithItsHash() async throws {
        let server = try TestServer.shared()
        let head = try await server.client.request("HEAD", server.url("/bin/coder-linux-amd64"))
        #expect(head.status == 200)
        let tag = try #require(head.headers["ETag"])
        #expect(tag.count == 42)
        let same = try await server.client.request(
            "GET", server.url("/bin/coder_linux_amd64"), headers: ["If-None-Match": tag])
        #expect(same.status == 304)
        let part = try await server.client.request(
            "GET", server.url("/bin/coder-linux-amd64"), headers: ["Range": "bytes=0-3"])
        #expect(part.status == 206)
        #expect(part.body == [0x7f, 0x45, 0x4c, 0x46])
        #expect(try await server.client.request("GET", server.url("/bin/coder-plan9-mips")).status == 404)
    }
}

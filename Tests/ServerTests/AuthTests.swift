// SPDX-License-Identifier: Apache-2.0

import Foundation
import HTTPTransport
import Server
import Testing

/// Who gets in, and who does not.
@Suite(.server) struct AuthTests {
    let server: TestServer

    init() throws { server = try TestServer.shared() }

    @Test func thereIsOnlyOneFirstUser() async throws {
        #expect(try await server.call("GET", "users/first", token: "").status == 200)
        let again = try await server.call(
            "POST", "users/first",
            ["email": "b@example.org", "username": "bob", "password": TestServer.password],
            token: "")
        #expect(again.status == 409)
    }

    @Test(arguments: [
        (["email": "ann@example.org", "password": "wrong password 123"], 401),
        (["email": "nobody@example.org", "password": TestServer.password], 401),
        (["email": "not an address", "password": TestServer.password], 400),
        (["email": "ann@example.org"], 400),
    ]) func wrongLoginsFail(_ test: (body: [String: String], status: Int)) async throws {
        let answer = try await server.call("POST", "users/login", test.body, token: "")
        #expect(answer.status == test.status)
        #expect(answer.object["session_token"] == nil)
    }

    @Test func nobodyLearnsWhetherAnAddressIsKnown() async throws {
        let known = try await server.call(
            "POST", "users/login", ["email": "ann@example.org", "password": "wrong password 123"], token: "")
        let unknown = try await server.call(
            "POST", "users/login", ["email": "nobody@example.org", "password": "wrong password 123"],
            token: "")
        #expect(known.response.body == unknown.response.body)
    }

    @Test(arguments: ["", "x", "Ab3dE5gH1j-0123456789abcdefghijkl", "Ab3dE5gH1j", "a-b-c"])
    func madeUpTokensAreRefused(_ token: String) async throws {
        let answer = try await server.call("GET", "users/me", token: token)
        #expect(answer.status == 401)
        #expect(answer.text("message").hasPrefix("You are signed out or your session has expired"))
    }

    @Test func aWrongSecretOfAKnownKeyIsRefused() async throws {
        let id = server.token.prefix(10)
        let answer = try await server.call("GET", "users/me", token: "\(id)-0123456789abcdefghijkl")
        #expect(answer.status == 401)
    }

    @Test func aTokenIsMadeUsedListedAndRevoked() async throws {
        let made = try await server.call(
            "POST", "users/me/keys/tokens", ["token_name": "ci", "lifetime": 3_600_000_000_000])
        #expect(made.status == 201)
        let key = made.text("key")
        #expect(key.split(separator: "-").map(\.count) == [10, 22])
        #expect(try await server.call("GET", "users/me", token: key).status == 200)
        let list = try await server.call("GET", "users/me/keys/tokens")
        #expect(list.list.contains { $0["token_name"] as? String == "ci" })
        let twice = try await server.call("POST", "users/me/keys/tokens", ["token_name": "ci"])
        #expect(twice.status == 409)
        #expect(try await server.call("DELETE", "users/me/keys/\(key.prefix(10))").status == 204)
        #expect(try await server.call("GET", "users/me", token: key).status == 401)
        #expect(try await server.call("DELETE", "users/me/keys/\(key.prefix(10))").status == 404)
    }

    @Test func anExpiredTokenIsRefused() async throws {
        let key = try await server.call("POST", "users/me/keys").text("key")
        #expect(try await server.call("GET", "users/me", token: key).status == 200)
        try await server.hosted.execute(
            "UPDATE api_keys SET expires_at = now() - interval '1 second' WHERE id = '\(key.prefix(10))'")
        let answer = try await server.call("GET", "users/me", token: key)
        #expect(answer.status == 401)
        #expect(answer.text("detail").contains("expired"))
    }

    @Test func aSessionInUseLivesOn() async throws {
        let key = try await server.call("POST", "users/me/keys").text("key")
        let id = key.prefix(10)
        try await server.hosted.execute(
            """
            UPDATE api_keys SET expires_at = now() + interval '2 h', last_used = now() - interval '2 h'
            WHERE id = '\(id)'
            """
        )
        #expect(try await server.call("GET", "users/me", token: key).status == 200)
        let read = try await server.call("GET", "users/me/keys/\(id)")
        let expiry = try #require(ISO8601DateFormatter().date(from: Self.seconds(read.text("expires_at"))))
        #expect(expiry.timeIntervalSinceNow > 6.9 * 86_400)
        let used = try #require(ISO8601DateFormatter().date(from: Self.seconds(read.text("last_used"))))
        #expect(used.timeIntervalSinceNow > -60)
    }

    private static func seconds(_ text: String) -> String {
        String(text.prefix { $0 != "." && $0 != "Z" }) + "Z"
    }

    @Test func logoutEndsTheSession() async throws {
        let login = try await server.call(
            "POST", "users/login", ["email": "ann@example.org", "password": TestServer.password], token: "")
        let token = login.text("session_token")
        #expect(login.response.headers["Set-Cookie"]?.contains("HttpOnly") == true)
        #expect(try await server.call("POST", "users/logout", token: token).status == 200)
        #expect(try await server.call("GET", "users/me", token: token).status == 401)
    }

    @Test func suspendedUsersStayOutside() async throws {
        try await server.hosted.execute(
            """
            INSERT INTO users (id, email, username, hashed_password, created_at, updated_at, status)
            SELECT gen_random_uuid(), 'sus@example.org', 'sus', hashed_password, now(), now(), 'suspended'
            FROM users WHERE username = 'ann'
            """)
        let login = try await server.call(
            "POST", "users/login", ["email": "sus@example.org", "password": TestServer.password], token: "")
        #expect(login.status == 401)
    }

    @Test func aMemberSeesOnlyTheirOwn() async throws {
        try await server.hosted.execute(
            """
            INSERT INTO users (id, email, username, hashed_password, created_at, updated_at, status)
            SELECT gen_random_uuid(), 'mia@example.org', 'mia', hashed_password, now(), now(), 'dormant'
            FROM users WHERE username = 'ann';
            INSERT INTO organization_members (user_id, organization_id, created_at, updated_at)
            SELECT u.id, o.id, now(), now() FROM users u, organizations o WHERE u.username = 'mia'
            """)
        let login = try await server.call(
            "POST", "users/login", ["email": "mia@example.org", "password": TestServer.password], token: "")
        let mia = login.text("session_token")
        #expect(try await server.call("GET", "users/me", token: mia).text("status") == "active")
        let workspace = try await server.makeWorkspace("private")
        let id = workspace["id"] as? String ?? ""
        let agent = TestServer.agent(of: workspace)["id"] as? String ?? ""
        for path in [
            "workspaces/\(id)", "workspaceagents/\(agent)", "workspaceagents/\(agent)/connection",
            "workspaces/\(id)/external-agent/main/credentials", "workspaces/\(id)/builds",
        ] {
            #expect(try await server.call("GET", path, token: mia).status == 404, "\(path)")
        }
        #expect(
            try await server.call("POST", "workspaces/\(id)/builds", ["transition": "delete"], token: mia)
                .status == 404)
        #expect(try await server.call("GET", "workspaces", token: mia).object["count"] as? Int == 0)
        #expect(try await server.call("GET", "deployment/config", token: mia).status == 403)
        let own = try await server.call(
            "POST", "users/me/workspaces", ["template_id": workspace["template_id"] ?? "", "name": "own"],
            token: mia)
        #expect(own.status == 201)
        // ann owns the deployment
        #expect(try await server.call("GET", "workspaces/\(own.text("id"))").status == 200)
        let checks: [String: Any] = [
            "read": ["object": ["resource_type": "workspace", "resource_id": id], "action": "read"],
            "own": ["object": ["resource_type": "workspace", "owner_id": "me"], "action": "create"],
        ]
        let answer = try await server.call("POST", "authcheck", ["checks": checks], token: mia).object
        #expect(answer["read"] as? Bool == false)
        #expect(answer["own"] as? Bool == true)
    }

    @Test func aTokenForTemplatesCannotTouchWorkspaces() async throws {
        let key = try await server.call(
            "POST", "users/me/keys/tokens", ["token_name": "narrow", "scopes": ["template:read"]]
        ).text("key")
        #expect(try await server.call("GET", "templates", token: key).list.count == 1)
        #expect(try await server.call("GET", "workspaces", token: key).object["count"] as? Int == 0)
        let template = try #require(try await server.call("GET", "templates").list.first)
        let made = try await server.call(
            "POST", "users/me/workspaces", ["template_id": template["id"] ?? "", "name": "no"], token: key)
        #expect(made.status == 404 || made.status == 403)
    }

    /// What a key may not do itself, no key that it makes may do.
    @Test func aRestrictedTokenMakesNoWiderOne() async throws {
        let server = server
        func token(_ body: [String: Any], by key: String? = nil) async throws -> TestServer.Answer {
            try await server.call(
                "POST", "users/me/keys/tokens", body.merging(["token_name": UUID().uuidString]) { $1 },
                token: key)
        }
        let workspace = try await server.makeWorkspace("limited")
        let id = workspace["id"] as? String ?? ""
        let listed = try await token(["allow_list": ["workspace:\(id)"]]).text("key")
        #expect(try await server.call("GET", "users/me", token: listed).status == 200)
        #expect(try await server.call("GET", "workspaces/\(id)", token: listed).status == 200)
        for path in ["users/me/keys", "users/me/keys/tokens"] {
            let made = try await server.call("POST", path, [:], token: listed)
            #expect(made.status == 404 || made.status == 403, "\(path)")
        }
        #expect(try await server.call("GET", "deployment/config", token: listed).status == 403)

        let keys = try await token(["scopes": ["api_key:*", "workspace:read"]]).text("key")
        let session = try await server.call("POST", "users/me/keys", token: keys).text("key")
        for key in [keys, session] {
            #expect(try await server.call("GET", "workspaces/\(id)", token: key).status == 200)
            #expect(
                try await server.call("PUT", "workspaces/\(id)/dormant", ["dormant": true], token: key).status
                    == 403)
        }
        #expect(try await token(["scopes": ["coder:all"]], by: keys).status == 403)
        #expect(try await token(["scopes": ["workspace:*"]], by: keys).status == 403)
        #expect(try await token(["scopes": ["coder:workspaces.access"]], by: keys).status == 403)
        #expect(try await token(["scopes": ["workspace:read"]], by: keys).status == 201)
        #expect(try await token(["scopes": ["coder:apikeys.manage_self"]], by: keys).status == 201)
        let heir = try await token([:], by: keys).text("key")
        #expect(
            try await server.call("GET", "users/me/keys/\(heir.prefix(10))").object["scopes"] as? [String]
                == ["api_key:*", "workspace:read"])
    }

    @Test(arguments: [
        ("coder:workspaces.access", 201), ("task:*", 201), ("all", 201), ("workspace:foo", 400),
        ("user:*", 400), ("nonsense", 400),
    ]) func publicScopesAreKnown(_ test: (scope: String, status: Int)) async throws {
        let made = try await server.call(
            "POST", "users/me/keys/tokens", ["token_name": UUID().uuidString, "scopes": [test.scope]])
        #expect(made.status == test.status)
        let known = try await server.call("GET", "auth/scopes", token: "").object["external"] as? [String]
        #expect(known?.contains("coder:workspaces.access") == true)
        #expect(known?.count == 48)
    }

    @Test func whoIsRefusedHearsHowToDoBetter() async throws {
        let answer = try await server.call("GET", "users/me", token: "")
        let field = answer.response.headers["WWW-Authenticate"] ?? ""
        #expect(
            field.hasPrefix("Bearer realm=\"coder\", error=\"invalid_token\", error_description=\"You are"))
    }

    @Test func aCookieAloneChangesNothing() async throws {
        let cookie: HeaderFields = ["Cookie": "coder_session_token=\(server.token)"]
        #expect(try await server.call("GET", "users/me", token: "", headers: cookie).status == 200)
        #expect(try await server.call("POST", "users/me/keys", token: "", headers: cookie).status == 400)
        let bearer: HeaderFields = ["Authorization": "Bearer \(server.token)"]
        #expect(try await server.call("POST", "users/me/keys", token: "", headers: bearer).status == 201)
    }
}

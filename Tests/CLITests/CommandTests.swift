// SPDX-License-Identifier: Apache-2.0

import CLI
import Testing

private let workspace = """
    {"id":"w1","name":"dev","owner_name":"ann","organization_id":"o1","organization_name":"coder",
     "template_name":"external","outdated":false,"favorite":true,"health":{"healthy":true,"failing_agents":[]},
     "autostart_schedule":"CRON_TZ=Europe/Berlin 30 9 * * 1-5","ttl_ms":28800000,
     "latest_build":{"id":"b1","transition":"start","status":"running","template_version_name":"v1","deadline":null,
       "daily_cost":0,"job":{"status":"succeeded","created_at":"2020-01-01T00:00:00Z"},
       "resources":[{"type":"coder_external_agent","name":"main","agents":[{"id":"a1","name":"main","parent_id":null,
         "status":"connected","lifecycle_state":"ready","operating_system":"linux","architecture":"amd64",
         "version":"v2.29.0","health":{"healthy":true},"scripts":[]}]}]}}
    """

@Suite(.timeLimit(.minutes(1))) struct CommandTests {
    /// A deployment with one user and one workspace.
    private func server(firstUser: Bool = true) throws -> StubServer {
        try StubServer { request in
            let isAuthorised = request.header("Coder-Session-Token") == "good-token"
            switch request.line {
            case "GET /api/v2/users/first": return (firstUser ? 200 : 404, #"{"message":"m"}"#)
            case "POST /api/v2/users/first": return (201, #"{"user_id":"u1"}"#)
            case "POST /api/v2/users/login" where request.body.contains("wrong"):
                return (401, #"{"message":"Incorrect email or password."}"#)
            case "POST /api/v2/users/login": return (201, #"{"session_token":"good-token"}"#)
            case "GET /api/v2/buildinfo": return (200, #"{"version":"v2.30.0"}"#)
            case _ where !isAuthorised:
                return (401, #"{"message":"Cookie or query parameter is invalid.","detail":"no such key"}"#)
            case "POST /api/v2/users/me/keys": return (201, #"{"key":"good-token"}"#)
            case "POST /api/v2/users/logout": return (200, #"{"message":"bye"}"#)
            case "GET /api/v2/users/me":
                return (
                    200, #"{"id":"u1","username":"ann","organization_ids":["o1"],"roles":[{"name":"owner"}]}"#
                )
            case "GET /api/v2/workspaces?q=owner%3Ame":
                return (200, #"{"workspaces":[\#(workspace)],"count":1}"#)
            case "GET /api/v2/workspaces?q=none": return (200, #"{"workspaces":[],"count":0}"#)
            case "GET /api/v2/users/me/workspace/dev": return (200, workspace)
            case "GET /api/v2/workspaces/w1/external-agent/main/credentials":
                return (200, #"{"command":"c","agent_token":"secret"}"#)
            default:
                return (404, #"{"message":"Resource not found or you do not have access to this resource"}"#)
            }
        }
    }

    private func run(_ server: StubServer, _ arguments: String..., directory: String? = nil) async -> Outcome
    {
        await coder(
            arguments, environment: ["CODER_URL": server.url, "CODER_SESSION_TOKEN": "good-token"],
            directory: directory ?? temporaryDirectory())
    }

    @Test func firstUserWithoutTerminal() async throws {
        let server = try server(firstUser: false)
        let directory = temporaryDirectory()
        let outcome = await coder(
            [
                "login", server.url, "--first-user-username", "ann", "--first-user-email", "ann@example.org",
                "--first-user-password", "correct horse battery 7",
            ], directory: directory)
        #expect(outcome.status == 0)
        #expect(outcome.output == "Welcome to Coder, ann! You're authenticated.\n")
        let body = try JSON.parse(
            try #require(server.requests.first { $0.line == "POST /api/v2/users/first" }).body.utf8)
        #expect(body["email"].string == "ann@example.org")
        #expect(body["password"].string == "correct horse battery 7")
        // Logged in now: no URL and no token needed.
        let who = await coder(["whoami"], directory: directory)
        #expect(who.output == "Coder is running at \(server.url), You're authenticated as ann !\n")
        #expect(await coder(["logout", "--yes"], directory: directory).status == 0)
        let after = await coder(["whoami"], directory: directory)
        #expect(after.status == 1)
        #expect(after.output == "")
        #expect(after.errors.contains("You are not logged in."))
    }

    @Test func aTokenIsExchangedOrKept() async throws {
        let server = try server()
        for flags in [[], ["--use-token-as-session"]] {
            let outcome = await coder(["login", server.url, "--token", "good-token"] + flags)
            #expect(outcome.status == 0)
        }
        #expect(server.requests.filter { $0.line == "POST /api/v2/users/me/keys" }.count == 1)
        let pasted = await coder(["login", server.url], input: ["good-token"])
        #expect(pasted.status == 0)
        #expect(pasted.output.contains("\(server.url)/cli-auth"))
        let wrong = await coder(["login", server.url], input: ["bad-token"])
        #expect(wrong.status == 1)
        #expect(wrong.errors.contains("That's not a valid token!"))
    }

    @Test func aPasswordLogsInAgain() async throws {
        let server = try server()
        let flags = ["--first-user-email", "ann@example.org", "--first-user-password"]
        let outcome = await coder(["login", server.url] + flags + ["correct horse battery 7"])
        #expect(outcome.status == 0)
        #expect(outcome.output == "Welcome to Coder, ann! You're authenticated.\n")
        let asked = await coder(["login", server.url] + flags.prefix(2), input: ["correct horse battery 7"])
        #expect(asked.status == 0)
        let wrong = await coder(["login", server.url] + flags + ["wrong"])
        #expect(wrong.status == 1)
        #expect(wrong.output == "")
        #expect(wrong.errors.split(separator: "\n").last == "error: Incorrect email or password.")
    }

    @Test func anInvalidTokenIsOneLine() async throws {
        let server = try server()
        let outcome = await coder(
            ["list"], environment: ["CODER_URL": server.url, "CODER_SESSION_TOKEN": "revoked"])
        #expect(outcome.status == 1)
        #expect(outcome.output == "")
        #expect(
            outcome.errors
                == "error: Cookie or query parameter is invalid. Try logging in using 'coder login'.\n")
    }

    @Test func listPrintsTablesAndJSON() async throws {
        let server = try server()
        let table = await run(server, "list", "-c", "workspace,Status,healthy,starts_at,stops after,template")
        #expect(
            table.output == """
                WORKSPACE  STATUS   HEALTHY  STARTS AT                       STOPS AFTER  TEMPLATE  \n\
                ★ ann/dev  Started  true     9:30AM Mon-Fri (Europe/Berlin)  8h           external  \n
                """)
        let json = await run(server, "list", "-o", "json")
        #expect(try JSON.parse(json.output.utf8) == JSON.parse("[\(workspace)]".utf8))
        let none = await run(server, "list", "--search", "none")
        #expect(none.output == "")
        #expect(none.errors.contains("No workspaces found"))
        #expect(none.status == 0)
        let bad = await run(server, "list", "-c", "nonsense")
        #expect(bad.errors.contains("unknown column \"nonsense\""))
    }

    @Test func showDrawsTheTree() async throws {
        let outcome = await run(try server(), "show", "dev")
        #expect(
            outcome.output == """
                ┌───────────────────────────┬─────────────┬───────────┬────────────────────┬───────────────┐
                │ RESOURCE                  │ STATUS      │ HEALTH    │ VERSION            │ ACCESS        │
                ├───────────────────────────┼─────────────┼───────────┼────────────────────┼───────────────┤
                │ coder_external_agent.main │             │           │                    │               │
                │ └─ main (linux, amd64)    │ ⦿ connected │ ✔ healthy │ v2.29.0 (outdated) │ coder ssh dev │
                └───────────────────────────┴─────────────┴───────────┴────────────────────┴───────────────┘

                """)
    }

    @Test func showListsOpenPorts() async throws {
        let server = try StubServer { request in
            switch request.line {
            case "GET /api/v2/buildinfo": (200, #"{"version":"v2.30.0"}"#)
            case "GET /api/v2/workspaceagents/a1/listening-ports":
                (
                    200,
                    """
                    {"ports":[{"process_name":"python3","network":"tcp","port":8080},
                              {"process_name":"","network":"tcp","port":9000}]}
                    """
                )
            default: (200, workspace)
            }
        }
        let lines = await run(server, "show", "dev").output.split(separator: "\n").map { line in
            line.split(separator: "│", omittingEmptySubsequences: false).dropFirst().first.map(String.init)
                ?? ""
        }
        let names = lines.map { text in String(text.reversed().drop { $0 == " " }.reversed()) }
        #expect(
            names.suffix(5).dropLast() == [
                " └─ main (linux, amd64)", "    └─ Open Ports", "       ├─ 8080/tcp [python3]",
                "       └─ 9000/tcp",
            ])
    }

    @Test func aMissingWorkspaceIsNamed() async throws {
        let server = try server()
        for command in ["show", "ssh", "ping", "speedtest"] {
            let outcome = await run(server, command, "nope")
            #expect(outcome.status == 1)
            #expect(outcome.output == "")
            #expect(
                outcome.errors == "error: there is no workspace \"nope\": 'coder list' shows those you have\n"
            )
        }
        let agent = await run(server, "ssh", "dev.other", "--", "true")
        #expect(agent.errors == "error: the workspace \"dev\" has no agent \"other\", only: main\n")
    }

    @Test func instructionsAreTwoLines() async throws {
        let server = try server()
        let outcome = await run(server, "external-workspaces", "agent-instructions", "dev")
        #expect(
            outcome.output == "export CODER_AGENT_URL=\(server.url) CODER_AGENT_TOKEN=secret\ncoder agent\n")
        let json = await run(server, "external-workspaces", "agent-instructions", "dev", "-o", "json")
        #expect(try JSON.parse(json.output.utf8)["auth_token"].string == "secret")
    }

    @Test func aServerThatIsNotThereIsNamed() async {
        let outcome = await coder(["whoami", "--url", "http://127.0.0.1:9", "--token", "x"])
        #expect(outcome.errors == "error: connection refused by http://127.0.0.1:9: nothing listens there\n")
        let notOurs = await coder(["login", "ftp://x"])
        #expect(notOurs.status == 1)
    }

    @Test func headersAndVersionWarning() async throws {
        let server = try server()
        let outcome = await coder(
            [
                "whoami", "--url", server.url, "--token", "good-token", "--header", "X-A=b=c",
                "--header-command", "echo X-D=e",
            ],
            hooks: Hooks(version: "v2.29.0"))
        #expect(server.requests.last?.header("X-A") == "b=c")
        #expect(server.requests.last?.header("X-D") == "e")
        #expect(server.requests.last?.header("User-Agent")?.hasPrefix("coder-cli/v2.29.0 (linux/") == true)
        #expect(outcome.errors == "version mismatch: client v2.29.0, server v2.30.0-test\n")
    }

    @Test func aServerOfSomethingElse() async throws {
        let other = try StubServer { _ in (200, "<html>hello</html>") }
        let outcome = await coder(["whoami", "--url", other.url, "--token", "x"])
        #expect(outcome.errors.contains("something else than JSON"))
        #expect(outcome.output == "")
    }
}

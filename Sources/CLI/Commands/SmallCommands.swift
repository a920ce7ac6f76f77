// SPDX-License-Identifier: Apache-2.0

internal import HTTPTransport

/// `coder whoami`.
enum WhoamiCommand {
    private static let names = ["URL", "Username", "ID", "Orgs", "Roles"]

    static let command = Command(
        name: "whoami", summary: "Show who is logged in, and where.",
        options: [
            Commands.output(["text", "json", "table"]), Commands.columns(names, default: "url,username,id"),
        ], run: run)

    @Sendable static func run(_ invocation: Invocation) async throws -> Int32 {
        let client = try invocation.client()
        let user = try await client.get("users/me")
        let organizations = user["organization_ids"].elements.map(\.text)
        let roles = user["roles"].elements.map { role in
            role["display_name"].text.isEmpty ? role["name"].text : role["display_name"].text
        }
        let url = client.base.path == "/" ? client.base.origin : "\(client.base)"
        switch invocation.values.string("output") {
        case "text":
            invocation.console.say(
                "Coder is running at \(url), You're authenticated as \(user["username"].text) !")
        case "json":
            let json = JSON.array([
                .record([
                    "url": .string(url), "username": user["username"], "user_id": user["id"],
                    "organization_ids": user["organization_ids"],
                    "roles": .record(["*": .array(roles.map { .string($0) })]),
                ])
            ])
            invocation.console.say(json.pretty)
        default:
            let row = [
                url, user["username"].text, user["id"].text, "[\(organizations.joined(separator: ", "))]",
                "[\(roles.joined(separator: ", "))]",
            ]
            invocation.console.out(
                Table.text(names: names, columns: invocation.values.columns("column"), rows: [row]))
        }
        return 0
    }
}

/// `coder version`.
enum VersionCommand {
    static let command = Command(
        name: "version", summary: "Show the version of this program.",
        options: [Commands.output(["text", "json"])],
        run: run)

    @Sendable static func run(_ invocation: Invocation) async throws -> Int32 {
        let isSlim = invocation.hooks.server == nil
        if invocation.values.string("output") == "json" {
            let json = JSON.record([
                "version": .string(invocation.hooks.version), "build_time": .string("0001-01-01T00:00:00Z"),
                "external_url": .string(""), "slim": .bool(isSlim), "agpl": .bool(false),
                "boring_crypto": .bool(false),
            ])
            invocation.console.say(json.pretty)
        } else {
            // Editors split this line at its spaces and take the second word.
            invocation.console.say("Coder \(invocation.hooks.version)")
            invocation.console.say(
                isSlim
                    ? "Slim build: client and agent, without the server."
                    : "Full build: server, client and agent.")
        }
        return 0
    }
}

/// `coder tokens`.
enum TokensCommand {
    private static let names = [
        "id", "name", "scopes", "allow list", "last used", "expires at", "created at", "owner",
    ]
    private static let shown = "id,name,scopes,allow list,last used,expires at,created at"

    static let command = Command(
        name: "tokens", aliases: ["token"], summary: "Manage tokens for programs that act for you.",
        subcommands: [
            Command(
                name: "create", summary: "Make a token and print it.",
                options: [
                    CommandOption(
                        "lifetime", env: "CODER_TOKEN_LIFETIME",
                        help: "How long it is valid: 12h, 30d, 1y. Default: as long as the server allows."),
                    CommandOption("name", short: "n", env: "CODER_TOKEN_NAME", help: "Name of the token."),
                    CommandOption(
                        "user", short: "u", env: "CODER_TOKEN_USER", help: "Whose token, for administrators."),
                    CommandOption("scope", .stringArray, help: "What it may do; repeatable."),
                    CommandOption("allow", .stringArray, help: "<type>:<id> it may touch; repeatable."),
                ], run: create),
            Command(
                name: "list", aliases: ["ls"], summary: "List your tokens.",
                options: [
                    CommandOption("all", short: "a", .bool, help: "Everyone's tokens that you may see."),
                    Commands.columns(names, default: shown), Commands.output(["table", "json"]),
                ], run: list),
            Command(
                name: "remove", aliases: ["delete"], usage: "<name|id|token>", summary: "Revoke a token.",
                arguments: .exactly(1), run: remove),
        ])

    @Sendable static func create(_ invocation: Invocation) async throws -> Int32 {
        let client = try invocation.client()
        let user =
            invocation.values.string("user").isEmpty ? "me" : HTTPURL.encode(invocation.values.string("user"))
        let wanted = invocation.values.string("lifetime")
        let limit =
            try await client.get("users/\(user)/keys/tokens/tokenconfig")["max_token_lifetime"].int ?? 0
        var lifetime = Int64(min(limit, 3_155_760_000 * 1_000_000_000))
        if !wanted.isEmpty {
            guard let duration = parseDuration(wanted), duration > .zero else {
                throw CommandError("not a lifetime: \"\(wanted)\"; write it like 12h, 30d or 1y")
            }
            guard limit == 0 || duration.wholeNanoseconds <= limit else {
                throw CommandError("the server allows at most \(format(.nanoseconds(Int64(limit))))")
            }
            lifetime = duration.wholeNanoseconds
        }
        var body: [JSON.Member] = [
            .init(key: "lifetime", value: .int(lifetime)),
            .init(key: "token_name", value: .string(invocation.values.string("name"))),
        ]
        for (flag, key) in [("scope", "scopes"), ("allow", "allow_list")] {
            let list = invocation.values.list(flag)
            if !list.isEmpty { body.append(.init(key: key, value: .array(list.map { .string($0) }))) }
        }
        invocation.console.say(
            try await client.post("users/\(user)/keys/tokens", .object(body))["key"].text)
        return 0
    }

    @Sendable static func list(_ invocation: Invocation) async throws -> Int32 {
        let client = try invocation.client()
        let all = invocation.values.bool("all") ? "true" : "false"
        var tokens = try await client.get("users/me/keys/tokens", [("include_all", all)])
        if tokens.isNull { tokens = .array([]) }
        let list = { (json: JSON) in "[\(json.elements.map(\.text).joined(separator: ", "))]" }
        let rows = tokens.elements.map { token in
            [
                token["id"].text, token["token_name"].text, list(token["scopes"]), list(token["allow_list"]),
                token["last_used"].text, token["expires_at"].text, token["created_at"].text,
                token["username"].text,
            ]
        }
        invocation.show(tokens, names: names, rows: rows, empty: "No tokens found.")
        return 0
    }

    @Sendable static func remove(_ invocation: Invocation) async throws -> Int32 {
        let client = try invocation.client()
        let word = invocation.words[0]
        let byName = try await client.raw("GET", "users/me/keys/tokens/\(HTTPURL.encode(word))")
        var id = String(word.prefix { $0 != "-" })
        if byName.status == 200, let token = try? JSON.parse(byName.body), !token["id"].text.isEmpty {
            id = token["id"].text
        }
        _ = try await client.delete("users/me/keys/\(HTTPURL.encode(id))")
        invocation.console.say("Token has been deleted.")
        return 0
    }
}

/// `coder server` and `coder relay`, which the executable brings along or not.
enum HostedCommands {
    static func server(_ hooks: Hooks) -> Command {
        command("server", "Start a Coder server.", "", hooks.server)
    }

    static func relay(_ hooks: Hooks) -> Command {
        command(
            "relay", "Start a relay: at the edge of a deployment, or on its own.",
            """
            A relay near its users, in the deployment's map once it has registered:
              coder relay --primary-access-url https://coder.example.com --proxy-session-token ID:SECRET
            Without any server:
              coder relay --standalone --http-address 0.0.0.0:3340
            """, hooks.relay)
    }

    private static func command(
        _ name: String, _ summary: String, _ details: String, _ hook: ServerHook?
    ) -> Command {
        Command(
            name: name, summary: summary, details: details, options: hook?.options ?? [],
            run: { invocation in
                guard let hook else {
                    invocation.console.note(
                        "You are using a slim build, which has no \(name). Run this with the full 'coder' program."
                    )
                    return 1
                }
                return try await hook.run(
                    ServerInvocation(
                        values: invocation.values, environment: invocation.environment,
                        configDirectory: invocation.config.path, console: invocation.console,
                        version: invocation.hooks.version))
            })
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import HTTPTransport

/// `coder workspace-proxy`: edge relays as administrators see them. Hidden, as in the original.
enum WorkspaceProxyCommand {
    private static let names = ["name", "url", "proxy status", "region", "version"]

    static func command(_ hooks: Hooks) -> Command {
        var server = HostedCommands.relay(hooks)
        server.name = "server"
        return Command(
            name: "workspace-proxy", aliases: ["wsproxy"],
            summary: "Manage relays at the edge of the deployment.",
            isHidden: true,
            subcommands: [
                server,
                Command(
                    name: "create",
                    summary: "Make a relay known, and print the token that it registers with.",
                    options: [
                        CommandOption("name", help: "Name of the relay."),
                        CommandOption("display-name", help: "Name for people. Default: the name."),
                        CommandOption("icon", help: "URL of an icon."),
                        CommandOption("only-token", .bool, help: "Print nothing but the token."),
                        CommandOption("no-prompt", .bool, hidden: true, help: "Accepted: nothing is asked."),
                        Commands.output(["text", "json"]),
                    ], run: create),
                Command(
                    name: "ls", aliases: ["list"], summary: "List relays and how they are.",
                    options: [
                        Commands.columns(names, default: "name,url,proxy status"),
                        Commands.output(["table", "json"]),
                    ], run: list),
                Command(
                    name: "edit", usage: "<name|id>", summary: "Change the names or the icon of a relay.",
                    arguments: .exactly(1),
                    options: [
                        CommandOption("name", help: "New name."),
                        CommandOption("display-name", help: "New name for people."),
                        CommandOption("icon", help: "URL of a new icon."),
                        Commands.output(["text", "json"]),
                    ], run: edit),
                Command(
                    name: "delete", usage: "<name|id>", summary: "Remove a relay; its token becomes void.",
                    arguments: .exactly(1), options: [Commands.yes], run: delete),
                Command(
                    name: "regenerate-token", usage: "<name|id>",
                    summary: "Print a new token for a relay; the old one becomes void.",
                    arguments: .exactly(1), options: [Commands.output(["text", "json"])], run: regenerate),
            ])
    }

    @Sendable static func create(_ invocation: Invocation) async throws -> Int32 {
        let values = invocation.values
        guard !values.string("name").isEmpty else { throw CommandError("name is required: --name") }
        let display = values.string("display-name")
        let answer = try await invocation.client().post(
            "workspaceproxies",
            .record([
                "name": .string(values.string("name")),
                "display_name": .string(display.isEmpty ? values.string("name") : display),
                "icon": .string(values.string("icon")),
            ]))
        if values.bool("only-token") {
            invocation.console.say(answer["proxy_token"].text)
        } else {
            try show(answer, invocation)
        }
        return 0
    }

    @Sendable static func list(_ invocation: Invocation) async throws -> Int32 {
        let proxies = try await invocation.client().get("workspaceproxies")["regions"]
        let rows = proxies.elements.map { proxy in
            [
                proxy["name"].text, proxy["path_app_url"].text, proxy["status"]["status"].text,
                proxy["display_name"].text, proxy["version"].text,
            ]
        }
        invocation.show(proxies, names: names, rows: rows, empty: "No relays.")
        return 0
    }

    @Sendable static func edit(_ invocation: Invocation) async throws -> Int32 {
        let values = invocation.values
        let flags = ["name", "display-name", "icon"]
        guard flags.contains(where: { !values.string($0).isEmpty }) else {
            throw CommandError("specify at least one field to update: --name, --display-name or --icon")
        }
        let client = try invocation.client()
        let route = "workspaceproxies/\(HTTPURL.encode(invocation.words[0]))"
        let proxy = try await client.get(route)
        func changed(_ flag: String, _ key: String) -> JSON {
            values.string(flag).isEmpty ? proxy[key] : .string(values.string(flag))
        }
        let answer = try await client.patch(
            route,
            .record([
                "id": proxy["id"], "name": changed("name", "name"),
                "display_name": changed("display-name", "display_name"), "icon": changed("icon", "icon_url"),
            ]))
        guard values.string("output") != "json" else {
            invocation.console.say(answer.pretty)
            return 0
        }
        invocation.console.say("Relay \"\(answer["proxy"]["name"].text)\" updated successfully")
        return 0
    }

    @Sendable static func delete(_ invocation: Invocation) async throws -> Int32 {
        let word = invocation.words[0]
        if !invocation.values.bool("yes") {
            guard try invocation.prompt.confirm("Delete relay \(word)?", default: false) else {
                throw SilentFailure()
            }
        }
        _ = try await invocation.client().delete("workspaceproxies/\(HTTPURL.encode(word))")
        invocation.console.say("Relay \"\(word)\" deleted successfully")
        return 0
    }

    @Sendable static func regenerate(_ invocation: Invocation) async throws -> Int32 {
        let client = try invocation.client()
        let route = "workspaceproxies/\(HTTPURL.encode(invocation.words[0]))"
        let proxy = try await client.get(route)
        let answer = try await client.patch(
            route,
            .record([
                "id": proxy["id"], "name": proxy["name"], "display_name": proxy["display_name"],
                "icon": proxy["icon_url"], "regenerate_token": .bool(true),
            ]))
        try show(answer, invocation)
        return 0
    }

    private static func show(_ answer: JSON, _ invocation: Invocation) throws {
        guard invocation.values.string("output") != "json" else {
            return invocation.console.say(answer.pretty)
        }
        let url = try invocation.client().base.origin
        invocation.console.say(
            """
            Relay "\(answer["proxy"]["name"].text)". Its token is shown this once:

              \(answer["proxy_token"].text)

            Start it where its users are, with the URL under which they reach it:

              CODER_PROXY_SESSION_TOKEN=<token> coder relay \\
                --primary-access-url \(url) --access-url https://relay.example.com
            """)
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import HTTPTransport

/// `coder open app`: a program that a workspace's template offers, in the browser or where else its address leads.
/// cli/commands.md §4.8.
package enum OpenAppCommand {
    static let command = Command(
        name: "app", usage: "<workspace> <app>", summary: "Open an app of a workspace.",
        details: "Apps are named by their slug; one that does not exist lists those that do.",
        arguments: .exactly(2),
        options: [
            CommandOption(
                "region", env: "CODER_OPEN_APP_REGION", .string, default: "primary",
                help: "Go through the workspace proxy of this region.")
        ], run: run)

    /// In the address of an app that is not the deployment's: whoever opens it.
    private static let placeholder = "$SESSION_TOKEN"

    @Sendable private static func run(_ invocation: Invocation) async throws -> Int32 {
        let client = try invocation.client()
        let finder = AgentFinder(invocation: invocation, client: client)
        let (workspace, agent) = try await finder.find(
            try WorkspaceName(invocation.words[0]), autostart: true)
        let slug = invocation.words[1]
        let app = try choose(slug, "app", in: agent.json["apps"].elements, by: "slug")
        let regions = try await client.get("regions")["regions"].elements
        let region = try choose(invocation.values.string("region"), "region", in: regions, by: "name")
        let place = Place(
            base: region["path_app_url"].text.isEmpty ? client.base.origin : region["path_app_url"].text,
            wildcardHost: region["wildcard_hostname"].text,
            workspace: "@\(workspace.ownerName)/\(workspace.name).\(agent.name)")
        let address = try address(of: app, at: place)
        let opens = invocation.environment["CODER"] != "true" && !invocation.values.bool("no-open")
        guard opens else {
            invocation.console.say(address)
            return 0
        }
        var key = ""
        if address.range(ofText: placeholder) != nil {
            key = try await client.post("users/me/keys")["key"].text
        }
        guard OpenCommand.open(address.replacing(placeholder, with: key), invocation.environment) else {
            if !key.isEmpty { _ = try await client.delete("users/me/keys/\(key.prefix { $0 != "-" })") }
            invocation.console.note("No program opened the link; open it yourself:")
            invocation.console.say(address)
            return 0
        }
        invocation.console.note("Opened \(slug) of \(workspace.fullName).")
        return 0
    }

    /// The one with this name; else the error lists all of them.
    package static func choose(_ name: String, _ kind: String, in list: [JSON], by key: String) throws -> JSON
    {
        if let found = list.first(where: { $0[key].text == name }) { return found }
        let names = list.map { Table.clean($0[key].text) }.sorted()
        let known = names.isEmpty ? "there are none" : "only: \(names.joined(separator: ", "))"
        throw CommandError("there is no \(kind) \"\(Table.clean(name))\", \(known)")
    }

    /// Where the apps of an agent are.
    package struct Place {
        /// The deployment's address, or a proxy's.
        var base: String
        /// `*.apps.example.com`; empty where apps have no host names of their own.
        var wildcardHost: String
        /// `@owner/workspace.agent`
        var workspace: String

        package init(base: String, wildcardHost: String, workspace: String) {
            self.base = base.hasSuffix("/") ? String(base.dropLast()) : base
            self.wildcardHost = wildcardHost
            self.workspace = workspace
        }
    }

    /// The address of an app, as the server shows it.
    package static func address(of app: JSON, at place: Place) throws -> String {
        if app["external"].bool { return try checked(app["url"].text) }
        let command = app["command"].text, name = app["subdomain_name"].text
        if !command.isEmpty {
            return "\(place.base)/\(place.workspace)/terminal?command=\(HTTPURL.encode(command))"
        }
        if app["subdomain"].bool, !name.isEmpty, !place.wildcardHost.isEmpty {
            let scheme = place.base.range(ofText: "://").map { place.base[..<$0.lowerBound] } ?? "https"
            return try checked(
                "\(scheme)://\(place.wildcardHost.replacing("*", with: name, maxReplacements: 1))/")
        }
        return "\(place.base)/\(place.workspace)/apps/\(HTTPURL.encode(app["slug"].text))/"
    }

    /// Whoever wrote the template chose it: it must be an address, and nothing that a terminal obeys.
    private static func checked(_ address: String) throws -> String {
        let isPlain = address.utf8.allSatisfy { $0 > 0x20 && $0 != 0x7f }
        guard isPlain, let colon = address.firstIndex(of: ":"), colon > address.startIndex,
            address[..<colon].allSatisfy({ $0.isASCII && ($0.isLetter || $0.isNumber || "+-.".contains($0)) })
        else { throw CommandError("the app has no address that can be opened: \(Table.clean(address))") }
        return address
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import HTTPTransport
internal import LinuxIO

/// `coder support bundle`: one file for whoever helps. cli/commands.md §3.11.
enum SupportBundleCommand {
    static let command = Command(
        name: "support", summary: "Find out what is wrong, with the help of others.",
        subcommands: [
            Command(
                name: "bundle", usage: "[<workspace>] [<agent>]",
                summary: "Gather what is known of the deployment, the network and a workspace into one file.",
                arguments: .between(0, 2),
                options: [
                    Commands.yes,
                    CommandOption(
                        "output-file", short: "O", env: "CODER_SUPPORT_BUNDLE_OUTPUT_FILE",
                        help: "The file to write. Default: coder-support-<time>.zip in this directory."),
                    CommandOption(
                        "url-override", env: "CODER_SUPPORT_BUNDLE_URL_OVERRIDE", .url,
                        help: "Ask the server at this URL, such as one of several replicas."),
                    CommandOption(
                        "workspaces-total-cap", env: "CODER_SUPPORT_BUNDLE_WORKSPACES_TOTAL_CAP", .int,
                        default: "10", help: "How many workspaces are listed; 0 for all."),
                    CommandOption(
                        "template", env: "CODER_SUPPORT_BUNDLE_TEMPLATE",
                        help: "A template to include: its name, or organization/name."),
                    CommandOption(
                        "pprof", env: "CODER_SUPPORT_BUNDLE_PPROF", .bool,
                        help: "Accepted; this program has no profiles to collect."),
                ], run: run)
        ])

    private static let notice = """
        The bundle describes your deployment, this machine's network and the workspace: addresses, names, logs,
        settings. Tokens, passwords, environment variables and values of parameters are left out, but logs hold
        whatever programs wrote. Look through it before you give it away.
        """

    @Sendable private static func run(_ invocation: Invocation) async throws -> Int32 {
        var client = try invocation.client()
        let other = invocation.values.string("url-override")
        if !other.isEmpty {
            guard let url = HTTPURL(other) else {
                throw CommandError("\"\(other)\" is not an http or https URL")
            }
            client = try invocation.client(url: url, token: client.token)
        }
        invocation.console.note(notice)
        if !invocation.values.bool("yes"), try !invocation.prompt.confirm("Continue?", default: false) {
            return 1
        }
        let given = invocation.values.string("output-file")
        let path = given.isEmpty ? "coder-support-\(Int(Timestamp.now.seconds)).zip" : given
        let file = try create(path)
        do {
            let archive = try await gather(invocation, client)
            try archive.withUnsafeBytes { try Descriptor.writeAll(file.number, $0) }
        } catch {
            unlink(path)
            throw error
        }
        invocation.console.note("Wrote support bundle to \(path)")
        return 0
    }

    /// A new file for its owner alone: made first, so that a place where it cannot be is told at once.
    private static func create(_ path: String) throws -> OwnedDescriptor {
        let number = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard number >= 0 else {
            throw CommandError("cannot write \(path): \(String(cString: strerror(errno)))")
        }
        return OwnedDescriptor(taking: number)
    }

    private static func gather(_ invocation: Invocation, _ client: APIClient) async throws -> [UInt8] {
        var bundle = SupportBundle(invocation, client)
        invocation.console.note("Gathering what the deployment says...")
        try await bundle.addDeployment(workspaces: invocation.values.int("workspaces-total-cap") ?? 10)
        let template = invocation.values.string("template")
        if !template.isEmpty { try await bundle.add(template: template) }
        if let word = invocation.words.first {
            invocation.console.note("Gathering what there is of the workspace...")
            let name = try WorkspaceName(word)
            let workspace = try await client.workspace(name)
            try await bundle.add(workspace)
            let wanted = invocation.words.count > 1 ? invocation.words[1] : name.agent
            do {
                try await bundle.add(try workspace.agent(named: wanted))
            } catch let error as CommandError where wanted == nil {
                bundle.note("agent: \(error)")  // a workspace that is stopped has none
            }
        }
        invocation.console.note(
            "Gathering what this machine's network is like. This may take a few seconds...")
        try await bundle.addNetwork()
        bundle.addNotes()
        let now = Timestamp.now.broken(isLocal: true)
        var zip = ZipWriter(
            stamp: ZipWriter.Stamp(
                year: Int(now.tm_year) + 1900, month: Int(now.tm_mon) + 1, day: Int(now.tm_mday),
                hour: Int(now.tm_hour), minute: Int(now.tm_min), second: Int(now.tm_sec)))
        for file in bundle.files { try zip.add(file.name, file.content) }
        return zip.finish()
    }
}

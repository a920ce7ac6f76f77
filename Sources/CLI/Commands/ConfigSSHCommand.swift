// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import HTTPTransport
internal import LinuxIO

/// `coder config-ssh`: a section in `~/.ssh/config` so that `ssh dev.coder` goes through this program.
package enum ConfigSSHCommand {
    package static let startToken = "# ------------START-CODER-----------"
    package static let endToken = "# ------------END-CODER------------"

    static let command = Command(
        name: "config-ssh",
        summary: "Add a section to your SSH configuration, so that 'ssh <workspace>.coder' works.",
        options: [
            CommandOption(
                "ssh-config-file", env: "CODER_SSH_CONFIG_FILE", default: "~/.ssh/config",
                help: "File to change."),
            CommandOption(
                "coder-binary-path", env: "CODER_SSH_CONFIG_BINARY_PATH",
                help: "Absolute path of this program as ssh is to run it."),
            CommandOption(
                "ssh-option", short: "o", env: "CODER_SSH_CONFIG_OPTS", .stringArray,
                help: "Additional options for the hosts, as Key=value."),
            CommandOption(
                "dry-run", short: "n", env: "CODER_SSH_DRY_RUN", .bool,
                help: "Show what would change, change nothing."),
            CommandOption(
                "use-previous-options", env: "CODER_SSH_USE_PREVIOUS_OPTIONS", .bool,
                help: "Take all options from the section that is there."),
            CommandOption(
                "ssh-host-prefix", env: "CODER_CONFIGSSH_SSH_HOST_PREFIX", help: "Prefix of host names."),
            CommandOption(
                "hostname-suffix", env: "CODER_CONFIGSSH_HOSTNAME_SUFFIX", help: "Suffix of host names."),
            CommandOption(
                "wait", env: "CODER_CONFIGSSH_WAIT", .choice(["yes", "no", "auto"]), default: "auto",
                help: "Whether logins wait for the startup scripts."),
            CommandOption(
                "disable-autostart", env: "CODER_CONFIGSSH_DISABLE_AUTOSTART", .bool,
                help: "Do not start a stopped workspace."),
            CommandOption(
                "skip-proxy-command", env: "CODER_SSH_SKIP_PROXY_COMMAND", .bool, hidden: true,
                help: "Leave the ProxyCommand out; for tests and for those who write their own."),
            CommandOption(
                "force-unix-filepaths", env: "CODER_CONFIGSSH_UNIX_FILEPATHS", .bool, hidden: true,
                help: "Accepted; paths have no other form here."),
            Commands.yes,
        ], run: run)

    @Sendable static func run(_ invocation: Invocation) async throws -> Int32 {
        let client = try invocation.client()
        let deployment: JSON
        do {
            deployment = try await client.get("deployment/ssh")
        } catch let error as APIError where error.status == 404 {
            deployment = .record(["hostname_prefix": .string("coder.")])  // a server older than the route
        }
        let values = invocation.values
        guard !values.bool("skip-proxy-command") || values.string("wait") == "auto" else {
            throw CommandError(
                "--skip-proxy-command does not go with --wait, which the ProxyCommand would carry")
        }
        var path = values.string("ssh-config-file")
        if path.hasPrefix("~/") { path = homeDirectory(invocation.environment) + path.dropFirst(1) }
        var found = ""
        do {
            found = try TextFile.read(path)
        } catch let error as SystemError where error.code == ENOENT {
            found = ""
        }
        var options = StoredOptions(values)
        let previous = StoredOptions(section: found)
        if let previous, previous != options {
            if values.bool("use-previous-options") {
                options = previous
            } else if !values.bool("yes"), !values.bool("dry-run"), invocation.console.isInputTerminal {
                invocation.console.say(
                    "The options differ from those of the last run.\n  New:      \(options.text)\n"
                        + "  Previous: \(previous.text)")
                if try !invocation.prompt.confirm("Use the new ones?", default: true) { options = previous }
            }
        }
        let prefix = options.prefix ?? deployment["hostname_prefix"].text
        let suffix = options.suffix ?? deployment["hostname_suffix"].text
        let section = try ConfigSSHSection(
            program: program(invocation), configDirectory: invocation.config.path, prefix: prefix,
            suffix: suffix, options: options,
            skipsProxyCommand: values.bool("skip-proxy-command"),
            deploymentOptions: deployment["ssh_config_options"].members.map { ($0.key, $0.value.text) }
        ).text()
        let changed = try replaceSection(in: found, with: section)
        warnAboutOthers(invocation)
        if values.bool("dry-run") {
            invocation.console.note("Nothing is changed (--dry-run).")
            invocation.console.out(UnifiedDiff.text(from: found, to: changed, name: path))
            return 0
        }
        guard changed != found else {
            invocation.console.say("No changes to make.")
            return 0
        }
        if !values.bool("yes"), invocation.console.isInputTerminal {
            invocation.console.say(
                "The following will be changed:\n\n\(UnifiedDiff.text(from: found, to: changed, name: path))")
            guard try invocation.prompt.confirm("Continue?", default: true) else { return 0 }
        }
        if let slash = path.lastIndex(of: "/") { try makeDirectories(String(path[..<slash]), mode: 0o700) }
        try TextFile.replace(path, with: changed, mode: 0o600)
        invocation.console.say("Updated \"\(path)\"")
        let host = prefix.isEmpty ? "<workspace>.\(suffix)" : "\(prefix)<workspace>"
        invocation.console.say("Connect to a workspace with: ssh \(host)")
        return 0
    }

    /// ssh runs the program that is written down; people who type `coder` run the first in PATH.
    private static func warnAboutOthers(_ invocation: Invocation) {
        guard invocation.values.string("coder-binary-path").isEmpty else { return }
        let own = ProgramFile.path
        let name = own.split(separator: "/").last.map(String.init) ?? "coder"
        let folders = (invocation.environment["PATH"] ?? "").split(separator: ":")
        let candidates = folders.map { folder -> String in "\(folder)/\(name)" }
        guard let first = candidates.first(where: { access($0, X_OK) == 0 }),
            TextFile.resolved(first) != TextFile.resolved(own)
        else { return }
        invocation.console.note(
            "Warning: ssh is going to run \(own), but the \"\(name)\" in your PATH is \(Table.clean(first)).")
    }

    private static func program(_ invocation: Invocation) -> String {
        let given = invocation.values.string("coder-binary-path")
        if !given.isEmpty { return given }
        return ProgramFile.path
    }

    /// Puts the section in the place of the old one, or at the end. What stands around it stays byte for byte.
    package static func replaceSection(in text: String, with section: String) throws -> String {
        let starts = lines(of: startToken, in: text)
        let ends = lines(of: endToken, in: text)
        switch (starts.count, ends.count) {
        case (0, 0): return text.isEmpty ? section + "\n" : text + "\n" + section + "\n"
        case (1, 1) where starts[0].lowerBound < ends[0].lowerBound:
            return text[..<starts[0].lowerBound] + section + text[ends[0].upperBound...]
        default:
            throw CommandError(
                "Malformed config: the SSH configuration has \(starts.count) start and \(ends.count) end marks of this"
                    + " program's section, in the wrong number or order; nothing was changed")
        }
    }

    private static func lines(of token: String, in text: String) -> [Range<String.Index>] {
        var result: [Range<String.Index>] = []
        var rest = text[...]
        while let range = rest.range(ofText: token) {
            let isLine =
                (range.lowerBound == text.startIndex || text[text.index(before: range.lowerBound)].isNewline)
                && (range.upperBound == text.endIndex || text[range.upperBound].isNewline)
            if isLine { result.append(range) }
            rest = text[range.upperBound...]
        }
        return result
    }
}

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
            Commands.yes,
        ], run: run)

    @Sendable static func run(_ invocation: Invocation) async throws -> Int32 {
        let client = try invocation.client()
        let answer = try await client.raw("GET", "deployment/ssh")
        let deployment =
            answer.status == 200
            ? try JSON.parse(answer.body) : .record(["hostname_prefix": .string("coder.")])
        let values = invocation.values
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
        let section = try Section(
            program: program(invocation), configDirectory: invocation.config.path,
            isDefaultDirectory: values.source("global-config") <= .default,
            prefix: options.prefix ?? deployment["hostname_prefix"].text,
            suffix: options.suffix ?? deployment["hostname_suffix"].text, options: options,
            deploymentOptions: deployment["ssh_config_options"].members.map { ($0.key, $0.value.text) }
        ).text()
        let changed = try replaceSection(in: found, with: section)
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
        return 0
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

    /// What goes between the marks.
    struct Section {
        var program: String
        var configDirectory: String
        var isDefaultDirectory: Bool
        var prefix: String
        var suffix: String
        var options: StoredOptions
        var deploymentOptions: [(String, String)]

        func text() throws -> String {
            for name in [prefix, suffix] {
                guard name.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7f && !"*?!\"'\\#".utf8.contains($0) })
                else {
                    throw CommandError("\"\(Table.clean(name))\" cannot be part of a host name")
                }
            }
            var lines = [
                startToken, "# This section is written by 'coder config-ssh'.", "#",
                "# Changes made by hand are lost when it runs again.", "#",
            ]
            let stored = options.lines
            if !stored.isEmpty { lines += ["# Last run with options:"] + stored.map { "# :\($0)" } + ["#"] }
            let hostOptions = try mergedOptions().map { "\t\($0)" }
            var command = "\(try quote(program))"
            if !isDefaultDirectory { command += " --global-config \(try quote(configDirectory))" }
            for header in options.headers { command += " --header \(try quote(header, always: true))" }
            if !options.headerCommand.isEmpty {
                command += " --header-command \(try quote(options.headerCommand, always: true))"
            }
            var flags = " ssh --stdio"
            if options.wait != "auto" { flags += " --wait=\(options.wait)" }
            if options.disableAutostart { flags += " --disable-autostart=true" }
            if !prefix.isEmpty {
                lines += ["Host \(prefix)*"] + hostOptions
                lines += ["\tProxyCommand \(command)\(flags) --ssh-host-prefix \(prefix) %h"]
                if !suffix.isEmpty { lines.append("") }
            }
            if !suffix.isEmpty {
                lines += ["Host *.\(suffix)"] + hostOptions
                lines += [
                    "", "Match host *.\(suffix) !exec \"\(try quoteMatch(program)) connect exists %h\"",
                ]
                lines += ["\tProxyCommand \(command)\(flags) --hostname-suffix \(suffix) %h"]
            }
            return (lines + [endToken]).joined(separator: "\n")
        }

        /// The user's options, then the deployment's, then the defaults: ssh takes the first of each.
        private func mergedOptions() throws -> [String] {
            let user = try options.sshOptions.map { text in
                guard let mark = text.firstIndex(where: { $0 == "=" || $0 == " " }) else {
                    throw CommandError("not an SSH option: \"\(text)\"; write it like Key=value")
                }
                return (String(text[..<mark]), String(text[text.index(after: mark)...]))
            }
            let defaults = [
                ("ConnectTimeout", "0"), ("StrictHostKeyChecking", "no"), ("UserKnownHostsFile", "/dev/null"),
                ("LogLevel", "ERROR"),
            ]
            var removed: Set<String> = []
            var lines: [String] = []
            for (key, value) in user + deploymentOptions + defaults {
                guard (key + value).utf8.allSatisfy({ $0 >= 0x20 && $0 != 0x7f }) else {
                    throw CommandError("an SSH option holds a control character: \"\(Table.clean(key))\"")
                }
                if value.isEmpty { removed.insert(key.lowercased()) }
                if !removed.contains(key.lowercased()) { lines.append("\(key) \(value)") }
            }
            return lines
        }

        private func quote(_ text: String, always: Bool = false) throws -> String {
            guard !text.contains(where: \.isNewline) else {
                throw CommandError("a path or header holds a line break")
            }
            let escaped = text.map { $0 == "\"" ? "\\\"" : String($0) }.joined()
            return always || text.contains(" ") || text.contains("\t") ? "\"\(escaped)\"" : escaped
        }

        private func quoteMatch(_ text: String) throws -> String {
            guard !text.contains("\""), !text.contains(where: \.isNewline) else {
                throw CommandError("the program's path holds a quote or a line break")
            }
            return text.map { "\\ \t".contains($0) ? "\\\($0)" : String($0) }.joined()
        }
    }
}

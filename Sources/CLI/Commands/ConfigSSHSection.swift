// SPDX-License-Identifier: Apache-2.0

/// What goes between the marks.
struct ConfigSSHSection {
    var program: String
    var configDirectory: String
    var prefix: String
    var suffix: String
    var options: StoredOptions
    var skipsProxyCommand = false
    var deploymentOptions: [(String, String)]

    func text() throws -> String {
        for name in [prefix, suffix] where !Self.isHostPart(name) {
            throw CommandError("\"\(Table.clean(name))\" cannot be part of a host name")
        }
        var lines = [
            ConfigSSHCommand.startToken, "# This section is written by 'coder config-ssh'.", "#",
            "# Changes made by hand are lost when it runs again.", "#",
        ]
        let stored = options.lines
        if !stored.isEmpty { lines += ["# Last run with options:"] + stored.map { "# :\($0)" } + ["#"] }
        let hostOptions = try mergedOptions().map { "\t\($0)" }
        var command = "\(try quote(program))"
        // Always: an editor started from a menu may lack the variables that say where the default one is.
        command += " --global-config \(try quote(configDirectory))"
        for header in options.headers { command += " --header \(try quote(header, always: true))" }
        if !options.headerCommand.isEmpty {
            command += " --header-command \(try quote(options.headerCommand, always: true))"
        }
        var flags = " ssh --stdio"
        if options.wait != "auto" { flags += " --wait=\(options.wait)" }
        if options.disableAutostart { flags += " --disable-autostart=true" }
        if !prefix.isEmpty {
            lines += ["Host \(prefix)*"] + hostOptions
            if !skipsProxyCommand {
                lines.append("\tProxyCommand \(command)\(flags) --ssh-host-prefix \(prefix) %h")
            }
            if !suffix.isEmpty { lines.append("") }
        }
        if !suffix.isEmpty {
            lines += ["Host *.\(suffix)"] + hostOptions
            if !skipsProxyCommand {
                lines += [
                    "", "Match host *.\(suffix) !exec \"\(try quoteMatch(program)) connect exists %h\"",
                    "\tProxyCommand \(command)\(flags) --hostname-suffix \(suffix) %h",
                ]
            }
        }
        return (lines + [ConfigSSHCommand.endToken]).joined(separator: "\n")
    }

    /// Prefix and suffix come from the server and go through ssh's patterns and the user's shell as they are.
    private static func isHostPart(_ text: String) -> Bool {
        !text.hasPrefix("-")
            && text.utf8.allSatisfy {
                48...57 ~= $0 || 65...90 ~= $0 || 97...122 ~= $0 || "._-".utf8.contains($0)
            }
    }

    /// These change what the lines after them apply to.
    private static let scopes: Set<String> = ["host", "match", "include"]
    /// What a deployment could run programs with on the user's machine. The user may: `-o`.
    private static let programs: Set<String> = [
        "proxycommand", "proxyjump", "localcommand", "permitlocalcommand", "knownhostscommand",
        "pkcs11provider", "securitykeyprovider", "xauthlocation",
    ]

    private static func check(_ key: String, _ value: String, isDeployments: Bool) throws {
        let isWord = key.utf8.allSatisfy { 48...57 ~= $0 || 65...90 ~= $0 || 97...122 ~= $0 }
        guard isWord, key.first?.isLetter == true, !scopes.contains(key.lowercased()) else {
            throw CommandError("\"\(Table.clean(key))\" cannot be an SSH option of the hosts")
        }
        guard value.utf8.allSatisfy({ $0 >= 0x20 && $0 != 0x7f }) else {
            throw CommandError("the SSH option \(key) holds a control character")
        }
        guard !isDeployments || !programs.contains(key.lowercased()) else {
            throw CommandError(
                "the deployment sets the SSH option \(key), which could run programs on this machine;"
                    + " '-o \(key)=' leaves it out")
        }
    }

    /// The user's options, then the deployment's, then the defaults: ssh takes the first of each.
    private func mergedOptions() throws -> [String] {
        let user = try options.sshOptions.map { text in
            guard let mark = text.firstIndex(where: { $0 == "=" || $0 == " " }) else {
                throw CommandError("not an SSH option: \"\(Table.clean(text))\"; write it like Key=value")
            }
            return (String(text[..<mark]), String(text[text.index(after: mark)...]))
        }
        let defaults = [
            ("ConnectTimeout", "0"), ("StrictHostKeyChecking", "no"), ("UserKnownHostsFile", "/dev/null"),
            ("LogLevel", "ERROR"),
        ]
        var removed: Set<String> = []
        var lines: [String] = []
        for (layer, options) in [user, deploymentOptions, defaults].enumerated() {
            for (key, value) in options where !removed.contains(key.lowercased()) {
                try Self.check(key, value, isDeployments: layer == 1)
                if value.isEmpty {
                    removed.insert(key.lowercased())
                } else {
                    lines.append("\(key) \(value)")
                }
            }
        }
        return lines
    }

    private func quote(_ text: String, always: Bool = false) throws -> String {
        guard !text.contains(where: \.isNewline) else {
            throw CommandError("a path or header holds a line break")
        }
        let escaped = text.map { $0 == "\"" ? "\\\"" : Self.percent($0) }.joined()
        return always || text.contains(" ") || text.contains("\t") ? "\"\(escaped)\"" : escaped
    }

    private func quoteMatch(_ text: String) throws -> String {
        guard !text.contains("\""), !text.contains(where: \.isNewline) else {
            throw CommandError("the program's path holds a quote or a line break")
        }
        return text.map { "\\ \t".contains($0) ? "\\\($0)" : Self.percent($0) }.joined()
    }

    /// ssh puts host and port in the place of `%h` and `%p`.
    private static func percent(_ character: Character) -> String {
        character == "%" ? "%%" : String(character)
    }
}

// SPDX-License-Identifier: Apache-2.0

/// The text of `--help`.
enum Help {
    /// Lays a command's help out for a terminal of `width` columns.
    static func text(for path: [Command], version: String, width: Int = 80) -> String {
        let command = path[path.count - 1]
        let full = path.map(\.name).joined(separator: " ")
        var lines = ["coder \(version)", "", "USAGE:"]
        var usage = "  \(full)"
        if !command.options.filter({ !$0.isHidden }).isEmpty { usage += " [flags]" }
        if !command.subcommands.isEmpty { usage += " [subcommand]" }
        if !command.usage.isEmpty { usage += " \(command.usage)" }
        lines += [usage, ""]
        lines += wrap(command.summary, width: width - 2).map { "  \($0)" }
        if !command.aliases.isEmpty {
            lines += ["", "  Aliases: \(command.aliases.joined(separator: ", "))"]
        }
        if !command.details.isEmpty {
            lines.append("")
            for line in command.details.split(separator: "\n", omittingEmptySubsequences: false) {
                // Indented lines are examples: kept as they are.
                lines +=
                    line.hasPrefix(" ")
                    ? ["  \(line)"] : wrap(String(line), width: width - 2).map { "  \($0)" }
            }
        }
        lines += subcommands(command, width)
        lines += options(command, width)
        lines += ["", "———"]
        lines.append(
            path.count == 1
                ? "Report bugs where you got this program from."
                : "Run `coder --help` for a list of global options.")
        return lines.map(\.trimmedEnd).joined(separator: "\n") + "\n"
    }

    private static func subcommands(_ command: Command, _ width: Int) -> [String] {
        let shown = command.subcommands.filter { !$0.isHidden }.sorted { $0.name < $1.name }
        guard !shown.isEmpty else { return [] }
        let column = shown.map(\.name.count).max()! + 4
        var lines = ["", "SUBCOMMANDS:"]
        for child in shown {
            let text = wrap(child.summary, width: max(20, width - column - 4))
            let name = "    \(child.name)" + String(repeating: " ", count: column - child.name.count)
            lines.append(name + (text.first ?? ""))
            lines += text.dropFirst().map { String(repeating: " ", count: column + 4) + $0 }
        }
        return lines
    }

    private static func options(_ command: Command, _ width: Int) -> [String] {
        let shown = command.options.filter { !$0.isHidden }
        var lines: [String] = []
        for group in Set(shown.map(\.group)).sorted() {
            lines += ["", group.isEmpty ? "OPTIONS:" : "\(group.uppercased()) OPTIONS:"]
            for (index, option) in shown.filter({ $0.group == group }).sorted(by: { $0.flag < $1.flag })
                .enumerated()
            {
                if index > 0 { lines.append("") }
                lines.append(heading(option))
                lines += wrap(option.help, width: width - 10).map { String(repeating: " ", count: 10) + $0 }
                if let instead = option.useInstead {
                    lines.append("          DEPRECATED: Use --\(instead) instead.")
                }
            }
        }
        return lines
    }

    private static func heading(_ option: CommandOption) -> String {
        let short = option.short.map { "  -\($0), " } ?? "      "
        var text = "\(short)--\(option.flag)"
        if option.kind != .bool { text += " \(option.typeName)" }
        if let env = option.env { text += ", $\(env)" }
        if let value = option.defaultValue, !value.isEmpty, option.kind != .bool || value == "true" {
            text += " (default: \(value))"
        }
        return text
    }

    /// Breaks a text at spaces; a longer word stays whole.
    static func wrap(_ text: String, width: Int) -> [String] {
        var lines: [String] = []
        var line = ""
        for word in text.split(separator: " ") {
            if !line.isEmpty, line.count + 1 + word.count > width {
                lines.append(line)
                line = ""
            }
            line += line.isEmpty ? String(word) : " \(word)"
        }
        return line.isEmpty && !lines.isEmpty ? lines : lines + [line]
    }
}

extension String {
    /// Without spaces at the end.
    var trimmedEnd: String {
        var text = self[...]
        while text.hasSuffix(" ") { text.removeLast() }
        return String(text)
    }

    /// Without white space at both ends.
    var trimmed: String {
        var text = self[...]
        while let last = text.last, last.isWhitespace { text.removeLast() }
        while let first = text.first, first.isWhitespace { text.removeFirst() }
        return String(text)
    }
}

// SPDX-License-Identifier: Apache-2.0

/// Options of `coder config-ssh` that are kept inside its section, one `# :key=value` line each, so that the next run
/// (of this or the Go tool) can take them up.
struct StoredOptions: Equatable {
    var wait = "auto"
    /// nil: the deployment's.
    var prefix: String?
    var suffix: String?
    var disableAutostart = false
    var sshOptions: [String] = []
    var headers: [String] = []
    var headerCommand = ""

    /// As given on the command line.
    init(_ values: OptionValues) {
        wait = values.string("wait")
        if values.source("ssh-host-prefix") > .default { prefix = values.string("ssh-host-prefix") }
        if values.source("hostname-suffix") > .default { suffix = values.string("hostname-suffix") }
        disableAutostart = values.bool("disable-autostart")
        sshOptions = values.list("ssh-option")
        headers = values.list("header")
        headerCommand = values.string("header-command")
    }

    /// As stored in a file's section; nil when there is no section.
    init?(section text: String) {
        guard let start = text.range(ofText: ConfigSSHCommand.startToken) else { return nil }
        let rest = text[start.upperBound...]
        let section = rest.range(ofText: ConfigSSHCommand.endToken).map { rest[..<$0.lowerBound] } ?? rest
        for line in section.split(separator: "\n") where line.hasPrefix("# :") {
            let pair = line.dropFirst(3)
            guard let equals = pair.firstIndex(of: "=") else { continue }
            let value = String(pair[pair.index(after: equals)...])
            switch pair[..<equals] {
            case "wait": wait = ["yes", "no"].contains(value) ? value : "auto"
            case "ssh-host-prefix": prefix = value
            case "hostname-suffix": suffix = value
            case "disable-autostart": disableAutostart = value == "true"
            case "ssh-option": sshOptions.append(value)
            case "header": headers.append(value)
            case "header-command": headerCommand = value
            default: continue  // of a newer version
            }
        }
    }

    /// Only what differs from the defaults.
    var lines: [String] {
        var list: [String] = []
        if wait != "auto" { list.append("wait=\(wait)") }
        if let prefix { list.append("ssh-host-prefix=\(prefix)") }
        if let suffix { list.append("hostname-suffix=\(suffix)") }
        if disableAutostart { list.append("disable-autostart=true") }
        return list + sshOptions.map { "ssh-option=\($0)" } + headers.map { "header=\($0)" }
            + (headerCommand.isEmpty ? [] : ["header-command=\(headerCommand)"])
    }

    /// For people.
    var text: String { lines.isEmpty ? "(none)" : lines.map(Table.clean).joined(separator: ", ") }
}

/// Two texts that differ in one place, as `diff -u` shows them.
enum UnifiedDiff {
    private static let context = 3

    static func text(from old: String, to new: String, name: String) -> String {
        guard old != new else { return "" }
        let a = lines(old), b = lines(new)
        var head = 0
        while head < min(a.count, b.count), a[head] == b[head] { head += 1 }
        var tail = 0
        while tail < min(a.count, b.count) - head, a[a.count - 1 - tail] == b[b.count - 1 - tail] {
            tail += 1
        }
        let before = a[max(0, head - context)..<head]
        let after = a[(a.count - tail)..<min(a.count, a.count - tail + context)]
        let removed = a[head..<(a.count - tail)], added = b[head..<(b.count - tail)]
        let side = { (start: Int, count: Int) in "\(count == 0 ? start : start + 1),\(count)" }
        let first = head - before.count
        let header =
            "--- \(name)\n+++ \(name)\n@@ -\(side(first, before.count + removed.count + after.count))"
            + " +\(side(first, before.count + added.count + after.count)) @@\n"
        let changes = removed.map { "-" + $0 } + added.map { "+" + $0 }
        let shown = before.map { " " + $0 } + changes + after.map { " " + $0 }
        return header + shown.map { $0 + "\n" }.joined()
    }

    private static func lines(_ text: String) -> [Substring] {
        var lines = text.split(separator: "\n", omittingEmptySubsequences: false)
        if lines.last == "" { lines.removeLast() }
        return lines
    }
}

// SPDX-License-Identifier: Apache-2.0

/// A command or a group of commands.
struct Command: Sendable {
    typealias Action = @Sendable (Invocation) async throws -> Int32

    /// How many words it takes beside its flags.
    enum Arguments: Sendable {
        case none
        case exactly(Int)
        case between(Int, Int)
        case atLeast(Int)
    }

    var name: String
    var aliases: [String] = []
    /// Shown behind the name: `<workspace>`.
    var usage = ""
    var summary: String
    /// Paragraphs for the help below the summary.
    var details = ""
    var arguments = Arguments.none
    var options: [CommandOption] = []
    var isHidden = false
    var subcommands: [Command] = []
    /// Takes all words as they are, flags included.
    var isRaw = false
    /// nil for a group, which prints its help.
    var run: Action?

    /// Whether a word on the command line means this command. Each `delete` and `remove` is `rm` too.
    func answers(to word: String) -> Bool {
        word == name || aliases.contains(word) || (word == "rm" && ["delete", "remove"].contains(name))
    }
}

/// A mistake on the command line or in an environment variable: shown without the command's banner.
struct UsageError: Error, CustomStringConvertible {
    var description: String
}

/// What a command line means: which command, which values, which words.
struct ParsedCommandLine: Sendable {
    /// From the root to the command itself.
    var path: [Command]
    var values: OptionValues
    var words: [String]
    var wantsHelp = false
    /// Lines about deprecated options in use.
    var warnings: [String] = []

    var command: Command { path[path.count - 1] }
    var fullName: String { path.map(\.name).joined(separator: " ") }
}

/// Reads a command line: GNU-style flags anywhere before `--`, commands by name or alias, then the environment.
struct CommandLineParser {
    let root: Command
    let environment: [String: String]

    /// `arguments` without the program's name.
    func parse(_ arguments: [String]) throws(UsageError) -> ParsedCommandLine {
        var path = [root]
        // The list is read again at each depth with the options known there, so that a global flag may stand
        // anywhere and a flag's value is not taken for a command.
        var skip: [Int] = []
        while true {
            let scan = scan(arguments, path, skipping: skip)
            guard let first = scan.words.first, !first.isAfterTerminator,
                let next = path[path.count - 1].subcommands.first(where: { $0.answers(to: first.text) })
            else { break }
            path.append(next)
            skip.append(first.index)
            if next.isRaw {
                let words = Array(arguments[(first.index + 1)...])
                return ParsedCommandLine(path: path, values: try values(path, [:]), words: words)
            }
        }
        let scan = scan(arguments, path, skipping: skip)
        let full = path.map(\.name).joined(separator: " ")
        if let problem = scan.problem {
            throw UsageError(description: "\(full): \(problem)")
        }
        var result = ParsedCommandLine(
            path: path, values: try values(path, scan.flags), words: scan.words.map(\.text))
        result.wantsHelp = scan.wantsHelp
        result.warnings = warnings(result.values)
        if !result.wantsHelp { try checkWords(result, full) }
        return result
    }

    private struct Word {
        var text: String
        var index: Int
        var isAfterTerminator: Bool
    }

    private struct Scan {
        var flags: [String: [String]] = [:]
        var words: [Word] = []
        var wantsHelp = false
        var problem: String?
    }

    private func scan(_ arguments: [String], _ path: [Command], skipping: [Int]) -> Scan {
        let options = visibleOptions(path)
        var scan = Scan()
        var index = 0
        var isTerminated = false
        while index < arguments.count {
            let text = arguments[index]
            defer { index += 1 }
            if skipping.contains(index) { continue }
            if isTerminated || !text.hasPrefix("-") || text == "-" {
                scan.words.append(Word(text: text, index: index, isAfterTerminator: isTerminated))
            } else if text == "--" {
                isTerminated = true
            } else if text.hasPrefix("--") {
                longFlag(text, arguments, &index, options, &scan)
            } else {
                shortFlags(text, arguments, &index, options, &scan)
            }
        }
        return scan
    }

    private func longFlag(
        _ text: String, _ arguments: [String], _ index: inout Int, _ options: [CommandOption],
        _ scan: inout Scan
    ) {
        let parts = text.dropFirst(2).split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
        let name = String(parts[0])
        if name == "help" {
            scan.wantsHelp = parts.count == 1 || parseBool(String(parts[1])) == true
            return
        }
        guard let option = options.first(where: { $0.flag == name }) else {
            scan.problem = scan.problem ?? "unknown flag: --\(name)"
            return
        }
        if parts.count == 2 {
            set(option, "--\(name)", String(parts[1]), &scan)
        } else if option.kind == .bool {
            set(option, "--\(name)", "true", &scan)
        } else if index + 1 < arguments.count {
            index += 1
            set(option, "--\(name)", arguments[index], &scan)
        } else {
            scan.problem = scan.problem ?? "flag needs an argument: --\(name)"
        }
    }

    private func shortFlags(
        _ text: String, _ arguments: [String], _ index: inout Int, _ options: [CommandOption],
        _ scan: inout Scan
    ) {
        var rest = text.dropFirst()
        while let letter = rest.popFirst() {
            if letter == "h", !options.contains(where: { $0.short == "h" }) {
                scan.wantsHelp = true
                continue
            }
            guard let option = options.first(where: { $0.short == letter }) else {
                scan.problem = scan.problem ?? "unknown shorthand flag: '\(letter)' in \(text)"
                return
            }
            if option.kind == .bool {
                guard rest.first == "=" else {
                    set(option, "-\(letter)", "true", &scan)
                    continue
                }
            }
            if rest.first == "=" { rest.removeFirst() }
            if !rest.isEmpty || option.kind == .bool {
                set(option, "-\(letter)", String(rest), &scan)
            } else if index + 1 < arguments.count {
                index += 1
                set(option, "-\(letter)", arguments[index], &scan)
            } else {
                scan.problem = scan.problem ?? "flag needs an argument: '\(letter)' in \(text)"
            }
            return
        }
    }

    private func set(_ option: CommandOption, _ shown: String, _ value: String, _ scan: inout Scan) {
        if let problem = option.problem(with: value) {
            scan.problem = scan.problem ?? "invalid argument for \(shown): \(problem)"
        } else if option.kind == .stringArray {
            scan.flags[option.flag, default: []].append(value)
        } else {
            scan.flags[option.flag] = [value]
        }
    }

    /// A child's option hides its parent's of the same name.
    func visibleOptions(_ path: [Command]) -> [CommandOption] {
        path.reversed().reduce(into: []) { result, command in
            for option in command.options
            where !result.contains(where: { $0.flag == option.flag }) {
                var option = option
                if result.contains(where: { $0.short != nil && $0.short == option.short }) {
                    option.short = nil
                }
                result.append(option)
            }
        }
    }

    private func values(_ path: [Command], _ flags: [String: [String]]) throws(UsageError) -> OptionValues {
        var values = OptionValues()
        for option in visibleOptions(path) {
            if let texts = flags[option.flag] {
                values.entries[option.flag] = .init(option: option, texts: texts, source: .flag)
            } else if let env = option.env, let text = variable(env) {
                if let problem = option.problem(with: text) {
                    throw UsageError(description: "parsing env: \(env): \(problem)")
                }
                values.entries[option.flag] = .init(option: option, texts: [text], source: .env)
            } else if let text = option.defaultValue {
                values.entries[option.flag] = .init(option: option, texts: [text], source: .default)
            }
        }
        // Two options bound to one value: the higher source wins.
        for entry in Array(values.entries.values) {
            guard let target = entry.option.useInstead, entry.source > .default,
                let option = visibleOptions(path).first(where: { $0.flag == target }),
                values.source(target) < entry.source
            else { continue }
            values.entries[target] = .init(option: option, texts: entry.texts, source: entry.source)
        }
        return values
    }

    /// An empty variable counts as unset, as in every earlier release of the original.
    private func variable(_ name: String) -> String? {
        let text = environment[name] ?? environment["HOMEBREW_\(name)"]
        return text?.isEmpty == true ? nil : text
    }

    private func warnings(_ values: OptionValues) -> [String] {
        values.entries.values.compactMap { entry in
            guard let target = entry.option.useInstead, entry.source > .default else { return nil }
            return "--\(entry.option.flag) is deprecated, please use --\(target) instead."
        }.sorted()
    }

    private func checkWords(_ line: ParsedCommandLine, _ full: String) throws(UsageError) {
        let words = line.words
        guard line.command.run != nil else {
            guard let stray = words.first else { return }
            throw UsageError(
                description: "unrecognized subcommand \"\(stray)\" for \"\(full)\", see \"\(full) --help\"")
        }
        let list = "[\(words.joined(separator: " "))]"
        let problem: String?
        switch line.command.arguments {
        case .none: problem = words.isEmpty ? nil : "wanted no args but got \(words.count) \(list)"
        case .exactly(let count):
            problem = words.count == count ? nil : "wanted \(count) args but got \(words.count) \(list)"
        case .between(let low, let high):
            problem =
                low...high ~= words.count
                ? nil : "wanted between \(low) and \(high) args but got \(words.count) \(list)"
        case .atLeast(let count):
            problem =
                words.count >= count ? nil : "wanted at least \(count) args but got \(words.count) \(list)"
        }
        if let problem { throw UsageError(description: "\(full): \(problem), see \"\(full) --help\"") }
    }
}

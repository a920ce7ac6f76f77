// SPDX-License-Identifier: Apache-2.0

/// What may follow on a command line that is being typed. Shells ask by running the program with `COMPLETION_MODE=1`
/// and the words so far, the last of them the one under the cursor; the answer is one candidate per line.
struct Completion {
    private let root: Command

    init(_ root: Command) { self.root = root }

    /// Candidates for the last word, by name.
    func candidates(_ words: [String]) -> [String] {
        let current = words.last ?? ""
        var path = [root]
        var pending: CommandOption?
        for word in words.dropLast() {
            if word == "--" || path[path.count - 1].isRaw { return [] }
            if pending != nil {
                pending = nil
            } else if word.hasPrefix("-") {
                pending = optionAwaitingValue(word, path)
            } else if let next = path[path.count - 1].subcommands.first(where: { $0.answers(to: word) }) {
                path.append(next)
            }
        }
        if let pending { return matching(values(of: pending), current) }
        if current.hasPrefix("--"), let equals = current.firstIndex(of: "=") {
            let flag = current[..<equals]
            guard let option = options(path).first(where: { "--\($0.flag)" == flag }) else { return [] }
            return matching(values(of: option).map { "\(flag)=\($0)" }, current)
        }
        if current.hasPrefix("-") {
            let flags = options(path).filter { !$0.isHidden }.map { "--\($0.flag)" }
            return matching(flags + ["--help"], current)
        }
        return matching(
            path[path.count - 1].subcommands.filter { !$0.isHidden }.map(\.name), current)
    }

    private func options(_ path: [Command]) -> [CommandOption] {
        CommandLineParser(root: root, environment: [:]).visibleOptions(path)
    }

    /// The option whose value is the next word.
    private func optionAwaitingValue(_ word: String, _ path: [Command]) -> CommandOption? {
        guard !word.contains("=") else { return nil }
        let option = options(path).first {
            word.hasPrefix("--") ? "--\($0.flag)" == word : $0.short != nil && $0.short == word.last
        }
        return option?.kind == .bool ? nil : option
    }

    private func values(of option: CommandOption) -> [String] {
        switch option.kind {
        case .choice(let words): words
        case .columns(let names): names
        case .bool: ["true", "false"]
        default: []
        }
    }

    private func matching(_ candidates: [String], _ current: String) -> [String] {
        Set(candidates).filter { $0.hasPrefix(current) }.sorted()
    }
}

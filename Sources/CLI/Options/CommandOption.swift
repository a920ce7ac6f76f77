// SPDX-License-Identifier: Apache-2.0

/// One option of a command: a row of the table that flags, environment, defaults and `--help` come from.
public struct CommandOption: Sendable {
    /// How the value is written.
    public enum Kind: Sendable, Hashable {
        case string
        /// Go's ParseBool words; the flag alone means true.
        case bool
        case int
        /// Go units, and before them weeks and days: `1w2d3h`.
        case duration
        /// Each occurrence is one CSV record whose fields are appended.
        case stringArray
        /// One of these words, in any case.
        case choice([String])
        /// Some of these table columns, comma-separated; `_` stands for a space.
        case columns([String])
        case url
    }

    /// Long name without dashes.
    public var flag: String
    /// One-letter name.
    public var short: Character?
    /// Variable that gives the value when the flag does not.
    public var env: String?
    /// How the value is written.
    public var kind: Kind
    /// Used when neither flag nor variable is given; written as a flag's value.
    public var defaultValue: String?
    /// Heading in the help; empty for `OPTIONS`.
    public var group: String
    /// What it does, one or two sentences.
    public var help: String
    /// Works, but is not shown.
    public var isHidden: Bool
    /// Name of the option to use instead of this deprecated one.
    public var useInstead: String?

    /// A row of the table.
    public init(
        _ flag: String, short: Character? = nil, env: String? = nil, _ kind: Kind = .string,
        default defaultValue: String? = nil, group: String = "", hidden: Bool = false,
        useInstead: String? = nil,
        help: String
    ) {
        self.flag = flag
        self.short = short
        self.env = env
        self.kind = kind
        self.defaultValue = defaultValue
        self.group = group
        self.help = help
        isHidden = hidden
        self.useInstead = useInstead
    }

    /// What is wrong with a value; nil when it can be read.
    func problem(with text: String) -> String? {
        switch kind {
        case .string, .stringArray: return nil
        case .bool: return parseBool(text) == nil ? "not a boolean: \"\(text)\"" : nil
        case .int: return Int(text) == nil ? "not a whole number: \"\(text)\"" : nil
        case .duration: return parseDuration(text) == nil ? "not a duration: \"\(text)\"" : nil
        case .choice(let words):
            guard !words.contains(where: { $0.lowercased() == text.lowercased() }) else { return nil }
            return "invalid choice: \(text), should be one of [\(words.joined(separator: " "))]"
        case .columns(let names):
            for column in splitCSV(text) where !names.contains(where: { isSameColumn($0, column) }) {
                return "unknown column \"\(column)\", should be some of [\(names.joined(separator: ", "))]"
            }
            return nil
        case .url:
            return text.isEmpty || text.utf8.allSatisfy { $0 > 0x20 && $0 != 0x7f }
                ? nil : "not a URL: \"\(text)\""
        }
    }

    /// The word for the value in `--help`.
    var typeName: String {
        switch kind {
        case .string: return "string"
        case .bool: return "bool"
        case .int: return "int"
        case .duration: return "duration"
        case .stringArray: return "string-array"
        case .choice(let words): return words.joined(separator: "|")
        case .columns: return "columns"
        case .url: return "url"
        }
    }
}

/// Where an option's value came from, strongest last.
public enum ValueSource: String, Sendable, Comparable {
    case none
    case `default`
    case env
    case flag

    public static func < (a: ValueSource, b: ValueSource) -> Bool { a.rank < b.rank }

    private var rank: Int {
        switch self {
        case .none: return 0
        case .default: return 1
        case .env: return 2
        case .flag: return 3
        }
    }
}

/// The values of one command line.
public struct OptionValues: Sendable {
    struct Entry {
        var option: CommandOption
        var texts: [String]
        var source: ValueSource
    }

    var entries: [String: Entry] = [:]

    /// Where the value came from.
    public func source(_ flag: String) -> ValueSource { entries[flag]?.source ?? .none }

    /// The text of a string, URL or choice; empty when there is none. A choice comes in the table's spelling.
    public func string(_ flag: String) -> String {
        guard let entry = entries[flag], let text = entry.texts.last else { return "" }
        guard case .choice(let words) = entry.option.kind else { return text }
        return words.first { $0.lowercased() == text.lowercased() } ?? text
    }

    /// The value of a boolean; false when there is none.
    public func bool(_ flag: String) -> Bool { parseBool(string(flag)) ?? false }

    /// The value of a number; nil when there is none.
    public func int(_ flag: String) -> Int? { Int(string(flag)) }

    /// The value of a duration; nil when there is none.
    public func duration(_ flag: String) -> Duration? { parseDuration(string(flag)) }

    /// The values of a list.
    public func list(_ flag: String) -> [String] {
        // An empty occurrence clears what came before it.
        (entries[flag]?.texts ?? []).reduce(into: [String]()) { list, text in
            if text.isEmpty { list = [] } else { list += splitCSV(text) }
        }
    }

    /// The chosen columns, spelled as the table spells them.
    func columns(_ flag: String) -> [String] {
        guard let entry = entries[flag], case .columns(let names) = entry.option.kind else { return [] }
        return entry.texts.flatMap(splitCSV).compactMap { column in names.first { isSameColumn($0, column) } }
    }
}

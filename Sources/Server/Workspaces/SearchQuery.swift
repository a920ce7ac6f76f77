// SPDX-License-Identifier: Apache-2.0

/// The text of a `q=` parameter, taken apart. `rest/09-search-and-formats.md`.
struct SearchQuery: Sendable {
    /// What stood without a key, joined with spaces.
    let free: String
    private var terms: [String: [String]] = [:]

    /// Throws 400 for a text that breaks the grammar.
    init(_ text: String) throws(APIError) {
        var free: [String] = []
        for token in Self.split(text.lowercased(), at: " ") where !token.isEmpty {
            let parts = Self.split(token, at: ":")
            if parts.count == 1 {
                free.append(Self.unquoted(token))
                continue
            }
            guard parts.count == 2, !parts[0].isEmpty, !parts[1].isEmpty else {
                let detail =
                    parts.count > 2
                    ? "Query element \"\(token)\" can only contain 1 ':'"
                    : "Query element \"\(token)\" cannot start or end with ':'"
                throw APIError.invalid("q", detail, message: "Invalid query.")
            }
            let value = Self.unquoted(parts[1])
            if !value.isEmpty { terms[Self.unquoted(parts[0]), default: []].append(value) }
        }
        self.free = free.joined(separator: " ")
    }

    /// The value of a key that may be given once; see `allow`.
    subscript(key: String) -> String? { terms[key]?.first }

    /// All values of a key that may be repeated, also those within one, separated by commas.
    func list(_ key: String) -> [String] {
        (terms[key] ?? []).flatMap { $0.split(separator: ",").map(String.init) }
    }

    /// A truth value; nil when the key is absent.
    func flag(_ key: String) throws(APIError) -> Bool? {
        switch self[key] {
        case nil: return nil
        case "true", "1", "t": return true
        case "false", "0", "f": return false
        case let text?:
            throw Self.refusal(key, "Query param \"\(key)\" must be a valid boolean (\(text))")
        }
    }

    /// A moment; nil when the key is absent.
    func time(_ key: String) throws(APIError) -> Timestamp? {
        guard let text = self[key] else { return nil }
        guard let time = Timestamp(text.uppercased()) else {
            throw Self.refusal(key, "Query param \"\(key)\" must be a valid date format (\(text))")
        }
        return time
    }

    /// One of a few words; nil when the key is absent.
    func word(_ key: String, of known: [String]) throws(APIError) -> String? {
        guard let text = self[key] else { return nil }
        guard known.contains(text) else {
            throw Self.refusal(
                key, "Query param \"\(key)\" has invalid values: \"\(text)\" is not a valid value")
        }
        return text
    }

    private static func refusal(_ key: String, _ detail: String) -> APIError {
        .invalid(key, detail, message: "Invalid query.")
    }

    /// Throws 400 that names every key that is not in `keys`, and those given more than once.
    func allow(_ keys: Set<String>, repeated: Set<String> = []) throws(APIError) {
        var complaints: [APIError.Validation] = []
        for (key, values) in terms.sorted(by: { $0.key < $1.key }) {
            if !keys.contains(key), !repeated.contains(key) {
                complaints.append(.init(field: key, detail: "\"\(key)\" is not a valid query param"))
            } else if values.count > 1, !repeated.contains(key) {
                complaints.append(.init(field: key, detail: "Query param \"\(key)\" provided more than once"))
            }
        }
        guard complaints.isEmpty else {
            throw APIError(400, "Invalid query.", validations: complaints)
        }
    }

    /// Cuts at a character outside of double quotes; quotes stay.
    private static func split(_ text: String, at separator: Character) -> [String] {
        var parts = [""]
        var isQuoted = false
        for character in text {
            if character == "\"" { isQuoted.toggle() }
            if character == separator, !isQuoted {
                parts.append("")
            } else {
                parts[parts.count - 1].append(character)
            }
        }
        return parts
    }

    private static func unquoted(_ text: String) -> String { text.filter { $0 != "\"" } }
}

// SPDX-License-Identifier: Apache-2.0

/// Checks of names and texts that users choose. `rest/01-conventions.md` §8.
enum Names {
    /// Users, workspaces, templates, organizations: 1 to 32 letters and digits in groups joined by `-`.
    static func isPlain(_ name: String, limit: Int = 32) -> Bool {
        guard (1...limit).contains(name.utf8.count), name != "new", name != "create" else { return false }
        return name.split(separator: "-", omittingEmptySubsequences: false).allSatisfy { group in
            !group.isEmpty && group.utf8.allSatisfy(isLetterOrDigit)
        }
    }

    /// Token names: like plain ones, a little longer.
    static func isTokenName(_ name: String) -> Bool { isPlain(name, limit: 64) }

    /// One `@` with something before it and a host behind it; no white space.
    static func isEmail(_ text: String) -> Bool {
        let parts = text.split(separator: "@", omittingEmptySubsequences: false)
        guard parts.count == 2, !parts[0].isEmpty, parts[0].utf8.count <= 64,
            (1...255).contains(parts[1].utf8.count)
        else { return false }
        let isHost = parts[1].split(separator: ".", omittingEmptySubsequences: false).allSatisfy { label in
            !label.isEmpty
                && label.utf8.allSatisfy { isLetterOrDigit($0) || $0 == UInt8(ascii: "-") || $0 > 127 }
        }
        return isHost && text.unicodeScalars.allSatisfy { $0.value > 0x20 && $0.value != 0x7F }
    }

    /// Trims white space and cuts to 128 bytes, as upstream does with people's names.
    static func realName(_ text: String) -> String {
        var name = String(text.drop { $0.isWhitespace }.reversed().drop { $0.isWhitespace }.reversed())
        while name.utf8.count > 128 { name.removeLast() }
        return name
    }

    /// `adjective_animal12`, for tokens without a name.
    static func random() -> String {
        let adjectives = [
            "brave", "calm", "clever", "eager", "gentle", "happy", "jolly", "kind", "lively", "quiet",
        ]
        let animals = [
            "badger", "finch", "heron", "lynx", "marten", "otter", "robin", "salmon", "stoat", "wren",
        ]
        let adjective = adjectives.randomElement() ?? "brave"
        return "\(adjective)_\(animals.randomElement() ?? "wren")\(Int.random(in: 10...99))"
    }

    /// The answer for a refused value, in upstream's words.
    static func refusal(_ field: String, tag: String, value: String) -> APIError {
        .invalid(field, "Validation failed for tag \"\(tag)\" with value: \"\(value)\"")
    }

    /// ASCII only.
    static func isLetterOrDigit(_ byte: UInt8) -> Bool {
        switch byte {
        case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
            UInt8(ascii: "0")...UInt8(ascii: "9"):
            true
        default: false
        }
    }
}

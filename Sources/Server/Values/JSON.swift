// SPDX-License-Identifier: Apache-2.0

/// A JSON value. Objects keep the order in which they were written, so that answers read like the
/// documentation and tests can compare text.
enum JSON: Sendable, Equatable {
    case null
    case bool(Bool)
    case integer(Int64)
    case number(Double)
    case string(String)
    case array([JSON])
    case object([Member])

    /// One key and its value.
    struct Member: Sendable, Equatable {
        var key: String
        var value: JSON
    }
}

extension JSON: ExpressibleByStringLiteral, ExpressibleByIntegerLiteral, ExpressibleByBooleanLiteral,
    ExpressibleByNilLiteral, ExpressibleByArrayLiteral, ExpressibleByDictionaryLiteral
{
    init(stringLiteral value: String) { self = .string(value) }
    init(integerLiteral value: Int64) { self = .integer(value) }
    init(booleanLiteral value: Bool) { self = .bool(value) }
    init(nilLiteral: ()) { self = .null }
    init(arrayLiteral elements: JSON...) { self = .array(elements) }
    init(dictionaryLiteral elements: (String, JSON)...) {
        self = .object(elements.map { Member(key: $0.0, value: $0.1) })
    }
}

extension JSON {
    /// A whole number.
    init(_ value: some BinaryInteger) { self = .integer(Int64(clamping: value)) }
    /// A text.
    init(_ value: String) { self = .string(value) }
    /// A text, or null.
    init(_ value: String?) { self = value.map(JSON.string) ?? .null }
    /// An identifier.
    init(_ value: Identifier) { self = .string(value.text) }
    /// An identifier, or null.
    init(_ value: Identifier?) { self = value.map { .string($0.text) } ?? .null }
    /// A moment.
    init(_ value: Timestamp) { self = .string(value.rfc3339) }
    /// A moment, or null.
    init(_ value: Timestamp?) { self = value.map { .string($0.rfc3339) } ?? .null }
    /// A list of texts.
    init(_ values: [String]) { self = .array(values.map(JSON.string)) }

    /// The value under `key` of an object; nil when absent or this is no object. The last one wins, as in Go.
    subscript(key: String) -> JSON? {
        guard case .object(let members) = self else { return nil }
        return members.last { $0.key == key }?.value
    }

    /// The text, if this is one.
    var text: String? {
        if case .string(let value) = self { value } else { nil }
    }

    /// The whole number, if this is one.
    var integer: Int64? {
        switch self {
        case .integer(let value): value
        case .number(let value): Int64(exactly: value)
        default: nil
        }
    }

    /// The truth value, if this is one.
    var flag: Bool? {
        if case .bool(let value) = self { value } else { nil }
    }

    /// The elements, if this is a list.
    var elements: [JSON]? {
        if case .array(let value) = self { value } else { nil }
    }

    /// The members, if this is an object.
    var members: [Member]? {
        if case .object(let value) = self { value } else { nil }
    }

    /// Appends a member to an object.
    mutating func add(_ key: String, _ value: JSON) {
        guard case .object(var members) = self else { return }
        self = .null  // so that the append below works in place
        members.append(Member(key: key, value: value))
        self = .object(members)
    }

    /// Appends a member unless the value is absent or an empty text: Go's `omitempty`.
    mutating func addUnlessEmpty(_ key: String, _ value: String?) {
        if let value, !value.isEmpty { add(key, .string(value)) }
    }

    /// Appends a moment unless it is absent.
    mutating func addUnlessEmpty(_ key: String, _ value: Timestamp?) {
        if let value { add(key, JSON(value)) }
    }
}

// MARK: Writing

extension JSON {
    /// The value as compact UTF-8 text. `<`, `>` and `&` are escaped, as Go's encoder does.
    var encoded: [UInt8] {
        var out: [UInt8] = []
        write(to: &out)
        return out
    }

    private func write(to out: inout [UInt8]) {
        switch self {
        case .null: out += "null".utf8
        case .bool(let value): out += (value ? "true" : "false").utf8
        case .integer(let value): out += String(value).utf8
        case .number(let value): out += Self.format(value).utf8
        case .string(let value): Self.write(value, to: &out)
        case .array(let values):
            out.append(UInt8(ascii: "["))
            for (index, value) in values.enumerated() {
                if index > 0 { out.append(UInt8(ascii: ",")) }
                value.write(to: &out)
            }
            out.append(UInt8(ascii: "]"))
        case .object(let members):
            out.append(UInt8(ascii: "{"))
            for (index, member) in members.enumerated() {
                if index > 0 { out.append(UInt8(ascii: ",")) }
                Self.write(member.key, to: &out)
                out.append(UInt8(ascii: ":"))
                member.value.write(to: &out)
            }
            out.append(UInt8(ascii: "}"))
        }
    }

    /// JSON knows no infinity: such a value becomes 0, which no caller produces on purpose.
    private static func format(_ value: Double) -> String {
        guard value.isFinite else { return "0" }
        if let whole = Int64(exactly: value) { return String(whole) }
        return "\(value)"
    }

    private static let hexDigits = Array("0123456789abcdef".utf8)

    private static func write(_ text: String, to out: inout [UInt8]) {
        out.append(UInt8(ascii: "\""))
        for byte in text.utf8 {
            switch byte {
            case UInt8(ascii: "\""): out += #"\""#.utf8
            case UInt8(ascii: "\\"): out += #"\\"#.utf8
            case UInt8(ascii: "\n"): out += #"\n"#.utf8
            case UInt8(ascii: "\r"): out += #"\r"#.utf8
            case UInt8(ascii: "\t"): out += #"\t"#.utf8
            case 0..<0x20, UInt8(ascii: "<"), UInt8(ascii: ">"), UInt8(ascii: "&"):
                out += #"\u00"#.utf8
                out.append(hexDigits[Int(byte >> 4)])
                out.append(hexDigits[Int(byte & 15)])
            default: out.append(byte)
            }
        }
        out.append(UInt8(ascii: "\""))
    }
}

// SPDX-License-Identifier: Apache-2.0

/// A JSON value that keeps the order of keys and the text of numbers, so that `-o json` prints what the server sent.
/// Reading and writing need no Foundation, which keeps the client small and quick to start.
public indirect enum JSON: Sendable, Hashable {
    case null
    case bool(Bool)
    /// The digits as written.
    case number(String)
    case string(String)
    case array([JSON])
    case object([Member])

    /// One key with its value.
    public struct Member: Sendable, Hashable {
        package var key: String
        package var value: JSON
    }

    /// An object from pairs, in their order.
    static func record(_ pairs: KeyValuePairs<String, JSON>) -> JSON {
        .object(pairs.map { Member(key: $0.key, value: $0.value) })
    }

    /// A whole number.
    static func int(_ number: some BinaryInteger) -> JSON { .number(String(number)) }

    /// A number with at most `digits` places; JSON has no infinities, they become null.
    static func double(_ value: Double, digits: Int = 6) -> JSON {
        guard value.isFinite else { return .null }
        var text = fixed(value, digits)
        if text.contains(".") {
            while text.hasSuffix("0") { text.removeLast() }
            if text.hasSuffix(".") { text.removeLast() }
        }
        return .number(text)
    }

    /// A member of an object; null for others and for missing keys.
    package subscript(key: String) -> JSON {
        guard case .object(let members) = self else { return .null }
        return members.first { $0.key == key }?.value ?? .null
    }

    package var string: String? {
        guard case .string(let text) = self else { return nil }
        return text
    }

    /// The text, or nothing.
    var text: String { string ?? "" }

    var bool: Bool {
        guard case .bool(let value) = self else { return false }
        return value
    }

    package var int: Int? {
        guard case .number(let text) = self else { return nil }
        return Int(text)
    }

    var double: Double? {
        guard case .number(let text) = self else { return nil }
        return Double(text)
    }

    /// The elements of an array; none for others.
    var elements: [JSON] {
        guard case .array(let elements) = self else { return [] }
        return elements
    }

    /// The members of an object; none for others.
    var members: [Member] {
        guard case .object(let members) = self else { return [] }
        return members
    }

    var isNull: Bool { self == .null }
}

// MARK: - Writing

extension JSON {
    /// On one line.
    package var compact: String {
        var text = ""
        write(to: &text, indent: nil)
        return text
    }

    /// Two spaces per level, as all commands print it.
    package var pretty: String {
        var text = ""
        write(to: &text, indent: 0)
        return text
    }

    private func write(to text: inout String, indent: Int?) {
        switch self {
        case .null: text += "null"
        case .bool(let value): text += value ? "true" : "false"
        case .number(let digits): text += digits
        case .string(let value): Self.quote(value, to: &text)
        case .array(let elements):
            Self.list("[", elements, "]", to: &text, indent) { element, text, indent in
                element.write(to: &text, indent: indent)
            }
        case .object(let members):
            Self.list("{", members, "}", to: &text, indent) { member, text, indent in
                Self.quote(member.key, to: &text)
                text += indent == nil ? ":" : ": "
                member.value.write(to: &text, indent: indent)
            }
        }
    }

    private static func list<Element>(
        _ open: String, _ elements: [Element], _ close: String, to text: inout String, _ indent: Int?,
        _ body: (Element, inout String, Int?) -> Void
    ) {
        text += open
        let inner = indent.map { $0 + 2 }
        for (index, element) in elements.enumerated() {
            if index > 0 { text += "," }
            if let inner { text += "\n" + String(repeating: " ", count: inner) }
            body(element, &text, inner)
        }
        if let indent, !elements.isEmpty { text += "\n" + String(repeating: " ", count: indent) }
        text += close
    }

    private static func quote(_ value: String, to text: inout String) {
        text += "\""
        for scalar in value.unicodeScalars {
            switch scalar {
            case "\"": text += "\\\""
            case "\\": text += "\\\\"
            case "\n": text += "\\n"
            case "\r": text += "\\r"
            case "\t": text += "\\t"
            case _ where scalar.value < 0x20:
                text += "\\u00" + (scalar.value < 16 ? "0" : "") + String(scalar.value, radix: 16)
            default: text.unicodeScalars.append(scalar)
            }
        }
        text += "\""
    }
}

// MARK: - Reading

extension JSON {
    /// What is wrong with a text that should be JSON, and where.
    package struct ParseError: Error, Hashable, CustomStringConvertible {
        package var offset: Int
        package var description: String { "bad JSON at byte \(offset)" }
    }

    /// Deeper values are refused: the reader recurses.
    static let depthLimit = 128

    /// Reads one value with white space around it.
    package static func parse(_ bytes: some Sequence<UInt8>) throws(ParseError) -> JSON {
        var reader = Reader(bytes: Array(bytes))
        let value = try reader.value(depth: 0)
        reader.skipSpace()
        guard reader.offset == reader.bytes.count else { throw ParseError(offset: reader.offset) }
        return value
    }

    private struct Reader {
        let bytes: [UInt8]
        var offset = 0

        init(bytes: [UInt8]) { self.bytes = bytes }

        var next: UInt8? { offset < bytes.count ? bytes[offset] : nil }
        var failure: ParseError { ParseError(offset: offset) }

        mutating func skipSpace() {
            while let byte = next, byte == 32 || byte == 10 || byte == 13 || byte == 9 { offset += 1 }
        }

        mutating func expect(_ text: StaticString) throws(ParseError) {
            let wanted = UnsafeBufferPointer(start: text.utf8Start, count: text.utf8CodeUnitCount)
            guard bytes[offset...].starts(with: wanted) else { throw failure }
            offset += wanted.count
        }

        mutating func value(depth: Int) throws(ParseError) -> JSON {
            guard depth < JSON.depthLimit else { throw failure }
            skipSpace()
            switch next {
            case UInt8(ascii: "{"): return .object(try object(depth))
            case UInt8(ascii: "["): return .array(try array(depth))
            case UInt8(ascii: "\""): return .string(try string())
            case UInt8(ascii: "t"):
                try expect("true")
                return .bool(true)
            case UInt8(ascii: "f"):
                try expect("false")
                return .bool(false)
            case UInt8(ascii: "n"):
                try expect("null")
                return .null
            default: return try number()
            }
        }

        mutating func object(_ depth: Int) throws(ParseError) -> [Member] {
            var members: [Member] = []
            offset += 1
            skipSpace()
            if next == UInt8(ascii: "}") {
                offset += 1
                return members
            }
            while true {
                skipSpace()
                guard next == UInt8(ascii: "\"") else { throw failure }
                let key = try string()
                skipSpace()
                try expect(":")
                members.append(Member(key: key, value: try value(depth: depth + 1)))
                skipSpace()
                guard next == UInt8(ascii: ",") else { break }
                offset += 1
            }
            try expect("}")
            return members
        }

        mutating func array(_ depth: Int) throws(ParseError) -> [JSON] {
            var elements: [JSON] = []
            offset += 1
            skipSpace()
            if next == UInt8(ascii: "]") {
                offset += 1
                return elements
            }
            while true {
                elements.append(try value(depth: depth + 1))
                skipSpace()
                guard next == UInt8(ascii: ",") else { break }
                offset += 1
            }
            try expect("]")
            return elements
        }

        mutating func number() throws(ParseError) -> JSON {
            let start = offset
            while let byte = next, "+-.eE0123456789".utf8.contains(byte) { offset += 1 }
            let text = String(decoding: bytes[start..<offset], as: UTF8.self)
            guard Double(text) != nil, !text.hasPrefix("+"), !text.hasPrefix(".") else {
                throw ParseError(offset: start)
            }
            return .number(text)
        }

        mutating func string() throws(ParseError) -> String {
            offset += 1
            var result: [UInt8] = []
            while let byte = next {
                offset += 1
                switch byte {
                case UInt8(ascii: "\""): return String(decoding: result, as: UTF8.self)
                case UInt8(ascii: "\\"): try escape(to: &result)
                case 0..<0x20: throw failure
                default: result.append(byte)
                }
            }
            throw failure
        }

        mutating func escape(to result: inout [UInt8]) throws(ParseError) {
            guard let byte = next else { throw failure }
            offset += 1
            switch byte {
            case UInt8(ascii: "n"): result.append(10)
            case UInt8(ascii: "r"): result.append(13)
            case UInt8(ascii: "t"): result.append(9)
            case UInt8(ascii: "b"): result.append(8)
            case UInt8(ascii: "f"): result.append(12)
            case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): result.append(byte)
            case UInt8(ascii: "u"):
                var code = try unit()
                if 0xd800..<0xdc00 ~= code, bytes[offset...].starts(with: "\\u".utf8) {
                    offset += 2
                    let low = try unit()
                    guard 0xdc00..<0xe000 ~= low else { throw failure }
                    code = 0x10000 + (code - 0xd800) << 10 + (low - 0xdc00)
                }
                result += Array(String(Unicode.Scalar(code) ?? "\u{fffd}").utf8)
            default: throw failure
            }
        }

        mutating func unit() throws(ParseError) -> UInt32 {
            guard offset + 4 <= bytes.count, bytes[offset] != UInt8(ascii: "+"),
                bytes[offset] != UInt8(ascii: "-"),
                let code = UInt32(String(decoding: bytes[offset..<offset + 4], as: UTF8.self), radix: 16)
            else { throw failure }
            offset += 4
            return code
        }
    }
}

/// A number with a fixed count of places, without Foundation's formatter.
func fixed(_ value: Double, _ digits: Int) -> String {
    let scale = (0..<digits).reduce(1.0) { scale, _ in scale * 10 }
    let scaled = (value.magnitude * scale).rounded()
    guard scaled < 9e18 else { return "\(value)" }
    let whole = UInt64(scaled)
    let sign = value < 0 && whole > 0 ? "-" : ""
    guard digits > 0 else { return sign + String(whole) }
    let unit = UInt64(scale)
    let fraction = String(whole % unit)
    return "\(sign)\(whole / unit)." + String(repeating: "0", count: digits - fraction.count) + fraction
}

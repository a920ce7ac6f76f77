// SPDX-License-Identifier: Apache-2.0

/// Why a text is not JSON.
enum JSONError: Error, Equatable {
    /// Something else than expected at this byte offset.
    case unexpected(at: Int)
    /// The text ended inside a value.
    case truncated
    /// More than 64 levels of lists and objects.
    case tooDeep
    /// The bytes of a text are not UTF-8.
    case notUTF8
}

extension JSON {
    /// Reads the first JSON value of `bytes`; what follows it is ignored, as Go's decoder does.
    init(parsing bytes: some Collection<UInt8>) throws(JSONError) {
        var parser = JSONParser(bytes: Array(bytes))
        self = try parser.value(depth: 0)
    }
}

/// Recursive descent over RFC 8259. Depth is limited, because the text comes from strangers.
private struct JSONParser {
    private let bytes: [UInt8]
    private var position = 0
    private let maximumDepth = 64

    init(bytes: [UInt8]) { self.bytes = bytes }

    mutating func value(depth: Int) throws(JSONError) -> JSON {
        guard depth <= maximumDepth else { throw .tooDeep }
        skipSpace()
        switch try peek() {
        case UInt8(ascii: "{"): return try object(depth: depth)
        case UInt8(ascii: "["): return try array(depth: depth)
        case UInt8(ascii: "\""): return .string(try string())
        case UInt8(ascii: "t"): return try literal("true", .bool(true))
        case UInt8(ascii: "f"): return try literal("false", .bool(false))
        case UInt8(ascii: "n"): return try literal("null", .null)
        default: return try number()
        }
    }

    private mutating func object(depth: Int) throws(JSONError) -> JSON {
        position += 1
        var members: [JSON.Member] = []
        skipSpace()
        if try peek() == UInt8(ascii: "}") {
            position += 1
            return .object([])
        }
        while true {
            skipSpace()
            guard try peek() == UInt8(ascii: "\"") else { throw .unexpected(at: position) }
            let key = try string()
            skipSpace()
            try expect(UInt8(ascii: ":"))
            members.append(JSON.Member(key: key, value: try value(depth: depth + 1)))
            skipSpace()
            if try takeSeparator(closing: UInt8(ascii: "}")) { return .object(members) }
        }
    }

    private mutating func array(depth: Int) throws(JSONError) -> JSON {
        position += 1
        var values: [JSON] = []
        skipSpace()
        if try peek() == UInt8(ascii: "]") {
            position += 1
            return .array([])
        }
        while true {
            values.append(try value(depth: depth + 1))
            skipSpace()
            if try takeSeparator(closing: UInt8(ascii: "]")) { return .array(values) }
        }
    }

    /// True after the closing byte, false after a comma.
    private mutating func takeSeparator(closing: UInt8) throws(JSONError) -> Bool {
        let byte = try peek()
        guard byte == closing || byte == UInt8(ascii: ",") else { throw .unexpected(at: position) }
        position += 1
        return byte == closing
    }

    private mutating func string() throws(JSONError) -> String {
        position += 1
        var out: [UInt8] = []
        while true {
            let byte = try peek()
            position += 1
            switch byte {
            case UInt8(ascii: "\""):
                guard let text = String(validating: out, as: UTF8.self) else { throw .notUTF8 }
                return text
            case UInt8(ascii: "\\"): try escape(into: &out)
            case 0..<0x20: throw .unexpected(at: position - 1)
            default: out.append(byte)
            }
        }
    }

    private mutating func escape(into out: inout [UInt8]) throws(JSONError) {
        let byte = try peek()
        position += 1
        switch byte {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): out.append(byte)
        case UInt8(ascii: "b"): out.append(8)
        case UInt8(ascii: "f"): out.append(12)
        case UInt8(ascii: "n"): out.append(10)
        case UInt8(ascii: "r"): out.append(13)
        case UInt8(ascii: "t"): out.append(9)
        case UInt8(ascii: "u"): out += Array(String(try unicodeEscape()).utf8)
        default: throw .unexpected(at: position - 1)
        }
    }

    /// A lone surrogate becomes U+FFFD, as in Go.
    private mutating func unicodeEscape() throws(JSONError) -> Character {
        let high = try fourDigits()
        if 0xD800..<0xDC00 ~= high, position + 1 < bytes.count, bytes[position] == UInt8(ascii: "\\"),
            bytes[position + 1] == UInt8(ascii: "u")
        {
            let saved = position
            position += 2
            let low = try fourDigits()
            if 0xDC00..<0xE000 ~= low,
                let scalar = Unicode.Scalar(0x10000 + (high - 0xD800) << 10 + (low - 0xDC00))
            {
                return Character(scalar)
            }
            position = saved
        }
        return Character(Unicode.Scalar(high) ?? "\u{FFFD}")
    }

    private mutating func fourDigits() throws(JSONError) -> UInt32 {
        guard position + 4 <= bytes.count else { throw .truncated }
        var value: UInt32 = 0
        for byte in bytes[position..<position + 4] {
            guard let digit = Character(Unicode.Scalar(byte)).hexDigitValue else {
                throw .unexpected(at: position)
            }
            value = value << 4 | UInt32(digit)
        }
        position += 4
        return value
    }

    private mutating func number() throws(JSONError) -> JSON {
        let start = position
        while position < bytes.count {
            switch bytes[position] {
            case UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "-"), UInt8(ascii: "+"),
                UInt8(ascii: "."), UInt8(ascii: "e"), UInt8(ascii: "E"):
                position += 1
                continue
            default: break
            }
            break
        }
        let text = String(decoding: bytes[start..<position], as: UTF8.self)
        if let whole = Int64(text), !text.hasPrefix("+") { return .integer(whole) }
        guard let first = text.first, first == "-" || first.isNumber, let value = Double(text), value.isFinite
        else { throw .unexpected(at: start) }
        return .number(value)
    }

    private mutating func literal(_ text: StaticString, _ result: JSON) throws(JSONError) -> JSON {
        let wanted = Array(text.description.utf8)
        guard position + wanted.count <= bytes.count else { throw .truncated }
        guard Array(bytes[position..<position + wanted.count]) == wanted else {
            throw .unexpected(at: position)
        }
        position += wanted.count
        return result
    }

    private mutating func expect(_ byte: UInt8) throws(JSONError) {
        guard try peek() == byte else { throw .unexpected(at: position) }
        position += 1
    }

    private func peek() throws(JSONError) -> UInt8 {
        guard position < bytes.count else { throw .truncated }
        return bytes[position]
    }

    private mutating func skipSpace() {
        while position < bytes.count, [0x20, 0x09, 0x0A, 0x0D].contains(bytes[position]) { position += 1 }
    }
}

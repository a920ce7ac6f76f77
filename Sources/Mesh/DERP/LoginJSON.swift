// SPDX-License-Identifier: Apache-2.0

/// What a client says of itself when it logs in. `derp.md` §3.
package struct DERPClientInfo: Hashable, Sendable {
    package var version = DERP.protocolVersion
    package var meshKey = ""
    package var canAckPings = true
    package var isProber = false

    package init(meshKey: String = "", canAckPings: Bool = true, isProber: Bool = false) {
        self.meshKey = meshKey
        self.canAckPings = canAckPings
        self.isProber = isProber
    }

    /// Reads the JSON in the login box.
    package init(json: RawSpan) throws(LoginJSON.Failure) {
        let values = try LoginJSON.object(json)
        version = try values.integer("version")
        meshKey = try values.text("meshkey")
        canAckPings = try values.flag("canackpings")
        isProber = try values.flag("isprober")
    }

    /// Key order and omissions as Go writes them.
    package var json: [UInt8] {
        var parts: [String] = []
        if version != 0 { parts.append("\"version\":\(version)") }
        if !meshKey.isEmpty { parts.append("\"meshKey\":" + LoginJSON.quoted(meshKey)) }
        parts.append("\"CanAckPings\":\(canAckPings)")
        if isProber { parts.append("\"IsProber\":true") }
        return Array("{\(parts.joined(separator: ","))}".utf8)
    }
}

/// What a relay says of itself once it accepted a client. `derp.md` §3.
package struct DERPServerInfo: Hashable, Sendable {
    package var version = DERP.protocolVersion
    /// Rate that the client should keep to, bytes per second; 0 is none.
    package var tokenBucketBytesPerSecond = 0
    /// How much it may send at once, bytes.
    package var tokenBucketBytesBurst = 0

    package init(tokenBucketBytesPerSecond: Int = 0, tokenBucketBytesBurst: Int = 0) {
        self.tokenBucketBytesPerSecond = tokenBucketBytesPerSecond
        self.tokenBucketBytesBurst = tokenBucketBytesBurst
    }

    /// Reads the JSON in the login box.
    package init(json: RawSpan) throws(LoginJSON.Failure) {
        let values = try LoginJSON.object(json)
        version = try values.integer("version")
        tokenBucketBytesPerSecond = max(0, try values.integer("tokenbucketbytespersecond"))
        tokenBucketBytesBurst = max(0, try values.integer("tokenbucketbytesburst"))
    }

    /// Key order and omissions as Go writes them.
    package var json: [UInt8] {
        var parts: [String] = []
        if version != 0 { parts.append("\"version\":\(version)") }
        if tokenBucketBytesPerSecond != 0 {
            parts.append("\"TokenBucketBytesPerSecond\":\(tokenBucketBytesPerSecond)")
        }
        if tokenBucketBytesBurst != 0 { parts.append("\"TokenBucketBytesBurst\":\(tokenBucketBytesBurst)") }
        return Array("{\(parts.joined(separator: ","))}".utf8)
    }
}

/// A strict JSON reader for the two small objects of a login: one pass, bounded depth, bounded number of keys.
/// Values of unknown keys are checked and skipped. Names match without case, as in Go.
package struct LoginJSON {
    /// Why the text was refused.
    package enum Failure: Error, Hashable, Sendable {
        /// Not JSON, at this byte.
        case syntax(at: Int)
        /// Arrays and objects within each other beyond the limit.
        case tooDeep
        /// More keys than a login has any use for.
        case tooManyKeys
        /// A known key with a value of another type.
        case wrongType
    }

    /// Nested arrays and objects that are skipped at most.
    private static let depthLimit = 32
    /// Keys of the outermost object.
    private static let keyLimit = 64

    enum Value: Hashable {
        case integer(Int)
        case flag(Bool)
        case text(String)
        case null
        case other
    }

    /// The values of one object, by lower-case name.
    package struct Values {
        var values: [String: Value] = [:]

        func integer(_ name: String) throws(Failure) -> Int {
            switch values[name] {
            case nil, .null: return 0
            case .integer(let number): return number
            default: throw .wrongType
            }
        }

        func flag(_ name: String) throws(Failure) -> Bool {
            switch values[name] {
            case nil, .null: return false
            case .flag(let flag): return flag
            default: throw .wrongType
            }
        }

        func text(_ name: String) throws(Failure) -> String {
            switch values[name] {
            case nil, .null: return ""
            case .text(let text): return text
            default: throw .wrongType
            }
        }
    }

    private let bytes: [UInt8]
    private var position = 0

    /// Reads one object; nothing but white space may follow.
    static func object(_ json: RawSpan) throws(Failure) -> Values {
        var reader = LoginJSON(bytes: json.wireBytes(0..<json.byteCount))
        let result = try reader.outerObject()
        reader.skipSpace()
        guard reader.position == reader.bytes.count else { throw .syntax(at: reader.position) }
        return result
    }

    /// A JSON string.
    static func quoted(_ text: String) -> String {
        var result = "\""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"": result += "\\\""
            case "\\": result += "\\\\"
            case "\0"..<" ":
                let hex = String(scalar.value, radix: 16)
                result += "\\u" + String(repeating: "0", count: 4 - hex.count) + hex
            default: result.unicodeScalars.append(scalar)
            }
        }
        return result + "\""
    }

    private init(bytes: [UInt8]) { self.bytes = bytes }

    private mutating func outerObject() throws(Failure) -> Values {
        var result = Values()
        var count = 0
        try expect(UInt8(ascii: "{"))
        if try accept(UInt8(ascii: "}")) { return result }
        repeat {
            count += 1
            guard count <= Self.keyLimit else { throw .tooManyKeys }
            skipSpace()
            let name = try string()
            try expect(UInt8(ascii: ":"))
            result.values[name.lowercased()] = try value(depth: 1)
        } while try accept(UInt8(ascii: ","))
        try expect(UInt8(ascii: "}"))
        return result
    }

    private mutating func value(depth: Int) throws(Failure) -> Value {
        guard depth <= Self.depthLimit else { throw .tooDeep }
        skipSpace()
        switch peek {
        case UInt8(ascii: "\""):
            return .text(try string())
        case UInt8(ascii: "{"):
            position += 1
            if try accept(UInt8(ascii: "}")) { return .other }
            repeat {
                skipSpace()
                _ = try string()
                try expect(UInt8(ascii: ":"))
                _ = try value(depth: depth + 1)
            } while try accept(UInt8(ascii: ","))
            try expect(UInt8(ascii: "}"))
            return .other
        case UInt8(ascii: "["):
            position += 1
            if try accept(UInt8(ascii: "]")) { return .other }
            repeat { _ = try value(depth: depth + 1) } while try accept(UInt8(ascii: ","))
            try expect(UInt8(ascii: "]"))
            return .other
        case UInt8(ascii: "t"):
            try word("true")
            return .flag(true)
        case UInt8(ascii: "f"):
            try word("false")
            return .flag(false)
        case UInt8(ascii: "n"):
            try word("null")
            return .null
        default:
            return try number()
        }
    }

    private mutating func number() throws(Failure) -> Value {
        let start = position
        let allowed = Array("+-.eE0123456789".utf8)
        while let byte = peek, allowed.contains(byte), position - start < 64 { position += 1 }
        let text = String(decoding: bytes[start..<position], as: UTF8.self)
        if let integer = Int(text), !text.hasPrefix("+") { return .integer(integer) }
        guard Double(text) != nil, !text.hasPrefix("+"), !text.hasPrefix(".") else {
            throw .syntax(at: start)
        }
        return .other
    }

    private mutating func string() throws(Failure) -> String {
        guard peek == UInt8(ascii: "\"") else { throw .syntax(at: position) }
        position += 1
        var text: [UInt8] = []
        while let byte = peek {
            position += 1
            switch byte {
            case UInt8(ascii: "\""):
                return String(decoding: text, as: UTF8.self)
            case UInt8(ascii: "\\"):
                try escape(into: &text)
            case 0..<0x20:
                throw .syntax(at: position - 1)
            default:
                text.append(byte)
            }
        }
        throw .syntax(at: position)
    }

    private mutating func escape(into text: inout [UInt8]) throws(Failure) {
        guard let kind = peek else { throw .syntax(at: position) }
        position += 1
        switch kind {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): text.append(kind)
        case UInt8(ascii: "b"): text.append(8)
        case UInt8(ascii: "f"): text.append(12)
        case UInt8(ascii: "n"): text.append(10)
        case UInt8(ascii: "r"): text.append(13)
        case UInt8(ascii: "t"): text.append(9)
        case UInt8(ascii: "u"):
            var unit = UInt32(try fourDigits())
            if unit >> 10 == 0x36, peek == UInt8(ascii: "\\"), position + 1 < bytes.count,
                bytes[position + 1] == UInt8(ascii: "u")
            {
                let mark = position
                position += 2
                let low = UInt32(try fourDigits())
                if low >> 10 == 0x37 {
                    unit = 0x10000 + (unit & 0x3ff) << 10 + low & 0x3ff
                } else {
                    position = mark
                }
            }
            let scalar = Unicode.Scalar(unit) ?? "\u{fffd}"
            text += Array(String(Character(scalar)).utf8)
        default: throw .syntax(at: position - 1)
        }
    }

    private mutating func fourDigits() throws(Failure) -> UInt16 {
        guard position + 4 <= bytes.count else { throw .syntax(at: position) }
        var result: UInt16 = 0
        for byte in bytes[position..<position + 4] {
            guard let digit = Character(Unicode.Scalar(byte)).hexDigitValue else {
                throw .syntax(at: position)
            }
            result = result << 4 | UInt16(digit)
        }
        position += 4
        return result
    }

    private var peek: UInt8? { position < bytes.count ? bytes[position] : nil }

    private mutating func skipSpace() {
        while let byte = peek, byte == 0x20 || byte == 0x09 || byte == 0x0a || byte == 0x0d { position += 1 }
    }

    private mutating func accept(_ byte: UInt8) throws(Failure) -> Bool {
        skipSpace()
        guard peek == byte else { return false }
        position += 1
        return true
    }

    private mutating func expect(_ byte: UInt8) throws(Failure) {
        guard try accept(byte) else { throw .syntax(at: position) }
    }

    private mutating func word(_ word: String) throws(Failure) {
        guard bytes[position...].starts(with: word.utf8) else { throw .syntax(at: position) }
        position += word.utf8.count
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import FoundationEssentials

// What viewers of a reconnecting terminal send. agent.md §5.1.

/// The first message: u16 little-endian length, then JSON with Go's field names.
struct TerminalGreeting: Decodable, Sendable {
    /// Names the terminal; a UUID.
    var ID: String
    var Height: UInt16?
    var Width: UInt16?
    /// Empty: a login shell.
    var Command: String?
    var Container: String?
    var ContainerUser: String?
    /// `screen`, `buffered` or empty. There is one backend, which serves all of them.
    var BackendType: String?

    /// Reads the JSON; nil when it is none, or says nothing sensible.
    static func parse(_ bytes: [UInt8]) -> TerminalGreeting? {
        guard let greeting = try? JSONDecoder().decode(TerminalGreeting.self, from: Data(bytes)),
            ["", "screen", "buffered"].contains(greeting.BackendType ?? ""),
            greeting.Command?.utf8.contains(0) != true
        else { return nil }
        return greeting
    }
}

/// One of the objects that follow: typed text, then a size, both optional.
struct TerminalMessage: Decodable, Sendable {
    var data: String?
    var height: UInt16?
    var width: UInt16?
}

/// Why a viewer is hung up on.
package enum TerminalError: Error, Hashable, Sendable {
    /// Not an object of JSON, or one with other types inside.
    case malformed
    /// An object of more than `TerminalMessages.sizeLimit` bytes.
    case tooLong
}

/// Cuts a stream of bytes into JSON objects. There is nothing between them but blanks.
package struct TerminalMessages: Sendable {
    /// 8 MiB: a paste of 1 MiB whose every byte is escaped.
    package static let sizeLimit = 8 << 20

    /// Typed text and a size, as far as there are any.
    package typealias Message = (text: [UInt8], size: (rows: UInt16, columns: UInt16)?)

    private var object: [UInt8] = []
    private var depth = 0
    private var isInString = false
    private var isEscaped = false

    package init() {}

    /// The messages that end within `bytes`, in order.
    package mutating func take(_ bytes: ArraySlice<UInt8>) throws(TerminalError) -> [Message] {
        var messages: [Message] = []
        for byte in bytes {
            guard try append(byte) else { continue }
            messages.append(try Self.parse(object))
            object.removeAll(keepingCapacity: object.count < 65_536)
        }
        return messages
    }

    /// True: the object has ended.
    private mutating func append(_ byte: UInt8) throws(TerminalError) -> Bool {
        if depth == 0 {
            switch byte {
            case 0x20, 0x09, 0x0a, 0x0d: return false
            case UInt8(ascii: "{"): break
            default: throw .malformed
            }
        }
        guard object.count < Self.sizeLimit else { throw .tooLong }
        object.append(byte)
        if isInString {
            if isEscaped {
                isEscaped = false
            } else if byte == UInt8(ascii: "\\") {
                isEscaped = true
            } else if byte == UInt8(ascii: "\"") {
                isInString = false
            }
            return false
        }
        switch byte {
        case UInt8(ascii: "\""): isInString = true
        case UInt8(ascii: "{"), UInt8(ascii: "["): depth += 1
        case UInt8(ascii: "}"), UInt8(ascii: "]"):
            depth -= 1
            return depth == 0
        default: break
        }
        return false
    }

    private static func parse(_ object: [UInt8]) throws(TerminalError) -> Message {
        guard let message = try? JSONDecoder().decode(TerminalMessage.self, from: Data(object)) else {
            throw .malformed
        }
        var size: (rows: UInt16, columns: UInt16)?
        if let rows = message.height, let columns = message.width, rows > 0, columns > 0 {
            size = (rows, columns)
        }
        return (Array((message.data ?? "").utf8), size)
    }
}

// SPDX-License-Identifier: Apache-2.0

/// Text as the system sees it: bytes that are UTF-8 by custom only. Commands, paths and variables travel like
/// this, because a file name in Latin-1 must survive.
public struct ByteString: Hashable, Sendable, ExpressibleByStringLiteral, CustomStringConvertible {
    /// The bytes, without terminator.
    public var bytes: [UInt8]

    /// Wraps bytes as they are.
    public init(_ bytes: [UInt8]) { self.bytes = bytes }

    /// The UTF-8 of `text`.
    public init(_ text: String) { bytes = Array(text.utf8) }

    public init(stringLiteral text: String) { self.init(text) }

    /// For people: what is not UTF-8 is shown as U+FFFD.
    public var description: String { String(decoding: bytes, as: UTF8.self) }

    /// Whether the bytes can become a C string whole.
    public var isCString: Bool { !bytes.contains(0) }
}

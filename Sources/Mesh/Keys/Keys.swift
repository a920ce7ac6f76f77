// SPDX-License-Identifier: Apache-2.0

internal import CSodium

/// Why the text or bytes of a key were refused. Never carries the offending text: it may be a secret.
public enum KeyError: Error, Hashable, Sendable {
    /// Another prefix than the one of this kind of key.
    case wrongPrefix
    /// Another number of bytes or digits.
    case wrongLength
    /// Something that is not a hexadecimal digit.
    case notHexadecimal
}

/// Thirty-two bytes of a Curve25519 public key, of the kind that the type says.
public protocol PublicKeyBytes: Hashable, Comparable, Sendable, CustomStringConvertible {
    /// Text before the 64 hexadecimal digits, such as `nodekey:`.
    static var textPrefix: String { get }
    /// The key as four little-endian words: cheap to hash and compare.
    var words: (UInt64, UInt64, UInt64, UInt64) { get }
    /// A key from its words.
    init(words: (UInt64, UInt64, UInt64, UInt64))
}

extension PublicKeyBytes {
    /// The all-zero key, which stands for "absent".
    public static var zero: Self { Self(words: (0, 0, 0, 0)) }
    /// Whether this is the all-zero key.
    public var isZero: Bool { words.0 | words.1 | words.2 | words.3 == 0 }

    /// A key from exactly 32 bytes.
    public init(bytes: some Collection<UInt8>) throws(KeyError) {
        guard bytes.count == 32 else { throw .wrongLength }
        var words = [UInt64](repeating: 0, count: 4)
        for (index, byte) in bytes.enumerated() { words[index / 8] |= UInt64(byte) << UInt64(index % 8 * 8) }
        self.init(words: (words[0], words[1], words[2], words[3]))
    }

    /// Reads the prefix of this kind and 64 hexadecimal digits in either case.
    public init(text: some StringProtocol) throws(KeyError) {
        guard text.hasPrefix(Self.textPrefix) else { throw .wrongPrefix }
        try self.init(hex: text.dropFirst(Self.textPrefix.count))
    }

    /// Reads 64 bare hexadecimal digits in either case.
    public init(hex: some StringProtocol) throws(KeyError) {
        try self.init(bytes: Hex.bytes(hex, count: 32))
    }

    /// The 32 bytes.
    public var bytes: [UInt8] { unsafe withUnsafeBytes { unsafe Array($0) } }

    /// Calls `body` with the 32 bytes.
    public func withUnsafeBytes<R>(_ body: (UnsafeRawBufferPointer) throws -> R) rethrows -> R {
        var copy = (
            words.0.littleEndian, words.1.littleEndian, words.2.littleEndian, words.3.littleEndian
        )
        return try unsafe Swift.withUnsafeBytes(of: &copy) { try unsafe body($0) }
    }

    /// 64 lower-case digits without a prefix.
    public var hex: String { Hex.text(bytes) }
    /// Prefix and 64 lower-case digits: the form in JSON and protobuf.
    public var text: String { Self.textPrefix + hex }
    public var description: String { text }

    public static func == (a: Self, b: Self) -> Bool {
        let (x, y) = (a.words, b.words)
        return (x.0 ^ y.0) | (x.1 ^ y.1) | (x.2 ^ y.2) | (x.3 ^ y.3) == 0
    }

    public static func < (a: Self, b: Self) -> Bool { a.bytes.lexicographicallyPrecedes(b.bytes) }

    public func hash(into hasher: inout Hasher) {
        hasher.combine(words.0)
        hasher.combine(words.1)
        hasher.combine(words.2)
        hasher.combine(words.3)
    }
}

/// A node's WireGuard public key, which is also its address at relays.
@frozen
public struct NodePublicKey: PublicKeyBytes {
    public static var textPrefix: String { "nodekey:" }
    public let words: (UInt64, UInt64, UInt64, UInt64)
    public init(words: (UInt64, UInt64, UInt64, UInt64)) { self.words = words }

    /// Reads the 34-byte binary form of Coder's protobuf: `np` and 32 bytes. `disco.md` §5.
    public init(binary: some Collection<UInt8>) throws(KeyError) {
        guard binary.count == 34 else { throw .wrongLength }
        guard binary.starts(with: [0x6e, 0x70]) else { throw .wrongPrefix }
        try self.init(bytes: binary.dropFirst(2))
    }

    /// The 34-byte binary form.
    public var binary: [UInt8] { [0x6e, 0x70] + bytes }
}

/// The public key that signs a node's discovery messages.
@frozen
public struct DiscoPublicKey: PublicKeyBytes {
    public static var textPrefix: String { "discokey:" }
    public let words: (UInt64, UInt64, UInt64, UInt64)
    public init(words: (UInt64, UInt64, UInt64, UInt64)) { self.words = words }
}

/// A Curve25519 private key, clamped. Wiped when its owner goes away; has no textual description.
public final class PrivateKey: Sendable {
    private let storage: SecretBytes

    /// Takes 32 bytes and clamps them (RFC 7748 §5).
    public init(bytes: some Collection<UInt8>) throws(KeyError) {
        guard bytes.count == 32 else { throw .wrongLength }
        storage = SecretBytes(bytes, clamped: true)
    }

    private init(clamping bytes: [UInt8]) {
        storage = SecretBytes(bytes, clamped: true)
    }

    /// Makes a key from the given source of randomness.
    public convenience init(using generator: inout some RandomNumberGenerator) {
        self.init(clamping: (0..<32).map { _ in UInt8.random(in: 0...255, using: &generator) })
    }

    /// Calls `body` with the 32 secret bytes. Do not copy them.
    public func withUnsafeBytes<R>(_ body: (UnsafeRawBufferPointer) throws -> R) rethrows -> R {
        try unsafe storage.withUnsafeBytes(body)
    }

    /// The four little-endian words of the public key.
    private var publicWords: (UInt64, UInt64, UInt64, UInt64) {
        var words: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
        unsafe Swift.withUnsafeMutableBytes(of: &words) { out in
            unsafe storage.withUnsafeBytes { secret in
                _ = unsafe crypto_scalarmult_base(
                    out.baseAddress!.assumingMemoryBound(to: UInt8.self),
                    secret.baseAddress!.assumingMemoryBound(to: UInt8.self))
            }
        }
        return (
            UInt64(littleEndian: words.0), UInt64(littleEndian: words.1), UInt64(littleEndian: words.2),
            UInt64(littleEndian: words.3)
        )
    }

    /// This key's public key, as a node key.
    public var nodePublicKey: NodePublicKey { NodePublicKey(words: publicWords) }
    /// This key's public key, as a discovery key.
    public var discoPublicKey: DiscoPublicKey { DiscoPublicKey(words: publicWords) }
}

/// Thirty-two secret bytes in their own memory, wiped on release.
// Sendable: immutable after init, and the pointer never escapes its closure.
@safe final class SecretBytes: @unchecked Sendable {
    private let memory: UnsafeMutableRawBufferPointer

    init(_ bytes: some Collection<UInt8>, clamped: Bool) {
        unsafe memory = .allocate(byteCount: bytes.count, alignment: 16)
        unsafe memory.copyBytes(from: bytes)
        if clamped {
            unsafe memory[0] &= 248
            unsafe memory[31] = memory[31] & 127 | 64
        }
    }

    deinit {
        unsafe sodium_memzero(memory.baseAddress!, memory.count)
        unsafe memory.deallocate()
    }

    func withUnsafeBytes<R>(_ body: (UnsafeRawBufferPointer) throws -> R) rethrows -> R {
        try unsafe body(UnsafeRawBufferPointer(memory))
    }
}

/// Hexadecimal text.
public enum Hex {
    /// Lower-case digits.
    public static func text(_ bytes: some Sequence<UInt8>) -> String {
        let digits = Array("0123456789abcdef".utf8)
        var result: [UInt8] = []
        for byte in bytes { result += [digits[Int(byte >> 4)], digits[Int(byte & 15)]] }
        return String(decoding: result, as: UTF8.self)
    }

    /// Exactly `count` bytes from digits in either case.
    public static func bytes(_ text: some StringProtocol, count: Int) throws(KeyError) -> [UInt8] {
        guard text.utf8.count == count * 2 else { throw .wrongLength }
        var result: [UInt8] = []
        var pending: UInt8?
        for digit in text.utf8 {
            let value: UInt8
            switch digit {
            case 48...57: value = digit - 48
            case 97...102: value = digit - 87
            case 65...70: value = digit - 55
            default: throw .notHexadecimal
            }
            if let high = pending {
                result.append(high << 4 | value)
                pending = nil
            } else {
                pending = value
            }
        }
        return result
    }
}

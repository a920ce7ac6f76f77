// SPDX-License-Identifier: Apache-2.0

internal import CSodium

/// Twenty-four bytes that are used once per box key; random ones are unique enough.
package struct BoxNonce: Sendable, Hashable {
    package static var byteCount: Int { 24 }
    private var words: (UInt64, UInt64, UInt64)

    /// A random nonce.
    package init(using random: inout SecureGenerator) {
        words = (random.next(), random.next(), random.next())
    }

    /// Exactly 24 bytes of a message.
    package init(_ bytes: RawSpan) {
        words = (bytes.wire64(0), bytes.wire64(8), bytes.wire64(16))
    }

    func withUnsafeBytes<R>(_ body: (UnsafeRawBufferPointer) -> R) -> R {
        var copy = (words.0.bigEndian, words.1.bigEndian, words.2.bigEndian)
        return unsafe Swift.withUnsafeBytes(of: &copy) { unsafe body($0) }
    }

    /// The 24 bytes.
    package var bytes: [UInt8] { unsafe withUnsafeBytes { unsafe Array($0) } }

    package static func == (a: BoxNonce, b: BoxNonce) -> Bool { a.words == b.words }
    package func hash(into hasher: inout Hasher) { hasher.combine(words.0) }
}

/// The precomputed secret of two Curve25519 key pairs for NaCl's `crypto_box` (X25519, XSalsa20-Poly1305). Wiped
/// when its last owner goes away.
package final class BoxKey: Sendable {
    /// Poly1305 tag in front of each box, bytes.
    package static let tagBytes = 16
    private let secret: SecretBytes

    /// Nil when `theirs` is zero or another point of low order: nothing sealed to it would be secret.
    package init?(ours: PrivateKey, theirs: some PublicKeyBytes) {
        var shared = [UInt8](repeating: 0, count: 32)
        let status = unsafe ours.withUnsafeBytes { mine in
            unsafe theirs.withUnsafeBytes { other in
                unsafe crypto_box_beforenm(
                    &shared, other.baseAddress!.assumingMemoryBound(to: UInt8.self),
                    mine.baseAddress!.assumingMemoryBound(to: UInt8.self))
            }
        }
        guard status == 0 else { return nil }
        secret = SecretBytes(shared, clamped: false)
        unsafe sodium_memzero(&shared, 32)
    }

    /// Seals in place: text lies at `memory[16...]`, the tag is written before it.
    package func seal(_ memory: UnsafeMutableRawBufferPointer, nonce: BoxNonce) {
        precondition(memory.count >= Self.tagBytes, "no room for the tag")
        let base = unsafe memory.baseAddress!.assumingMemoryBound(to: UInt8.self)
        let text = unsafe base + Self.tagBytes
        unsafe secret.withUnsafeBytes { key in
            unsafe nonce.withUnsafeBytes { nonce in
                _ = unsafe crypto_box_detached_afternm(
                    text, base, text, UInt64(memory.count - Self.tagBytes),
                    nonce.baseAddress!.assumingMemoryBound(to: UInt8.self),
                    key.baseAddress!.assumingMemoryBound(to: UInt8.self))
            }
        }
    }

    /// Opens `box` (tag first) into `text`, which must be 16 bytes shorter. False when it was not sealed with this
    /// key; `text` is untouched then.
    package func open(_ box: RawSpan, nonce: BoxNonce, into text: UnsafeMutableRawBufferPointer) -> Bool {
        guard box.byteCount >= Self.tagBytes, text.count == box.byteCount - Self.tagBytes else {
            return false
        }
        return unsafe box.withUnsafeBytes { box in
            unsafe secret.withUnsafeBytes { key in
                unsafe nonce.withUnsafeBytes { nonce in
                    let tag = unsafe box.baseAddress!.assumingMemoryBound(to: UInt8.self)
                    // libsodium wants a valid pointer even for an empty text.
                    var nothing: UInt8 = 0
                    return unsafe withUnsafeMutablePointer(to: &nothing) { nothing in
                        unsafe crypto_box_open_detached_afternm(
                            text.baseAddress?.assumingMemoryBound(to: UInt8.self) ?? nothing,
                            tag + Self.tagBytes, tag, UInt64(text.count),
                            nonce.baseAddress!.assumingMemoryBound(to: UInt8.self),
                            key.baseAddress!.assumingMemoryBound(to: UInt8.self)) == 0
                    }
                }
            }
        }
    }

    /// The text of `box`, or nil.
    package func open(_ box: RawSpan, nonce: BoxNonce) -> [UInt8]? {
        guard box.byteCount >= Self.tagBytes else { return nil }
        var text = [UInt8](repeating: 0, count: box.byteCount - Self.tagBytes)
        let opened = unsafe text.withUnsafeMutableBytes { unsafe open(box, nonce: nonce, into: $0) }
        return opened ? text : nil
    }

    /// Tag and ciphertext of `text`.
    package func seal(_ text: [UInt8], nonce: BoxNonce) -> [UInt8] {
        var box = [UInt8](repeating: 0, count: Self.tagBytes) + text
        unsafe box.withUnsafeMutableBytes { unsafe seal($0, nonce: nonce) }
        return box
    }
}

// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

private let vectors: DiscoVectors = try! PathVectors.load("disco")

@Suite struct DiscoTests {
    private let a = try! PrivateKey(bytes: PathVectors.bytes(vectors.a_private))
    private let b = try! PrivateKey(bytes: PathVectors.bytes(vectors.b_private))
    private var opening: BoxKey { BoxKey(ours: b, theirs: a.discoPublicKey)! }

    private func message(_ expect: DiscoVectors.Expectation) throws -> DiscoMessage {
        switch expect.type {
        case 1:
            guard let key = expect.node_key else { return .ping(try transaction(expect), nodeKey: nil) }
            return .ping(try transaction(expect), nodeKey: try NodePublicKey(hex: key))
        case 2:
            return .pong(try transaction(expect), source: try #require(SocketAddress(expect.src ?? "")))
        default:
            return .callMeMaybe(try #require(expect.endpoints).map { SocketAddress($0)! })
        }
    }

    private func transaction(_ expect: DiscoVectors.Expectation) throws -> TransactionID {
        let bytes = try PathVectors.bytes(try #require(expect.tx))
        return TransactionID(high: bytes.span.bytes.wire64(0), low: bytes.span.bytes.wire32(8))
    }

    // disco.md S1, S3
    @Test(arguments: vectors.messages) func opens(_ vector: DiscoVectors.Message) throws {
        let wire = try PathVectors.bytes(vector.wire)
        #expect(Disco.isDisco(wire))
        #expect(Disco.senderKey(wire).hex == vectors.a_public)
        #expect(try Disco.open(wire, with: opening) == message(vector.expect))
        if let length = vector.wire_len { #expect(wire.count == length) }
    }

    // disco.md S2: the same bytes come out, at each padding that is in use.
    @Test(arguments: vectors.messages) func seals(_ vector: DiscoVectors.Message) throws {
        guard vector.name != "ping, old form without node key" else { return }
        let wire = try PathVectors.bytes(vector.wire)
        let nonceBytes = try PathVectors.bytes(vectors.nonce)
        let nonce = BoxNonce(nonceBytes.span.bytes)
        let key = try #require(BoxKey(ours: a, theirs: b.discoPublicKey))
        var buffer = [UInt8](repeating: 0xee, count: Disco.maximumSealedBytes)
        let padding = vector.expect.version == 1 ? wire.count : nil
        let message = try message(vector.expect)
        let length = buffer.withUnsafeMutableBytes {
            Disco.seal(
                message, from: a.discoPublicKey, with: key, nonce: nonce, padding: padding,
                into: $0)
        }
        #expect(Array(buffer[..<length]) == wire)
    }

    @Test func ownMessagesFillATunnelDatagram() {
        var random = PathVectors.generator(1)
        var buffer = [UInt8](repeating: 0, count: Disco.maximumSealedBytes)
        let key = BoxKey(ours: a, theirs: b.discoPublicKey)!
        let ping = DiscoMessage.ping(TransactionID(using: &random), nodeKey: nil)
        let nonce = BoxNonce(using: &random)
        let length = buffer.withUnsafeMutableBytes {
            Disco.seal(ping, from: a.discoPublicKey, with: key, nonce: nonce, into: $0)
        }
        #expect(length == 1312)
        #expect(throws: Never.self) {
            try Disco.open(buffer[..<length], with: opening)
        }
    }

    // disco.md S7
    @Test(arguments: vectors.malformed) func refuses(_ vector: DiscoVectors.Malformed) throws {
        let wire = try PathVectors.bytes(vector.wire)
        if vector.expect.contains("empty call-me-maybe") {
            #expect(try Disco.open(wire, with: opening) == .callMeMaybe([]))
        } else if vector.expect.hasPrefix("not disco") {
            #expect(!Disco.isDisco(wire))
        } else {
            #expect(Disco.isDisco(wire))
            #expect(throws: DiscoError.self) { try Disco.open(wire, with: opening) }
        }
    }

    @Test func everyTruncationAndEveryFlippedBitIsRefused() throws {
        let wire = try PathVectors.bytes(vectors.messages[5].wire)
        for length in 0..<wire.count {
            #expect(throws: DiscoError.self) {
                try Disco.open(wire[..<length], with: opening)
            }
        }
        for bit in 0..<wire.count * 8 where !(6 * 8..<38 * 8).contains(bit) {
            var bad = wire
            bad[bit / 8] ^= 1 << UInt8(bit % 8)
            #expect(throws: DiscoError.self) { try Disco.open(bad, with: opening) }
        }
    }

    // disco.md S13: a sealed message of 3600 addresses yields the first hundred.
    @Test func callMeMaybeIsBounded() {
        var text: [UInt8] = [3, 0]
        for index in 0..<3600 {
            text += [
                0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, UInt8(index / 256), UInt8(index % 256), 0,
                1,
            ]
        }
        guard case .callMeMaybe(let addresses)? = try? Disco.parse(text.span.bytes) else {
            Issue.record("not a CallMeMaybe")
            return
        }
        #expect(addresses.count == 100)
        #expect(addresses.last == SocketAddress("192.0.0.99:1"))
    }

    @Test func weakKeysGiveNoBox() {
        #expect(BoxKey(ours: a, theirs: DiscoPublicKey.zero) == nil)
        #expect(BoxKey(ours: a, theirs: DiscoPublicKey(words: (1, 0, 0, 0))) == nil)
    }
}

private struct KeyVectors: Decodable {
    struct Form: Decodable, CustomTestStringConvertible {
        var kind: String
        var raw: String?
        var text: String
        var accept: Bool
        var testDescription: String { "\(kind) \(text)" }
    }
    struct Short: Decodable {
        var node_short: String
        var disco_short: String
        var raw: String
        var node_binary_form: String
    }
    var text_forms: [Form]
    var short_forms: Short
}

private let keys: KeyVectors = try! PathVectors.load("keys")

// disco.md S15
@Suite struct DiscoKeyTextTests {
    @Test(arguments: keys.text_forms) fileprivate func texts(_ form: KeyVectors.Form) {
        // Private keys have no text by design.
        guard form.kind != "node private" else { return }
        let key = Self.read(form)
        #expect((key != nil) == form.accept)
        if let key {
            #expect(key.hex == form.raw)
            #expect(key.text == form.text.lowercased())
        }
    }

    private static func read(_ form: KeyVectors.Form) -> (hex: String, text: String)? {
        if form.kind == "node public" {
            guard let key = try? NodePublicKey(text: form.text) else { return nil }
            return (key.hex, key.text)
        }
        guard let key = try? DiscoPublicKey(text: form.text) else { return nil }
        return (key.hex, key.text)
    }

    @Test func shortForms() throws {
        let node = try NodePublicKey(hex: keys.short_forms.raw)
        #expect(node.shortText == keys.short_forms.node_short)
        #expect(Hex.text(node.binary) == keys.short_forms.node_binary_form)
        #expect(try DiscoPublicKey(hex: keys.short_forms.raw).shortText == keys.short_forms.disco_short)
        #expect(NodePublicKey.zero.shortText.isEmpty && DiscoPublicKey.zero.shortText.isEmpty)
    }
}

// SPDX-License-Identifier: Apache-2.0

import FoundationEssentials
import Mesh
import Testing

/// Reads the committed vectors of discovery, STUN, relay and path choice.
enum PathVectors {
    static func load<T: Decodable>(_ name: String, as type: T.Type = T.self) throws -> T {
        let folder = #filePath.split(separator: "/").dropLast(3).joined(separator: "/")
        let data = try Data(contentsOf: URL(filePath: "/\(folder)/Vectors/\(name).json"))
        return try JSONDecoder().decode(type, from: data)
    }

    static func bytes(_ hex: String) throws -> [UInt8] { try Hex.bytes(hex, count: hex.utf8.count / 2) }

    static func generator(_ seed: UInt64) -> SecureGenerator {
        var source = SeededGenerator(seed: seed)
        return SecureGenerator(seededBy: &source)
    }

    static func privateKey(_ seed: UInt64) -> PrivateKey {
        var source = SeededGenerator(seed: seed &+ 0x5eed)
        return PrivateKey(using: &source)
    }
}

// The testing macros cannot capture spans: these take arrays.
extension Disco {
    static func isDisco(_ bytes: [UInt8]) -> Bool { looksLikeDisco(bytes.span.bytes) }
    static func senderKey(_ bytes: [UInt8]) -> DiscoPublicKey { sender(of: bytes.span.bytes) }
    static func open(_ bytes: some Collection<UInt8>, with key: BoxKey) throws(DiscoError) -> DiscoMessage {
        let copy = Array(bytes)
        return try open(copy.span.bytes, with: key)
    }
}

extension STUN {
    static func response(
        _ bytes: some Collection<UInt8>
    ) throws(STUNError) -> (id: TransactionID, mapped: SocketAddress) {
        let copy = Array(bytes)
        return try parseResponse(copy.span.bytes)
    }
    static func request(_ bytes: [UInt8], strict: Bool) throws(STUNError) -> TransactionID {
        try parseRequest(bytes.span.bytes, strict: strict)
    }
}

struct DiscoVectors: Decodable {
    struct Expectation: Decodable {
        var type: UInt8
        var version: UInt8
        var tx: String?
        var node_key: String?
        var src: String?
        var endpoints: [String]?
    }
    struct Message: Decodable, CustomTestStringConvertible {
        var name: String
        var inner: String
        var wire: String
        var wire_len: Int?
        var expect: Expectation
        var testDescription: String { name }
    }
    struct Malformed: Decodable, CustomTestStringConvertible {
        var name: String
        var wire: String
        var expect: String
        var testDescription: String { name }
    }
    var a_private: String
    var a_public: String
    var b_private: String
    var b_public: String
    var a_node_public: String
    var nonce: String
    var messages: [Message]
    var malformed: [Malformed]
}

// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

/// `Tests/Vectors/derp.json`.
struct DERPVectors: Decodable {
    struct ClientInfo: Decodable, CustomTestStringConvertible {
        var json: String
        var frame: String
        var testDescription: String { json }
    }
    struct Frame: Decodable, CustomTestStringConvertible {
        var name: String
        var bytes: String
        var testDescription: String { name }
    }
    struct Malformed: Decodable, CustomTestStringConvertible {
        var name: String
        var bytes: String
        var receiver: String
        var expect: String
        var testDescription: String { "\(receiver): \(name)" }
    }
    var server_private: String
    var client_private: String
    var peer_public: String
    var client_info: [ClientInfo]
    var frames: [Frame]
    var malformed: [Malformed]

    func frame(_ name: String) throws -> [UInt8] {
        try PathVectors.bytes(try #require(frames.first { $0.name == name }).bytes)
    }
}

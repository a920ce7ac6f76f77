// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

struct STUNVectors: Decodable {
    struct Response: Decodable, CustomTestStringConvertible {
        var name: String
        var wire: String
        var mapped: String
        var testDescription: String { name }
    }
    struct Bad: Decodable, CustomTestStringConvertible {
        var name: String
        var wire: String
        var testDescription: String { name }
    }
    var tx: String
    var request: String
    var responses: [Response]
    var requests_a_strict_server_ignores: [Bad]
    var bad_responses: [Bad]
    var rfc5769_request: String
}

private let vectors: STUNVectors = try! PathVectors.load("stun")

// stun-netcheck.md N1, N2, N8, N10
@Suite struct STUNTests {
    private var id: TransactionID {
        let bytes = try! PathVectors.bytes(vectors.tx)
        return TransactionID(high: bytes.span.bytes.wire64(0), low: bytes.span.bytes.wire32(8))
    }

    @Test func request() {
        var buffer = [UInt8](repeating: 0, count: STUN.requestBytes)
        buffer.withUnsafeMutableBytes { STUN.writeRequest(id, into: $0) }
        #expect(Hex.text(buffer) == vectors.request)
        #expect(throws: Never.self) { try STUN.request(buffer, strict: true) }
    }

    @Test(arguments: vectors.responses) func responses(_ vector: STUNVectors.Response) throws {
        let wire = try PathVectors.bytes(vector.wire)
        let answer = try STUN.response(wire)
        #expect(answer.id == id)
        #expect(answer.mapped == SocketAddress(vector.mapped))
    }

    @Test(arguments: vectors.bad_responses) func badResponses(_ vector: STUNVectors.Bad) throws {
        let wire = try PathVectors.bytes(vector.wire)
        #expect(throws: STUNError.self) { try STUN.response(wire) }
    }

    @Test(arguments: vectors.requests_a_strict_server_ignores) func strictServer(
        _ vector: STUNVectors.Bad
    ) throws {
        let wire = try PathVectors.bytes(vector.wire)
        #expect(throws: STUNError.self) { try STUN.request(wire, strict: true) }
        #expect(try STUN.request(wire, strict: false) == id)
    }

    @Test func openServerAnswersOthers() throws {
        let wire = try PathVectors.bytes(vectors.rfc5769_request)
        #expect(throws: Never.self) { try STUN.request(wire, strict: false) }
    }

    @Test(arguments: [0, 1]) func replies(_ index: Int) throws {
        let vector = vectors.responses[index]
        var buffer = [UInt8](repeating: 0, count: STUN.maximumReplyBytes)
        let mapped = try #require(SocketAddress(vector.mapped))
        let length = buffer.withUnsafeMutableBytes { STUN.writeReply(id, mapped: mapped, into: $0) }
        #expect(Hex.text(buffer[..<length]) == vector.wire)
        // RFC 8489 §14: no amplification worth the name.
        #expect(Double(length) <= Double(STUN.requestBytes) * 1.1)
    }

    @Test func truncationsAndNoiseNeverTrap() throws {
        var generator = SeededGenerator(seed: 5)
        let wires = try vectors.responses.map { try PathVectors.bytes($0.wire) }
        for wire in wires {
            for length in 0..<wire.count {
                _ = try? STUN.response(wire[..<length])
            }
            for _ in 0..<2000 {
                var bad = wire
                for _ in 0..<Int.random(in: 1...4, using: &generator) {
                    bad[Int.random(in: 0..<bad.count, using: &generator)] = UInt8.random(
                        in: 0...255, using: &generator)
                }
                _ = try? STUN.response(bad)
                _ = try? STUN.request(bad, strict: true)
            }
        }
    }
}

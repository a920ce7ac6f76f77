// SPDX-License-Identifier: Apache-2.0

import Foundation
import Mesh
import TLS
import Testing

/// Both sides of the machine with each other; OpenSSL's side of it is among the server's tests.
@Suite struct TLSTests {
    private func bytes(_ count: Int, _ seed: Int = 31) -> [UInt8] {
        (0..<count).map { UInt8(truncatingIfNeeded: $0 &* seed &+ $0 >> 8) }
    }

    private func open() async throws -> TLSPair {
        let folder = try CertificateFolder()
        try await folder.make("a")
        let pair = try TLSPair(try folder.context("a"))
        pair.run()
        try #require(pair.server.phase == .open && pair.client.phase == .open)
        return pair
    }

    /// Whatever the pieces in which the bytes come, what is said arrives: records are begun and finished anywhere.
    @Test(arguments: [1, 7, 1_000, 20_000, .max]) func bytesArriveInPieces(_ piece: Int) async throws {
        let folder = try CertificateFolder()
        try await folder.make("a")
        let pair = try TLSPair(try folder.context("a"))
        pair.run(piece: piece)
        #expect(pair.server.phase == .open && pair.client.phase == .open)
        for count in [0, 1, 16_384, 16_385, 70_000] {
            (pair.atServer, pair.atClient) = ([], [])
            #expect(TLSPair.seal(bytes(count), pair.client, &pair.toServer))
            #expect(TLSPair.seal(bytes(count, 7), pair.server, &pair.toClient))
            pair.run(piece: piece)
            #expect(pair.atServer == bytes(count) && pair.atClient == bytes(count, 7), "\(count)")
        }
    }

    @Test(arguments: ["X25519", "P-256", nil]) func groups(_ groups: String?) async throws {
        let folder = try CertificateFolder()
        try await folder.make("rsa", ["rsa:2048"])
        let pair = try TLSPair(try folder.context("rsa"), groups: groups)
        pair.run()
        #expect(pair.server.phase == .open && pair.client.phase == .open)
        let stranger = try TLSPair(try folder.context("rsa"), groups: "P-384")
        stranger.run()
        #expect(stranger.server.phase == .failed && stranger.client.phase == .failed)
        #expect(stranger.server.failure != nil)
    }

    /// What one context gave goes on when there is another one.
    @Test func aNewCertificateIsForNewConnections() async throws {
        let folder = try CertificateFolder()
        try await folder.make("a")
        var context = try folder.context("a")
        let old = try TLSPair(context)
        try await folder.make("a", ["rsa:2048"])
        context = try folder.context("a")
        let new = try TLSPair(context)
        for pair in [old, new] {
            pair.run()
            #expect(TLSPair.seal([1, 2, 3], pair.client, &pair.toServer))
            pair.run()
            #expect(pair.atServer == [1, 2, 3])
        }
        let left = Double(context.expiry) - Date.now.timeIntervalSince1970
        #expect((86_400...3 * 86_400).contains(left))
    }

    @Test func filesThatMakeNoServer() async throws {
        let folder = try CertificateFolder()
        try await folder.make("a")
        try await folder.make("b")
        let chain = try Data(contentsOf: URL(fileURLWithPath: "\(folder.path)/a.pem"))
        try chain.write(to: URL(fileURLWithPath: "\(folder.path)/c.key"))
        try Data("nothing".utf8).write(to: URL(fileURLWithPath: "\(folder.path)/d.pem"))
        #expect(throws: TLSContext.Failure.mismatch) { try folder.context("a", key: "b") }
        #expect(throws: TLSContext.Failure.noKey) { try folder.context("a", key: "c") }
        #expect(throws: TLSContext.Failure.noKey) { try folder.context("a", key: "none") }
        #expect(throws: TLSContext.Failure.noCertificate) { try folder.context("d", key: "a") }
        #expect(throws: TLSContext.Failure.noCertificate) { try folder.context("none", key: "a") }
    }

    /// RFC 8446 §6.1: each side says when it is done; what was said before counts, and nothing follows.
    @Test func endsAreSaid() async throws {
        let pair = try await open()
        #expect(TLSPair.seal([1], pair.client, &pair.toServer))
        pair.client.end(output: &pair.toServer)
        pair.run()
        #expect(pair.atServer == [1] && pair.server.phase == .ended && pair.server.failure == nil)
        var output: [UInt8] = []
        #expect(!TLSPair.seal([2], pair.server, &output) && output.isEmpty)
        pair.server.end(output: &output)
        #expect(!output.isEmpty)
        #expect(TLSPair.take(output, pair.client, &pair.toServer).isEmpty && pair.client.isOver)
    }

    /// Before the handshake is over nothing can be said, nor ended.
    @Test func nothingIsSaidEarly() async throws {
        let folder = try CertificateFolder()
        try await folder.make("a")
        let session = try #require(TLSSession(try folder.context("a")))
        var output: [UInt8] = []
        #expect(!TLSPair.seal([1], session, &output))
        session.end(output: &output)
        #expect(output.isEmpty && session.isOver)
    }

    /// Bytes of another protocol fail at once, and are answered with an alert.
    @Test(arguments: ["GET / HTTP/1.1\r\nHost: x\r\n\r\n", "SSH-2.0-x\r\n", "\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}"])
    func strangers(_ text: String) async throws {
        let folder = try CertificateFolder()
        try await folder.make("a")
        let session = try #require(TLSSession(try folder.context("a")))
        var output: [UInt8] = []
        #expect(TLSPair.take(Array(text.utf8), session, &output).isEmpty && session.phase == .failed)
        #expect(TLSPair.take([1, 2, 3], session, &output).isEmpty && session.phase == .failed)
    }

    /// A stream that ends anywhere waits for more; one that is changed anywhere fails, and what came out before is a
    /// beginning of what was said.
    @Test func damageIsNoticed() async throws {
        let rounds = ProcessInfo.processInfo.environment["SIM_SEEDS"].flatMap { Int($0) } ?? 300
        let folder = try CertificateFolder()
        try await folder.make("a")
        let context = try folder.context("a")
        let said = bytes(40_000)
        for seed in 0..<UInt64(rounds) {
            var generator = SeededGenerator(seed: seed)
            let pair = try TLSPair(context)
            // In the handshake, or behind it.
            let isEarly = Bool.random(using: &generator)
            if !isEarly {
                pair.run()
                _ = TLSPair.seal(said, pair.client, &pair.toServer)
            }
            // Nobody looks at the version that the first record's header gives.
            let place = Int.random(in: (isEarly ? 3 : 0)..<pair.toServer.count, using: &generator)
            let isCut = Bool.random(using: &generator)
            if isCut {
                pair.toServer.removeSubrange(place...)
            } else {
                pair.toServer[place] ^= 1 << UInt8.random(in: 0...7, using: &generator)
            }
            pair.run(piece: Int.random(in: 1...30_000, using: &generator))
            #expect(said.starts(with: pair.atServer), "SIM_SEED=\(seed)")
            if isCut {
                #expect(pair.server.phase == (isEarly ? .handshake : .open), "SIM_SEED=\(seed)")
            } else {
                // A length that was changed may be waited for.
                #expect(pair.atServer.count < said.count, "SIM_SEED=\(seed)")
                #expect(pair.server.phase != .open || !isEarly, "SIM_SEED=\(seed)")
            }
        }
    }

    /// Records of all types and lengths with anything in them, before and after a handshake.
    @Test func anyBytesAreSurvived() async throws {
        let rounds = ProcessInfo.processInfo.environment["SIM_SEEDS"].flatMap { Int($0) } ?? 300
        let folder = try CertificateFolder()
        try await folder.make("a")
        let context = try folder.context("a")
        for seed in 0..<UInt64(rounds) {
            var generator = SeededGenerator(seed: seed)
            let pair = try TLSPair(context)
            if seed % 2 == 0 { pair.run() }
            var output: [UInt8] = []
            for _ in 0..<20 where !pair.server.isOver {
                let count = Int.random(in: 0...300, using: &generator)
                let length =
                    Bool.random(using: &generator) ? count : Int.random(in: 0...20_000, using: &generator)
                let head: [UInt8] = [
                    UInt8.random(in: 20...24, using: &generator), 3,
                    UInt8.random(in: 1...4, using: &generator),
                    UInt8(truncatingIfNeeded: length >> 8), UInt8(truncatingIfNeeded: length),
                ]
                let body = (0..<count).map { _ in UInt8.random(in: 0...255, using: &generator) }
                #expect(TLSPair.take(head + body, pair.server, &output).isEmpty, "SIM_SEED=\(seed)")
            }
            #expect(output.count < 10_000, "SIM_SEED=\(seed)")
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

import Foundation
import TLS
import TestSupport
import Testing

/// A server and a client that hand each other their bytes.
final class TLSPair {
    let server: TLSSession
    let client: TLSSession
    /// On their way to either.
    var toServer: [UInt8] = []
    var toClient: [UInt8] = []
    /// What came out.
    var atServer: [UInt8] = []
    var atClient: [UInt8] = []

    init(_ context: TLSContext, groups: String? = "X25519") throws {
        server = try #require(TLSSession(context))
        client = try #require(TLSSession(try TLSContext(believingAnyoneBy: groups)))
        atClient += Self.take([], client, &toServer)
    }

    /// Moves bytes in pieces of `piece` until both sides are silent.
    func run(piece: Int = .max) {
        while !toServer.isEmpty || !toClient.isEmpty {
            atServer += Self.take(Self.first(piece, of: &toServer), server, &toClient)
            atClient += Self.take(Self.first(piece, of: &toClient), client, &toServer)
        }
    }

    private static func first(_ count: Int, of bytes: inout [UInt8]) -> [UInt8] {
        defer { bytes.removeFirst(min(count, bytes.count)) }
        return Array(bytes.prefix(count))
    }

    /// Gives sealed bytes to a session; returns the plain ones.
    static func take(_ sealed: [UInt8], _ session: TLSSession, _ answer: inout [UInt8]) -> [UInt8] {
        var plain = [UInt8](repeating: 0, count: sealed.count + TLSSession.heldBytes)
        let count = sealed.withUnsafeBytes { sealed in
            plain.withUnsafeMutableBytes { session.receive(sealed, into: $0, output: &answer) }
        }
        return Array(plain[..<count])
    }

    static func seal(_ plain: [UInt8], _ session: TLSSession, _ output: inout [UInt8]) -> Bool {
        plain.withUnsafeBytes { session.seal($0, output: &output) }
    }
}

/// A folder with certificates, removed with it.
final class CertificateFolder {
    let path = "/tmp/coder-test-\(UUID().uuidString.prefix(8))"

    init() throws {
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    /// `kind`: what `openssl req -newkey` takes.
    func make(_ name: String, _ kind: [String] = ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"]) async throws {
        let made = try await Command.run(
            ["openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout"]
                + ["\(path)/\(name).key", "-out", "\(path)/\(name).pem", "-newkey"] + kind)
        try #require(made.status == 0, "\(made)")
    }

    func context(_ name: String, key: String? = nil) throws -> TLSContext {
        try TLSContext(
            chainFile: "\(path)/\(name).pem", keyFile: "\(path)/\(key ?? name).key", groups: "X25519:P-256")
    }
}

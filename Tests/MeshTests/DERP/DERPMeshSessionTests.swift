// SPDX-License-Identifier: Apache-2.0

import Foundation
import Mesh
import Testing

/// A relay's login at another relay, and what it hears there. `derp.md` §3, §8.
@Suite struct DERPMeshSessionTests {
    private struct Ends {
        var client: DERPMeshSession
        var server: DERPServerSession
        let serverKey: PrivateKey
        let clientKey: PrivateKey
        var random: SecureGenerator
    }

    private func ends(seed: UInt64 = 1, meshKey: String = "secret") -> Ends {
        var generator = SeededGenerator(seed: seed)
        let (server, client) = (PrivateKey(using: &generator), PrivateKey(using: &generator))
        return Ends(
            client: DERPMeshSession(privateKey: client, meshKey: meshKey),
            server: DERPServerSession(serverKey: server, meshKey: "secret"), serverKey: server,
            clientKey: client, random: SecureGenerator(seededBy: &generator))
    }

    private func feed(_ session: inout DERPMeshSession, _ bytes: [UInt8]) throws -> [DERPMeshSession.Input] {
        var inputs: [DERPMeshSession.Input] = []
        var offset = 0
        while let input = try session.next(in: bytes.span.bytes, offset: &offset) { inputs.append(input) }
        #expect(offset == bytes.count)
        return inputs
    }

    /// Both ends up to the point where the client is accepted; what the server made of it.
    private func logIn(_ ends: inout Ends) throws -> [DERPServerSession.Input] {
        let hello = DERPServerSession.serverKeyFrame(ends.serverKey.nodePublicKey)
        let first = try feed(&ends.client, hello)
        #expect(first == [.serverKey(ends.serverKey.nodePublicKey)])
        let frames = ends.client.loginFrames(random: &ends.random)
        var inputs: [DERPServerSession.Input] = []
        var (offset, needed) = (0, 0)
        while let input = try ends.server.next(in: frames.span.bytes, offset: &offset, needed: &needed) {
            inputs.append(input)
            guard case .login = input else { continue }
            let info = ends.server.serverInfoFrame(random: &ends.random)
            let answer = try feed(&ends.client, info)
            #expect(answer == [.ready])
        }
        return inputs
    }

    @Test func aRelayLogsInAndWatches() throws {
        var ends = ends()
        let inputs = try logIn(&ends)
        guard case .login(let key, let info) = inputs.first else {
            Issue.record("no login: \(inputs)")
            return
        }
        #expect(key == ends.clientKey.nodePublicKey && info.meshKey == "secret")
        #expect(inputs.last == .watchConnections && ends.server.isMeshPeer && ends.client.isOpen)
        let other = ends.serverKey.nodePublicKey
        let frames =
            DERP.frame(.peerPresent, other.bytes) + DERP.frame(.peerPresent, other.bytes, [1, 2, 3])
            + DERP.frame(.keepAlive) + DERP.frame(.receivePacket, other.bytes, [9])
            + DERP.frame(.peerGone, other.bytes, [0]) + DERP.frame(.ping, [0, 0, 0, 0, 0, 0, 1, 2])
            + DERP.frame(.restarting, [0, 0, 0, 1, 0, 0, 0, 2]) + DERP.frame(.peerPresent, [1, 2])
        let heard = try feed(&ends.client, frames)
        #expect(
            heard == [
                .peerPresent(other), .peerPresent(other), .unknown(type: 0x06), .unknown(type: 0x05),
                .peerGone(other), .ping(258), .restarting, .unknown(type: 0x09),
            ])
    }

    @Test func theWrongKeyIsNoMeshPeer() throws {
        var ends = ends(meshKey: "other")
        #expect(throws: DERPError.notMeshPeer(type: 0x10)) { _ = try logIn(&ends) }
    }

    @Test func anImpostorIsNoticed() throws {
        var ends = ends()
        // Announces a key that is not its own: its answer cannot be opened.
        var generator = SeededGenerator(seed: 9)
        let stranger = PrivateKey(using: &generator)
        _ = try feed(&ends.client, DERPServerSession.serverKeyFrame(stranger.nodePublicKey))
        _ = ends.client.loginFrames(random: &ends.random)
        let forged = DERP.frame(.serverInfo, [UInt8](repeating: 7, count: 60))
        #expect(throws: DERPError.cannotOpen) { _ = try feed(&ends.client, forged) }
    }

    @Test(arguments: [
        DERP.frame(.keepAlive), DERP.frame(.serverKey, [1, 2, 3]),
        DERP.frame(.serverKey, [UInt8](repeating: 0, count: 40)),
        DERP.frame(.serverKey, DERP.magic, [UInt8](repeating: 0, count: 32)),
        [0x01, 0xff, 0xff, 0xff, 0xff],
    ]) func badBeginningsEndIt(_ bytes: [UInt8]) {
        var ends = ends()
        #expect(throws: DERPError.self) { _ = try feed(&ends.client, bytes) }
    }

    /// Any bytes in any pieces, before and after the login: never a crash, never more than one error.
    @Test func fuzzedBytes() throws {
        let rounds = ProcessInfo.processInfo.environment["SIM_SEEDS"].flatMap { Int($0) } ?? 300
        for seed in 0..<UInt64(rounds) {
            var ends = ends(seed: seed)
            if seed % 2 == 0 { _ = try logIn(&ends) }
            var generator = SeededGenerator(seed: seed)
            var bytes = (0..<600).map { _ in UInt8.random(in: 0...255, using: &generator) }
            if seed % 3 == 0 {
                // Frames of sensible types and lengths reach further.
                bytes = (0..<20).flatMap { _ -> [UInt8] in
                    let length = Int.random(in: 0...80, using: &generator)
                    return [UInt8.random(in: 0...0x16, using: &generator), 0, 0, 0, UInt8(length)]
                        + (0..<length).map { _ in UInt8.random(in: 0...255, using: &generator) }
                }
            }
            var kept: [UInt8] = []
            var isOver = false
            while !bytes.isEmpty {
                let count = min(bytes.count, Int.random(in: 1...64, using: &generator))
                kept += bytes.prefix(count)
                bytes.removeFirst(count)
                var offset = 0
                do {
                    while try ends.client.next(in: kept.span.bytes, offset: &offset) != nil {}
                } catch {
                    #expect(!isOver)
                    isOver = true
                }
                kept.removeFirst(offset)
            }
            guard isOver else { continue }
            var offset = 0
            let after = try ends.client.next(in: [1, 0, 0, 0, 0].span.bytes, offset: &offset)
            #expect(after == nil)
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

import DERPRelay
import Foundation
import Glibc
import LinuxIO
import Mesh
import Testing

/// Random clients on one relay: whatever they send, honest ones are served and nothing is left behind.
@Suite(.serialized) struct RelayFuzzTests {
    /// Frames of sensible types, half of them of sensible lengths, cut into pieces at random.
    private func frames(_ keys: [NodePublicKey], _ generator: inout SeededGenerator) -> [UInt8] {
        (0..<Int.random(in: 1...30, using: &generator)).flatMap { _ -> [UInt8] in
            let type = UInt8.random(in: 0...0x16, using: &generator)
            var body: [UInt8] = []
            switch Int.random(in: 0...3, using: &generator) {
            case 0: body = (keys.randomElement(using: &generator) ?? keys[0]).bytes
            case 1: body = [1]
            case 2:
                body = (keys.randomElement(using: &generator) ?? keys[0]).bytes + Disco.magic
            default: break
            }
            body += (0..<Int.random(in: 0...120, using: &generator)).map { _ in
                UInt8.random(in: 0...255, using: &generator)
            }
            let length =
                Bool.random(using: &generator) ? body.count : Int.random(in: 0...70_000, using: &generator)
            return [type] + (0..<4).map { UInt8(truncatingIfNeeded: length >> (24 - 8 * $0)) } + body
        }
    }

    @Test func fuzzedClientsLeaveNothing() throws {
        let rounds = ProcessInfo.processInfo.environment["SIM_SEEDS"].flatMap { Int($0) } ?? 150
        let harness = try RelayHarness(meshKey: "secret") { $0.bytesPerSecond = 1 << 30 }
        let (a, b) = (try harness.client(), try harness.client())
        for seed in 0..<UInt64(rounds) {
            var generator = SeededGenerator(seed: seed)
            let isMeshPeer = seed % 4 == 0
            let client = try harness.client(info: DERPClientInfo(meshKey: isMeshPeer ? "secret" : ""))
            var bytes = frames([b.publicKey, client.publicKey, harness.relay.publicKey], &generator)
            while !bytes.isEmpty {
                let count = min(bytes.count, Int.random(in: 1...2_000, using: &generator))
                guard (try? client.write(Array(bytes.prefix(count)))) != nil else { break }
                bytes.removeFirst(count)
            }
            client.close()
            try a.send([UInt8(seed & 255), 0x77], to: a)
            while try a.waitForPacket().bytes != [UInt8(seed & 255), 0x77] {}
        }
        // A mesh peer may close others: that is its right; the counters still come to rest.
        a.close()
        b.close()
        #expect(harness.eventually { $0.connections == 0 && $0.clients == 0 && $0.watchers == 0 })
        #expect(
            harness.eventually { $0.queuedBytes == 0 && $0.duplicateKeys == 0 && $0.homeConnections == 0 })
    }
}

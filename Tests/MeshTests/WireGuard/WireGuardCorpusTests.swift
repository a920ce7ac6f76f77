// SPDX-License-Identifier: Apache-2.0

import Foundation
import Mesh
import Testing

/// The committed messages of `Tests/Corpus`: each has the outcome that its file names; and damaged at random it
/// does no harm. `SIM_SEEDS` lengthens the runs, `SIM_SEED` replays one.
@Suite struct WireGuardCorpusTests {
    /// One file: the outcome, and bytes line by line.
    struct Item {
        let name: String
        let expected: String
        let lines: [[UInt8]]

        static func all(_ folder: String) throws -> [Item] {
            let folder = testFile("Corpus/\(folder)")
            let names = try FileManager.default.contentsOfDirectory(atPath: folder.path).sorted()
            return try names.map { name in
                let text = try String(contentsOf: folder.appending(path: name), encoding: .utf8)
                let lines = text.split(separator: "\n")
                return Item(
                    name: name, expected: String(lines[0].dropFirst("expect ".count)),
                    lines: try lines.dropFirst().map { try bytes(String($0)) })
            }
        }
    }

    /// What a message is fed to.
    enum Kind: String, CaseIterable {
        case initiation, response, cookieReply = "cookie-reply", data, innerPacket = "inner-packet"

        var items: [Item] { get throws { try Item.all("wireguard/\(rawValue)") } }
        /// Bytes 0...3 decide who looks at the rest.
        var keeps: Int { self == .innerPacket ? 0 : 4 }
    }

    /// A device in the state in which such a message is of interest, and what goes to it.
    private struct Target {
        let kind: Kind
        let device: RecordedDevice
        private let sealer: RecordedDevice?
        private let key: NodePublicKey

        init(_ kind: Kind, _ vectors: WireGuardVectors) throws {
            self.kind = kind
            let handshake = vectors.handshakes[0]
            key = try NodePublicKey(
                hex: kind == .initiation ? vectors.responder_static_public : vectors.initiator_static_public)
            switch kind {
            case .initiation: (device, sealer) = (try vectors.responder(handshake), nil)
            case .response, .cookieReply:
                (device, sealer) = (try vectors.initiator(handshake), nil)
                device.device.initiateHandshake(device.peer, now: .start)
                _ = device.output()
            case .data, .innerPacket:
                let session = try vectors.session(handshake)
                (device, sealer) = (session.responder, session.initiator)
            }
        }

        func receive(_ message: [UInt8]) -> String {
            var message = kind == .innerPacket ? sealer?.seal(message) ?? [] : message
            return switch device.receive(&message) {
            case .packet: "packet"
            case .keepalive: "keepalive"
            case .handshake: "handshake"
            case .cookie: "cookie"
            case .reply: "reply"
            case .refused(_, let reason): "refused \(reason)"
            case .dropped(let reason): "dropped \(reason)"
            }
        }

        /// As somebody who knows the receiver's public key would send it.
        func signed(_ message: [UInt8]) -> [UInt8] {
            let hasMAC = kind == .initiation || kind == .response
            return hasMAC && message.count > 60 ? MeshTests.signed(message, for: key) : message
        }
    }

    private let vectors: WireGuardVectors

    init() throws { vectors = try WireGuardVectors.load() }

    @Test(arguments: Kind.allCases) func messagesHaveTheirOutcome(_ kind: Kind) throws {
        let items = try kind.items
        #expect(items.count >= 9)
        for item in items {
            #expect(try Target(kind, vectors).receive(item.lines[0]) == item.expected, "\(item.name)")
        }
    }

    /// Whatever comes, what was recorded is understood afterwards.
    @Test(arguments: Kind.allCases, Seeds.some(2)) func damagedMessages(_ kind: Kind, seed: UInt64) throws {
        var generator = SeededGenerator(seed: seed ^ 0xc0_9905)
        let items = try kind.items
        let name = kind == .innerPacket ? "v4-header-only.txt" : "recorded.txt"
        let good = try #require(items.first { $0.name == name })
        for item in items {
            for _ in 0..<4 {
                let target = try Target(kind, vectors)
                let bad = target.signed(generator.damaged(item.lines[0], keeps: kind.keeps))
                let outcome = target.receive(bad)
                guard outcome.hasPrefix("dropped") || outcome.hasPrefix("refused") else { continue }
                #expect(target.receive(good.lines[0]) == good.expected, "seed \(seed), \(item.name)")
            }
        }
        Executions.add(items.count * 4, to: "corpus of \(kind.rawValue)")
    }

    private func cut(_ bytes: [UInt8]) -> String {
        let virtio = bytes.withUnsafeBytes { VirtioHeader(at: $0.baseAddress!) }
        guard let virtio, let packets = Cutting.cut(Array(bytes[VirtioHeader.size...]), virtio) else {
            return "refused"
        }
        return "packets \(packets.count)"
    }

    @Test(arguments: Seeds.some(2)) func superPackets(seed: UInt64) throws {
        var generator = SeededGenerator(seed: seed)
        let items = try Item.all("segmenter")
        #expect(items.count >= 20)
        for item in items {
            #expect(cut(item.lines[0]) == item.expected, "\(item.name)")
            // `Cutting` traps when a segment lies outside of its packet.
            for _ in 0..<50 { _ = cut(generator.damaged(item.lines[0])) }
        }
        Executions.add(items.count * 51, to: "segmenter")
    }

    @Test(arguments: Seeds.some(2)) func packetsToJoin(seed: UInt64) throws {
        var generator = SeededGenerator(seed: seed)
        let items = try Item.all("coalescer")
        #expect(items.count >= 20)
        let joiner = CoalescerTests()
        for item in items {
            #expect("groups \(joiner.join(item.lines).count)" == item.expected, "\(item.name)")
            for _ in 0..<50 {
                // The version is right: the device checked it.
                let packets = item.lines.map { generator.damaged($0, keeps: 1) }
                let result = joiner.cut(joiner.join(packets))
                #expect(result.count == packets.count, "seed \(seed), \(item.name)")
            }
        }
        Executions.add(items.count * 51, to: "coalescer")
    }
}

// SPDX-License-Identifier: Apache-2.0

import Foundation
import Mesh
import Testing

/// The protocol under requests that are nearly right. `SIM_SEEDS` lengthens the runs, `SIM_SEED` replays one.
@Suite struct UAPIFuzzTests {
    /// Every setting is read back from its line, in one piece and in many.
    @Test(arguments: Seeds.some(20)) func roundTrip(seed: UInt64) throws {
        var generator = UAPIGenerator(seed: seed)
        for _ in 0..<50 {
            let settings = generator.operation(lines: generator.pick(300))
            let text = "set=1\n" + settings.map { $0.line + "\n" }.joined() + "\n"
            var session = UAPI.Session()
            var read: [String] = []
            var rest = Array(text.utf8)[...]
            while !rest.isEmpty {
                let chunk = 1 + generator.pick(900)
                session.receive(rest.prefix(chunk))
                rest = rest.dropFirst(chunk)
                while let event = session.nextEvent() {
                    switch event {
                    case .settings(let piece):
                        #expect(piece.count <= UAPI.Limits().settingsPerPiece)
                        read += piece.map(\.line)
                    case .begin: #expect(read.isEmpty)
                    case .end(let failure): #expect(failure == nil && rest.isEmpty, "seed \(seed)")
                    case .get, .refuse: Issue.record("seed \(seed): \(event)")
                    }
                }
            }
            #expect(read == settings.map(\.line), "seed \(seed)")
            #expect(!session.isBusy)
        }
    }

    /// A device configured at random always tells what a slow model holds.
    @Test(arguments: Seeds.some(20)) func againstAModel(seed: UInt64) throws {
        var generator = UAPIGenerator(seed: seed)
        let interface = PaperInterface()
        var model = Model()
        for _ in 0..<60 {
            let settings = generator.operation(lines: generator.pick(40))
            let answer = interface.talk("set=1\n" + settings.map { $0.line + "\n" }.joined() + "\n")
            model.apply(settings, takenPort: 7)
            if answer == "errno=0\n\n" { #expect(!model.hasFailed) }
            let told = interface.status.peers.map { Model.Peer($0) }.sorted { $0.key < $1.key }
            #expect(told == model.peers.values.sorted { $0.key < $1.key }, "seed \(seed)")
            #expect(interface.mark == model.mark, "seed \(seed)")
        }
    }

    /// Damaged requests: an answer for each complete operation, no crash, and the device stays whole.
    @Test(arguments: Seeds.some(40)) func damagedRequests(seed: UInt64) throws {
        var generator = UAPIGenerator(seed: seed)
        let corpus = try Self.corpus()
        #expect(corpus.count >= 10)
        let interface = PaperInterface()
        var executions = 0
        for _ in 0..<100 {
            var request: [UInt8]
            if generator.pick(3) == 0 {
                let settings = generator.operation(lines: generator.pick(30))
                request = Array(("set=1\n" + settings.map { $0.line + "\n" }.joined() + "\n").utf8)
            } else {
                request = corpus[generator.pick(corpus.count)]
            }
            request = generator.damaged(request)
            let (answer, isRefused) = interface.talk(request, chunk: 1 + generator.pick(200))
            executions += 1
            let text = String(decoding: answer, as: UTF8.self)
            #expect(text.isEmpty || text.hasSuffix("\n\n") && text.contains("errno="), "seed \(seed)")
            _ = isRefused
            #expect(interface.talk("get=1\n\n").hasSuffix("errno=0\n\n"), "seed \(seed)")
        }
        Executions.add(executions, to: "UAPI")
    }

    /// The committed corpus, as it is.
    @Test func corpusIsUnderstood() throws {
        for request in try Self.corpus() {
            for chunk in [1, 64, Int.max] { _ = PaperInterface().talk(request, chunk: chunk) }
        }
    }

    static func corpus() throws -> [[UInt8]] {
        let folder = testFile("Corpus/uapi")
        let names = try FileManager.default.contentsOfDirectory(atPath: folder.path).sorted()
        return try names.map { Array(try Data(contentsOf: folder.appending(path: $0))) }
    }
}

/// What the device must hold, kept in the most obvious way.
private struct Model {
    struct Peer: Equatable {
        let key: NodePublicKey
        var presharedKey: [UInt8]?
        var endpoint: String?
        var keepalive: UInt16 = 0
        var allowedIPs: Set<IPPrefix> = []

        init(key: NodePublicKey) { self.key = key }

        init(_ status: UAPI.PeerStatus) {
            key = status.publicKey
            presharedKey = status.presharedKey?.bytes
            endpoint = status.endpoint?.description
            keepalive = status.persistentKeepalive
            allowedIPs = Set(status.allowedIPs)
        }
    }

    var peers: [NodePublicKey: Peer] = [:]
    var own: NodePublicKey?
    var mark: UInt32 = 0
    var hasFailed = false

    mutating func apply(_ settings: [UAPI.Setting], takenPort: UInt16) {
        hasFailed = false
        var chosen: NodePublicKey?
        var isNew = false
        for setting in settings {
            switch setting {
            case .privateKey(let key):
                own = key?.nodePublicKey
                if let own { peers[own] = nil }
            case .listenPort(let port):
                guard port != takenPort else {
                    hasFailed = true
                    return
                }
            case .firewallMark(let mark): self.mark = mark
            case .replacePeers: peers = [:]
            case .peer(let key):
                isNew = peers[key] == nil
                chosen = key == own ? nil : key
                if isNew, let chosen { peers[chosen] = Peer(key: chosen) }
            default:
                guard let key = chosen else { continue }
                if apply(setting, to: key, isNew: isNew) { chosen = nil }
            }
        }
    }

    /// True when the peer is gone.
    private mutating func apply(_ setting: UAPI.Setting, to key: NodePublicKey, isNew: Bool) -> Bool {
        switch setting {
        case .remove:
            peers[key] = nil
            return true
        case .updateOnly where isNew:
            peers[key] = nil
            return true
        case .presharedKey(let preshared): peers[key]?.presharedKey = preshared?.bytes
        case .endpoint(let endpoint): peers[key]?.endpoint = endpoint.description
        case .persistentKeepalive(let seconds): peers[key]?.keepalive = seconds
        case .replaceAllowedIPs: peers[key]?.allowedIPs = []
        case .allowedIP(let prefix):
            for other in Array(peers.keys) { peers[other]?.allowedIPs.remove(prefix) }
            peers[key]?.allowedIPs.insert(prefix)
        case .noAllowedIP(let prefix): peers[key]?.allowedIPs.remove(prefix)
        default: break
        }
        return false
    }
}

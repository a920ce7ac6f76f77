// SPDX-License-Identifier: Apache-2.0

import FoundationEssentials
import Mesh

/// `Tests/Vectors/uapi.json`: what Debian's `wg` wrote and read.
struct UAPIVectors: Decodable, Sendable {
    struct Run: Decodable, Sendable {
        let command: String
        let connections: [String]
    }
    let get_reply_used: String
    let runs: [Run]

    static func load() throws -> UAPIVectors {
        try JSONDecoder().decode(UAPIVectors.self, from: Data(contentsOf: testFile("Vectors/uapi.json")))
    }
}

/// A file below `Tests`.
func testFile(_ name: String) -> URL {
    URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent().appending(path: name)
}

/// A device with sockets and endpoints that exist on paper only.
struct PaperState: ~Copyable, UAPI.Interface {
    var device: WireGuard.Device
    var listenPort: UInt16 = 0
    var firewallMark: UInt32 = 0
    var endpoints: [WireGuard.PeerIndex: UAPI.Endpoint] = [:]
    /// A port that something else has.
    let takenPort: UInt16 = 7

    init(_ device: consuming WireGuard.Device) { self.device = device }

    mutating func rebind(toPort port: UInt16) throws(UAPI.Failure) {
        guard port != takenPort else { throw .portInUse }
        listenPort = port
    }
    mutating func remark(_ mark: UInt32) throws(UAPI.Failure) { firewallMark = mark }
    func place(of peer: WireGuard.PeerIndex) -> UAPI.Endpoint? { endpoints[peer] }
    mutating func setPlace(of peer: WireGuard.PeerIndex, _ endpoint: UAPI.Endpoint) throws(UAPI.Failure) {
        endpoints[peer] = endpoint
    }
    mutating func forgetPlace(of peer: WireGuard.PeerIndex) { endpoints[peer] = nil }
}

/// A device with its configuration protocol, without sockets: what a client writes goes in, answers come out.
final class PaperInterface {
    var state: PaperState
    var now = Instant.start
    private var buffer = [UInt8](repeating: 0, count: 2_048)

    init(limits: WireGuard.Limits = .init(), key: PrivateKey? = nil) {
        state = PaperState(
            WireGuard.Device(
                privateKey: key, limits: limits, randomness: .seeded(SeededGenerator(seed: 1))))
    }

    var peerCount: Int { state.device.peerCount }
    var mark: UInt32 { state.firewallMark }
    var port: UInt16 { state.listenPort }
    var endpointCount: Int { state.endpoints.count }
    var status: UAPI.Status {
        UAPI.status(of: state, now: now, wallTime: now.wall)
    }
    func output() -> [[UInt8]] {
        var result: [[UInt8]] = []
        while let length = buffer.withUnsafeMutableBytes({
            state.device.nextOutput(into: $0, now: now, wallTime: now.wall)?.length
        }) {
            result.append(Array(buffer[..<length]))
        }
        return result
    }

    /// One connection: gives what the client reads. `chunk`: bytes that arrive at once.
    func talk(
        _ bytes: [UInt8], chunk: Int = .max, limits: UAPI.Limits = .init()
    ) -> (answer: [UInt8], isRefused: Bool) {
        var session = UAPI.Session(limits: limits)
        var cursor = UAPI.Cursor()
        var problem: UAPI.Failure?
        var answer: [UInt8] = []
        var rest = bytes[...]
        while !rest.isEmpty {
            session.receive(rest.prefix(chunk))
            rest = rest.dropFirst(chunk)
            while let event = session.nextEvent() {
                switch event {
                case .get: answer += status.answer
                case .begin:
                    cursor = UAPI.Cursor()
                    problem = nil
                case .settings(let settings):
                    guard problem == nil else { continue }
                    do throws(UAPI.Failure) {
                        try UAPI.apply(settings, &cursor, to: &state, now: now)
                    } catch {
                        problem = error
                    }
                case .end(let failure):
                    UAPI.finish(&cursor, on: &state, now: now)
                    answer += UAPI.answer(problem ?? failure)
                case .refuse: return (answer, true)
                }
            }
        }
        return (answer, false)
    }

    func talk(_ text: String) -> String { String(decoding: talk(Array(text.utf8)).answer, as: UTF8.self) }
}

extension UAPI.Setting {
    /// The line that this setting is read from, written the plain way.
    var line: String {
        switch self {
        case .privateKey(let key): "private_key=\(hex(key))"
        case .listenPort(let port): "listen_port=\(port)"
        case .firewallMark(let mark): "fwmark=\(mark)"
        case .replacePeers: "replace_peers=true"
        case .peer(let key): "public_key=\(key.hex)"
        case .remove: "remove=true"
        case .updateOnly: "update_only=true"
        case .presharedKey(let key):
            "preshared_key=\(key.map { Hex.text($0.bytes) } ?? String(repeating: "0", count: 64))"
        case .endpoint(let endpoint): "endpoint=\(endpoint)"
        case .persistentKeepalive(let seconds): "persistent_keepalive_interval=\(seconds)"
        case .replaceAllowedIPs: "replace_allowed_ips=true"
        case .allowedIP(let prefix): "allowed_ip=\(prefix)"
        case .noAllowedIP(let prefix): "allowed_ip=-\(prefix)"
        case .protocolVersion: "protocol_version=1"
        }
    }

    private func hex(_ key: PrivateKey?) -> String {
        key.map { $0.withUnsafeBytes { Hex.text($0) } } ?? String(repeating: "0", count: 64)
    }
}

/// Settings and damaged requests made from a seed.
struct UAPIGenerator {
    var random: SeededGenerator
    private var keys: [NodePublicKey] = []

    init(seed: UInt64) {
        random = SeededGenerator(seed: seed)
        for _ in 0..<6 { keys.append(PrivateKey(using: &random).nodePublicKey) }
    }

    mutating func pick(_ count: Int) -> Int { Int.random(in: 0..<count, using: &random) }

    mutating func prefix() -> IPPrefix {
        let address = self.address()
        return IPPrefix(address, bits: pick(address.bitWidth + 1))
    }

    mutating func address() -> IPAddress {
        pick(2) == 0
            ? IPAddress(v4: UInt32.random(in: 0 ... .max, using: &random))
            : IPAddress(
                high: UInt64.random(in: 0 ... .max, using: &random),
                low: UInt64.random(in: 0 ... .max, using: &random))
    }

    mutating func setting(hasPeer: Bool) -> UAPI.Setting {
        guard hasPeer else {
            switch pick(6) {
            case 0: return .privateKey(pick(3) == 0 ? nil : PrivateKey(using: &random))
            case 1: return .listenPort(UInt16(pick(65_536)))
            case 2: return .firewallMark(UInt32.random(in: 0 ... .max, using: &random))
            case 3: return .replacePeers
            default: return .peer(keys[pick(keys.count)])
            }
        }
        switch pick(11) {
        case 0: return .peer(keys[pick(keys.count)])
        case 1: return .remove
        case 2: return .updateOnly
        case 3:
            let bytes = (0..<32).map { _ in UInt8(pick(256)) }
            return .presharedKey(pick(3) == 0 ? nil : try? WireGuard.PresharedKey(bytes: bytes))
        case 4:
            let address = SocketAddress(address(), port: UInt16(pick(65_536)))
            return .endpoint(UAPI.Endpoint(address, scope: address.ip.isV4 || pick(2) == 0 ? "" : "eth0"))
        case 5: return .persistentKeepalive(UInt16(pick(65_536)))
        case 6: return .replaceAllowedIPs
        case 7, 8: return .allowedIP(prefix())
        case 9: return .noAllowedIP(prefix())
        default: return .protocolVersion
        }
    }

    /// A well-formed `set` operation.
    mutating func operation(lines: Int) -> [UAPI.Setting] {
        var hasPeer = false
        return (0..<lines).map { _ in
            let setting = setting(hasPeer: hasPeer)
            if case .peer = setting { hasPeer = true }
            return setting
        }
    }

    /// The same bytes with some damage.
    mutating func damaged(_ bytes: [UInt8]) -> [UInt8] {
        var bytes = bytes
        for _ in 0...pick(4) where !bytes.isEmpty {
            let place = pick(bytes.count)
            switch pick(7) {
            case 0: bytes[place] ^= UInt8(1 + pick(255))
            case 1: bytes.remove(at: place)
            case 2: bytes.insert(Array("\n=-/%[]:0\0\u{1}".utf8)[pick(11)], at: place)
            case 3: bytes.removeSubrange(place..<min(bytes.count, place + pick(40)))
            case 4:
                bytes.insert(
                    contentsOf: bytes[place..<min(bytes.count, place + pick(200))], at: pick(place + 1))
            case 5: bytes[place] = 0x0a
            default: bytes.insert(contentsOf: repeatElement(0x39, count: pick(700)), at: place)
            }
        }
        return bytes
    }
}

// SPDX-License-Identifier: Apache-2.0

import Foundation
import TestSupport

/// One topology of the lab, with the path that must be found.
struct NATRow: Sendable, CustomStringConvertible {
    enum Path: String, Sendable {
        case direct, relay
    }

    /// What happens in the middle of the transfer.
    enum Change: String, Sendable {
        case none = "-"
        case cutUDP = "UDP blocked"
        case cutData = "tunnel blocked, discovery not"
        case container = "an interface comes and goes"
        case linkLost = "interface lost, back after 1.5 s"
        case newAddress = "address changed"
    }

    var name: String
    var a: NATKind
    var b: NATKind
    var expected: Path
    var relay = NATRelay.plain
    var change = Change.none
    var blocksDirect = false

    var description: String { name }

    static let easy = NATKind(translation: .easy)
    static let hard = NATKind(translation: .hard)
    static let none = NATKind(translation: .none)

    static let all: [NATRow] = [
        NATRow(
            name: "loopback relay", a: NATKind(translation: .relayHost), b: NATKind(translation: .relayHost),
            expected: .relay, relay: .loopback, blocksDirect: true),
        NATRow(name: "easy - easy, direct disabled", a: easy, b: easy, expected: .relay, blocksDirect: true),
        NATRow(name: "easy - easy", a: easy, b: easy, expected: .direct, change: .cutUDP),
        NATRow(name: "no NAT - no NAT", a: none, b: none, expected: .direct, change: .cutUDP),
        NATRow(name: "no NAT - hard", a: none, b: hard, expected: .direct, change: .cutUDP),
        NATRow(
            name: "full cone - hard", a: NATKind(translation: .fullCone), b: hard, expected: .direct,
            change: .cutUDP),
        NATRow(name: "easy - hard", a: easy, b: hard, expected: .relay),
        NATRow(name: "hard - hard", a: hard, b: hard, expected: .relay),
        NATRow(
            name: "hard - hard, router opens ports (PCP)", a: NATKind(translation: .hard, opensPorts: .pcp),
            b: hard, expected: .direct, change: .cutUDP),
        NATRow(
            name: "hard - hard, router opens ports (UPnP)", a: NATKind(translation: .hard, opensPorts: .upnp),
            b: hard, expected: .direct),
        NATRow(name: "relay by forced WebSocket", a: easy, b: hard, expected: .relay, relay: .webSocket),
        NATRow(name: "upgrade refused: WebSocket", a: easy, b: hard, expected: .relay, relay: .refusing),
        NATRow(name: "relay behind nginx with TLS", a: easy, b: hard, expected: .relay, relay: .tls),
        NATRow(
            name: "UDP blocked", a: NATKind(translation: .easy, blocksUDP: true), b: none, expected: .relay),
        NATRow(
            name: "HTTP CONNECT proxy only", a: NATKind(translation: .easy, onlyProxy: true), b: easy,
            expected: .relay),
        NATRow(
            name: "IPv6 only", a: NATKind(translation: .v6), b: NATKind(translation: .v6), expected: .direct,
            change: .cutUDP),
        NATRow(
            name: "MTU 1500 behind a router", a: NATKind(translation: .easy, mtu: 1_500), b: easy,
            expected: .direct),
        NATRow(
            name: "MTU 1300 behind a router", a: NATKind(translation: .easy, mtu: 1_300), b: easy,
            expected: .relay),
        NATRow(
            name: "MTU 1280 behind a router", a: NATKind(translation: .easy, mtu: 1_280), b: easy,
            expected: .relay),
        NATRow(
            name: "HTTPS relay, HTTP CONNECT proxy only", a: NATKind(translation: .easy, onlyProxy: true),
            b: easy, expected: .relay, relay: .tls),
        NATRow(name: "easy - easy, data dies", a: easy, b: easy, expected: .direct, change: .cutData),
        NATRow(name: "easy - easy, containers", a: easy, b: easy, expected: .direct, change: .container),
        NATRow(name: "interface lost and back", a: easy, b: easy, expected: .direct, change: .linkLost),
        NATRow(name: "address changed", a: easy, b: easy, expected: .direct, change: .newAddress),
    ]

    /// Whether all programs for it are there.
    func isPossible(in world: NATWorld) -> Bool {
        (world.hasNginx || !needsNginx) && (world.hasPortMapper || a.opensPorts == nil)
    }

    private var needsNginx: Bool { relay == .tls || relay == .refusing }
}

/// What a row found.
struct NATResult: Sendable {
    var row: NATRow
    var found = "-"
    var firstByte: Double?
    var direct: Double?
    /// The longest silence around the change.
    var gap: Double?
    /// From the end of the disturbance to a direct path again.
    var directAgain: Double?
    var isExact = false
    var problem: String?
    /// What was slower than it should be, with what the nodes say of it.
    var remarks: [String] = []
    /// What went wrong in a first try, if this is the second.
    var firstProblem: String?

    var isGood: Bool { problem == nil && isExact && found == row.expected.rawValue }

    static let heading = """
        | topology | expected | found | first byte s | direct s | change | silence s | direct again s | bytes exact |
        |---|---|---|---|---|---|---|---|---|
        """

    var line: String {
        let text = { (value: Double?) in value.map { String(format: "%.3f", $0) } ?? "-" }
        return [
            "", row.name + (firstProblem == nil ? "" : " (2nd try)"), row.expected.rawValue, found,
            text(firstByte), text(direct), row.change.rawValue,
            text(gap),
            text(directAgain), problem == nil ? isExact ? "yes" : "no" : "failed", "",
        ].joined(separator: " | ").trimmingCharacters(in: .whitespaces)
    }
}

extension NATRow {
    /// The paced transfer: 4 s long, through an echo, so that both ways are checked.
    private static let rate = 1_500_000
    private static let seconds = 4

    /// Builds the homes, runs the nodes, and measures.
    func run(in world: NATWorld, number: Int) async -> NATResult {
        var result = NATResult(row: self)
        do {
            let homeA = try await NATHome(world, a, number: number * 2)
            let homeB = try await NATHome(world, b, number: number * 2 + 1)
            let left = try await NATNode(
                homeA, "r\(number)a", number: number * 2, relay: relay, blocksDirect: blocksDirect)
            let right = try await NATNode(
                homeB, "r\(number)b", number: number * 2 + 1, relay: relay, blocksDirect: blocksDirect)
            defer {
                left.stop()
                right.stop()
            }
            do {
                try await measure(left, right, &result)
            } catch {
                result.problem =
                    "\(error)\n--- a:\n\(left.log.suffix(2_000))\n--- b:\n\(right.log.suffix(2_000))"
            }
        } catch {
            result.problem = "\(error)"
        }
        return result
    }

    private func measure(_ left: NATNode, _ right: NATNode, _ result: inout NATResult) async throws {
        // Both know their home and, where there is STUN, how the world sees them.
        let isReady = try await Command.eventually(within: 15) { left.ownNode != nil && right.ownNode != nil }
        guard isReady else { throw Failure("a node does not find its relay") }
        try await Task.sleep(for: .milliseconds(300))
        let follow = Task {
            try await withThrowingTaskGroup(of: Void.self) { group in
                group.addTask { try await left.follow(to: right) }
                group.addTask { try await right.follow(to: left) }
                try await group.waitForAll()
            }
        }
        defer { follow.cancel() }
        let areKnown = try await Command.eventually(within: 5) {
            let counts = try await (left.peerCount(), right.peerCount())
            return counts.0 > 0 && counts.1 > 0
        }
        guard areKnown else { throw Failure("the nodes do not know each other") }

        async let path = left.ask("wait", expected.rawValue, right.address, "12")
        let first = try await left.ask("load", "rr", "[\(right.address)]:7", "count=1", "seconds=20")
        result.firstByte = first["first_byte_seconds"] as? Double
        guard let firstByte = result.firstByte else {
            throw Failure("no first byte: \(first) \(await whatTheySay(left, right))")
        }
        if firstByte > Self.slow {
            result.remarks.append("first byte after \(firstByte) s: \(await whatTheySay(left, right))")
        }
        async let transfer = left.ask(
            "load", "both", "[\(right.address)]:7", "bytes=\(Self.rate * Self.seconds)", "rate=\(Self.rate)",
            "seconds=40")
        if expected == .direct {
            let found = try await path
            result.direct = found["seconds"] as? Double
            result.found = found["path"] as? String ?? "-"
            if result.found == "direct" { try await disturb(left, &result) }
        } else {
            _ = try await path
        }
        let load = try await transfer
        result.isExact = load["exact"] as? Bool == true && (load["problems"] as? [String])?.isEmpty == true
        result.gap = load["longest_gap_seconds"] as? Double
        if !result.isExact { result.problem = "transfer: \(load)" }
        if expected == .relay {
            result.found = try await left.path()
            if result.problem == nil { result.problem = tooSlow(result) }
        }
        guard expected == .direct, result.found == "direct" else { return }
        if result.problem == nil { result.problem = tooSlow(result) }
        if change == .container, left.log.contains("network changed") {
            result.problem = "a container's interface was taken for another network"
        }
        if change == .cutData {
            // Data is tried there again after ten seconds at the earliest: that is not waited for.
            if try await left.path() != "relay" { result.problem = "a path without data was not left" }
        } else if change == .cutUDP {
            if try await left.path() != "relay" { result.problem = "the dead path was not left" }
            try await left.home.setUDPCut(false)
            result.directAgain = try await again(left, right)
            if result.directAgain == nil {
                result.remarks.append("not direct again: \(await whatTheySay(left, right))")
            }
        } else if try await left.path() != "direct", try await again(left, right) == nil {
            result.problem = "no direct path after: \(change.rawValue)"
        }
    }

    /// What must not take longer, seconds. On busy machines everything does; `scripts/nat-lab` is strict.
    private static let limits =
        ProcessInfo.processInfo.environment["NATLAB_STRICT"] == nil
        ? (firstByte: 5.0, direct: 5.0, silence: 2.0, dataSilence: 5.0)
        : (firstByte: 1.0, direct: 1.0, silence: 0.5, dataSilence: 3.0)

    private func tooSlow(_ result: NATResult) -> String? {
        let silence: Double? =
            switch change {
            case .none, .cutUDP, .container: Self.limits.silence
            case .cutData: Self.limits.dataSilence
            // The link is away for a while, or the address: those times are the lab's.
            case .linkLost, .newAddress: nil
            }
        let found: [(String, Double?, Double?)] = [
            ("first byte", result.firstByte, Self.limits.firstByte),
            ("direct", result.direct, Self.limits.direct), ("silence", result.gap, silence),
        ]
        for (name, value, limit) in found {
            guard let value, let limit, value > limit else { continue }
            return "\(name): \(value) s, more than \(limit)"
        }
        return nil
    }

    /// A first byte later than this is worth a look.
    private static let slow = 2.0

    /// Counters and paths of both nodes.
    private func whatTheySay(_ left: NATNode, _ right: NATNode) async -> String {
        var text = ""
        for (node, other) in [(left, right), (right, left)] {
            for words in [["status"], ["explain", other.address]] {
                text += "\n" + ((try? await node.text(words)) ?? "no answer to \(words)")
            }
        }
        return text
    }

    private func disturb(_ left: NATNode, _ result: inout NATResult) async throws {
        try await Task.sleep(for: .milliseconds(500))
        switch change {
        case .none: break
        case .cutUDP: try await left.home.setUDPCut(true)
        case .cutData: try await left.home.cutData()
        case .container:
            for _ in 0..<3 {
                try await left.home.setContainer(true)
                try await Task.sleep(for: .milliseconds(250))
                try await left.home.setContainer(false)
                try await Task.sleep(for: .milliseconds(250))
            }
        case .linkLost:
            try await left.home.takeDown()
            try await Task.sleep(for: .milliseconds(1_500))
            try await left.home.bringUp(address: left.home.address)
        case .newAddress: try await left.home.changeAddress()
        }
    }

    /// Seconds until the path is direct again, with a little traffic as any session has.
    private func again(_ left: NATNode, _ right: NATNode) async throws -> Double? {
        let traffic = Task {
            _ = try await left.ask(
                "load", "both", "[\(right.address)]:7", "bytes=80k", "rate=10k", "seconds=9")
        }
        defer { traffic.cancel() }
        let began = ContinuousClock.now
        let found = try await left.ask("wait", "direct", right.address, "8")
        return found["reached"] as? Bool == true ? (ContinuousClock.now - began) / .seconds(1) : nil
    }

    private struct Failure: Error, CustomStringConvertible {
        var description: String
        init(_ description: String) { self.description = description }
    }
}

extension NATNode {
    fileprivate func peers() async throws -> [[String: Any]] {
        try await ask("status")["peers"] as? [[String: Any]] ?? []
    }
    fileprivate func peerCount() async throws -> Int { try await peers().count }
    fileprivate func path() async throws -> String { try await peers().first?["path"] as? String ?? "-" }
    fileprivate func after(_ path: NATRow.Path) async throws -> Bool {
        try await self.path() == path.rawValue
    }
}

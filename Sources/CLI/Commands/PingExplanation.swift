// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
internal import Mesh

/// `coder ping --explain`: which addresses were tried, what became of each, and why the path is what it is.
enum PingExplanation {
    /// How long the agent may take to answer at all.
    private static let reachLimit = Interval.seconds(15)
    /// How long a direct path is waited for. Probes and small pings of both sides are through within two seconds.
    private static let settle: UInt64 = 4_000_000_000
    /// How long the tunnel may take to answer over a direct path: one that is dead for data is left within 3 s.
    private static let proof = Interval.seconds(4)

    /// Exit status: 0 direct, 3 relayed, 1 unreachable.
    static func run(_ invocation: Invocation, _ link: AgentLink, _ name: String) async throws -> Int32 {
        var isReached = true
        do {
            try await link.reach(name, invocation.console, within: reachLimit)
        } catch is CommandError {
            isReached = false
        }
        try await settle(link)
        var explanation: PathExplanation
        do {
            explanation = try await link.node.explain(link.peer)
        } catch NodeError.unknownPeer {
            return try unreachable(
                invocation, name,
                "the coordinator has not told this side about the agent: it may be starting, or not connected"
            )
        }
        if !isReached { explanation.noteSilentTunnel() }
        if isReached, explanation.outcome == .relayed, let peer = await peerNetwork(link) {
            explanation.refine(peer)
        }
        let isJSON = invocation.values.string("output") == "json"
        invocation.console.out(
            isJSON
                ? json(explanation, name, link.regionNames).pretty + "\n"
                : text(explanation, name, link.regionNames))
        return explanation.outcome.exitStatus
    }

    /// The agent cannot even be asked for. As text that is an error like any other.
    static func unreachable(_ invocation: Invocation, _ name: String, _ why: String) throws -> Int32 {
        guard invocation.values.string("output") == "json" else { throw CommandError(why) }
        let reason = PathReason.peerSilent
        invocation.console.out(
            JSON.record([
                "workspace": .string(name),
                "outcome": .string(PathExplanation.Outcome.unreachable.rawValue), "direct": .null,
                "rtt_ms": .null, "relay": .null, "reason": .string(reason.rawValue),
                "explanation": .string(why), "advice": .string(reason.advice),
                "since_call_me_maybe_seconds": .null, "peer_network": .null,
                "own_endpoints": .array([]), "candidates": .array([]),
            ]).pretty + "\n")
        return PathExplanation.Outcome.unreachable.exitStatus
    }

    /// What the agent knows of its own network. Agents that do not say, or not soon, are no error.
    private static func peerNetwork(_ link: AgentLink) async -> PathExplanation.PeerNetwork? {
        let answer = Task {
            try await AgentAPI.get("/api/v0/netcheck", node: link.node, address: link.address)
        }
        let patience = Task {
            try await Task.sleep(for: .seconds(3))
            answer.cancel()
        }
        defer { patience.cancel() }
        do {
            let report = try await answer.value["net_info"]
            guard case .bool(let blocks) = report["DirectBlocked"] else { return nil }
            func flag(_ name: String) -> Bool? {
                if case .bool(let flag) = report[name] { flag } else { nil }
            }
            return PathExplanation.PeerNetwork(
                hasUDP: flag("WorkingUDP"), mappingVaries: flag("MappingVariesByDestIP"), blocksDirect: blocks
            )
        } catch {
            return nil
        }
    }

    /// Pings until the path is direct, or for four seconds: what was not tried cannot be explained.
    private static func settle(_ link: AgentLink) async throws {
        let end = Clock.monotonicNanoseconds() + settle
        while Clock.monotonicNanoseconds() < end {
            try Task.checkCancellation()
            let ping = Task { try await link.node.ping(link.peer) }
            let patience = Task {
                try await Task.sleep(for: .seconds(1))
                ping.cancel()
            }
            defer { patience.cancel() }
            do {
                if case .direct = try await ping.value.path {
                    // Discovery may pass where the tunnel's packets do not: only they prove the path.
                    try await link.node.reachable(link.address, within: proof)
                    return
                }
            } catch is NodeError {
                // Unanswered pings are part of the explanation.
            }
            try await Task.sleep(for: .milliseconds(250))
        }
    }

    // MARK: Words

    package static let columns = ["address", "from", "age", "pings", "answers", "rtt", "passed", "result"]

    package static func text(
        _ explanation: PathExplanation, _ name: String, _ region: (Int) -> String
    ) -> String {
        var lines = [headline(explanation, name, region)]
        if let reason = explanation.reason {
            lines.append("  reason  \(reason.rawValue): \(reason.words)")
            lines.append("  advice  \(reason.advice)")
        }
        if let peer = explanation.peerNetwork { lines.append("  agent   \(words(peer))") }
        let own = explanation.ownEndpoints.map(\.description)
        lines.append("  offered \(own.isEmpty ? "no address of this side" : own.joined(separator: ", "))")
        guard !explanation.candidates.isEmpty else {
            return (lines + ["  The peer named no address to try.", ""]).joined(separator: "\n")
        }
        let rows = explanation.candidates.map { candidate in
            [
                candidate.address.description, candidate.sources.map(\.rawValue).joined(separator: ","),
                "\(fixed(candidate.age.inSeconds, 1))s", "\(candidate.probes)", "\(candidate.answers)",
                candidate.latency.map { PingCommand.milliseconds($0.inSeconds) } ?? "-",
                candidate.passedBytes.map { "\($0)" } ?? "-",
                candidate.isChosen ? "in use" : candidate.reason?.rawValue ?? "works, in reserve",
            ]
        }
        return lines.joined(separator: "\n") + "\n\n"
            + Table.text(names: columns, columns: columns, rows: rows)
    }

    private static func words(_ peer: PathExplanation.PeerNetwork) -> String {
        var parts = [
            peer.hasUDP.map { $0 ? "UDP leaves its network" : "no STUN server answers it" }
                ?? "it knows no STUN server"
        ]
        if let varies = peer.mappingVaries {
            parts.append(
                varies
                    ? "its NAT uses another port for each destination"
                    : "its NAT uses one port for all destinations")
        }
        if peer.blocksDirect { parts.append("direct connections are switched off there") }
        return parts.joined(separator: "; ")
    }

    private static func headline(
        _ explanation: PathExplanation, _ name: String, _ region: (Int) -> String
    ) -> String {
        func time(_ latency: Interval?) -> String {
            latency.map { " in \(PingCommand.milliseconds($0.inSeconds))" } ?? ""
        }
        switch explanation.outcome {
        case .direct:
            let address = explanation.direct?.description ?? "?"
            return "\(name): direct, p2p via \(address)\(time(explanation.latency))"
        case .relayed:
            let relay = region(explanation.relay ?? 0)
            return "\(name): relayed, proxied via DERP(\(relay))\(time(explanation.relayLatency))"
        case .unreachable: return "\(name): unreachable"
        }
    }

    // MARK: JSON

    package static func json(
        _ explanation: PathExplanation, _ name: String, _ region: (Int) -> String
    ) -> JSON {
        func milliseconds(_ interval: Interval?) -> JSON {
            interval.map { .double($0.inSeconds * 1_000, digits: 3) } ?? .null
        }
        func seconds(_ interval: Interval?) -> JSON {
            interval.map { .double($0.inSeconds, digits: 3) } ?? .null
        }
        let relay: JSON =
            explanation.relay.map {
                .record([
                    "region": .int($0), "name": .string(region($0)),
                    "latency_ms": milliseconds(explanation.relayLatency),
                ])
            } ?? .null
        let candidates = explanation.candidates.map { candidate -> JSON in
            .record([
                "address": .string(candidate.address.description),
                "sources": .array(candidate.sources.map { .string($0.rawValue) }),
                "age_seconds": seconds(candidate.age), "pings": .int(candidate.probes),
                "answers": .int(candidate.answers), "since_ping_seconds": seconds(candidate.sinceProbe),
                "since_answer_seconds": seconds(candidate.sinceAnswer),
                "since_peer_ping_seconds": seconds(candidate.sincePeerPing),
                "rtt_ms": milliseconds(candidate.latency),
                "passed_bytes": candidate.passedBytes.map { .int($0) } ?? .null,
                "in_use": .bool(candidate.isChosen),
                "reason": candidate.reason.map { .string($0.rawValue) } ?? .null,
            ])
        }
        return .record([
            "workspace": .string(name), "outcome": .string(explanation.outcome.rawValue),
            "direct": explanation.direct.map { .string($0.description) } ?? .null,
            "rtt_ms": milliseconds(explanation.latency), "relay": relay,
            "reason": explanation.reason.map { .string($0.rawValue) } ?? .null,
            "explanation": explanation.reason.map { .string($0.words) } ?? .null,
            "advice": explanation.advice.map { .string($0) } ?? .null,
            "since_call_me_maybe_seconds": seconds(explanation.sinceCallMeMaybe),
            "peer_network": explanation.peerNetwork.map { peer in
                func flag(_ value: Bool?) -> JSON { value.map { .bool($0) } ?? .null }
                return .record([
                    "udp": flag(peer.hasUDP), "mapping_varies": flag(peer.mappingVaries),
                    "direct_blocked": .bool(peer.blocksDirect),
                ])
            } ?? .null,
            "own_endpoints": .array(explanation.ownEndpoints.map { .string($0.description) }),
            "candidates": .array(candidates),
        ])
    }
}

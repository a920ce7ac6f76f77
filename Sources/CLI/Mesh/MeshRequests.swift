// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
internal import Mesh

/// Answers what is asked on the control socket. Owns the list of peers.
actor MeshRequests {
    static let summary =
        "node, peers [set LIST|add NODE|remove PEER], status, ping PEER [COUNT], explain PEER, "
        + "record PEER, reach ADDRESS [SECONDS], "
        + "serve KIND PORT, unserve PORT, services, load KIND ADDRESS:PORT [name=value...], "
        + "wait direct|relay PEER [SECONDS], block on|off, link-changed."

    private let node: Node
    private let nodeID: Int64
    private let services: MeshServices
    private var peers: [MeshPeer]

    init(node: Node, nodeID: Int64, services: MeshServices, peers: [MeshPeer]) {
        self.node = node
        self.nodeID = nodeID
        self.services = services
        self.peers = peers
    }

    /// One line of JSON for the words of one request.
    nonisolated func answer(_ words: [String]) async -> JSON {
        do {
            return try await result(words[0], Array(words.dropFirst()))
        } catch {
            return .record(["error": .string("\(error)")])
        }
    }

    private nonisolated func result(_ command: String, _ words: [String]) async throws -> JSON {
        switch (command, words.count) {
        case ("node", 0): return MeshNode.json(try await node.status().ownNode, id: nodeID)
        case ("peers", 0...2): return try await peers(words)
        case ("status", 0): return MeshReport.json(try await node.status(), id: nodeID)
        case ("ping", 1...2): return try await ping(words)
        case ("reach", 1...2): return try await reach(words)
        case ("explain", 1):
            let peer = try await find(words[0])
            return PingExplanation.json(try await node.explain(peer.id), words[0]) { "region \($0)" }
        case ("record", 1):
            let peer = try await find(words[0])
            let found = try await node.recordings().filter { $0.peer == peer.id }
            return PathRecords.file(try found.map { try PathRecords.entry("node", $0.recording) })
        case ("wait", 2...3): return try await wait(words)
        case ("serve", 2):
            try await services.start(MeshService(kind: words[0], port: Self.number(words[1])))
            return list
        case ("unserve", 1):
            services.stop(port: try Self.number(words[0]))
            return list
        case ("services", 0): return list
        case ("load", _): return try await MeshLoad(words).run(on: node)
        case ("block", 1) where words[0] == "on" || words[0] == "off":
            node.setDirectBlocked(words[0] == "on")
            return .record(["blocked": .bool(words[0] == "on")])
        case ("link-changed", 0):
            node.linkChanged()
            return .record([:])
        default: throw CommandError("commands: \(Self.summary)")
        }
    }

    private nonisolated var list: JSON { .array(services.list.map(\.json)) }

    private static func number<N: FixedWidthInteger>(_ text: String) throws -> N {
        guard let number = N(text) else { throw CommandError("not a number: \"\(text)\"") }
        return number
    }

    // MARK: Peers

    private func peers(_ words: [String]) throws -> JSON {
        switch (words.first, words.count) {
        case (nil, _): break
        case ("set", 2):
            peers = try Self.json(words[1]).elements.map { try MeshNode.peer($0) }
            node.setPeers(peers)
        case ("add", 2):
            let peer = try MeshNode.peer(try Self.json(words[1]))
            peers.removeAll { $0.id == peer.id }
            peers.append(peer)
            node.updatePeer(peer)
        case ("remove", 2):
            let peer = try find(words[1])
            peers.removeAll { $0.id == peer.id }
            node.removePeer(peer.id)
        default: throw CommandError("peers [set LIST|add NODE|remove PEER]")
        }
        return .array(
            peers.map { peer in
                .record([
                    "id": .int(Int64(bitPattern: peer.id.low)), "key": .string(peer.key.text),
                    "disco": .string(peer.discoKey.text), "preferred_derp": .int(peer.homeRegion),
                    "addresses": .array(peer.addresses.map { .string("\(IPPrefix(host: $0))") }),
                    "allowed_ips": .array(peer.allowedIPs.map { .string("\($0)") }),
                    "endpoints": .array(peer.endpoints.map { .string("\($0)") }),
                ])
            })
    }

    private static func json(_ text: String) throws -> JSON {
        do { return try JSON.parse(text.utf8) } catch { throw CommandError("\(error): \(text.prefix(60))") }
    }

    /// A peer by its number, key, or an address of it.
    private func find(_ text: String) throws -> MeshPeer {
        let found = peers.first { peer in
            Int64(text).map { UInt64(bitPattern: $0) } == peer.id.low || peer.key.text == text
                || IPAddress(text).map { peer.addresses.contains($0) } == true
        }
        guard let found else { throw CommandError("no peer \"\(text)\"") }
        return found
    }

    // MARK: Reaching

    private nonisolated func ping(_ words: [String]) async throws -> JSON {
        let peer = try await find(words[0])
        let count: Int = words.count > 1 ? try Self.number(words[1]) : 1
        var latencies: [Double] = []
        var last: PeerPath?
        for number in 0..<max(1, min(count, 1_000)) {
            if number > 0 { try await Task.sleep(for: .milliseconds(20)) }
            let result = try await node.ping(peer.id)
            latencies.append(result.latency.inSeconds * 1_000)
            last = result.path
        }
        latencies.sort()
        return .object(
            MeshReport.path(last ?? .none) + [
                .init(key: "latency_ms", value: .double(latencies[latencies.count / 2])),
                .init(key: "worst_ms", value: .double(latencies[latencies.count - 1])),
            ])
    }

    private nonisolated func reach(_ words: [String]) async throws -> JSON {
        let began = Clock.monotonicNanoseconds()
        let seconds: UInt64 = words.count > 1 ? try Self.number(words[1]) : 60
        let trip = try await node.reachable(MeshFile.address(words[0]), within: .seconds(min(seconds, 3_600)))
        return .record([
            "seconds": .double(Double(Clock.monotonicNanoseconds() - began) / 1e9),
            "latency_ms": .double(trip.inSeconds * 1_000),
        ])
    }

    /// Waits until a peer's packets take a path of this kind, sending pings so that the search goes on.
    private nonisolated func wait(_ words: [String]) async throws -> JSON {
        let wanted = words[0]
        guard wanted == "direct" || wanted == "relay" else { throw CommandError("wait direct|relay PEER") }
        let peer = try await find(words[1])
        let seconds: Double = words.count > 2 ? Double(words[2]) ?? 10 : 10
        let began = Clock.monotonicNanoseconds()
        while true {
            let path = try await node.status().peers.first { $0.id == peer.id }?.path ?? .none
            let took = Double(Clock.monotonicNanoseconds() - began) / 1e9
            let isThere =
                switch path {
                case .direct: wanted == "direct"
                case .relay: wanted == "relay"
                case .none: false
                }
            if isThere || took > seconds {
                return .object(
                    MeshReport.path(path) + [
                        .init(key: "seconds", value: .double(took)),
                        .init(key: "reached", value: .bool(isThere)),
                    ])
            }
            try await Task.sleep(for: .milliseconds(5))
        }
    }
}

/// The state of a node as JSON.
enum MeshReport {
    static func path(_ path: PeerPath) -> [JSON.Member] {
        switch path {
        case .direct(let address):
            [
                .init(key: "path", value: .string("direct")),
                .init(key: "address", value: .string("\(address)")),
            ]
        case .relay(let region):
            [.init(key: "path", value: .string("relay")), .init(key: "region", value: .int(region))]
        case .none: [.init(key: "path", value: .string("none"))]
        }
    }

    static func json(_ status: NodeStatus, id: Int64) -> JSON {
        let counters = status.counters
        return .record([
            "node": MeshNode.json(status.ownNode, id: id),
            "peers": .array(status.peers.map { peer($0) }),
            "ports": .record(["v4": .int(status.ports.v4), "v6": .int(status.ports.v6)]),
            "port_mapping": status.portMapping.map {
                .record(["address": .string("\($0.address)"), "service": .string($0.service)])
            } ?? .null,
            "streams": .int(status.streams), "open_relays": .array(status.openRelays.map { .int($0) }),
            "segmentation": .bool(status.segmentation), "coalescing": .bool(status.coalescing),
            "socket_buffer_bytes": .int(status.socketBufferBytes),
            "counters": .record([
                "received_datagrams": .int(counters.receivedDatagrams),
                "received_bytes": .int(counters.receivedBytes),
                "sent_datagrams": .int(counters.sentDatagrams), "sent_bytes": .int(counters.sentBytes),
                "lost_datagrams": .int(counters.lostDatagrams), "socket_calls": .int(counters.socketCalls),
                "relay_received": .int(counters.relayReceived), "relay_sent": .int(counters.relaySent),
                "relay_dropped": .int(counters.relayDropped), "garbage": .int(counters.garbage),
                "wireguard_dropped": .int(counters.wireGuardDropped),
                "disco_dropped": .int(counters.discoDropped), "unroutable": .int(counters.unroutable),
                "repeated_handshakes": .int(counters.repeatedHandshakes),
                "refused": .int(counters.refused),
            ]),
            "buffer_bytes": .int(status.bufferBytes),
            "stack": .object(status.stack.named.map { .init(key: $0.name, value: .int($0.value)) }),
        ])
    }

    private static func peer(_ peer: PeerStatus) -> JSON {
        .object(
            [
                .init(key: "id", value: .int(Int64(bitPattern: peer.id.low))),
                .init(key: "key", value: .string(peer.key.text)),
                .init(key: "addresses", value: .array(peer.addresses.map { .string("\($0)") })),
            ] + path(peer.path) + [
                .init(key: "home_region", value: .int(peer.homeRegion)),
                .init(key: "sent_bytes", value: .int(peer.sentBytes)),
                .init(key: "received_bytes", value: .int(peer.receivedBytes)),
                .init(
                    key: "handshake_age_seconds",
                    value: peer.sinceHandshake.map { .double($0.inSeconds) } ?? .null),
                .init(key: "active", value: .bool(peer.isActive)),
            ])
    }
}

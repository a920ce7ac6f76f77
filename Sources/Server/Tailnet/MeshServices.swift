// SPDX-License-Identifier: Apache-2.0

internal import Coordinator
internal import DERPRelay
internal import LinuxIO
internal import Mesh
internal import RPC
internal import Synchronization

/// What serves the mesh: coordinator, relay, DERP map, and the RPC sessions that are open. One per process.
final class MeshServices: Sendable {
    let coordinator = CoordinatorService()
    /// Nil when the embedded relay is switched off.
    let relay: Relay?
    private let stun: STUNListener?
    let maps: DERPMapSource
    let resumeTokens: ResumeTokens
    let sessions = RPCSessions()

    init(
        map: DERPMap, blocksDirect: Bool, relay: Relay?, stun: STUNListener?, resumeTokens: ResumeTokens
    ) throws {
        maps = try DERPMapSource(map, blocksDirect: blocksDirect)
        self.relay = relay
        self.stun = stun
        self.resumeTokens = resumeTokens
    }

    /// What our own STUN responder did, if there is one.
    var stunCounters: STUNResponder.Counters? { stun?.counters }

    /// Latency per region of a connected agent, as `codersdk.WorkspaceAgent` shows it.
    func latency(ofAgent agent: Identifier) async -> JSON? {
        guard let node = await coordinator.node(of: agent.raw) else { return nil }
        var best: [Int: Double] = [:]
        for (key, seconds) in node.derpLatency {
            guard let region = Int(key.prefix { $0 != "-" }), seconds.isFinite else { continue }
            best[region] = min(best[region] ?? .infinity, seconds * 1000)
        }
        let regions = maps.current.map.regions
        let members = best.sorted { $0.key < $1.key }.map { region, milliseconds in
            JSON.Member(
                key: regions[region]?.name ?? "Unnamed \(region)",
                value: [
                    "preferred": .bool(Int(node.preferredDerp) == region),
                    "latency_ms": .number(milliseconds),
                ])
        }
        return members.isEmpty ? nil : .object(members)
    }

    /// Ends the sessions; their peers dial again.
    func stop() async {
        await sessions.closeAll()
        await coordinator.close()
        let (relay, stun) = (relay, stun)
        // Both wait for their threads.
        try? await DedicatedThread.run(name: "relay-end") {
            relay?.drain()
            stun?.close()
        }
    }
}

extension Identifier {
    /// The form of the RPC layer.
    var raw: RawUUID { RawUUID(high: high, low: low) }
    init(_ raw: RawUUID) { self.init(high: raw.high, low: raw.low) }
}

extension DERPMap {
    /// The protobuf form. `home_params` is always there: Go clients read it without a check.
    var message: TailnetDERPMap {
        var message = TailnetDERPMap()
        message.homeParams = .init()
        for (region, score) in homeParams?.regionScore ?? [:] {
            message.homeParams.regionScore[Int64(region)] = score
        }
        for (id, region) in regions {
            var out = TailnetDERPMap.Region()
            out.regionID = Int64(region.id)
            out.embeddedRelay = region.isEmbeddedRelay
            out.regionCode = region.code
            out.regionName = region.name
            out.avoid = region.isAvoided
            out.nodes = region.nodes.map(\.message)
            message.regions[Int64(id)] = out
        }
        return message
    }
}

extension DERPMap.Node {
    fileprivate var message: TailnetDERPMap.Region.Node {
        var out = TailnetDERPMap.Region.Node()
        out.name = name
        out.regionID = Int64(regionID)
        out.hostName = hostName
        out.certName = certName
        out.ipv4 = ipv4
        out.ipv6 = ipv6
        out.stunPort = Int32(clamping: stunPort)
        out.stunOnly = isSTUNOnly
        out.derpPort = Int32(clamping: derpPort)
        out.insecureForTests = isInsecureForTests
        out.forceHTTP = forcesHTTP
        out.stunTestIp = stunTestIP
        out.canPort80 = canPort80
        return out
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
internal import Logging
internal import Mesh
internal import RPC
internal import SwiftProtobuf
internal import Synchronization

/// Traffic and sessions, told to the server at the interval that it names. agent.md §5.4.
struct StatsReporter: Sendable {
    let node: Node
    let reports: ConnectionReports
    let baseline: StatsBaseline

    /// Reports over this connection until it fails. What an earlier connection did not tell is in the first report.
    func run(on connection: RPCConnection) async throws {
        var interval = try await send(AgentUpdateStatsRequest(), connection)
        while true {
            try await Task.sleep(for: interval)
            let status = try await node.status()
            var request = AgentUpdateStatsRequest()
            request.stats = await collect(status, since: baseline.counters)
            interval = try await send(request, connection)
            baseline.counters = status.counters
        }
    }

    /// The interval until the next report; 30 s, the server's default, when it says nothing or refuses.
    private func send(
        _ request: AgentUpdateStatsRequest, _ connection: RPCConnection
    ) async throws(RPCError) -> Duration {
        do throws(RPCError) {
            let seconds = try await connection.unary(AgentMethods.updateStats, request).reportInterval.seconds
            return .seconds(seconds > 0 ? min(seconds, 3_600) : 30)
        } catch {
            guard case .failed = error else { throw error }
            return .seconds(30)
        }
    }

    private func collect(_ status: NodeStatus, since last: NodeCounters?) async -> AgentStats {
        var stats = AgentStats()
        let now = status.counters
        stats.rxBytes = difference(now.receivedBytes, last?.receivedBytes)
        stats.rxPackets = difference(
            now.receivedDatagrams &+ now.relayReceived, last.map { $0.receivedDatagrams &+ $0.relayReceived })
        stats.txBytes = difference(now.sentBytes, last?.sentBytes)
        stats.txPackets = difference(
            now.sentDatagrams &+ now.relaySent, last.map { $0.sentDatagrams &+ $0.relaySent })
        stats.connectionCount = Int64(status.streams)
        if status.streams > 0 { stats.connectionsByProto["TCP"] = Int64(status.streams) }
        stats.sessionCountSsh = reports.count(.ssh)
        stats.sessionCountVscode = reports.count(.vscode)
        stats.sessionCountJetbrains = reports.count(.jetbrains)
        stats.sessionCountReconnectingPty = reports.count(.reconnectingTerminal)
        var (direct, relayed) = (0.0, 0.0)
        for peer in status.peers where peer.isActive {
            if case .direct = peer.path { direct += 1 } else { relayed += 1 }
        }
        stats.connectionMedianLatencyMs = await medianLatency(status.peers.filter(\.isActive).map(\.id))
        stats.metrics = [Self.reachable("p2p", direct), Self.reachable("derp", relayed)]
        return stats
    }

    /// Milliseconds; −0.001 when nobody answers, as upstream.
    private func medianLatency(_ peers: [MeshPeerID]) async -> Double {
        let node = node
        let latencies = await withTaskGroup(of: Double?.self) { group in
            for peer in peers.prefix(64) {
                // A peer that does not answer within the ping's five seconds does not count.
                group.addTask { (try? await node.ping(peer)).map { $0.latency.inSeconds * 1_000 } }
            }
            var all: [Double] = []
            for await latency in group { if let latency { all.append(latency) } }
            return all.sorted()
        }
        return latencies.isEmpty ? -0.001 : latencies[latencies.count / 2]
    }

    private func difference(_ now: UInt64, _ last: UInt64?) -> Int64 {
        let last = last ?? 0
        return Int64(clamping: now > last ? now - last : 0)
    }

    private static func reachable(_ kind: String, _ count: Double) -> AgentStats.Metric {
        var label = AgentStats.Metric.Label()
        label.name = "connection_type"
        label.value = kind
        var metric = AgentStats.Metric()
        metric.name = "coderd_agentstats_currently_reachable_peers"
        metric.type = .gauge
        metric.value = count
        metric.labels = [label]
        return metric
    }
}

/// The traffic that the server knows of, over all connections to it.
final class StatsBaseline: Sendable {
    private let known = Mutex<NodeCounters?>(nil)

    /// nil: of nothing yet.
    var counters: NodeCounters? {
        get { known.withLock { $0 } }
        set { known.withLock { $0 = newValue } }
    }
}

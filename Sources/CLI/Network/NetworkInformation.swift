// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
internal import Mesh

/// The file that editors read to show how good the connection is: `<directory>/<parent pid>.json`.
package enum NetworkInformation {
    /// What was read from the node the last time.
    private struct Last {
        var sent: UInt64 = 0
        var received: UInt64 = 0
        var at: UInt64 = 0
        /// When the agent answered.
        var answeredAt: UInt64
    }

    /// Starts writing when the option is given; cancel the task to stop.
    static func write(_ values: OptionValues, _ link: AgentLink) -> Task<Void, Never>? {
        let directory = values.string("network-info-dir")
        guard !directory.isEmpty else { return nil }
        let interval = values.duration("network-info-interval") ?? .seconds(5)
        return Task {
            var last = Last(answeredAt: Clock.monotonicNanoseconds())
            while !Task.isCancelled {
                do {
                    try makeDirectories(directory, mode: 0o700)
                    let json = try await information(link, &last)
                    try TextFile.replace(
                        "\(directory)/\(parentProcess()).json", with: json.compact, mode: 0o600)
                    try await Task.sleep(for: interval)
                } catch is CancellationError {
                    return
                } catch {
                    // Tolerated: the session matters more than the file.
                    do { try await Task.sleep(for: interval) } catch { return }
                }
            }
        }
    }

    /// While nothing answers there is no direct path, and the latency is how long that has lasted: old figures would
    /// be taken for news.
    private static func information(_ link: AgentLink, _ last: inout Last) async throws -> JSON {
        var ping: PingResult?
        do {
            ping = try await link.node.ping(link.peer)
        } catch {
            guard error == .timedOut else { throw error }
        }
        let status = try await link.node.status()
        let peer = status.peers.first { $0.id == link.peer }
        let now = Clock.monotonicNanoseconds()
        let (sent, received) = (peer?.sentBytes ?? 0, peer?.receivedBytes ?? 0)
        let rate = { (new: UInt64, old: UInt64, last: Last) -> Int64 in
            guard last.at > 0, now > last.at else { return 0 }
            return Int64(Double(new &- min(new, old)) / (Double(now - last.at) / 1e9))
        }
        let (up, down) = (rate(sent, last.sent, last), rate(received, last.received, last))
        if ping != nil { last.answeredAt = now }
        last = Last(sent: sent, received: received, at: now, answeredAt: last.answeredAt)
        var isDirect = false
        var region = status.ownNode.homeRegion
        switch ping?.path {
        case .direct: isDirect = true
        case .relay(let relay): region = relay
        default: break
        }
        let latency = ping.map { $0.latency.inSeconds * 1_000 } ?? Double(now - last.answeredAt) / 1e6
        let regions = latencies(status.ownNode.latencies).map {
            JSON.Member(key: link.regionNames($0.region), value: .double($0.seconds * 1_000, digits: 3))
        }
        return .record([
            "p2p": .bool(isDirect), "latency": .double(latency, digits: 3),
            "preferred_derp": .string(link.regionNames(region)), "derp_latency": .object(regions),
            "upload_bytes_sec": .int(up), "download_bytes_sec": .int(down),
            "using_coder_connect": .bool(false),
        ])
    }

    /// The better one of each region's two families: keys are `<region>-v4` and `<region>-v6`.
    package static func latencies(_ measured: [String: Double]) -> [(region: Int, seconds: Double)] {
        var best: [Int: Double] = [:]
        for (key, seconds) in measured where key.hasSuffix("-v4") || key.hasSuffix("-v6") {
            guard let region = Int(key.dropLast(3)) else { continue }
            best[region] = min(best[region] ?? .infinity, seconds)
        }
        return best.keys.sorted().map { (region: $0, seconds: best[$0] ?? 0) }
    }
}

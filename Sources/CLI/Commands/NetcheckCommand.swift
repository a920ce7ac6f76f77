// SPDX-License-Identifier: Apache-2.0

internal import HTTPTransport
internal import Mesh
internal import Tailnet

/// `coder netcheck`: relays, STUN and interfaces as this machine sees them.
enum NetcheckCommand {
    static let command = Command(
        name: "netcheck", usage: "[workspace]",
        summary: "Print a report about this machine's network, as JSON.", arguments: .between(0, 1),
        options: [
            CommandOption(
                "record", .bool,
                help:
                    "Instead, connect to the workspace and print what happened on the paths to it lately, as "
                    + "seen by this side and by the agent.")
        ], run: run)

    /// Together with the five seconds that a probe under way still takes, the report is there within 30 s.
    private static let questionLimit = Duration.seconds(10)
    private static let regionLimit = Duration.seconds(14)

    @Sendable static func run(_ invocation: Invocation) async throws -> Int32 {
        let client = try invocation.client()
        if invocation.values.bool("record") {
            guard !invocation.words.isEmpty else { throw CommandError("--record needs a workspace") }
            return try await NetcheckRecord.run(invocation, client)
        }
        guard invocation.words.isEmpty else { throw CommandError("a workspace is only used with --record") }
        invocation.console.note("Gathering a network report. This may take a few seconds...")
        let found = try await gather(client)
        invocation.console.say(found.json.pretty)
        for line in found.words { invocation.console.note(line) }
        return 0
    }

    /// The report, and the same in sentences.
    static func gather(_ client: APIClient) async throws -> (json: JSON, words: [String]) {
        let silence = CommandError("no answer from \(client.base.origin) within 10 seconds")
        let connection = try await limited(to: questionLimit, or: silence) {
            try await client.get("workspaceagents/connection")
        }
        let map = DERPMap(json: connection["derp_map"]).rewritingEmbeddedRelay(
            host: client.base.host, port: client.base.port, isTLS: client.base.scheme == .https)
        let connector = RelayConnector(
            client: client.http, forcesWebSockets: connection["derp_force_websockets"].bool)
        async let stun = STUNProbe.run(map)
        async let router = RouterProbe.run(map)
        let reports = await regionReports(map, connector)
        let found = Probes(stun: await stun, router: await router)
        return (
            report(map, connection["derp_map"], reports, found, connector),
            words(map, reports, found, connector)
        )
    }

    /// All regions at once. What is not known in time is left unknown.
    private static func regionReports(
        _ map: DERPMap, _ connector: RelayConnector
    ) async -> [Int: RegionReport] {
        await withTaskGroup(of: (Int, RegionReport)?.self) { group in
            for region in map.regions.values {
                group.addTask { (region.id, await RegionReport.make(region, connector)) }
            }
            group.addTask {
                do { try await Task.sleep(for: regionLimit) } catch { return nil }
                return nil
            }
            var reports: [Int: RegionReport] = [:]
            while reports.count < map.regions.count, let next = await group.next() {
                guard let (id, report) = next else {
                    group.cancelAll()
                    continue
                }
                reports[id] = report
            }
            group.cancelAll()
            return reports
        }
    }

    /// What was found about this network.
    private struct Probes: Sendable {
        var stun: STUNProbe.Outcome
        var router: RouterProbe.Outcome
    }

    /// What was found about one region.
    private struct RegionReport: Sendable {
        var latency: Duration?
        var isV4 = true
        var probe = RelayProbe.Outcome()

        static func make(_ region: DERPMap.Region, _ connector: RelayConnector) async -> RegionReport {
            guard region.hasRelay else { return RegionReport() }
            async let probe = RelayProbe.run(connector, region)
            var report = RegionReport()
            do {
                let latency = try await connector.measureLatency(region: region)
                report.latency = .nanoseconds(Int64(clamping: latency.roundTrip.nanoseconds))
                report.isV4 = latency.isV4
            } catch {
                report.latency = nil
            }
            report.probe = await probe
            if Task.isCancelled, !report.probe.canExchange {
                report.probe.error =
                    "no answer within \(NetcheckCommand.regionLimit.components.seconds) seconds"
            }
            return report
        }
    }

    /// The same in sentences.
    private static func words(
        _ map: DERPMap, _ reports: [Int: RegionReport], _ probes: Probes, _ connector: RelayConnector
    ) -> [String] {
        let forced = connector.forcedWebSocketReasons()
        var findings = NetcheckWords.Findings()
        findings.stun = probes.stun
        findings.router = probes.router
        findings.servers = map.stunServers.count
        findings.hosts =
            Set(map.stunServers.map { $0.hostName + $0.addresses.map(\.description).joined() }).count
        findings.regions = map.relayRegionIDs.map { id in
            let report = reports[id] ?? RegionReport()
            return NetcheckWords.Region(
                name: map.regions[id]?.name ?? "\(id)",
                milliseconds: report.latency.map { Double($0.wholeNanoseconds) / 1e6 },
                works: report.probe.canExchange, error: report.probe.error, isWebSocket: forced[id] != nil)
        }
        findings.narrow = NetworkInterface.narrow()
        return NetcheckWords.lines(findings)
    }

    // MARK: JSON

    private static func base(
        error: String? = nil, warnings: [(String, String)] = [], _ rest: [JSON.Member]
    ) -> JSON {
        let severity = error != nil ? "error" : warnings.isEmpty ? "ok" : "warning"
        return .object(
            [
                .init(key: "error", value: error.map { .string($0) } ?? .null),
                .init(key: "severity", value: .string(severity)),
                .init(
                    key: "warnings",
                    value: .array(
                        warnings.map { .record(["code": .string($0.0), "message": .string($0.1)]) })),
                .init(key: "dismissed", value: .bool(false)),
            ] + rest)
    }

    private static func report(
        _ map: DERPMap, _ raw: JSON, _ reports: [Int: RegionReport], _ probes: Probes,
        _ connector: RelayConnector
    ) -> JSON {
        let stun = probes.stun
        let forced = connector.forcedWebSocketReasons()
        var warnings: [(String, String)] = []
        if map.stunServers.isEmpty {
            warnings.append(("ESTUN01", "no STUN servers: direct connections are unlikely"))
        }
        if stun.mappingVaries == true {
            warnings.append(("ESTUN02", "STUN servers see different addresses: a hard NAT stands in between"))
        }
        let regions = map.regionIDs.map { id in
            JSON.Member(
                key: "\(id)",
                value: region(
                    raw["Regions"]["\(id)"], reports[id] ?? RegionReport(), stun, id, forced[id] != nil))
        }
        let isHealthy = map.relayRegionIDs.allSatisfy { reports[$0]?.probe.canExchange == true }
        let derp = base(
            error: isHealthy ? nil : "a relay does not work from here", warnings: warnings,
            [
                .init(key: "healthy", value: .bool(isHealthy)),
                .init(key: "regions", value: .object(regions)),
                .init(key: "netcheck", value: netcheck(map, reports, probes)),
                .init(key: "netcheck_err", value: .null),
                .init(key: "netcheck_logs", value: .array([])),
            ])
        return .record(["derp": derp, "interfaces": interfaces()])
    }

    private static func region(
        _ raw: JSON, _ report: RegionReport, _ stun: STUNProbe.Outcome, _ id: Int, _ usesWebSocket: Bool
    ) -> JSON {
        let nodes = raw["Nodes"].elements.map { node -> JSON in
            let isRelay = !node["STUNOnly"].bool
            let hasSTUN = (node["STUNPort"].int ?? 0) >= 0
            let answered = stun.answered.contains(node["Name"].text)
            let isHealthy = (!isRelay || report.probe.canExchange) && (isRelay || !hasSTUN || answered)
            let warnings =
                usesWebSocket && isRelay ? [("EDERP01", "the relay is reached by WebSocket only")] : []
            return base(
                error: isRelay ? report.probe.error : nil, warnings: warnings,
                [
                    .init(key: "healthy", value: .bool(isHealthy)), .init(key: "node", value: node),
                    .init(
                        key: "node_info",
                        value: .record([
                            "TokenBucketBytesPerSecond": .int(0), "TokenBucketBytesBurst": .int(0),
                        ])),
                    .init(key: "can_exchange_messages", value: .bool(isRelay && report.probe.canExchange)),
                    .init(key: "round_trip_ping", value: .string(format(report.probe.roundTrip ?? .zero))),
                    .init(
                        key: "round_trip_ping_ms",
                        value: .int((report.probe.roundTrip?.wholeNanoseconds ?? 0) / 1_000_000)),
                    .init(key: "uses_websocket", value: .bool(usesWebSocket && isRelay)),
                    .init(key: "client_logs", value: .array([])),
                    .init(key: "client_errs", value: .array([])),
                    .init(
                        key: "stun",
                        value: .record([
                            "Enabled": .bool(hasSTUN), "CanSTUN": .bool(answered),
                            "Error": hasSTUN && !answered ? .string("no answer") : .null,
                        ])),
                ])
        }
        // As upstream: of two nodes one is enough, of more at most one may be out of order.
        let broken = nodes.count { !$0["healthy"].bool }
        let isHealthy = nodes.count == 2 ? broken < 2 : nodes.count > 2 ? broken <= 1 : broken == 0
        let warnings = isHealthy && broken > 0 ? [("EDERP02", "a node of the region does not work")] : []
        return base(
            error: isHealthy ? nil : report.probe.error ?? "a node of the region does not work",
            warnings: warnings,
            [
                .init(key: "healthy", value: .bool(isHealthy)), .init(key: "region", value: raw),
                .init(key: "node_reports", value: .array(nodes)),
            ])
    }

    /// Tailscale's report, with its names and nanoseconds.
    private static func netcheck(
        _ map: DERPMap, _ reports: [Int: RegionReport], _ probes: Probes
    ) -> JSON {
        let (stun, router) = (probes.stun, probes.router)
        let optional = { (flag: Bool?) in flag.map { JSON.bool($0) } ?? JSON.null }
        let measured = map.relayRegionIDs.compactMap { id in
            reports[id]?.latency.map {
                (id: id, nanoseconds: $0.wholeNanoseconds, isV4: reports[id]?.isV4 == true)
            }
        }
        let latencies = { (wanted: (Bool) -> Bool) in
            JSON.object(
                measured.filter { wanted($0.isV4) }.map {
                    .init(key: "\($0.id)", value: .int($0.nanoseconds))
                })
        }
        let home = measured.filter { map.regions[$0.id]?.isAvoided != true }.min {
            $0.nanoseconds < $1.nanoseconds
        }
        let hasV4 = stun.v4 != nil || measured.contains { $0.isV4 }
        let hasV6 = stun.v6 != nil || measured.contains { !$0.isV4 }
        return .record([
            "UDP": .bool(stun.v4 != nil || stun.v6 != nil), "IPv6": .bool(hasV6), "IPv4": .bool(hasV4),
            "IPv6CanSend": .bool(stun.canSendV6), "IPv4CanSend": .bool(stun.canSendV4),
            "OSHasIPv6": .bool(stun.hasV6), "ICMPv4": .bool(router.icmpv4),
            "MappingVariesByDestIP": optional(stun.mappingVaries),
            "HairPinning": optional(stun.hairPinning),
            "UPnP": optional(router.upnp), "PMP": optional(router.pmp), "PCP": optional(router.pcp),
            "PreferredDERP": .int(home?.id ?? 0),
            "RegionLatency": latencies { _ in true }, "RegionV4Latency": latencies { $0 },
            "RegionV6Latency": latencies { !$0 },
            "GlobalV4": .string(stun.v4.map { "\($0)" } ?? ""),
            "GlobalV6": .string(stun.v6.map { "\($0)" } ?? ""),
            "CaptivePortal": .null,
        ])
    }

    private static func interfaces() -> JSON {
        let all = NetworkInterface.all()
        let warnings = NetworkInterface.narrow().map {
            (
                "EIF01",
                "the interface \($0.name) has an MTU of \($0.mtu), less than"
                    + " \(NetworkInterface.mtuFloor): packets may be cut"
            )
        }
        return base(
            warnings: warnings,
            [
                .init(
                    key: "interfaces",
                    value: .array(
                        all.map { interface in
                            .record([
                                "name": .string(interface.name), "mtu": .int(interface.mtu),
                                "addresses": .array(interface.addresses.map { .string($0) }),
                            ])
                        }))
            ])
    }
}

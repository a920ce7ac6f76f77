// SPDX-License-Identifier: Apache-2.0

internal import HTTPTransport
internal import Logging
internal import Mesh

/// What an edge relay tells when it registers.
struct ProxyRegistration: Sendable {
    var accessURL: AccessURL
    var wildcardHostname: String
    var isDERPEnabled: Bool
    var isDERPOnly: Bool
    var version: String
    var replica: ProxyReplica
}

/// One process of a proxy. Several may stand behind one URL; they mesh.
struct ProxyReplica: Sendable {
    var id: Identifier
    var hostname: String
    var relayAddress: String
    var error: String
    var createdAt: Timestamp
    var seenAt: Timestamp

    /// `codersdk.Replica`
    func json(region: Int) -> JSON {
        [
            "id": JSON(id), "hostname": JSON(hostname), "created_at": JSON(createdAt),
            "relay_address": JSON(relayAddress), "region_id": JSON(region), "error": JSON(error),
            "database_latency": 0,
        ]
    }
}

/// Which edge relays are alive: asks each of them now and then, and keeps their regions in the DERP map. Replicas are
/// known by their registrations, which come every 15 s, so that nothing has to survive a restart.
actor ProxyRegistry {
    private let store: Store
    private let maps: DERPMapSource
    private let logger: Logger
    private let http = HTTPClient()
    private var rows: [WorkspaceProxyRecord] = []
    private var health: [Identifier: ProxyHealth] = [:]
    private var replicas: [Identifier: [Identifier: ProxyReplica]] = [:]
    private var task: Task<Void, Never>?

    /// Between two checks of all proxies: upstream's `--proxy-health-interval`.
    private static let checkInterval: Duration = .seconds(60)
    /// A replica that missed two registrations is gone.
    private static let replicaSeconds = 45.0
    /// More processes of one proxy than this are refused.
    private static let maximumReplicas = 64

    init(store: Store, maps: DERPMapSource, logger: Logger) {
        self.store = store
        self.maps = maps
        self.logger = logger
    }

    /// Begins to check.
    func start() {
        guard task == nil else { return }
        task = Task {
            while !Task.isCancelled {
                await checkAll()
                // Cancelled: the loop ends.
                try? await Task.sleep(for: Self.checkInterval)
            }
        }
    }

    /// Ends the checks.
    func stop() async {
        task?.cancel()
        await task?.value
        await http.shutDown()
    }

    /// All proxies that were not deleted, with what is known of them.
    var all: [KnownProxy] { rows.map(known) }

    /// A proxy with what is known of it.
    func known(_ row: WorkspaceProxyRecord) -> KnownProxy {
        KnownProxy(row: row, health: health[row.id] ?? ProxyHealth())
    }

    /// Reads the table again after a change of it.
    func reload() async {
        do {
            rows = try await store.workspaceProxies()
            try publish()
        } catch {
            logger.warning("edge relays are not known", metadata: ["error": "\(error)"])
        }
    }

    /// Region of a proxy.
    func regionID(of proxy: WorkspaceProxyRecord) -> Int { maps.firstEdgeRegion + proxy.number }

    /// Notes a replica. Returns its living siblings, which have relay addresses.
    func register(
        _ replica: ProxyReplica, of proxy: Identifier, now: Timestamp
    ) throws(APIError) -> [ProxyReplica] {
        var known = (replicas[proxy] ?? [:]).filter {
            now.seconds(since: $0.value.seenAt) < Self.replicaSeconds
        }
        var replica = replica
        if let before = known[replica.id] { replica.createdAt = before.createdAt }
        guard known[replica.id] != nil || known.count < Self.maximumReplicas else {
            throw APIError(400, "Too many replicas of this workspace proxy.")
        }
        known[replica.id] = replica
        replicas[proxy] = known
        return known.values.filter { $0.id != replica.id && !$0.relayAddress.isEmpty }.sorted {
            $0.id < $1.id
        }
    }

    /// Forgets a replica; false when it was not known. With the last one the region leaves the map.
    func deregister(_ replica: Identifier, of proxy: Identifier, now: Timestamp) throws -> Bool {
        guard replicas[proxy]?.removeValue(forKey: replica) != nil else { return false }
        let living = (replicas[proxy] ?? [:]).filter {
            now.seconds(since: $0.value.seenAt) < Self.replicaSeconds
        }
        if living.isEmpty {
            health[proxy] = ProxyHealth(
                status: "unreachable", errors: ["all its replicas said that they stop"], checkedAt: now)
            try publish()
        }
        return true
    }

    /// Asks one proxy at once: it just registered.
    func check(_ proxy: Identifier) async {
        await reload()
        guard let row = rows.first(where: { $0.id == proxy }) else { return }
        await note(await ask(row), for: row)
    }

    private func checkAll() async {
        await reload()
        let rows = rows
        await withTaskGroup(of: (WorkspaceProxyRecord, ProxyHealth).self) { group in
            for row in rows { group.addTask { (row, await self.ask(row)) } }
            for await (row, found) in group { await note(found, for: row) }
        }
    }

    private func note(_ found: ProxyHealth, for row: WorkspaceProxyRecord) async {
        let before = health[row.id]?.status
        health[row.id] = found
        if let before, before != found.status {
            logger.info(
                "edge relay changed", metadata: ["name": "\(row.name)", "status": "\(found.status)"])
        }
        do {
            try publish()
        } catch {
            logger.error("no DERP map", metadata: ["error": "\(error)"])
        }
    }

    /// `GET <proxy>/healthz-report`
    private nonisolated func ask(_ row: WorkspaceProxyRecord) async -> ProxyHealth {
        var found = ProxyHealth(checkedAt: .now())
        guard !row.url.isEmpty, var url = HTTPURL(row.url) else { return found }
        url.path = (url.path == "/" ? "" : url.path) + "/healthz-report"
        do {
            let response = try await http.request("GET", url, bodyLimit: 64 << 10, timeout: .seconds(5))
            guard response.status == 200, let report = try? JSON(parsing: response.body) else {
                found.status = "unhealthy"
                found.errors = ["unexpected status code \(response.status)"]
                return found
            }
            found.errors = (report["errors"]?.elements ?? []).compactMap(\.text)
            found.warnings = (report["warnings"]?.elements ?? []).compactMap(\.text)
            found.status = found.errors.isEmpty ? "ok" : "unhealthy"
        } catch {
            found.status = "unreachable"
            found.errors = ["\(error)"]
        }
        return found
    }

    private func publish() throws {
        let first = maps.firstEdgeRegion
        try maps.setEdgeRegions(
            rows.filter { health[$0.id]?.status == "ok" }.compactMap { $0.region(first: first) })
    }
}

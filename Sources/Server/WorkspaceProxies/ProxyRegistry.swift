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
    /// Of the STUN responder beside it; negative: none.
    var stunPort = -1
    /// What is wrong with its connections to its siblings, in its own words.
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
    private let http: HTTPClient
    private var rows: [WorkspaceProxyRecord] = []
    private var health: [Identifier: ProxyHealth] = [:]
    /// Those that were there when this server started, until they are asked: a server that restarts must not take the
    /// relays of those who go on without it.
    private var unproven: Set<Identifier> = []
    private var replicas: [Identifier: [Identifier: ProxyReplica]] = [:]
    private var task: Task<Void, Never>?

    /// Between two checks of all proxies: upstream's `--proxy-health-interval`.
    private static let checkInterval: Duration = .seconds(60)
    /// Between two questions to one that failed to answer.
    private static let retryInterval: Duration = .seconds(5)
    /// A replica that missed two registrations is gone.
    private static let replicaSeconds = 45.0
    /// More processes of one proxy than this are refused.
    private static let maximumReplicas = 64

    init(store: Store, maps: DERPMapSource, http: HTTPClient, logger: Logger) {
        self.store = store
        self.maps = maps
        self.http = http
        self.logger = logger
    }

    /// Puts those into the map that were there before: to be called before anybody can ask for the map.
    func load() async throws {
        rows = try await store.workspaceProxies()
        unproven = Set(rows.filter { !$0.url.isEmpty }.map(\.id))
        for row in rows where regionID(of: row) > WorkspaceProxyRecord.maximumRegionID {
            logger.warning("no region number is left for an edge relay", metadata: ["name": "\(row.name)"])
        }
        try publish()
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
        var known = KnownProxy(row: row, health: health[row.id] ?? ProxyHealth())
        known.health.warnings += living(row.id, now: .now()).filter { !$0.error.isEmpty }.map {
            "\($0.hostname) and its siblings: \($0.error)"
        }
        return known
    }

    /// Replicas of a proxy that registered lately, in a fixed order.
    private func living(_ proxy: Identifier, now: Timestamp) -> [ProxyReplica] {
        (replicas[proxy] ?? [:]).values.filter { now.seconds(since: $0.seenAt) < Self.replicaSeconds }
            .sorted { $0.id < $1.id }
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
        var known: [Identifier: ProxyReplica] = [:]
        for replica in living(proxy, now: now) { known[replica.id] = replica }
        var replica = replica
        let before = known[replica.id]
        if let before { replica.createdAt = before.createdAt }
        guard known[replica.id] != nil || known.count < Self.maximumReplicas else {
            throw APIError(400, "Too many replicas of this workspace proxy.")
        }
        known[replica.id] = replica
        replicas[proxy] = known
        if before?.stunPort ?? -1 != replica.stunPort { publishOrComplain() }
        return living(proxy, now: now).filter { $0.id != replica.id && !$0.relayAddress.isEmpty }
    }

    /// Forgets a replica; false when it was not known. With the last one the region leaves the map.
    func deregister(_ replica: Identifier, of proxy: Identifier, now: Timestamp) throws -> Bool {
        guard replicas[proxy]?.removeValue(forKey: replica) != nil else { return false }
        if living(proxy, now: now).isEmpty {
            unproven.remove(proxy)
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
        await note(await verdict(row), for: row)
    }

    /// Asks all of them.
    func checkAll() async {
        await reload()
        let rows = rows
        await withTaskGroup(of: (WorkspaceProxyRecord, ProxyHealth).self) { group in
            for row in rows { group.addTask { (row, await self.verdict(row)) } }
            for await (row, found) in group { await note(found, for: row) }
        }
    }

    /// Asks one that was well a second time when it does not answer while it goes on registering: whoever uses it
    /// would have to go. One that says itself that it stops is believed at once.
    private func verdict(_ row: WorkspaceProxyRecord) async -> ProxyHealth {
        let found = await ask(row)
        let isRegistering = !living(row.id, now: .now()).isEmpty
        guard !found.isAnswered, health[row.id]?.status == "ok" && isRegistering || unproven.contains(row.id),
            (try? await Task.sleep(for: Self.retryInterval)) != nil
        else { return found }
        return await ask(row)
    }

    private func note(_ found: ProxyHealth, for row: WorkspaceProxyRecord) async {
        let before = health[row.id]?.status
        health[row.id] = found
        unproven.remove(row.id)
        if let before, before != found.status {
            logger.info(
                "edge relay changed", metadata: ["name": "\(row.name)", "status": "\(found.status)"])
        }
        publishOrComplain()
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
            found.isAnswered = true
            found.errors = (report["errors"]?.elements ?? []).compactMap(\.text)
            found.warnings = (report["warnings"]?.elements ?? []).compactMap(\.text)
            found.status = found.errors.isEmpty ? "ok" : "unhealthy"
        } catch {
            found.status = "unreachable"
            found.errors = ["\(error)"]
        }
        return found
    }

    private func publishOrComplain() {
        do {
            try publish()
        } catch {
            logger.error("no DERP map", metadata: ["error": "\(error)"])
        }
    }

    private func publish() throws {
        let first = maps.firstEdgeRegion
        let now = Timestamp.now()
        let present = rows.filter { health[$0.id]?.status == "ok" || unproven.contains($0.id) }
        try maps.setEdgeRegions(
            present.compactMap { row in
                let stunPort = living(row.id, now: now).first { $0.stunPort > 0 }?.stunPort
                return row.region(first: first, stunPort: stunPort)
            })
    }
}

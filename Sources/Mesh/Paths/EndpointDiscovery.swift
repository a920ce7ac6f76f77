// SPDX-License-Identifier: Apache-2.0

internal import DequeModule

/// Finds the own addresses: asks STUN servers from the socket that carries the tunnel and merges their answers with
/// the addresses of the interfaces. No I/O, no clock. `stun-netcheck.md` §2, `path-selection.md` §3.
///
/// Drive it like the other machines: `nextOutput` until nil, `nextEvent` until nil, sleep until `nextDeadline`.
package struct EndpointDiscovery: ~Copyable, Sendable {
    /// Times and bounds.
    package struct Limits: Sendable {
        /// A run ends after this, whatever is unanswered.
        package var run = Interval.seconds(2)
        /// Requests of a run, counted from its start. Upstream sends three at once; spaced ones survive a burst of
        /// loss and a NAT that is slow to open.
        package var tries: [Interval] = [0, 150, 450, 1_000].map { .milliseconds($0) }
        /// Between runs: at least and at most. Below the life of a NAT's mapping (30 s).
        package var period = (least: Interval.seconds(20), most: Interval.seconds(26))
        /// Servers that are asked: of each region the first, then of each the second, and so on.
        package var servers = 32
        /// Servers of one region: as many as upstream asks.
        package var serversPerRegion = 3
        /// Addresses of one name and family that are asked.
        package var addressesPerServer = 1
        /// Addresses of interfaces that are offered.
        package var local = 32

        package init() {}
    }

    /// A STUN server with its name resolved.
    package struct Server: Hashable, Sendable {
        package var region: Int
        package var addresses: [SocketAddress]

        package init(region: Int, addresses: [SocketAddress]) {
            self.region = region
            self.addresses = addresses
        }
    }

    /// What happened.
    package enum Event: Hashable, Sendable {
        /// The own addresses, changed or confirmed: give them to `Paths.setOwnEndpoints`; publish when `isChanged`.
        case endpoints([OwnEndpoint], isChanged: Bool)
        /// A run is over: what it learnt of the network.
        case finished(Netcheck)
    }

    private struct Probe {
        var region: Int
        var target: SocketAddress
        /// One per try: any of them may be answered.
        var sent: [(id: TransactionID, at: Instant)] = []
        var mapped: SocketAddress?
    }

    private let limits: Limits
    private var random: SecureGenerator
    private var servers: [Server] = []
    private var local: [SocketAddress] = []
    private var hasV4 = true
    private var hasV6 = true
    private var fixedPort: UInt16?
    private var portMapped: [SocketAddress] = []
    private var isBlocked = false
    private var isPeriodic = false
    private var merged = OwnEndpoints()
    private var probes: [Probe] = []
    private var runStarted: Instant?
    private var nextTry = 0
    private var isAgain = false
    private var nextRun = Instant.never
    private var outputs = Deque<(SocketAddress, TransactionID)>()
    private var events = Deque<Event>()
    /// The own addresses as last told.
    package private(set) var endpoints: [OwnEndpoint] = []
    /// What the last run, or the present one, learnt.
    package private(set) var report = Netcheck()
    /// What the last run learnt that came to its end.
    package private(set) var lastReport: Netcheck?
    /// Answers that fitted nothing that was asked.
    package private(set) var strayAnswers: UInt64 = 0

    package init(limits: Limits = Limits(), random: SecureGenerator) {
        self.limits = limits
        self.random = random
    }

    // MARK: Surroundings

    /// Which servers there are, with their names resolved.
    package mutating func setServers(_ servers: [Server], now: Instant) {
        var rank: [Int: Int] = [:]
        let ranked = servers.enumerated().map { place, server in
            defer { rank[server.region, default: 0] += 1 }
            return (rank: rank[server.region, default: 0], place: place)
        }
        let chosen = ranked.filter { $0.rank < limits.serversPerRegion }.sorted { $0 < $1 }
        let bounded = chosen.prefix(limits.servers).map { servers[$0.place] }.map { server in
            let v4 = server.addresses.filter(\.ip.isV4).prefix(limits.addressesPerServer)
            let v6 = server.addresses.filter { !$0.ip.isV4 }.prefix(limits.addressesPerServer)
            return Server(region: server.region, addresses: Array(v4) + Array(v6))
        }
        guard bounded != self.servers else { return }
        self.servers = bounded
        requestUpdate(now: now)
    }

    /// Which addresses the interfaces have, and which ports the sockets; a nil port is a family without socket.
    /// `isFixed`: the user chose the IPv4 port.
    package mutating func setLocal(
        addresses: [IPAddress], portV4: UInt16?, portV6: UInt16?, isFixed: Bool = false, now: Instant
    ) {
        let usable = OwnEndpoints.usable(addresses).prefix(limits.local).compactMap { address in
            (address.isV4 ? portV4 : portV6).map { SocketAddress(address, port: $0) }
        }
        let fixed = isFixed ? portV4 : nil
        guard usable != local || fixed != fixedPort || hasV4 != (portV4 != nil) || hasV6 != (portV6 != nil)
        else {
            return
        }
        local = usable
        fixedPort = fixed
        hasV4 = portV4 != nil
        hasV6 = portV6 != nil
        publish(now: now)
        requestUpdate(now: now)
    }

    /// An address that the router opened for us, or none any more.
    package mutating func setPortMapped(_ addresses: [SocketAddress], now: Instant) {
        portMapped = addresses
        publish(now: now)
    }

    /// Switched on while there are peers: mappings are kept open and known.
    package mutating func setPeriodic(_ isPeriodic: Bool, now: Instant) {
        guard isPeriodic != self.isPeriodic else { return }
        self.isPeriodic = isPeriodic
        if isPeriodic { requestUpdate(now: now) } else { nextRun = .never }
    }

    /// Without direct paths there is nothing to offer and nothing to ask.
    package mutating func setDirectBlocked(_ isBlocked: Bool, now: Instant) {
        guard isBlocked != self.isBlocked else { return }
        self.isBlocked = isBlocked
        publish(now: now)
        if !isBlocked { requestUpdate(now: now) }
    }

    /// The network changed: what was mapped belongs to another one.
    package mutating func linkChanged(now: Instant) {
        merged.forget()
        runStarted = nil
        lastReport = nil
        probes = []
        outputs.removeAll()
        requestUpdate(now: now)
    }

    /// What explanations need to know of this network.
    package var surroundings: PathSurroundings {
        var result = PathSurroundings()
        result.stunServers = servers.count { !$0.addresses.isEmpty }
        let hosts = Set(servers.flatMap { $0.addresses.map(\.ip) })
        let v4 = hosts.count(where: \.isV4)
        result.stunHosts = max(v4, hosts.count - v4)
        result.hasUDP = report.udp ? true : lastReport?.udp
        result.mappingVaries = report.mappingVariesByDestIP ?? lastReport?.mappingVariesByDestIP
        result.hasV4 = hasV4 && local.contains(where: \.ip.isV4)
        result.hasV6 = hasV6 && local.contains { !$0.ip.isV4 }
        return result
    }

    // MARK: Runs

    /// Starts a run; one that is asked for during a run follows it.
    package mutating func requestUpdate(now: Instant) {
        guard runStarted == nil else {
            isAgain = true
            return
        }
        isAgain = false
        // A server that stands in two regions is asked once: its second answer would say nothing about the NAT.
        var asked: Set<SocketAddress> = []
        probes =
            isBlocked
            ? []
            : servers.flatMap { server in
                server.addresses.filter { ($0.ip.isV4 ? hasV4 : hasV6) && asked.insert($0).inserted }.map {
                    Probe(region: server.region, target: $0)
                }
            }
        report = Netcheck()
        report.osHasIPv6 = hasV6
        report.ipv4CanSend = hasV4 && !probes.isEmpty
        report.ipv6CanSend = hasV6 && probes.contains { !$0.target.ip.isV4 }
        runStarted = now
        nextTry = 0
        guard !probes.isEmpty else {
            finish(now: now)
            return
        }
        sendTry(now: now)
    }

    private mutating func sendTry(now: Instant) {
        nextTry += 1
        for index in probes.indices where probes[index].mapped == nil {
            let id = TransactionID(using: &random)
            probes[index].sent.append((id, now))
            outputs.append((probes[index].target, id))
        }
    }

    /// Takes a datagram that looks like STUN. False: it answers nothing that was asked, from there.
    @discardableResult
    package mutating func receive(_ bytes: RawSpan, from source: SocketAddress, now: Instant) -> Bool {
        guard let answer = try? STUN.parseResponse(bytes),
            let index = probes.firstIndex(where: { probe in
                probe.target == source && probe.sent.contains { $0.id == answer.id }
            })
        else {
            strayAnswers += 1
            return false
        }
        guard probes[index].mapped == nil else { return true }
        probes[index].mapped = answer.mapped
        noteAnswer(answer.mapped, isV4: source.ip.isV4)
        publish(now: now)
        if runStarted != nil, probes.allSatisfy({ $0.mapped != nil }) { finish(now: now) }
        return true
    }

    private mutating func noteAnswer(_ mapped: SocketAddress, isV4: Bool) {
        report.udp = true
        if isV4 {
            report.ipv4 = true
            if let first = report.globalV4 {
                if first != mapped {
                    report.mappingVariesByDestIP = true
                } else if report.mappingVariesByDestIP == nil {
                    report.mappingVariesByDestIP = false
                }
            } else {
                report.globalV4 = mapped
            }
        } else {
            report.ipv6 = true
            report.globalV6 = report.globalV6 ?? mapped
        }
    }

    private mutating func publish(now: Instant) {
        var found: [OwnEndpoint] = []
        if !isBlocked {
            // Of answers that differ only the first is offered: a peer would see yet another one anyway.
            let v4 = report.globalV4.map { [$0] } ?? []
            let v6 = report.globalV6.map { [$0] } ?? []
            found = merged.collect(
                portMapped: portMapped, stunV4: v4, stunV6: v6,
                mappingVaries: report.mappingVariesByDestIP == true, fixedPort: fixedPort, local: local,
                now: now)
        }
        let isChanged = Set(found) != Set(endpoints)
        guard isChanged else { return }
        endpoints = found
        push(.endpoints(found, isChanged: true))
    }

    private mutating func finish(now: Instant) {
        runStarted = nil
        publish(now: now)
        push(.endpoints(endpoints, isChanged: false))
        lastReport = report
        push(.finished(report))
        if isPeriodic {
            let spread = limits.period.most.nanoseconds - limits.period.least.nanoseconds
            nextRun = now + limits.period.least + Interval(nanoseconds: random.next() % (spread + 1))
        }
        if isAgain { requestUpdate(now: now) }
    }

    private mutating func push(_ event: Event) {
        // Only the newest matter, should nobody read.
        if events.count >= 64 { events.removeFirst() }
        events.append(event)
    }

    // MARK: Output

    /// Writes the next request of `STUN.requestBytes` and says where it goes.
    package mutating func nextOutput(into memory: UnsafeMutableRawBufferPointer) -> SocketAddress? {
        guard let (target, id) = outputs.popFirst() else { return nil }
        unsafe STUN.writeRequest(id, into: memory)
        return target
    }

    /// The oldest event that was not read yet.
    package mutating func nextEvent() -> Event? { events.popFirst() }

    /// Whether a run is under way.
    package var isRunning: Bool { runStarted != nil }

    /// When `handleTimeout` must be called at the latest.
    package var nextDeadline: Instant {
        guard let runStarted else { return nextRun }
        guard nextTry < limits.tries.count else { return runStarted + limits.run }
        return min(runStarted + limits.tries[nextTry], runStarted + limits.run)
    }

    /// Does what is due.
    package mutating func handleTimeout(now: Instant) {
        guard now >= nextDeadline else { return }
        guard let runStarted else {
            nextRun = .never
            requestUpdate(now: now)
            return
        }
        if now >= runStarted + limits.run { finish(now: now) } else { sendTry(now: now) }
    }
}

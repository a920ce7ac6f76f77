// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO

// Own addresses, changes of the network, what is published, what is shown.
extension Engine {
    // MARK: Own addresses

    /// Reads the interfaces' addresses and tells the discovery, which asks and publishes anew when those changed that
    /// peers may try.
    mutating func updateLocalAddresses() {
        guard v4 != nil || v6 != nil else { return }
        var found: [IPAddress] = []
        if configuration.binding == .loopback {
            found = [IPAddress(v4: 0x7f00_0001), IPAddress(high: 0, low: 1)]
        } else {
            for entry in (try? InterfaceAddress.all()) ?? [] where entry.isUp {
                found.append(IPAddress(entry.address))
            }
            // Our own tunnel must not be offered as a way to the tunnel.
            found.removeAll { configuration.addresses.contains($0) }
        }
        interfaceAddresses = found
        if configuration.binding == .any { routeSources = DefaultRoutes.sources() }
        discovery.setLocal(
            addresses: found, portV4: v4?.localAddress.port, portV6: v6?.localAddress.port,
            isFixed: configuration.listenPort != 0 && v4?.localAddress.port == configuration.listenPort,
            now: now)
    }

    /// Opens the UDP sockets anew, on the same ports if possible: they may be bound to what is gone, and a family
    /// that was missing may have come.
    mutating func rebind() {
        guard configuration.binding != .none else { return }
        let ports = (v4: v4?.localAddress.port ?? 0, v6: v6?.localAddress.port ?? 0)
        // What waits in the old sockets has arrived: it must not be lost.
        receiveUDP(isV4: true)
        receiveUDP(isV4: false)
        for socket in [v4?.counters, v6?.counters] {
            guard let socket else { continue }
            retired.sent += socket.sent
            retired.lost += socket.lost
            retired.calls += socket.calls
        }
        v6 = nil
        v4 = nil
        v6 = EngineSockets.reopen(configuration, v4: false, port: ports.v6 != 0 ? ports.v6 : ports.v4)
        v4 = EngineSockets.reopen(configuration, v4: true, port: ports.v4 != 0 ? ports.v4 : ports.v6)
        do {
            if let number = v4?.number { try epoll.add(number, .read, token: EventSource.udp4.token) }
            if let number = v6?.number { try epoll.add(number, .read, token: EventSource.udp6.token) }
        } catch {
            log("UDP socket cannot be watched", [("error", "\(error)")])
        }
        let now = (v4: v4?.localAddress.port ?? 0, v6: v6?.localAddress.port ?? 0)
        if now != ports { log("UDP ports changed", [("v4", "\(now.v4)"), ("v6", "\(now.v6)")]) }
        noteListenPort()
    }

    /// Says so when somebody else has the port that was asked for.
    mutating func noteListenPort() {
        let wanted = configuration.listenPort
        let found = v4?.localAddress.port ?? 0
        guard wanted != 0, found != 0, found != wanted else { return }
        log("the UDP port is taken, another is used", [("wanted", "\(wanted)"), ("used", "\(found)")])
    }

    mutating func setDirectBlocked(_ isBlocked: Bool) {
        let wasBlocked = paths.isDirectBlocked
        defer { updatePortMapper() }
        paths.setDirectBlocked(isBlocked, now: now)
        discovery.setDirectBlocked(isBlocked, now: now)
        if wasBlocked, !isBlocked {
            // What the coordinator named meanwhile was ignored.
            for case let record? in peers.records where record.usesPaths { updatePeer(record.peer) }
        }
        publish()
    }

    mutating func setStunServers(_ servers: [ResolvedServer]) {
        // Nothing found though there should be: again with the next measurement.
        if servers.isEmpty { resolveAt = now }
        // One of each node: whether a NAT maps by destination shows only in the answers of several.
        var found: [EndpointDiscovery.Server] = []
        var last: String?
        for server in servers {
            if server.node == last, found.last?.region == server.region {
                found[found.count - 1].addresses.append(server.address)
            } else {
                found.append(EndpointDiscovery.Server(region: server.region, addresses: [server.address]))
            }
            last = server.node
        }
        discovery.setServers(found, now: now)
    }

    /// Takes what the path machines have to tell.
    mutating func handleMachineEvents() {
        drivePortMapper()
        if paths.needsFreshEndpoints, !discovery.isRunning { discovery.requestUpdate(now: now) }
        while let event = discovery.nextEvent() {
            guard case .endpoints(let found, let isChanged) = event else { continue }
            paths.setOwnEndpoints(configuration.fixedEndpoints ?? found.map(\.address), now: now)
            if isChanged { publish() }
        }
        while let event = paths.nextEvent() {
            switch event.kind {
            case .pong(let token, let via, let latency):
                let path: PeerPath
                switch via {
                case .udp(let address): path = .direct(address)
                case .relay(let region): path = .relay(region)
                }
                answerPing(token, .ping(PingResult(latency: latency, path: path)))
            case .pingTimedOut(let token): answerPing(token, .failed(.timedOut))
            case .chosen, .relayChanged: event.peer.map { wayFound($0) }
            case .doubted(_, let reason) where reason.meansLoss: event.peer.map { wayLost($0) }
            case .answered, .pinged, .callMeMaybeReceived:
                if let peer = event.peer, !unanswered.isEmpty { unanswered.hurry(peer, now: now) }
            default: break
            }
            hub.notify(.pathEvent(event, peer: event.peer.flatMap { peers.name($0) }))
        }
    }

    /// Publishes the own node when it changed and its home is known.
    mutating func publish() {
        let node = ownNode
        guard node.homeRegion != 0 || configuration.relayDialer == nil, node != published else { return }
        published = node
        hub.notify(.ownNode(node))
    }

    private var ownNode: OwnNode {
        let endpoints = configuration.fixedEndpoints ?? discovery.endpoints.map(\.address)
        return OwnNode(
            key: configuration.privateKey.nodePublicKey, discoKey: configuration.discoKey.discoPublicKey,
            homeRegion: homeRegion.current, latencies: latencies, forcedWebSocket: forcedWebSocket,
            addresses: configuration.addresses, endpoints: paths.isDirectBlocked ? [] : endpoints)
    }

    // MARK: Pings

    mutating func ping(token: UInt64, _ name: MeshPeerID) {
        guard let record = peers.record(name), record.usesPaths else {
            return hub.notify(.reply(token: token, .failed(.unknownPeer)))
        }
        guard let number = paths.ping(record.id, now: now) else {
            return hub.notify(.reply(token: token, .failed(.timedOut)))
        }
        pings[number] = token
    }

    private mutating func answerPing(_ number: UInt64, _ reply: Reply) {
        guard let token = pings.removeValue(forKey: number) else { return }
        hub.notify(.reply(token: token, reply))
    }

    // MARK: Status

    mutating func status() -> NodeStatus {
        var list: [PeerStatus] = []
        for case let record? in peers.records {
            guard let traffic = device.statistics(of: record.index, now: now) else { continue }
            var status = PeerStatus(
                id: record.peer.id, key: record.peer.key, addresses: record.peer.addresses, path: .none,
                homeRegion: record.peer.homeRegion, sentBytes: traffic.sentBytes,
                receivedBytes: traffic.receivedBytes,
                sinceHandshake: traffic.lastHandshake.map { now.since($0) },
                isActive: false)
            if record.usesPaths, let found = paths.status(of: record.id, now: now) {
                status.path = found.direct.map { .direct($0) } ?? found.relay.map { .relay($0) } ?? .none
                status.isActive = found.isActive
            } else {
                let route = staticRoute(of: record)
                status.path = route.udp.map { .direct($0) } ?? route.relay.map { .relay($0) } ?? .none
            }
            list.append(status)
        }
        counters.sentDatagrams = retired.sent + (v4?.counters.sent ?? 0) + (v6?.counters.sent ?? 0)
        counters.socketCalls = retired.calls + (v4?.counters.calls ?? 0) + (v6?.counters.calls ?? 0)
        var total = counters
        total.lostDatagrams += retired.lost + (v4?.counters.lost ?? 0) + (v6?.counters.lost ?? 0)
        let features = v4?.features
        let surroundings = discovery.surroundings
        return NodeStatus(
            ownNode: ownNode, peers: list.sorted { $0.id < $1.id }, counters: total,
            stack: stack.counters, bufferBytes: stack.bufferBytes,
            network: PathExplanation.PeerNetwork(
                hasUDP: surroundings.hasUDP, mappingVaries: surroundings.mappingVaries,
                blocksDirect: paths.isDirectBlocked), globalV4: discovery.report.globalV4,
            streams: streams.count + flows.count, openRelays: relays.filter(\.isOpen).map(\.region).sorted(),
            segmentation: features?.segmentation ?? false, coalescing: features?.coalescing ?? false,
            socketBufferBytes: features?.bufferBytes ?? 0, portV4: v4?.localAddress.port ?? 0,
            portV6: v6?.localAddress.port ?? 0, mappedAddress: portMapper.external,
            mappedBy: portMapper.service?.rawValue ?? "")
    }
}

extension PeerTable {
    /// The caller's name of a peer of the path machine.
    func name(_ id: PeerID) -> MeshPeerID? {
        let place = Int(id.rawValue)
        return place < records.count ? records[place]?.peer.id : nil
    }
}

/// Somebody waits until a peer answers inside the tunnel. `wireguard-integration.md` §8.3: at once, then after 50 ms
/// times 1.5 each, jittered by half, at most 30 s; pings run in parallel.
struct Reach {
    let address: IPAddress
    let began: Instant
    let deadline: Instant
    var nextPing: Instant
    var pause = Interval.milliseconds(50)
    /// Pings on their way; each is given up after ten seconds.
    var sent: [(number: UInt64, at: Instant)] = []

    var nextDeadline: Instant { min(deadline, nextPing) }
}

extension Engine {
    private static let pingLife = Interval.seconds(10)
    private static let longestPause = Interval.seconds(30)

    mutating func reach(token: UInt64, _ address: IPAddress, limit: Interval) {
        guard tun == nil else { return hub.notify(.reply(token: token, .failed(.noStack))) }
        reaches[token] = Reach(address: address, began: now, deadline: now + limit, nextPing: now)
        handleReaches()
    }

    /// Sends what is due and gives up what took too long. A peer that is not known yet may become known.
    mutating func handleReaches() {
        for token in reaches.keys.sorted() {
            guard var reach = reaches[token], now >= reach.nextDeadline else { continue }
            if now >= reach.deadline {
                forgetPings(of: reach)
                reaches[token] = nil
                let error = route(to: reach.address) == nil ? NodeError.noRoute(reach.address) : .timedOut
                hub.notify(.reply(token: token, .failed(error)))
                continue
            }
            while let first = reach.sent.first, now.since(first.at) > Self.pingLife {
                reachOfPing[first.number] = nil
                reach.sent.removeFirst()
            }
            if now.since(reach.began) >= Self.handshakePatience, reach.sent.count >= 3 {
                doubtData(towards: reach.address)
            }
            if route(to: reach.address) != nil, let number = stack.pingTSMP(reach.address) {
                reach.sent.append((number, now))
                reachOfPing[number] = token
            }
            let half = reach.pause.nanoseconds / 2
            reach.nextPing = now + Interval(nanoseconds: half + random.next() % (reach.pause.nanoseconds + 1))
            reach.pause = min(Interval(nanoseconds: reach.pause.nanoseconds / 2 * 3), Self.longestPause)
            reaches[token] = reach
        }
    }

    /// Pings inside the tunnel are not answered: should the peer answer those outside, the path is at fault.
    private mutating func doubtData(towards address: IPAddress) {
        guard let index = route(to: address), let record = peers.record(index), record.usesPaths else {
            return
        }
        doubtData(record.id, isCertain: true)
    }

    /// Data to this peer is not answered.
    mutating func doubtData(_ id: PeerID, isCertain: Bool) {
        paths.noteDataDead(id, isCertain: isCertain, now: now)
        // From now on packets are looked at one by one: one that comes directly ends the doubt.
        dataDoubtUntil = now + .seconds(600)
    }

    /// A TSMP pong came.
    mutating func handlePong(_ number: UInt64) {
        guard let token = reachOfPing[number], let reach = reaches.removeValue(forKey: token) else { return }
        let sent = reach.sent.first { $0.number == number }
        forgetPings(of: reach)
        hub.notify(.reply(token: token, .reached(now.since(sent?.at ?? now))))
    }

    mutating func forgetReach(token: UInt64) {
        if let reach = reaches.removeValue(forKey: token) { forgetPings(of: reach) }
    }

    private mutating func forgetPings(of reach: Reach) {
        for ping in reach.sent { reachOfPing[ping.number] = nil }
    }

    /// Takes what the stack has to tell.
    mutating func handleStackEvents() {
        while let event = stack.nextEvent() {
            switch event {
            case .asked(let id, let local, let remote), .accepted(let id, let local, let remote):
                streamAccepted(id, local, remote)
            case .connected(let id): streamConnected(id)
            case .readable(let id), .writable(let id):
                if let slot = streams.slot(connection: id) { enqueue(slot) }
            case .peerClosed(let id):
                if let slot = streams.slot(connection: id) {
                    streams[slot].hasPeerFinished = true
                    enqueue(slot)
                }
            case .closed(let id, let reason): streamClosed(id, reason)
            case .datagrams: receiveDatagrams()
            case .datagramRefused(let local, let remote):
                if let slot = flows.slot(local, remote) { closeFlow(slot, .reset) }
            case .pong(_, let token): handlePong(token)
            case .echoReply, .rejected: break
            }
        }
        while let stall = stack.nextStall() { pathStalled(stall) }
    }

    /// TCP makes no progress with the peer: the path may carry only small talk.
    private mutating func pathStalled(_ stall: Stack.Stall) {
        guard let index = route(to: stall.remote), let record = peers.record(index), record.usesPaths else {
            return
        }
        counters.stalls += 1
        doubtData(record.id, isCertain: stall.isCertain)
    }
}

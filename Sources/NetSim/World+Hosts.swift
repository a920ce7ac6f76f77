// SPDX-License-Identifier: Apache-2.0

internal import Mesh

// What the shell of a real node does: moves messages, dials relays, tells the coordinator.
extension World {
    func begin(_ host: SimHost) {
        if host.link.blocksDirect {
            host.paths.setDirectBlocked(true, now: host.time(now))
            host.discovery.setDirectBlocked(true, now: host.time(now))
        }
        tellSurroundings(host)
        host.discovery.setPeriodic(true, now: host.time(now))
        measure(host)
        pump(host)
    }

    fileprivate func tellSurroundings(_ host: SimHost) {
        let time = host.time(now)
        host.discovery.setServers(
            scenario.regions.flatMap { region in
                // A second address is a server of its own, as in a map with two STUN nodes.
                (0..<region.stunServers).map {
                    EndpointDiscovery.Server(region: region.id, addresses: [stunAddress(region.id, $0)])
                }
            }, now: time)
        host.discovery.setLocal(
            addresses: host.addresses, portV4: SimHost.port, portV6: SimHost.port, now: time)
        var opened: [SocketAddress] = []
        if let router = host.router, let v4 = host.addresses.first(where: \.isV4), !host.link.blocksDirect,
            let address = routers[router].open(for: SocketAddress(v4, port: SimHost.port)),
            routers[router].outer == nil
        {
            opened = [address]
        }
        host.discovery.setPortMapped(opened, now: time)
    }

    /// Chooses the home relay by the latencies of those that work.
    func measure(_ host: SimHost) {
        host.measuredAt = now
        host.measureAt = .never
        var latencies: [Int: Interval] = [:]
        for region in scenario.regions where !relaysDown.contains(region.id) {
            latencies[region.id] = relayDelay(host, region.id) * 2
        }
        let old = host.homeRegion.current
        let home = host.homeRegion.choose(
            latencies: latencies, relays: scenario.regions.map(\.id), now: host.time(now))
        if home != 0 { dial(home, host) }
        if home != old { publish(host) }
    }

    // MARK: Machines

    /// Lets everything out that the machines have to say.
    func pump(_ host: SimHost) {
        guard !host.isAsleep else { return }
        var isBusy = true
        while isBusy {
            isBusy = false
            if host.paths.needsFreshEndpoints, !host.discovery.isRunning {
                host.discovery.requestUpdate(now: host.time(now))
            }
            while let event = host.discovery.nextEvent() {
                isBusy = true
                guard case .endpoints(let found, let isChanged) = event else { continue }
                host.paths.setOwnEndpoints(found.map(\.address), now: host.time(now))
                guard isChanged else { continue }
                host.published = found.map(\.address)
                publish(host)
            }
            while let event = host.paths.nextEvent() {
                isBusy = true
                decided(host, event)
            }
            if sendDiscovery(host) { isBusy = true }
        }
        arm(host)
    }

    private func sendDiscovery(_ host: SimHost) -> Bool {
        var hasSent = false
        while true {
            let output = unsafe buffer.withUnsafeMutableBytes { unsafe host.paths.nextOutput(into: $0) }
            guard let output else { break }
            hasSent = true
            switch output {
            case .udp(let address, let length): send(host, .bytes(Array(buffer[..<length])), to: address)
            case .relay(let region, let key, let length):
                guard let to = hostOfKey[key] else { continue }
                sendRelayed(host, .bytes(Array(buffer[..<length])), region: region, to: to)
            }
        }
        while true {
            let target = unsafe buffer.withUnsafeMutableBytes { unsafe host.discovery.nextOutput(into: $0) }
            guard let target else { break }
            hasSent = true
            send(host, .bytes(Array(buffer[..<STUN.requestBytes])), to: target)
        }
        return hasSent
    }

    private func decided(_ host: SimHost, _ event: PathEvent) {
        note("\(now.since(Self.start).nanoseconds) \(host.name) \(event.peer?.rawValue ?? 0) \(event.kind)")
        switch event.kind {
        case .chosen, .trustedAgain:
            directChanges.append((now, host.index, true))
            if let peer = event.peer { host.directSince[Int(peer.rawValue)] = now }
        case .doubted, .lost:
            directChanges.append((now, host.index, false))
            if let peer = event.peer { host.directSince[Int(peer.rawValue)] = nil }
        default: break
        }
        if case .doubted(_, let reason) = event.kind, reason.meansLoss, let peer = event.peer {
            repeatLost(host, Int(peer.rawValue))
        }
        guard case .chosen = event.kind, let peer = event.peer else { return }
        let sizes = host.paths.sizes
        host.most.candidates = max(host.most.candidates, sizes.candidates)
        host.most.pings = max(host.most.pings, sizes.pings)
        let name = "\(host.name)-\(hosts[Int(peer.rawValue)].name)"
        guard timeToDirect[name] == nil else { return }
        for index in host.sessions {
            guard let began = sessions[index].began else { continue }
            let pair = sessions[index].hosts
            guard pair.0 == Int(peer.rawValue) || pair.1 == Int(peer.rawValue) else { continue }
            timeToDirect[name] = now.since(began).inSeconds
        }
    }

    /// Puts the host's next deadline into the net's time.
    func arm(_ host: SimHost) {
        let deadline = min(host.paths.nextDeadline, host.discovery.nextDeadline)
        guard deadline != .never else { return }
        let at = Instant(
            nanoseconds: deadline.nanoseconds - min(host.clockAhead.nanoseconds, deadline.nanoseconds))
        guard at < host.timerAt else { return }
        host.timerAt = at
        schedule(.timer(host: host.index, at: at), at: at)
    }

    func timer(_ host: SimHost, _ at: Instant) {
        guard at == host.timerAt else { return }
        host.timerAt = .never
        guard !host.isAsleep else { return }
        host.paths.handleTimeout(now: host.time(now))
        host.discovery.handleTimeout(now: host.time(now))
        pump(host)
    }

    func receive(_ host: SimHost, _ packet: Packet) {
        guard host.hasUDP, !host.isAsleep, host.addresses.contains(packet.destination.ip) else { return }
        switch packet.content {
        case .bytes(let bytes):
            let span = unsafe bytes.span.bytes
            if Disco.looksLikeDisco(span) {
                host.paths.receive(span, from: .udp(packet.source), now: host.time(now))
            } else {
                host.discovery.receive(span, from: packet.source, now: host.time(now))
            }
            pump(host)
        case .data(let segment): received(host, segment, from: packet.source)
        }
    }

    // MARK: Coordinator

    func publish(_ host: SimHost) {
        guard host.homeRegion.current != 0, !host.discovery.endpoints.isEmpty || host.link.blocksDirect
        else { return }
        host.isPublished = true
        for index in host.sessions {
            let pair = sessions[index].hosts
            let other = pair.0 == host.index ? pair.1 : pair.0
            schedule(.news(about: host.index, to: other), in: .milliseconds(20 + random.next() % 20))
        }
    }

    func news(_ about: Int, _ to: Int) {
        let host = hosts[to]
        host.known.insert(about)
        host.paths.setPeer(hosts[about].id, hosts[about].configuration, now: host.time(now))
        pump(host)
    }
}

extension World {
    /// The host has other addresses now.
    func moved(_ host: SimHost) {
        tellSurroundings(host)
        host.discovery.linkChanged(now: host.time(now))
        host.paths.linkChanged(now: host.time(now))
        measure(host)
        pump(host)
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import Mesh

// What goes wrong.
extension World {
    func apply(_ fault: Scenario.Fault, isEnd: Bool) {
        note("\(now.since(Self.start).nanoseconds) fault \(fault.kind.rawValue) \(fault.who) \(isEnd)")
        switch fault.kind {
        case .rebind:
            guard let router = routerNames[fault.who] else { return unknown(fault) }
            if !isEnd { routers[router].forget() }
            return
        case .relayDown:
            guard let region = Int(fault.who) else { return unknown(fault) }
            setRelay(region, isDown: !isEnd)
            return
        default: break
        }
        guard let index = hostNames[fault.who] else { return unknown(fault) }
        let host = hosts[index]
        switch fault.kind {
        case .udpDown: host.hasUDP = isEnd
        case .dataDead: host.dataDies = !isEnd
        case .mtu: host.link.mtu = isEnd ? scenario.hosts[index].mtu : Int(fault.value ?? 1_280)
        case .loss: host.loss = isEnd ? 0 : fault.value ?? 0.1
        case .sleep: setAsleep(host, !isEnd)
        case .clockJump where !isEnd:
            host.clockAhead = host.clockAhead + Interval(nanoseconds: UInt64((fault.value ?? 60) * 1e9))
            host.timerAt = .never
            timerNow(host)
        case .roam where !isEnd: roam(host, to: fault.target.flatMap { routerNames[$0] })
        case .restart where !isEnd: restart(host)
        case .blockDirect:
            host.link.blocksDirect = !isEnd
            host.paths.setDirectBlocked(!isEnd, now: host.time(now))
            host.discovery.setDirectBlocked(!isEnd, now: host.time(now))
            if isEnd {
                // What the coordinator named meanwhile was ignored.
                for other in host.known.sorted() { news(other, index) }
            }
            publish(host)
            pump(host)
        default: break
        }
    }

    private func unknown(_ fault: Scenario.Fault) {
        violations.append("the fault \(fault.kind.rawValue) concerns an unknown \(fault.who)")
    }

    private func timerNow(_ host: SimHost) {
        host.paths.handleTimeout(now: host.time(now))
        host.discovery.handleTimeout(now: host.time(now))
        pump(host)
    }

    private func setRelay(_ region: Int, isDown: Bool) {
        guard isDown else {
            relaysDown.remove(region)
            return
        }
        relaysDown.insert(region)
        for host in hosts {
            guard let link = host.links[region] else { continue }
            schedule(.relayLost(link: link), in: relayDelay(host, region))
        }
    }

    private func setAsleep(_ host: SimHost, _ isAsleep: Bool) {
        host.isAsleep = isAsleep
        guard !isAsleep else { return }
        timerNow(host)
        wakeRelays(host)
        // The clock tells the engine that it slept.
        moved(host)
    }

    private func roam(_ host: SimHost, to router: Int?) {
        for address in host.addresses { hostOfAddress[address] = nil }
        host.moves += 1
        host.router = router
        host.addresses = addresses(host.index, router, round: host.moves)
        for address in host.addresses { hostOfAddress[address] = host.index }
        // The kernel says so, and the engine waits until it has settled.
        schedule(.linkNoticed(host.index), in: .milliseconds(200))
    }

    func linkNoticed(_ host: SimHost) {
        // Relay connections from an address that is gone are closed; the machines are told.
        for region in host.links.keys.sorted() {
            guard let link = host.links[region] else { continue }
            relayLost(link)
        }
        moved(host)
    }

    private func restart(_ host: SimHost) {
        let others = host.known.sorted()
        closeLinks(host)
        host.restart(seed: seed)
        begin(host)
        for other in others { schedule(.news(about: other, to: host.index), in: .milliseconds(50)) }
    }
}

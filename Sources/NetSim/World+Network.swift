// SPDX-License-Identifier: Apache-2.0

internal import Mesh

// Addresses, routers, links.
extension World {
    func buildRouters() {
        for router in scenario.routers { routerNames[router.name] = routerNames.count }
        for (index, router) in scenario.routers.enumerated() {
            let outer = router.behind.flatMap { routerNames[$0] }
            if router.behind != nil, outer == nil {
                violations.append("router \(router.name) stands behind an unknown one")
            }
            let number = UInt32(index)
            // 5.x is the net, 100.64/10 the inside of a carrier.
            let outside = IPAddress(
                v4: outer == nil ? 0x0500_0000 + number + 1 : 0x6440_0000 + number + 1)
            routers.append(NAT(router, outside: outside, outer: outer))
            routerOfAddress[outside] = index
        }
    }

    func buildHosts() {
        for (index, host) in scenario.hosts.enumerated() {
            let router = host.router.flatMap { routerNames[$0] }
            if host.router != nil, router == nil {
                violations.append("host \(host.name) sits behind an unknown router")
            }
            let made = SimHost(
                index: index, scenario: host, router: router, addresses: addresses(index, router, round: 0),
                seed: seed)
            for address in made.addresses { hostOfAddress[address] = index }
            hostNames[host.name] = index
            hostOfKey[made.nodeKey] = index
            hosts.append(made)
        }
    }

    /// Behind a router 10.r.r.h, else a public address; IPv6 where the router has it.
    func addresses(_ index: Int, _ router: Int?, round: Int) -> [IPAddress] {
        let number = UInt64(index + 1) + UInt64(round) << 32
        guard let router else { return [IPAddress(v4: 0x0600_0000 + UInt32(index) + UInt32(round) << 16)] }
        let inside = 0x0a00_0000 + UInt32(router % 256) << 16 + UInt32(index % 65_000) + 2
        let v4 = IPAddress(v4: inside + UInt32(round) * 0x20_0000)
        guard routers[router].scenario.v6 else { return [v4] }
        return [v4, IPAddress(high: 0x2a00_1000_0000_0000 + UInt64(router), low: number)]
    }

    func stunAddress(_ region: Int, _ server: Int) -> SocketAddress {
        SocketAddress(IPAddress(v4: 0x0900_0000 + UInt32(region) << 8 + UInt32(server)), port: STUN.port)
    }

    // MARK: Sending

    /// A datagram leaves a host.
    func send(_ host: SimHost, _ content: Packet.Content, to destination: SocketAddress) {
        guard host.hasUDP, !host.isAsleep else { return }
        guard let local = host.addresses.first(where: { $0.isV4 == destination.ip.isV4 }) else { return }
        let bytes = Packet.size(content) + (local.isV4 ? 28 : 48)
        guard bytes <= host.link.mtu else { return }
        if host.dataDies, case .data = content { return }
        if chance(max(host.loss, host.link.lossOut)) { return }
        let packet = Packet(
            source: SocketAddress(local, port: SimHost.port), destination: destination, content: content)
        let delay = Self.milliseconds(host.link.latency)
        // On the same link there is no router between.
        if let to = hostOfAddress[destination.ip], hosts[to].router == host.router, host.router != nil {
            deliver(packet, to, after: delay)
        } else {
            forward(packet, outwardFrom: host.router, after: delay)
        }
    }

    static func milliseconds(_ value: Double) -> Interval { Interval(nanoseconds: UInt64(value * 1e6)) }

    func chance(_ probability: Double) -> Bool {
        probability > 0 && Double.random(in: 0..<1, using: &random) < probability
    }

    /// From a router's inside (nil: the net) towards the destination.
    private func forward(_ packet: Packet, outwardFrom router: Int?, after delay: Interval) {
        var packet = packet
        var level = router
        while let index = level {
            guard
                let source = routers[index].send(
                    from: packet.source, to: packet.destination, now: now, random: &random)
            else { return }
            // To its own outside address: hairpin, with the source translated (RFC 4787 §6).
            if packet.destination.ip == routers[index].outside {
                guard routers[index].scenario.hairpin else { return }
                packet.source = source
                return schedule(.router(index, packet), in: delay)
            }
            packet.source = source
            level = routers[index].outer
            // Another router or host on the carrier's side of this one.
            if let outer = level, let to = routerOfAddress[packet.destination.ip], routers[to].outer == outer
            {
                return schedule(.router(to, packet), in: delay)
            }
        }
        route(packet, after: delay)
    }

    /// In the net: to whom the address belongs.
    private func route(_ packet: Packet, after delay: Interval) {
        let destination = packet.destination.ip
        if destination.isV4, destination.v4 >> 24 == 9 {
            let region = Int(destination.v4 >> 8 & 0xffff)
            let way = scenario.regions.first { $0.id == region }.map(\.latency) ?? 10
            return schedule(.stun(region: region, packet), in: delay + Self.milliseconds(way))
        }
        if let router = routerOfAddress[destination], routers[router].outer == nil {
            return schedule(.router(router, packet), in: delay)
        }
        guard let to = hostOfAddress[destination] else { return }
        if let router = hosts[to].router {
            // Only IPv6 reaches a host behind a router by its own address.
            guard !destination.isV4 else { return }
            return schedule(.router(router, packet), in: delay)
        }
        deliver(packet, to, after: delay)
    }

    /// From a router's outside inward.
    func arrive(_ packet: Packet, atRouter index: Int) {
        guard
            let inside = routers[index].receive(from: packet.source, to: packet.destination, now: now)
        else { return }
        var packet = packet
        packet.destination = inside
        if let next = routerOfAddress[inside.ip] { return arrive(packet, atRouter: next) }
        guard let to = hostOfAddress[inside.ip] else { return }
        deliver(packet, to, after: .zero)
    }

    private func deliver(_ packet: Packet, _ to: Int, after delay: Interval) {
        let host = hosts[to]
        let bytes = Packet.size(packet.content) + (packet.destination.ip.isV4 ? 28 : 48)
        guard bytes <= host.link.mtu else { return }
        if chance(max(host.loss, host.link.lossIn)) { return }
        schedule(.udp(to: to, packet), in: delay + Self.milliseconds(host.link.latency))
    }

    // MARK: STUN

    func answerSTUN(_ region: Int, _ packet: Packet) {
        guard !relaysDown.contains(region), case .bytes(let bytes) = packet.content,
            let id = unsafe try? STUN.parseRequest(bytes.span.bytes, strict: true)
        else { return }
        var reply = [UInt8](repeating: 0, count: STUN.maximumReplyBytes)
        let length = unsafe reply.withUnsafeMutableBytes {
            unsafe STUN.writeReply(id, mapped: packet.source, into: $0)
        }
        let answer = Packet(
            source: packet.destination, destination: packet.source, content: .bytes(Array(reply[..<length])))
        let way = scenario.regions.first { $0.id == region }.map(\.latency) ?? 10
        route(answer, after: Self.milliseconds(way))
    }
}

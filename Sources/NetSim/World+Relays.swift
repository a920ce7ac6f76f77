// SPDX-License-Identifier: Apache-2.0

internal import Mesh

/// A relay connection: the node's real client and the relay's real session, with a byte stream between them.
final class SimLink {
    let region: Int
    let host: Int
    let generation: Int
    var client: DERPClient
    var session: DERPServerSession
    /// Bytes that the relay has not parsed yet.
    var input: [UInt8] = []
    /// Bytes that came while the host slept.
    var held: [UInt8] = []
    /// Who logged in.
    var key: NodePublicKey?
    var isReady = false
    var isClosed = false

    init(region: Int, host: SimHost, client: consuming DERPClient, session: DERPServerSession) {
        self.region = region
        self.host = host.index
        generation = host.generation
        self.client = client
        self.session = session
    }
}

/// What a relay knows: its key, and who is connected.
struct SimRelay {
    let key: PrivateKey
    var random: SecureGenerator
    var clients: [NodePublicKey: Int] = [:]
}

// Relays, with the real codec and login on both sides. A stream keeps its order and loses nothing; TCP's own delays
// are left out, and so are keep-alives.
extension World {
    func buildRelays() {
        for region in scenario.regions {
            relays[region.id] = SimRelay(
                key: SimHost.key(seed, region.id, 60), random: SimHost.random(seed, region.id, 61))
        }
    }

    func relayDelay(_ host: SimHost, _ region: Int) -> Interval {
        let way = scenario.regions.first { $0.id == region }?.latency ?? 10
        let proxy = host.router.map { routers[$0].scenario.proxyOnly ? 15.0 : 0 } ?? 0
        return Self.milliseconds(host.link.latency + way + proxy)
    }

    // MARK: Connections

    func dial(_ region: Int, _ host: SimHost) {
        guard host.links[region] == nil, let relay = relays[region] else { return }
        let client = DERPClient(
            privateKey: host.nodePrivateKey, random: SimHost.random(seed, host.index, 62),
            now: host.time(now))
        links.append(
            SimLink(
                region: region, host: host, client: client,
                session: DERPServerSession(serverKey: relay.key)))
        host.links[region] = links.count - 1
        // TCP and TLS.
        schedule(.opened(link: links.count - 1), in: relayDelay(host, region) * 4)
    }

    func opened(_ number: Int) {
        let link = links[number]
        let host = hosts[link.host]
        guard !link.isClosed, link.generation == host.generation, let relay = relays[link.region] else {
            return
        }
        guard !relaysDown.contains(link.region), !host.isAsleep else {
            close(number)
            host.waiting[link.region] = nil
            measureSoon(host, link.region, after: .seconds(5))
            return redial(host, link.region, .milliseconds(250 + random.next() % 250))
        }
        let hello = DERPServerSession.serverKeyFrame(relay.key.nodePublicKey)
        schedule(.toHost(link: number, hello), in: relayDelay(host, link.region))
    }

    private func redial(_ host: SimHost, _ region: Int, _ pause: Interval) {
        schedule(.dial(region: region, host: host.index, generation: host.generation), in: pause)
    }

    private func close(_ number: Int) {
        let link = links[number]
        link.isClosed = true
        if hosts[link.host].links[link.region] == number { hosts[link.host].links[link.region] = nil }
        if let key = link.key, relays[link.region]?.clients[key] == number {
            relays[link.region]?.clients[key] = nil
        }
    }

    /// The process ended, and its connections with it.
    func closeLinks(_ host: SimHost) {
        for region in host.links.keys.sorted() {
            if let number = host.links[region] { close(number) }
        }
    }

    /// A connection broke, and the host knows.
    func relayLost(_ number: Int) {
        let link = links[number]
        let host = hosts[link.host]
        guard !link.isClosed else { return }
        close(number)
        guard link.generation == host.generation else { return }
        if link.isReady { host.paths.relayDisconnected(link.region, now: host.time(now)) }
        measureSoon(host, link.region, after: link.isReady ? .seconds(1) : .seconds(5))
        redial(host, link.region, .milliseconds(100 + random.next() % 100))
        pump(host)
    }

    /// What the engine does when its home relay fails; `least`: since the last measurement.
    private func measureSoon(_ host: SimHost, _ region: Int, after least: Interval) {
        guard region == host.homeRegion.current else { return }
        let at = max(now + .milliseconds(100 + random.next() % 100), host.measuredAt + least)
        guard at < host.measureAt else { return }
        host.measureAt = at
        schedule(.measure(host: host.index, generation: host.generation), at: at)
    }

    // MARK: The node's side

    func sendRelayed(_ host: SimHost, _ content: Packet.Content, region: Int, to: Int) {
        guard !host.isAsleep else { return }
        guard let number = host.links[region], links[number].isReady else {
            if host.waiting[region]?.count ?? 0 < 32 {
                host.waiting[region, default: []].append((to, content))
            }
            return dial(region, host)
        }
        let bytes = content.wire
        _ = unsafe links[number].client.send(
            bytes.span.bytes, to: hosts[to].nodeKey, now: host.time(now))
        flush(number)
    }

    private func flush(_ number: Int) {
        let link = links[number]
        guard link.client.hasOutput else { return }
        let bytes = link.client.withOutput { span in unsafe span.withUnsafeBytes { unsafe Array($0) } }
        link.client.consumeOutput(bytes.count)
        schedule(.toRelay(link: number, bytes), in: relayDelay(hosts[link.host], link.region))
    }

    func arrivedAtHost(_ number: Int, _ bytes: [UInt8]) {
        let link = links[number]
        let host = hosts[link.host]
        guard !link.isClosed else { return }
        guard !host.isAsleep else {
            // The relay keeps some hundred packets of a client that takes none.
            if link.held.count < 1 << 18 { link.held += bytes }
            return
        }
        unsafe link.client.receive(bytes.span.bytes)
        do {
            while let event = try link.client.nextEvent(now: host.time(now)) { handle(event, number, host) }
        } catch {
            violations.append("\(host.name): the relay connection failed: \(error)")
            return relayLost(number)
        }
        flush(number)
    }

    /// What came while the host slept.
    func wakeRelays(_ host: SimHost) {
        for region in host.links.keys.sorted() {
            guard let number = host.links[region], !links[number].held.isEmpty else { continue }
            let bytes = links[number].held
            links[number].held = []
            arrivedAtHost(number, bytes)
        }
    }

    private func handle(_ event: DERPClient.Event, _ number: Int, _ host: SimHost) {
        let link = links[number]
        switch event {
        case .ready:
            link.isReady = true
            host.paths.relayConnected(link.region, now: host.time(now))
            for packet in host.waiting.removeValue(forKey: link.region) ?? [] {
                sendRelayed(host, packet.1, region: link.region, to: packet.to)
            }
            pump(host)
        case .packet(let from, let range):
            let bytes = unsafe link.client.withPayload(range) { unsafe Array($0) }
            received(host, bytes, from: from, region: link.region)
        case .peerGone(let key, _):
            host.paths.relayPeerGone(link.region, node: key, now: host.time(now))
            pump(host)
        default: break
        }
    }

    private func received(_ host: SimHost, _ bytes: [UInt8], from key: NodePublicKey, region: Int) {
        if let segment = SimStream.Segment(wire: bytes) {
            _ = host.paths.peer(forNode: key, throughRelay: region, now: host.time(now))
            received(host, segment)
        } else {
            unsafe host.paths.receive(
                bytes.span.bytes, from: .relay(region: region, node: key), now: host.time(now))
            pump(host)
        }
    }

    // MARK: The relay's side

    func arrivedAtRelay(_ number: Int, _ bytes: [UInt8]) {
        let link = links[number]
        guard !link.isClosed, !relaysDown.contains(link.region) else { return }
        link.input += bytes
        var offset = 0
        var needed = 0
        do {
            let input = link.input
            while let frame = unsafe try link.session.next(
                in: input.span.bytes, offset: &offset, needed: &needed)
            {
                relay(frame, number, input)
            }
        } catch {
            violations.append("the relay refuses \(hosts[link.host].name): \(error)")
            return relayLost(number)
        }
        link.input.removeFirst(offset)
    }

    private func relay(_ frame: DERPServerSession.Input, _ number: Int, _ input: [UInt8]) {
        let link = links[number]
        let host = hosts[link.host]
        let delay = relayDelay(host, link.region)
        switch frame {
        case .login(let key, _):
            link.key = key
            guard var relay = relays[link.region] else { return }
            relay.clients[key] = number
            let answer = link.session.serverInfoFrame(random: &relay.random)
            relays[link.region] = relay
            schedule(.toHost(link: number, answer), in: delay)
        case .send(let to, let range):
            guard let from = link.key else { return }
            guard let other = relays[link.region]?.clients[to] else {
                let gone = DERP.frame(.peerGone, to.bytes, [DERPPeerGoneReason.notHere.rawValue])
                return schedule(.toHost(link: number, gone), in: delay)
            }
            let packet = DERP.frame(.receivePacket, from.bytes, Array(input[range]))
            schedule(
                .toHost(link: other, packet), in: relayDelay(hosts[links[other].host], link.region))
        case .ping(let token):
            let bytes = (0..<8).map { UInt8(truncatingIfNeeded: token >> UInt64(56 - 8 * $0)) }
            schedule(.toHost(link: number, DERP.frame(.pong, bytes)), in: delay)
        default: break
        }
    }
}

extension Packet.Content {
    /// The payload of a relayed packet.
    var wire: [UInt8] {
        switch self {
        case .bytes(let bytes): bytes
        case .data(let segment): segment.wire
        }
    }
}

extension SimStream.Segment {
    /// Begins as WireGuard's data does.
    var wire: [UInt8] {
        let numbers = [UInt32(session), number, acknowledges ?? 0]
        return [4, 0, 0, 0, acknowledges == nil ? 0 : 1]
            + numbers.flatMap { value in
                (0..<4).map { UInt8(truncatingIfNeeded: value >> UInt32(24 - 8 * $0)) }
            }
    }

    init?(wire: [UInt8]) {
        guard wire.count == 17, wire.starts(with: [4, 0, 0, 0]) else { return nil }
        let numbers = (0..<3).map { index in
            wire[(5 + index * 4)..<(9 + index * 4)].reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
        }
        self.init(session: Int(numbers[0]), number: numbers[1], acknowledges: wire[4] == 1 ? numbers[2] : nil)
    }
}

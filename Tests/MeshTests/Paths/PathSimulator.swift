// SPDX-License-Identifier: Apache-2.0

import LinuxIO
import Mesh

/// Two or more path machines over a simulated network with one relay and simple NATs. Virtual time; a run is a function
/// of its seed.
final class PathSimulator {
    /// How a NAT maps and filters (RFC 4787). Filtering is by address and port, as at home.
    enum NAT { case none, easy, hard, noUDP }

    final class Host {
        var paths: Paths
        let id: PeerID
        let nodeKey: NodePublicKey
        var discoKey: PrivateKey
        var inside: SocketAddress
        let outsideIP: IPAddress
        var nat: NAT
        /// Outside port by inside-to-destination flow, and whom the flow was sent to.
        var mappings: [SocketAddress: UInt16] = [:]
        var contacted: Set<Contact> = []
        var nextPort: UInt16 = 20_000
        var events: [PathEvent] = []
        var sent: [(at: Instant, output: Paths.Output)] = []

        struct Contact: Hashable {
            var port: UInt16
            var remote: SocketAddress
        }

        init(index: Int, nat: NAT, seed: UInt64, now: Instant) {
            id = PeerID(rawValue: UInt32(index + 1))
            nodeKey = PathVectors.privateKey(seed &+ UInt64(index) &* 17).nodePublicKey
            discoKey = PathVectors.privateKey(seed &+ UInt64(index) &* 17 &+ 1)
            inside = SocketAddress(IPAddress(v4: 0x0a00_0000 + UInt32(index) << 16 + 2), port: 4000)
            outsideIP = IPAddress(v4: 0xc633_6400 + UInt32(index) + 1)
            self.nat = nat
            paths = Paths(
                nodeKey: nodeKey, discoKey: discoKey, random: PathVectors.generator(seed &+ UInt64(index)))
            paths.relayConnected(1)
        }

        // The testing macros want copies of what they look at, which the machine does not give.
        func receive(_ bytes: [UInt8], from source: Paths.Source, now: Instant) -> DiscoRefusal? {
            paths.receive(bytes.span.bytes, from: source, now: now)
        }
        func peer(forUDP address: SocketAddress) -> PeerID? { paths.peer(forUDP: address) }
        func peer(forNode key: NodePublicKey) -> PeerID? { paths.peer(forNode: key) }
        func peer(forNode key: NodePublicKey, throughRelay region: Int) -> PeerID? {
            paths.peer(forNode: key, throughRelay: region)
        }
        func status(of peer: PeerID, now: Instant) -> PathStatus? { paths.status(of: peer, now: now) }
        func setPeer(
            _ id: PeerID, _ configuration: Paths.PeerConfiguration, now: Instant
        ) -> Paths.PeerChange? {
            paths.setPeer(id, configuration, now: now)
        }
        func ping(_ id: PeerID, now: Instant) -> UInt64? { paths.ping(id, now: now) }
        func recording(of id: PeerID) -> PathRecording? { paths.recording(of: id) }
        var recordedEntries: Int { paths.recorder?.entries ?? 0 }
        var counters: Paths.Counters { paths.counters }
        var nextDeadline: Instant { paths.nextDeadline }
        var needsFreshEndpoints: Bool { paths.needsFreshEndpoints }

        /// The address that others see, as STUN would tell it.
        var mapped: SocketAddress { outside(for: SocketAddress(IPAddress(v4: 0x0808_0808), port: 3478)) }

        func outside(for destination: SocketAddress) -> SocketAddress {
            switch nat {
            case .none: return inside
            case .easy, .noUDP: return SocketAddress(outsideIP, port: 20_000)
            case .hard:
                if mappings[destination] == nil {
                    nextPort += 1
                    mappings[destination] = nextPort
                }
                return SocketAddress(outsideIP, port: mappings[destination]!)
            }
        }

        func accepts(_ from: SocketAddress, at address: SocketAddress) -> Bool {
            switch nat {
            case .none: address == inside
            case .noUDP: false
            case .easy, .hard: contacted.contains(Contact(port: address.port, remote: from))
            }
        }

        var configuration: Paths.PeerConfiguration {
            Paths.PeerConfiguration(
                nodeKey: nodeKey, discoKey: discoKey.discoPublicKey, home: 1, endpoints: [])
        }
    }

    private struct InFlight {
        var at: Instant
        var order: Int
        var to: Int
        var bytes: [UInt8]
        var source: Paths.Source
    }

    var now = Instant(nanoseconds: 1_000_000_000_000)
    let hosts: [Host]
    var udpDelay = Interval.milliseconds(10)
    var relayDelay = Interval.milliseconds(15)
    var loss = 0.0
    /// Largest datagram that the direct path carries.
    var mtu = 1500
    var isUDPDown = false
    private var generator: SeededGenerator
    private var inFlight: [InFlight] = []
    private var order = 0

    init(_ nats: [NAT], seed: UInt64 = 1) {
        generator = SeededGenerator(seed: seed)
        let start = Instant(nanoseconds: 1_000_000_000_000)
        hosts = nats.enumerated().map { Host(index: $0.offset, nat: $0.element, seed: seed, now: start) }
        for host in hosts {
            // The outside address of a hard NAT as STUN sees it is offered too, and useless.
            host.paths.setOwnEndpoints([host.inside, host.mapped], now: now)
        }
    }

    /// Everybody knows everybody, with the endpoints of the coordinator.
    func introduce(withEndpoints: Bool = true) {
        for a in hosts {
            for b in hosts where a !== b {
                var configuration = b.configuration
                if withEndpoints { configuration.endpoints = [b.inside, b.mapped] }
                a.paths.setPeer(b.id, configuration, now: now)
            }
        }
        pump()
    }

    func route(_ from: Int, _ to: Int) -> Paths.Route {
        let route = hosts[from].paths.route(to: hosts[to].id, now: now)
        pump()
        return route
    }

    /// Lets time pass; `traffic` makes host 0 and 1 send to each other every 50 ms.
    func run(_ interval: Interval, traffic: Bool = false) {
        let end = now + interval
        var nextTraffic = traffic ? now : Instant.never
        while true {
            pump()
            var next = min(end, nextTraffic)
            if let first = inFlight.first { next = min(next, first.at) }
            for host in hosts { next = min(next, host.paths.nextDeadline) }
            now = max(now, next)
            while let first = inFlight.first, first.at <= now { deliver(inFlight.removeFirst()); _ = first }
            for host in hosts where host.paths.nextDeadline <= now { host.paths.handleTimeout(now: now) }
            if nextTraffic <= now {
                _ = hosts[0].paths.route(to: hosts[1].id, now: now)
                _ = hosts[1].paths.route(to: hosts[0].id, now: now)
                nextTraffic = now + .milliseconds(50)
            }
            pump()
            if now >= end { return }
        }
    }

    func events(_ host: Int, _ filter: (PathEvent.Kind) -> Bool = { _ in true }) -> [PathEvent] {
        hosts[host].events.filter { filter($0.kind) }
    }

    func pump() {
        var buffer = [UInt8](repeating: 0, count: Disco.maximumSealedBytes)
        for (index, host) in hosts.enumerated() {
            while let output = buffer.withUnsafeMutableBytes({ host.paths.nextOutput(into: $0) }) {
                host.sent.append((now, output))
                send(output, from: index, buffer)
            }
            while let event = host.paths.nextEvent() { host.events.append(event) }
        }
    }

    private func send(_ output: Paths.Output, from index: Int, _ buffer: [UInt8]) {
        let host = hosts[index]
        switch output {
        case .relay(_, let node, let length):
            guard let to = hosts.firstIndex(where: { $0.nodeKey == node }) else { return }
            enqueue(to, Array(buffer[..<length]), .relay(region: 1, node: host.nodeKey), relayDelay)
        case .udp(let destination, let length):
            guard !isUDPDown, length + 28 <= mtu, host.nat != .noUDP else { return }
            let source = isInside(destination, of: index) ? host.inside : host.outside(for: destination)
            host.contacted.insert(Host.Contact(port: source.port, remote: destination))
            if loss > 0, Double.random(in: 0..<1, using: &generator) < loss { return }
            // Whether the far NAT lets it in is decided on arrival.
            for (to, other) in hosts.enumerated()
            where other.outsideIP == destination.ip || other.inside == destination {
                if other.inside == destination, other.nat != .none { continue }
                enqueue(to, Array(buffer[..<length]), .udp(source), udpDelay, arrivesAt: destination)
            }
        }
    }

    private var arrival: [Int: SocketAddress] = [:]

    private func isInside(_ address: SocketAddress, of index: Int) -> Bool { hosts[index].nat == .none }

    private func enqueue(
        _ to: Int, _ bytes: [UInt8], _ source: Paths.Source, _ delay: Interval,
        arrivesAt: SocketAddress? = nil
    ) {
        order += 1
        arrival[order] = arrivesAt
        let message = InFlight(at: now + delay, order: order, to: to, bytes: bytes, source: source)
        let position = inFlight.firstIndex { $0.at > message.at } ?? inFlight.count
        inFlight.insert(message, at: position)
    }

    private func deliver(_ message: InFlight) {
        let host = hosts[message.to]
        if case .udp(let from) = message.source, let address = arrival.removeValue(forKey: message.order) {
            guard !isUDPDown, host.accepts(from, at: address) else { return }
        }
        host.paths.receive(message.bytes.span.bytes, from: message.source, now: now)
    }
}

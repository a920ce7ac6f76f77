// SPDX-License-Identifier: Apache-2.0

internal import Mesh

/// A router: translates IPv4 and guards IPv6, after RFC 4787 and RFC 6092.
struct NAT {
    private struct MappingKey: Hashable {
        var inside: SocketAddress
        /// What the mapping depends on: nothing, an address, or an address with port.
        var remote: SocketAddress?
    }

    private struct Mapping {
        var inside: SocketAddress
        var port: UInt16
        var lastSent: Instant
        /// Whom the inside has sent to through this mapping.
        var contacted: [SocketAddress: Instant] = [:]
    }

    let scenario: Scenario.Router
    let outside: IPAddress
    /// The router in front.
    let outer: Int?
    private var mappings: [Mapping?] = []
    private var byKey: [MappingKey: Int] = [:]
    private var byPort: [UInt16: Int] = [:]
    private var opened: [UInt16: SocketAddress] = [:]
    private var v6Flows: [SocketAddress: [SocketAddress: Instant]] = [:]
    private let life: Interval
    /// Mappings held now.
    var mappingCount: Int { byPort.count }

    init(_ scenario: Scenario.Router, outside: IPAddress, outer: Int?) {
        self.scenario = scenario
        self.outside = outside
        self.outer = outer
        life = Interval(nanoseconds: UInt64(scenario.mappingLife * 1e9))
    }

    /// An answer to NAT-PMP: everybody may send to the returned port.
    mutating func open(for inside: SocketAddress) -> SocketAddress? {
        guard scenario.opensPorts else { return nil }
        var port = inside.port
        while opened[port] ?? inside != inside || byPort[port] != nil { port = port &+ 1 | 1_024 }
        opened[port] = inside
        return SocketAddress(outside, port: port)
    }

    mutating func forget() {
        mappings = []
        byKey = [:]
        byPort = [:]
        v6Flows = [:]
    }

    /// The source that the outside sees; nil when the datagram is dropped.
    mutating func send(
        from inside: SocketAddress, to remote: SocketAddress, now: Instant, random: inout SeededGenerator
    ) -> SocketAddress? {
        if scenario.blocksUDP || scenario.proxyOnly { return nil }
        guard inside.ip.isV4 else {
            v6Flows[inside, default: [:]][remote] = now
            return scenario.v6 ? inside : nil
        }
        if let port = opened.keys.sorted().first(where: { opened[$0] == inside }) {
            return SocketAddress(outside, port: port)
        }
        let key: MappingKey
        switch scenario.mapping {
        case .independent: key = MappingKey(inside: inside, remote: nil)
        case .address: key = MappingKey(inside: inside, remote: SocketAddress(remote.ip, port: 0))
        case .addressAndPort: key = MappingKey(inside: inside, remote: remote)
        }
        if let index = byKey[key], let mapping = mappings[index], now.since(mapping.lastSent) > life {
            byPort[mapping.port] = nil
            byKey[key] = nil
            mappings[index] = nil
        }
        let index: Int
        if let known = byKey[key] {
            index = known
        } else {
            index = mappings.count
            let port = freePort(inside.port, random: &random)
            mappings.append(Mapping(inside: inside, port: port, lastSent: now))
            byKey[key] = index
            byPort[port] = index
        }
        mappings[index]!.lastSent = now
        mappings[index]!.contacted[remote] = now
        return SocketAddress(outside, port: mappings[index]!.port)
    }

    private func freePort(_ wanted: UInt16, random: inout SeededGenerator) -> UInt16 {
        if scenario.mapping == .independent, byPort[wanted] == nil, opened[wanted] == nil { return wanted }
        while true {
            let port = UInt16(random.next() % 60_000) + 1_025
            if byPort[port] == nil, opened[port] == nil { return port }
        }
    }

    /// The inside address that gets a datagram from `remote` to `destination`; nil when it is dropped.
    func receive(from remote: SocketAddress, to destination: SocketAddress, now: Instant) -> SocketAddress? {
        if scenario.blocksUDP || scenario.proxyOnly { return nil }
        guard destination.ip.isV4 else {
            guard scenario.v6, let at = v6Flows[destination]?[remote], now.since(at) <= life else {
                return nil
            }
            return destination
        }
        if let inside = opened[destination.port] { return inside }
        guard let index = byPort[destination.port], let mapping = mappings[index],
            now.since(mapping.lastSent) <= life
        else { return nil }
        switch scenario.filtering {
        case .independent: return mapping.inside
        case .address:
            let isKnown = mapping.contacted.contains { $0.key.ip == remote.ip && now.since($0.value) <= life }
            return isKnown ? mapping.inside : nil
        case .addressAndPort:
            guard let at = mapping.contacted[remote], now.since(at) <= life else { return nil }
            return mapping.inside
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

/// Where an address of our own was learnt. Numbers as upstream.
public enum EndpointKind: Int, Hashable, Sendable {
    /// An address of an interface.
    case local = 1
    /// As a STUN server sees us.
    case stun = 2
    /// Opened at the router.
    case portMapped = 3
    /// The router's address with our fixed port: a guess that fits static forwardings.
    case stunWithLocalPort = 4
}

/// An address of our own that peers may try.
public struct OwnEndpoint: Hashable, Sendable {
    /// The address.
    public var address: SocketAddress
    /// Where it was learnt.
    public var kind: EndpointKind

    /// An address with its origin.
    public init(address: SocketAddress, kind: EndpointKind) {
        self.address = address
        self.kind = kind
    }
}

/// Collects the own addresses in the order in which peers hear of them. Pure. `path-selection.md` §3.
package struct OwnEndpoints: Sendable {
    /// Addresses that were mapped once are offered for so long.
    private static let lifetime = Interval.seconds(310)
    /// Mapped addresses remembered; a NAT that gives a new one each time must not fill the node.
    private static let cacheLimit = 16

    private var cache: [(endpoint: OwnEndpoint, seen: Instant)] = []

    package init() {}

    /// Merges what was found now with what was found lately.
    package mutating func collect(
        portMapped: [SocketAddress] = [], stunV4: [SocketAddress], stunV6: [SocketAddress],
        mappingVaries: Bool,
        fixedPort: UInt16?, local: [SocketAddress], now: Instant
    ) -> [OwnEndpoint] {
        var found = portMapped.map { OwnEndpoint(address: $0, kind: .portMapped) }
        found += stunV4.map { OwnEndpoint(address: $0, kind: .stun) }
        if mappingVaries, let fixedPort {
            found += stunV4.prefix(1).map {
                OwnEndpoint(address: SocketAddress($0.ip, port: fixedPort), kind: .stunWithLocalPort)
            }
        }
        found += stunV6.map { OwnEndpoint(address: $0, kind: .stun) }
        for endpoint in found {
            cache.removeAll { $0.endpoint.address == endpoint.address }
            cache.append((endpoint, now))
        }
        cache.removeAll { now.since($0.seen) > Self.lifetime }
        if cache.count > Self.cacheLimit { cache.removeFirst(cache.count - Self.cacheLimit) }
        found += cache.map(\.endpoint)
        found += local.map { OwnEndpoint(address: $0, kind: .local) }
        var known: Set<SocketAddress> = []
        return found.filter { known.insert($0.address).inserted }
    }

    /// Forgets mapped addresses: the machine is elsewhere now.
    package mutating func forget() { cache = [] }

    /// Which addresses of the interfaces peers may try, IPv4 first. Link-local IPv4 and private IPv6 only when there
    /// is nothing regular, loopback only when there is nothing else.
    package static func usable(
        _ addresses: [IPAddress], tunnels: [IPPrefix] = Paths.coderPrefixes
    ) -> [IPAddress] {
        let sane = Set(addresses.map(\.unmapped)).sorted().filter { address in
            !address.isUnspecified && !address.isMulticast && !tunnels.contains { $0.contains(address) }
                && (address.isV4 || !address.isLinkLocal)
        }
        let noLoopback = sane.filter { !$0.isLoopback }
        let regular = noLoopback.filter { $0.isV4 ? !$0.isLinkLocal : !$0.isPrivate }
        if !regular.isEmpty { return regular }
        return noLoopback.isEmpty ? sane : noLoopback
    }
}

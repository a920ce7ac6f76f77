// SPDX-License-Identifier: Apache-2.0

/// What is known of the network around this node. JSON exactly as Go writes it: integer nanoseconds, null for what
/// is unknown. `stun-netcheck.md` §2.1.
public struct Netcheck: Hashable, Sendable, Codable {
    /// Some STUN server answered.
    public var udp = false
    /// An IPv6 round trip worked.
    public var ipv6 = false
    /// An IPv4 round trip worked.
    public var ipv4 = false
    /// The system lets us send IPv6.
    public var ipv6CanSend = false
    /// The system lets us send IPv4.
    public var ipv4CanSend = false
    /// The system has IPv6 at all.
    public var osHasIPv6 = false
    /// An ICMP echo was answered.
    public var icmpv4 = false
    /// STUN servers see different addresses of us: a hard NAT.
    public var mappingVariesByDestIP: Bool?
    /// Our own mapped address can be reached from inside.
    public var hairPinning: Bool?
    /// A UPnP gateway was seen.
    public var upnp: Bool?
    /// A NAT-PMP gateway was seen.
    public var pmp: Bool?
    /// A PCP gateway was seen.
    public var pcp: Bool?
    /// Home region; 0 is unknown.
    public var preferredDERP = 0
    /// Best latency by region.
    public var regionLatency: [Int: Interval] = [:]
    /// Best latency over IPv4 by region.
    public var regionV4Latency: [Int: Interval] = [:]
    /// Best latency over IPv6 by region.
    public var regionV6Latency: [Int: Interval] = [:]
    /// Our address as IPv4 servers see it.
    public var globalV4: SocketAddress?
    /// Our address as IPv6 servers see it.
    public var globalV6: SocketAddress?
    /// A portal stands between us and the net. Never probed.
    public var captivePortal: Bool?

    /// A report without any knowledge.
    public init() {}

    /// Notes a latency of a region, which may be one of several.
    public mutating func note(region: Int, latency: Interval, isV4: Bool) {
        func lower(_ old: Interval?) -> Interval { min(old ?? latency, latency) }
        regionLatency[region] = lower(regionLatency[region])
        if isV4 {
            ipv4 = true
            regionV4Latency[region] = lower(regionV4Latency[region])
        } else {
            ipv6 = true
            regionV6Latency[region] = lower(regionV6Latency[region])
        }
    }

    /// `<region>-v4` and `<region>-v6` to seconds, as the coordinator's node wants it.
    public var derpLatency: [String: Double] {
        var result: [String: Double] = [:]
        for (region, latency) in regionV4Latency { result["\(region)-v4"] = latency.inSeconds }
        for (region, latency) in regionV6Latency { result["\(region)-v6"] = latency.inSeconds }
        return result
    }

    private enum CodingKeys: String, CodingKey {
        case udp = "UDP"
        case ipv6 = "IPv6"
        case ipv4 = "IPv4"
        case ipv6CanSend = "IPv6CanSend"
        case ipv4CanSend = "IPv4CanSend"
        case osHasIPv6 = "OSHasIPv6"
        case icmpv4 = "ICMPv4"
        case mappingVariesByDestIP = "MappingVariesByDestIP"
        case hairPinning = "HairPinning"
        case upnp = "UPnP"
        case pmp = "PMP"
        case pcp = "PCP"
        case preferredDERP = "PreferredDERP"
        case regionLatency = "RegionLatency"
        case regionV4Latency = "RegionV4Latency"
        case regionV6Latency = "RegionV6Latency"
        case globalV4 = "GlobalV4"
        case globalV6 = "GlobalV6"
        case captivePortal = "CaptivePortal"
    }

    /// Writes Go's form.
    public func encode(to encoder: any Encoder) throws {
        var values = encoder.container(keyedBy: CodingKeys.self)
        let flags = [
            (CodingKeys.udp, udp), (.ipv6, ipv6), (.ipv4, ipv4), (.ipv6CanSend, ipv6CanSend),
            (.ipv4CanSend, ipv4CanSend), (.osHasIPv6, osHasIPv6), (.icmpv4, icmpv4),
        ]
        for (key, flag) in flags { try values.encode(flag, forKey: key) }
        let optionals = [
            (CodingKeys.mappingVariesByDestIP, mappingVariesByDestIP), (.hairPinning, hairPinning),
            (.upnp, upnp),
            (.pmp, pmp), (.pcp, pcp), (.captivePortal, captivePortal),
        ]
        for (key, flag) in optionals {
            if let flag { try values.encode(flag, forKey: key) } else { try values.encodeNil(forKey: key) }
        }
        try values.encode(preferredDERP, forKey: .preferredDERP)
        let tables = [
            (CodingKeys.regionLatency, regionLatency), (.regionV4Latency, regionV4Latency),
            (.regionV6Latency, regionV6Latency),
        ]
        for (key, table) in tables {
            try values.encode(table.mapValues { Int64(clamping: $0.nanoseconds) }, forKey: key)
        }
        try values.encode(globalV4?.description ?? "", forKey: .globalV4)
        try values.encode(globalV6?.description ?? "", forKey: .globalV6)
    }

    /// Reads Go's form; missing and null values are unknown.
    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        func flag(_ key: CodingKeys) throws -> Bool? { try values.decodeIfPresent(Bool.self, forKey: key) }
        func table(_ key: CodingKeys) throws -> [Int: Interval] {
            let numbers = try values.decodeIfPresent([Int: Int64].self, forKey: key) ?? [:]
            return numbers.mapValues { Interval(nanoseconds: UInt64(max(0, $0))) }
        }
        func address(_ key: CodingKeys) throws -> SocketAddress? {
            try values.decodeIfPresent(String.self, forKey: key).flatMap { SocketAddress($0) }
        }
        udp = try flag(.udp) ?? false
        ipv6 = try flag(.ipv6) ?? false
        ipv4 = try flag(.ipv4) ?? false
        ipv6CanSend = try flag(.ipv6CanSend) ?? false
        ipv4CanSend = try flag(.ipv4CanSend) ?? false
        osHasIPv6 = try flag(.osHasIPv6) ?? false
        icmpv4 = try flag(.icmpv4) ?? false
        mappingVariesByDestIP = try flag(.mappingVariesByDestIP)
        hairPinning = try flag(.hairPinning)
        upnp = try flag(.upnp)
        pmp = try flag(.pmp)
        pcp = try flag(.pcp)
        captivePortal = try flag(.captivePortal)
        preferredDERP = try values.decodeIfPresent(Int.self, forKey: .preferredDERP) ?? 0
        regionLatency = try table(.regionLatency)
        regionV4Latency = try table(.regionV4Latency)
        regionV6Latency = try table(.regionV6Latency)
        globalV4 = try address(.globalV4)
        globalV6 = try address(.globalV6)
    }
}

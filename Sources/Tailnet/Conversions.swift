// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
public import Mesh
public import RPC
internal import SwiftProtobuf

extension RawUUID {
    /// The same 16 bytes, as the mesh names its peers.
    public var meshID: MeshPeerID { MeshPeerID(high: high, low: low) }

    /// The same 16 bytes of a mesh peer's name.
    public init(_ id: MeshPeerID) { self.init(high: id.high, low: id.low) }

    /// Address of an agent with this id in the prefix that clients dial: `fd7a:115c:a1e0::/48`. coordinator.md §6.
    public var tailnetAddress: IPAddress { IPAddress(high: 0xfd7a_115c_a1e0_0000 | high & 0xffff, low: low) }

    /// The same in Coder's own prefix `fd60:627a:a42b::/48`, which Coder Desktop uses.
    public var coderAddress: IPAddress { IPAddress(high: 0xfd60_627a_a42b_0000 | high & 0xffff, low: low) }
}

extension MeshPeer {
    /// Longest lists that are taken from a peer's node.
    private static let listLimit = 64

    /// Reads a node as the coordinator sends it; nil when keys are malformed or no address is usable. Addresses
    /// and allowed IPs are host prefixes only, and what is allowed must be among the addresses.
    public init?(id: RawUUID, node: TailnetNode) {
        guard let key = try? NodePublicKey(binary: node.key),
            let disco = try? DiscoPublicKey(text: node.disco),
            !key.isZero
        else { return nil }
        let addresses = node.addresses.prefix(Self.listLimit).compactMap { text -> IPAddress? in
            guard let prefix = IPPrefix(text), prefix.bits == prefix.address.bitWidth else { return nil }
            return prefix.address
        }
        let allowed = node.allowedIps.prefix(Self.listLimit).compactMap { IPPrefix($0) }
            .filter { $0.bits == $0.address.bitWidth && addresses.contains($0.address) }
        guard !allowed.isEmpty else { return nil }
        self.init(
            id: id.meshID, key: key, discoKey: disco, homeRegion: Int(node.preferredDerp),
            addresses: addresses,
            allowedIPs: allowed,
            endpoints: node.endpoints.prefix(Self.listLimit).compactMap { SocketAddress($0) })
    }
}

extension TailnetNode {
    /// What is published of the own node. coordinator.md §2.
    init(_ own: OwnNode, id: Int64) {
        self.init()
        self.id = id
        let (seconds, nanoseconds) = Clock.wallTime()
        asOf = Google_Protobuf_Timestamp(seconds: seconds, nanos: Int32(nanoseconds / 1_000 * 1_000))
        key.append(contentsOf: own.key.binary)
        disco = own.discoKey.description
        preferredDerp = Int32(clamping: own.homeRegion)
        derpLatency = own.latencies
        for (region, reason) in own.forcedWebSocket { derpForcedWebsocket[Int32(clamping: region)] = reason }
        addresses = own.addresses.map { IPPrefix(host: $0).description }
        allowedIps = addresses
        endpoints = own.endpoints.map(\.description)
    }
}

extension DERPMap {
    /// Reads the protobuf form.
    public init(_ map: TailnetDERPMap) {
        self.init()
        for (key, region) in map.regions {
            guard let id = Int(exactly: key) else { continue }
            regions[id] = Region(
                id: id, code: region.regionCode, name: region.regionName,
                isEmbeddedRelay: region.embeddedRelay,
                isAvoided: region.avoid, nodes: region.nodes.map { Node($0, region: id) })
        }
        if map.hasHomeParams {
            var scores: [Int: Double] = [:]
            for (key, score) in map.homeParams.regionScore { scores[Int(clamping: key)] = score }
            homeParams = HomeParams(regionScore: scores)
        }
    }
}

extension DERPMap.Node {
    fileprivate init(_ node: TailnetDERPMap.Region.Node, region: Int) {
        self.init(name: node.name, regionID: region, hostName: node.hostName)
        certName = node.certName
        ipv4 = node.ipv4
        ipv6 = node.ipv6
        stunPort = Int(node.stunPort)
        isSTUNOnly = node.stunOnly
        derpPort = Int(node.derpPort)
        isInsecureForTests = node.insecureForTests
        forcesHTTP = node.forceHTTP
        stunTestIP = node.stunTestIp
        canPort80 = node.canPort80
    }
}

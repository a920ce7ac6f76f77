// SPDX-License-Identifier: Apache-2.0

/// The relays and STUN servers there are, as the server publishes them. JSON names and omission of empty values as
/// Go writes them (`derp.md` §9).
public struct DERPMap: Hashable, Sendable, Codable {
    /// Regions by their id.
    public var regions: [Int: Region]
    /// Factors for the choice of the home region.
    public var homeParams: HomeParams?
    /// Whether the built-in regions of the public map are left out. Carried, not used.
    public var omitDefaultRegions: Bool

    /// A map of these regions.
    public init(regions: [Int: Region] = [:], homeParams: HomeParams? = nil, omitDefaultRegions: Bool = false)
    {
        self.regions = regions
        self.homeParams = homeParams
        self.omitDefaultRegions = omitDefaultRegions
    }

    /// Factors per region: latency is multiplied by them before regions are compared.
    public struct HomeParams: Hashable, Sendable, Codable {
        /// Factor by region id; missing is 1.
        public var regionScore: [Int: Double]

        /// Factors by region id.
        public init(regionScore: [Int: Double] = [:]) { self.regionScore = regionScore }

        private enum CodingKeys: String, CodingKey { case regionScore = "RegionScore" }

        /// Reads Go's form; a missing table is empty.
        public init(from decoder: any Decoder) throws {
            let values = try decoder.container(keyedBy: CodingKeys.self)
            regionScore = try values.decodeIfPresent([Int: Double].self, forKey: .regionScore) ?? [:]
        }

        /// Writes Go's form; an empty table is left out.
        public func encode(to encoder: any Encoder) throws {
            var values = encoder.container(keyedBy: CodingKeys.self)
            if !regionScore.isEmpty { try values.encode(regionScore, forKey: .regionScore) }
        }
    }

    /// Relays that stand together: a client's home is one region.
    public struct Region: Hashable, Sendable {
        /// Whether the relay is inside the API server, so that clients replace its host by the server's URL.
        public var isEmbeddedRelay = false
        /// Id, 1...65535 for regions with relays (it travels as a port number).
        public var id: Int
        /// Short name, such as `coder`.
        public var code: String
        /// Name for people.
        public var name: String
        /// Not to be chosen as home.
        public var isAvoided = false
        /// Relays and STUN servers in order of preference.
        public var nodes: [Node]

        /// A region with its nodes.
        public init(
            id: Int, code: String, name: String, isEmbeddedRelay: Bool = false, isAvoided: Bool = false,
            nodes: [Node]
        ) {
            self.id = id
            self.code = code
            self.name = name
            self.isEmbeddedRelay = isEmbeddedRelay
            self.isAvoided = isAvoided
            self.nodes = nodes
        }

        /// Whether packets can be relayed here.
        public var hasRelay: Bool { nodes.contains { !$0.isSTUNOnly } }
    }

    /// One host that relays, answers STUN, or both.
    public struct Node: Hashable, Sendable {
        /// Name, unique over all regions.
        public var name: String
        /// Id of its region.
        public var regionID: Int
        /// DNS name, or an address.
        public var hostName: String
        /// Name that the certificate must have, when it is not the host name.
        public var certName = ""
        /// Empty: ask DNS; an address: use it; other text: no IPv4.
        public var ipv4 = ""
        /// Empty: ask DNS; an address: use it; other text: no IPv6.
        public var ipv6 = ""
        /// Port of STUN: 0 is 3478, negative is none.
        public var stunPort = 0
        /// No relay here.
        public var isSTUNOnly = false
        /// Port of the relay: 0 is 443.
        public var derpPort = 0
        /// Certificates are not checked. Tests only.
        public var isInsecureForTests = false
        /// Clear text instead of TLS.
        public var forcesHTTP = false
        /// Address to use for STUN in tests.
        public var stunTestIP = ""
        /// Port 80 may be used for checks of captive portals.
        public var canPort80 = false

        /// A node with default ports.
        public init(name: String, regionID: Int, hostName: String) {
            self.name = name
            self.regionID = regionID
            self.hostName = hostName
        }
    }

    /// Ids in ascending order.
    public var regionIDs: [Int] { regions.keys.sorted() }

    /// Ids of regions that can relay, ascending.
    public var relayRegionIDs: [Int] { regionIDs.filter { regions[$0]?.hasRelay == true } }

    /// The map as this client must use it: relays of embedded regions are reached the way the server itself is
    /// (`derp.md` §9).
    public func rewritingEmbeddedRelay(host: String, port: Int, isTLS: Bool) -> DERPMap {
        var result = self
        for id in regionIDs where regions[id]?.isEmbeddedRelay == true {
            for index in regions[id]?.nodes.indices ?? 0..<0
            where result.regions[id]?.nodes[index].isSTUNOnly == false {
                result.regions[id]?.nodes[index].hostName = host
                result.regions[id]?.nodes[index].derpPort = port
                result.regions[id]?.nodes[index].forcesHTTP = !isTLS
            }
        }
        return result
    }

    /// A STUN server of the map, before its name is resolved.
    public struct STUNServer: Hashable, Sendable {
        /// Region that it belongs to.
        public var region: Int
        /// Name of its node.
        public var node: String
        /// Name or address to resolve; empty when `addresses` says everything.
        public var hostName: String
        /// Port in host order.
        public var port: UInt16
        /// Addresses given by the map itself.
        public var addresses: [IPAddress]
        /// Whether DNS may add an IPv4 address.
        public var mayResolveV4: Bool
        /// Whether DNS may add an IPv6 address.
        public var mayResolveV6: Bool

        /// Where to ask it: what the map says and what its name was found to be, at most four addresses.
        package func sockets(adding found: [IPAddress] = []) -> [SocketAddress] {
            let named = found.filter { $0.isV4 ? mayResolveV4 : mayResolveV6 }
            return (addresses + named).prefix(4).map { SocketAddress($0, port: port) }
        }
    }

    /// Every STUN server, regions ascending, nodes in order. `stun-netcheck.md` §2.3.
    public var stunServers: [STUNServer] {
        regionIDs.flatMap { id in (regions[id]?.nodes ?? []).compactMap { stunServer($0, region: id) } }
    }

    private func stunServer(_ node: Node, region: Int) -> STUNServer? {
        guard node.stunPort >= 0, let port = UInt16(exactly: node.stunPort == 0 ? 3478 : node.stunPort) else {
            return nil
        }
        var server = STUNServer(
            region: region, node: node.name, hostName: node.hostName, port: port, addresses: [],
            mayResolveV4: node.ipv4.isEmpty, mayResolveV6: node.ipv6.isEmpty)
        if let test = IPAddress(node.stunTestIP) {
            server.addresses = [test]
        } else {
            server.addresses = [IPAddress(node.ipv4), IPAddress(node.ipv6)].compactMap { $0 }
            if let literal = IPAddress(node.hostName) {
                if literal.isV4 ? server.mayResolveV4 : server.mayResolveV6 {
                    server.addresses.append(literal)
                }
                server.hostName = ""
            }
        }
        if !node.stunTestIP.isEmpty || !(server.mayResolveV4 || server.mayResolveV6) { server.hostName = "" }
        return server.hostName.isEmpty && server.addresses.isEmpty ? nil : server
    }

    private enum CodingKeys: String, CodingKey {
        case homeParams = "HomeParams"
        case regions = "Regions"
        case omitDefaultRegions
    }

    /// Reads Go's form; missing and null values are empty.
    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        homeParams = try values.decodeIfPresent(HomeParams.self, forKey: .homeParams)
        regions =
            try values.decodeIfPresent([Int: Region?].self, forKey: .regions)?.compactMapValues { $0 } ?? [:]
        omitDefaultRegions = try values.decodeIfPresent(Bool.self, forKey: .omitDefaultRegions) ?? false
    }

    /// Writes Go's form; empty values that Go omits are left out.
    public func encode(to encoder: any Encoder) throws {
        var values = encoder.container(keyedBy: CodingKeys.self)
        try values.encodeIfPresent(homeParams, forKey: .homeParams)
        try values.encode(regions, forKey: .regions)
        if omitDefaultRegions { try values.encode(true, forKey: .omitDefaultRegions) }
    }
}

extension DERPMap.Region: Codable {
    private enum CodingKeys: String, CodingKey {
        case isEmbeddedRelay = "EmbeddedRelay"
        case id = "RegionID"
        case code = "RegionCode"
        case name = "RegionName"
        case isAvoided = "Avoid"
        case nodes = "Nodes"
    }

    /// Reads Go's form; missing values are empty.
    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        isEmbeddedRelay = try values.decodeIfPresent(Bool.self, forKey: .isEmbeddedRelay) ?? false
        id = try values.decodeIfPresent(Int.self, forKey: .id) ?? 0
        code = try values.decodeIfPresent(String.self, forKey: .code) ?? ""
        name = try values.decodeIfPresent(String.self, forKey: .name) ?? ""
        isAvoided = try values.decodeIfPresent(Bool.self, forKey: .isAvoided) ?? false
        nodes = try values.decodeIfPresent([DERPMap.Node?].self, forKey: .nodes)?.compactMap { $0 } ?? []
    }

    /// Writes Go's form.
    public func encode(to encoder: any Encoder) throws {
        var values = encoder.container(keyedBy: CodingKeys.self)
        try values.encode(isEmbeddedRelay, forKey: .isEmbeddedRelay)
        try values.encode(id, forKey: .id)
        try values.encode(code, forKey: .code)
        try values.encode(name, forKey: .name)
        if isAvoided { try values.encode(true, forKey: .isAvoided) }
        try values.encode(nodes, forKey: .nodes)
    }
}

extension DERPMap.Node: Codable {
    private enum CodingKeys: String, CodingKey {
        case name = "Name"
        case regionID = "RegionID"
        case hostName = "HostName"
        case certName = "CertName"
        case ipv4 = "IPv4"
        case ipv6 = "IPv6"
        case stunPort = "STUNPort"
        case isSTUNOnly = "STUNOnly"
        case derpPort = "DERPPort"
        case isInsecureForTests = "InsecureForTests"
        case forcesHTTP = "ForceHTTP"
        case stunTestIP = "STUNTestIP"
        case canPort80 = "CanPort80"
    }

    /// Reads Go's form; missing values are empty.
    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        func text(_ key: CodingKeys) throws -> String {
            try values.decodeIfPresent(String.self, forKey: key) ?? ""
        }
        func flag(_ key: CodingKeys) throws -> Bool {
            try values.decodeIfPresent(Bool.self, forKey: key) ?? false
        }
        func number(_ key: CodingKeys) throws -> Int {
            try values.decodeIfPresent(Int.self, forKey: key) ?? 0
        }
        self.init(name: try text(.name), regionID: try number(.regionID), hostName: try text(.hostName))
        certName = try text(.certName)
        ipv4 = try text(.ipv4)
        ipv6 = try text(.ipv6)
        stunPort = try number(.stunPort)
        isSTUNOnly = try flag(.isSTUNOnly)
        derpPort = try number(.derpPort)
        isInsecureForTests = try flag(.isInsecureForTests)
        forcesHTTP = try flag(.forcesHTTP)
        stunTestIP = try text(.stunTestIP)
        canPort80 = try flag(.canPort80)
    }

    /// Writes Go's form; empty values are left out.
    public func encode(to encoder: any Encoder) throws {
        var values = encoder.container(keyedBy: CodingKeys.self)
        try values.encode(name, forKey: .name)
        try values.encode(regionID, forKey: .regionID)
        try values.encode(hostName, forKey: .hostName)
        let texts = [
            (CodingKeys.certName, certName), (.ipv4, ipv4), (.ipv6, ipv6), (.stunTestIP, stunTestIP),
        ]
        for (key, text) in texts where !text.isEmpty { try values.encode(text, forKey: key) }
        for (key, number) in [(CodingKeys.stunPort, stunPort), (.derpPort, derpPort)] where number != 0 {
            try values.encode(number, forKey: key)
        }
        let flags = [
            (CodingKeys.isSTUNOnly, isSTUNOnly), (.isInsecureForTests, isInsecureForTests),
            (.forcesHTTP, forcesHTTP), (.canPort80, canPort80),
        ]
        for (key, flag) in flags where flag { try values.encode(true, forKey: key) }
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import Mesh

extension DERPMap {
    /// The map as the API sends it, with Go's names (`rpc-transport.md` §5). What is missing or wrong is left out.
    init(json: JSON) {
        self.init()
        omitDefaultRegions = json["omitDefaultRegions"].bool
        for member in json["Regions"].members {
            guard let id = Int(member.key), 0...65_535 ~= id, !member.value.isNull else { continue }
            let region = member.value
            regions[id] = Region(
                id: id, code: region["RegionCode"].text, name: region["RegionName"].text,
                isEmbeddedRelay: region["EmbeddedRelay"].bool, isAvoided: region["Avoid"].bool,
                nodes: region["Nodes"].elements.map { Self.node($0, region: id) })
        }
        let scores = json["HomeParams"]["RegionScore"].members.compactMap { member -> (Int, Double)? in
            guard let id = Int(member.key), let score = member.value.double else { return nil }
            return (id, score)
        }
        if !scores.isEmpty { homeParams = HomeParams(regionScore: Dictionary(scores) { first, _ in first }) }
    }

    private static func node(_ json: JSON, region: Int) -> Node {
        var node = Node(name: json["Name"].text, regionID: region, hostName: json["HostName"].text)
        node.certName = json["CertName"].text
        node.ipv4 = json["IPv4"].text
        node.ipv6 = json["IPv6"].text
        node.stunPort = json["STUNPort"].int ?? 0
        node.isSTUNOnly = json["STUNOnly"].bool
        node.derpPort = json["DERPPort"].int ?? 0
        node.isInsecureForTests = json["InsecureForTests"].bool
        node.forcesHTTP = json["ForceHTTP"].bool
        node.stunTestIP = json["STUNTestIP"].text
        node.canPort80 = json["CanPort80"].bool
        return node
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
internal import Mesh

/// What `coder mesh --config` reads: one node and its surroundings. `docs/MESH.md` describes every key.
struct MeshFile: Sendable {
    var configuration: NodeConfiguration
    var peers: [MeshPeer]
    var nodeID: Int64
    var forcesWebSockets: Bool
    /// Started with the node.
    var services: [MeshService]

    /// Reads the file's text. Unknown keys are refused: a misspelt one would be ignored otherwise.
    init(_ json: JSON) throws {
        try Self.checkKeys(json)
        var generator = SystemRandomNumberGenerator()
        let key = try Self.key(json["node_key"], "privkey:") ?? PrivateKey(using: &generator)
        let disco = try Self.key(json["disco_key"], "privkey:") ?? PrivateKey(using: &generator)
        let addresses = try json["addresses"].elements.map { try Self.address($0.text) }
        guard !addresses.isEmpty else { throw CommandError("the file names no \"addresses\"") }
        configuration = NodeConfiguration(privateKey: key, discoKey: disco, addresses: addresses)
        configuration.listenPort = try Self.port(json["listen_port"])
        configuration.directBlocked = json["block_direct"].bool
        configuration.derpMap = DERPMap(json: json["derp_map"])
        configuration.tunName = json["tun"].string
        configuration.mapsPorts = json["port_mapping"].isNull || json["port_mapping"].bool
        if let mtu = json["mtu"].int {
            guard 1_280...1_500 ~= mtu else { throw CommandError("\"mtu\" must be 1280 to 1500") }
            configuration.mtuBytes = mtu
        }
        if !json["endpoints"].isNull {
            configuration.fixedEndpoints = try json["endpoints"].elements.map {
                guard let endpoint = SocketAddress($0.text) else {
                    throw CommandError("not ip:port: \($0.text)")
                }
                return endpoint
            }
        }
        if json["udp"].string == "loopback" { configuration.binding = .loopback }
        if json["udp"].string == "none" { configuration.binding = .none }
        forcesWebSockets = json["force_websockets"].bool
        nodeID = Int64(json["id"].int ?? 0)
        if nodeID == 0 { nodeID = MeshNode.number(of: key.nodePublicKey) }
        peers = try json["peers"].elements.map { try MeshNode.peer($0) }
        services = try json["services"].elements.map {
            try MeshService(kind: $0["kind"].text, port: Self.port($0["port"]))
        }
    }

    private static let keys: Set = [
        "id", "node_key", "disco_key", "addresses", "listen_port", "derp_map", "peers", "block_direct",
        "force_websockets", "services", "tun", "mtu", "endpoints", "udp",
        "port_mapping",
    ]

    private static func checkKeys(_ json: JSON) throws {
        guard case .object(let members) = json else { throw CommandError("the file is not a JSON object") }
        for member in members where !keys.contains(member.key) {
            throw CommandError("the file has an unknown key \"\(member.key)\"")
        }
    }

    private static func key(_ json: JSON, _ prefix: String) throws -> PrivateKey? {
        guard let text = json.string else { return nil }
        do {
            return try PrivateKey(
                bytes: Hex.bytes(
                    text.hasPrefix(prefix) ? String(text.dropFirst(prefix.count)) : text, count: 32))
        } catch {
            throw CommandError("a private key is \(prefix) and 64 hexadecimal digits")
        }
    }

    private static func port(_ json: JSON) throws -> UInt16 {
        guard let port = UInt16(exactly: json.int ?? 0) else { throw CommandError("a port is 0 to 65535") }
        return port
    }

    static func address(_ text: String) throws -> IPAddress {
        guard let address = IPAddress(text) ?? IPPrefix(text)?.address else {
            throw CommandError("not an address: \"\(text)\"")
        }
        return address
    }
}

/// A node as upstream writes it in JSON: `id`, `as_of`, `key`, `disco`, `preferred_derp`, `derp_latency`,
/// `derp_forced_websockets`, `addresses`, `allowed_ips`, `endpoints` (`wireguard-integration.md` §8.1).
enum MeshNode {
    /// A number for a node that was given none: from its key, so that it stays.
    static func number(of key: NodePublicKey) -> Int64 {
        key.bytes.prefix(8).reduce(Int64(0)) { $0 << 8 | Int64($1) } & .max
    }

    /// The own node, as one line of output.
    static func json(_ own: OwnNode, id: Int64) -> JSON {
        let prefixes = JSON.array(own.addresses.map { .string("\(IPPrefix(host: $0))") })
        return .record([
            "id": .int(id), "as_of": .string(Timestamp.now.text()), "key": .string(own.key.text),
            "disco": .string(own.discoKey.text), "preferred_derp": .int(own.homeRegion),
            "derp_latency": .object(
                own.latencies.sorted { $0.key < $1.key }.map {
                    .init(key: $0.key, value: .double($0.value, digits: 9))
                }),
            "derp_forced_websockets": .object(
                own.forcedWebSocket.sorted { $0.key < $1.key }.map {
                    .init(key: "\($0.key)", value: .string($0.value))
                }),
            "addresses": prefixes, "allowed_ips": prefixes,
            "endpoints": .array(own.endpoints.map { .string("\($0)") }),
        ])
    }

    /// Reads a peer. A number of 0, or none, is replaced by one that follows from the key.
    static func peer(_ json: JSON) throws -> MeshPeer {
        let key: NodePublicKey
        do { key = try NodePublicKey(text: json["key"].text) } catch {
            throw CommandError("a peer's \"key\" is nodekey: and 64 hexadecimal digits")
        }
        let addresses = try json["addresses"].elements.map { try MeshFile.address($0.text) }
        let allowed = try json["allowed_ips"].elements.map { json throws -> IPPrefix in
            guard let prefix = IPPrefix(json.text) else { throw CommandError("not a prefix: \(json.text)") }
            return prefix
        }
        var peer = MeshPeer(
            id: MeshPeerID(low: UInt64(bitPattern: json["id"].int.map(Int64.init) ?? 0)), key: key,
            homeRegion: json["preferred_derp"].int ?? 0, addresses: addresses,
            allowedIPs: allowed.isEmpty ? addresses.map { IPPrefix(host: $0) } : allowed,
            endpoints: json["endpoints"].elements.compactMap { SocketAddress($0.text) })
        if peer.id.low == 0 { peer.id = MeshPeerID(low: UInt64(bitPattern: number(of: key))) }
        if let text = json["disco"].string {
            do { peer.discoKey = try DiscoPublicKey(text: text) } catch {
                throw CommandError("a peer's \"disco\" is discokey: and 64 hexadecimal digits")
            }
        } else {
            peer.isStatic = true
        }
        if let seconds = json["keepalive"].int { peer.keepaliveSeconds = UInt16(clamping: seconds) }
        guard !peer.allowedIPs.isEmpty else { throw CommandError("a peer has no \"addresses\"") }
        return peer
    }
}

// SPDX-License-Identifier: Apache-2.0

/// What both KEXINIT messages lead to, RFC 4253 §7.1.
struct Negotiated {
    var method: KeyExchangeMethod
    var clientToServer: CipherName
    var serverToClient: CipherName
    var hostSignature: HostSignature
    /// Both ends prefer the same method and the same kind of host key.
    var guessHolds: Bool
    /// The peer sent a packet after its KEXINIT on a guess that did not hold: skip it.
    var ignoresNextPacket: Bool
    /// Both ends offered strict key exchange. Counts in the first exchange only.
    var strict: Bool
    /// The peer wants EXT_INFO (RFC 8308 §2.1).
    var wantsExtensionInfo: Bool
}

/// A parsed KEXINIT:
///
///     byte 20 │ cookie (16) │ 10 name-lists │ boolean first_kex_packet_follows │ uint32 0
struct KeyExchangeProposal {
    var keyExchange: [String]
    var hostKey: [String]
    var ciphersClientToServer: [String]
    var ciphersServerToClient: [String]
    var integrityClientToServer: [String]
    var integrityServerToClient: [String]
    var compressionClientToServer: [String]
    var compressionServerToClient: [String]
    var firstPacketFollows: Bool

    /// Names of the key exchange, best first.
    static let methods = KeyExchangeMethod.allCases.map(\.rawValue)
    static let strictClient = "kex-strict-c-v00@openssh.com", strictServer = "kex-strict-s-v00@openssh.com"
    static let extensionClient = "ext-info-c", extensionServer = "ext-info-s"

    /// A server has one key; a client knows several kinds.
    static func hostKeys(_ role: Role) -> [String] {
        role == .client ? HostSignature.allCases.map(\.rawValue) : [HostKey.algorithm]
    }

    /// Our own, as payload. The pseudo names of strict exchange and of RFC 8308 stand last, and go out in the
    /// first exchange only.
    static func write(role: Role, ciphers: [CipherName], cookie: [UInt8], isFirst: Bool) -> [UInt8] {
        precondition(cookie.count == 16)
        var names = methods
        if isFirst {
            names += role == .client ? [extensionClient, strictClient] : [extensionServer, strictServer]
        }
        let cipherList = ciphers.map(\.rawValue).joined(separator: ",")
        var queue = ByteQueue(capacity: 512)
        queue.append(Message.kexInit)
        queue.append(cookie)
        queue.appendString(names.joined(separator: ","))
        queue.appendString(hostKeys(role).joined(separator: ","))
        queue.appendString(cipherList)
        queue.appendString(cipherList)
        // RFC 5647 §5.1 in OpenSSH's reading: an AEAD implies its MAC, and the list counts for other ciphers only.
        queue.appendString(CipherName.integrityName)
        queue.appendString(CipherName.integrityName)
        queue.appendString("none")
        queue.appendString("none")
        queue.appendString("")
        queue.appendString("")
        queue.append(isFirst && role == .client)  // first_kex_packet_follows
        queue.append(UInt32(0))
        return queue.copy()
    }

    /// Parses the payload after its message number.
    init(_ reader: inout WireReader) throws(WireError) {
        let limit = 16 * 1024
        try reader.skip(16)
        keyExchange = try reader.nameList(limit: limit)
        hostKey = try reader.nameList(limit: limit)
        ciphersClientToServer = try reader.nameList(limit: limit)
        ciphersServerToClient = try reader.nameList(limit: limit)
        integrityClientToServer = try reader.nameList(limit: limit)
        integrityServerToClient = try reader.nameList(limit: limit)
        compressionClientToServer = try reader.nameList(limit: limit)
        compressionServerToClient = try reader.nameList(limit: limit)
        _ = try reader.stringRange(limit: limit)
        _ = try reader.stringRange(limit: limit)
        firstPacketFollows = try reader.boolean()
        _ = try reader.uint32()
    }

    /// Chooses by the client's order of preference. `role` is ours, `self` is the peer's proposal.
    func negotiate(role: Role, ciphers: [CipherName]) throws(SSHError) -> Negotiated {
        let ours = ciphers.map(\.rawValue)
        let methodName = try Self.choose("key exchange", role, ours: Self.methods, peers: keyExchange)
        let host = try Self.choose("host key", role, ours: Self.hostKeys(role), peers: hostKey)
        let up = try Self.choose("cipher", role, ours: ours, peers: ciphersClientToServer)
        let down = try Self.choose("cipher", role, ours: ours, peers: ciphersServerToClient)
        _ = try Self.choose("compression", role, ours: ["none"], peers: compressionClientToServer)
        _ = try Self.choose("compression", role, ours: ["none"], peers: compressionServerToClient)
        guard let up = CipherName(rawValue: up), let down = CipherName(rawValue: down),
            let hostSignature = HostSignature(rawValue: host),
            let method = KeyExchangeMethod(rawValue: methodName)
        else { throw .noCommonAlgorithm("cipher") }
        for (cipher, names) in [(up, integrityClientToServer), (down, integrityServerToClient)]
        where cipher.integrityBytes > 0 {
            _ = try Self.choose("MAC", role, ours: [CipherName.integrityName], peers: names)
        }
        // RFC 4253 §7: a guess is right when both first choices agree.
        let guessHolds =
            keyExchange.first == Self.methods.first && hostKey.first == Self.hostKeys(role).first
        let peerStrict = role == .client ? Self.strictServer : Self.strictClient
        return Negotiated(
            method: method, clientToServer: up, serverToClient: down, hostSignature: hostSignature,
            guessHolds: guessHolds,
            ignoresNextPacket: firstPacketFollows && !guessHolds,
            strict: keyExchange.contains(peerStrict),
            wantsExtensionInfo: role == .server && keyExchange.contains(Self.extensionClient))
    }

    private static func choose(
        _ kind: String, _ role: Role, ours: [String], peers: [String]
    ) throws(SSHError) -> String {
        let (client, server) = role == .client ? (ours, peers) : (peers, ours)
        guard let name = client.first(where: server.contains) else { throw .noCommonAlgorithm(kind) }
        return name
    }
}

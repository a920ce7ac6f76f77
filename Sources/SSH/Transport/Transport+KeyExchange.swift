// SPDX-License-Identifier: Apache-2.0

/// Where the key exchange stands. The two directions switch keys on their own: ours when we send NEWKEYS, the
/// peer's when its NEWKEYS comes.
struct KeyExchangeState {
    /// The first exchange hash; nil until the first exchange has produced it.
    var sessionID: [UInt8]?
    /// The very first exchange is not over.
    var isFirst = true
    /// Both ends offered strict key exchange in the first exchange.
    var isStrict = false
    /// We sent KEXINIT and not yet NEWKEYS: no other message may go out.
    var isSending = false
    /// The peer sent KEXINIT and not yet NEWKEYS: no other message may come in.
    var isReceiving = false

    /// Payloads of both KEXINIT, parts of the exchange hash.
    var ownProposal: [UInt8] = []
    var peerProposal: [UInt8] = []
    var negotiated: Negotiated?
    /// Client: its ephemeral keys.
    var ephemeral: EphemeralKeys?
    /// Keys of the incoming direction, from the hash until the peer's NEWKEYS.
    var nextOpener: PacketCipher?
    /// Client: the host key of the first exchange.
    var hostKeyBlob: [UInt8]?
    /// An exchange has ended since the layer above looked.
    var hasFinished = false
}

extension Transport {
    /// Begins a key exchange unless one is going on.
    mutating func startKeyExchange() {
        guard !exchange.isSending else { return }
        let proposal = KeyExchangeProposal.write(
            role: role, ciphers: ciphers, cookie: entropy.draw(16), isFirst: exchange.isFirst)
        exchange.ownProposal = proposal
        sendNow { $0.append(proposal) }
        exchange.isSending = true
        // RFC 4253 §7: the guess that the server prefers what we do saves a round trip, and costs a packet if
        // wrong.
        if role == .client, exchange.isFirst { sendPublicValue(KeyExchangeMethod.allCases[0]) }
    }

    /// Client: a fresh ephemeral key.
    private mutating func sendPublicValue(_ method: KeyExchangeMethod) {
        let keys = EphemeralKeys(method, secret: entropy.draw(32))
        exchange.ephemeral = keys
        sendNow {
            $0.append(Message.kexECDHInit)
            $0.appendString(keys.publicValue)
        }
    }

    /// OpenSSH PROTOCOL §1.10: in the first exchange under strict mode only its own messages may come,
    /// KEXINIT first.
    func checkStrict(_ type: UInt8) throws(SSHError) {
        guard exchange.isStrict else { return }
        switch type {
        case Message.kexInit, Message.newKeys, Message.kexECDHInit, Message.kexECDHReply, Message.disconnect:
            return
        default: throw .strictKeyExchangeViolated(message: type)
        }
    }

    mutating func handleExchange(_ type: UInt8, _ reader: inout WireReader) throws {
        if type == Message.kexInit { return try receiveProposal(&reader) }
        guard exchange.isReceiving, let negotiated = exchange.negotiated else {
            throw SSHError.unexpectedMessage(type)
        }
        if negotiated.ignoresNextPacket {
            exchange.negotiated?.ignoresNextPacket = false
            return
        }
        switch (type, role) {
        case (Message.kexECDHInit, .server): try answerExchange(&reader, negotiated)
        case (Message.kexECDHReply, .client): try finishExchange(&reader, negotiated)
        case (Message.newKeys, _): try receiveNewKeys()
        default: throw SSHError.unexpectedMessage(type)
        }
    }

    private mutating func receiveProposal(_ reader: inout WireReader) throws {
        guard !exchange.isReceiving else { throw SSHError.unexpectedMessage(Message.kexInit) }
        exchange.peerProposal = reader.copyAll()
        let proposal = try KeyExchangeProposal(&reader)
        let negotiated = try proposal.negotiate(role: role, ciphers: ciphers)
        if exchange.isFirst {
            exchange.isStrict = negotiated.strict
            // The sequence number has moved past this packet already: it must have been the first.
            if negotiated.strict, receiveSequence != 1 {
                throw SSHError.strictKeyExchangeViolated(message: Message.kexInit)
            }
        }
        exchange.isReceiving = true
        exchange.negotiated = negotiated
        startKeyExchange()
        if role == .client, !(exchange.isFirst && negotiated.guessHolds) {
            sendPublicValue(negotiated.method)
        }
    }

    /// Server: takes the client's public value, answers, and switches the outgoing direction.
    private mutating func answerExchange(_ reader: inout WireReader, _ negotiated: Negotiated) throws {
        let peer = try reader.bytes(limit: Self.publicValueLimit)
        guard exchange.nextOpener == nil else { throw SSHError.unexpectedMessage(Message.kexECDHInit) }
        guard let hostKey else { preconditionFailure("a server has a host key") }
        var secret = entropy.draw(32)
        defer { secret.wipe() }
        guard let (own, value) = EphemeralKeys.answer(negotiated.method, to: peer, secret: secret) else {
            throw SSHError.badKeyExchangeValue
        }
        let shared = negotiated.method.encode(value)
        let blob = hostKey.blob
        let hash = exchangeHash(blob: blob, client: peer, server: own, shared: shared)
        sendNow {
            $0.append(Message.kexECDHReply)
            $0.appendString(blob)
            $0.appendString(own)
            $0.appendString(hostKey.sign(hash))
        }
        switchKeys(negotiated, shared: shared, hash: hash)
    }

    /// Client: verifies the server's answer and switches the outgoing direction.
    private mutating func finishExchange(_ reader: inout WireReader, _ negotiated: Negotiated) throws {
        guard exchange.nextOpener == nil else { throw SSHError.unexpectedMessage(Message.kexECDHReply) }
        let blob = try reader.bytes(limit: limits.nameBytes)
        let peer = try reader.bytes(limit: Self.publicValueLimit)
        let signature = try reader.bytes(limit: limits.nameBytes)
        guard let keys = exchange.ephemeral, keys.method == negotiated.method,
            let value = keys.shared(with: peer)
        else { throw SSHError.badKeyExchangeValue }
        let shared = negotiated.method.encode(value)
        let hash = exchangeHash(blob: blob, client: keys.publicValue, server: peer, shared: shared)
        guard negotiated.hostSignature.verify(signature: signature, message: hash, blob: blob) else {
            throw SSHError.badHostSignature
        }
        guard exchange.hostKeyBlob == nil || exchange.hostKeyBlob == blob else {
            throw SSHError.hostKeyChanged
        }
        exchange.hostKeyBlob = blob
        exchange.ephemeral = nil
        switchKeys(negotiated, shared: shared, hash: hash)
    }

    /// 2 KiB: no public value of our methods is longer than 1216 bytes.
    private static let publicValueLimit = 2_048

    /// RFC 5656 §4 with the names of RFC 8731; `shared` as the method encodes it.
    private func exchangeHash(blob: [UInt8], client: [UInt8], server: [UInt8], shared: [UInt8]) -> [UInt8] {
        let own = Array(ownVersion.utf8), peer = peerVersion ?? []
        var queue = ByteQueue(capacity: 4096)
        queue.appendString(role == .client ? own : peer)
        queue.appendString(role == .client ? peer : own)
        queue.appendString(role == .client ? exchange.ownProposal : exchange.peerProposal)
        queue.appendString(role == .client ? exchange.peerProposal : exchange.ownProposal)
        queue.appendString(blob)
        queue.appendString(client)
        queue.appendString(server)
        queue.append(shared)
        return SHA256.digest(queue.copy())
    }

    /// An unsigned big-endian number as `mpint`, RFC 4251 §5.
    static func mpint(_ number: [UInt8]) -> [UInt8] {
        let digits = number.drop { $0 == 0 }
        let needsZero = (digits.first ?? 0) >= 0x80
        let length = UInt32(digits.count + (needsZero ? 1 : 0))
        return [24, 16, 8, 0].map { UInt8(truncatingIfNeeded: length >> $0) } + (needsZero ? [0] : [])
            + digits
    }

    /// Derives both directions' keys, sends NEWKEYS and starts to seal with the new ones.
    private mutating func switchKeys(_ negotiated: Negotiated, shared: [UInt8], hash: [UInt8]) {
        let sessionID = exchange.sessionID ?? hash
        var secret = shared
        defer { secret.wipe() }
        func cipher(
            _ name: CipherName, vector: Character, key: Character, integrity: Character
        ) -> PacketCipher {
            PacketCipher(
                name: name,
                key: Self.derive(secret, hash, key, sessionID, count: name.keyBytes),
                vector: Self.derive(secret, hash, vector, sessionID, count: name.vectorBytes),
                integrity: Self.derive(secret, hash, integrity, sessionID, count: name.integrityBytes))
        }
        let up = cipher(negotiated.clientToServer, vector: "A", key: "C", integrity: "E")
        let down = cipher(negotiated.serverToClient, vector: "B", key: "D", integrity: "F")
        sendNow { $0.append(Message.newKeys) }
        if exchange.isStrict { sendSequence = 0 }
        sealer = role == .client ? up : down
        exchange.nextOpener = role == .client ? down : up
        let isFirst = exchange.sessionID == nil
        exchange.sessionID = sessionID
        exchange.isSending = false
        if isFirst, negotiated.wantsExtensionInfo { sendExtensions() }
        flushDeferred()
    }

    /// RFC 4253 §7.2.
    private static func derive(
        _ secret: [UInt8], _ hash: [UInt8], _ letter: Character, _ sessionID: [UInt8], count: Int
    ) -> [UInt8] {
        var output: [UInt8] = []
        while output.count < count {
            let next = output.isEmpty ? [letter.asciiValue ?? 0] + sessionID : output
            output += SHA256.digest(secret + hash + next)
        }
        return Array(output[..<count])
    }

    /// RFC 8308 §2.3; must be the first message after NEWKEYS.
    private mutating func sendExtensions() {
        sendNow {
            $0.append(Message.extInfo)
            $0.append(UInt32(2))
            $0.appendString("server-sig-algs")
            $0.appendString("ssh-ed25519")
            $0.appendString("ping@openssh.com")
            $0.appendString("0")
        }
    }

    private mutating func receiveNewKeys() throws {
        guard let next = exchange.nextOpener else { throw SSHError.unexpectedMessage(Message.newKeys) }
        opener = next
        exchange.nextOpener = nil
        if exchange.isStrict { receiveSequence = 0 }
        exchange.isReceiving = false
        exchange.isFirst = false
        exchange.negotiated = nil
        exchange.ownProposal = []
        exchange.peerProposal = []
        exchange.hasFinished = true
        bytesUnderKeys = 0
        packetsUnderKeys = 0
        counters.keyExchanges += 1
    }
}

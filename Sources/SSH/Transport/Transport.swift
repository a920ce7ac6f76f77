// SPDX-License-Identifier: Apache-2.0

/// The transport layer of one end, RFC 4253: versions, packets, key exchange. Bytes in, messages out, and
/// back.
struct Transport: ~Copyable {
    let role: Role
    let limits: SSHLimits
    let ciphers: [CipherName]
    /// Server only.
    let hostKey: HostKey?

    var inbound = ByteQueue()
    var outbound = ByteQueue()
    /// Messages that wait for the end of a key exchange, each as uint32 length and payload.
    var deferred = ByteQueue(capacity: 64)
    var counters = SSHCounters()
    var entropy: EntropyPool

    /// Our and the peer's version line without its end.
    let ownVersion: String
    var peerVersion: [UInt8]?
    var preambleBytes = 0

    var sealer: PacketCipher?
    var opener: PacketCipher?
    var sendSequence: UInt32 = 0
    var receiveSequence: UInt32 = 0
    /// Bytes of the packet handed out last; they leave the queue when the next one is asked for.
    var handedOut = 0
    /// `packet_length` of the packet at the head, once known.
    var knownLength: Int?

    var exchange = KeyExchangeState()
    /// Bytes and packets under the current keys.
    var bytesUnderKeys: UInt64 = 0
    var packetsUnderKeys: UInt32 = 0
    /// RFC 8308 extensions that the peer announced.
    var peerExtensions: [String: [UInt8]] = [:]

    init(
        role: Role, limits: SSHLimits, ciphers: [CipherName], version: String, hostKey: HostKey?,
        seed: EntropySeed
    ) {
        self.role = role
        self.limits = limits
        self.ciphers = ciphers
        self.hostKey = hostKey
        ownVersion = version
        entropy = EntropyPool(seed: seed)
        outbound.append(Array(version.utf8) + [13, 10])
        counters.bytesSent += UInt64(outbound.count)
        startKeyExchange()
    }

    /// Whether channel data may be sealed now.
    var canSendData: Bool { !exchange.isSending && exchange.sessionID != nil }

    // MARK: In

    /// The next message for the layers above, nil when more bytes are needed. The reader starts after the
    /// message number and is valid until the next call.
    mutating func nextMessage() throws(SSHError) -> (type: UInt8, reader: WireReader)? {
        while true {
            inbound.consume(handedOut)
            handedOut = 0
            guard outbound.count <= limits.outgoingBytes else { return nil }
            if peerVersion == nil {
                guard try readVersion() else { return nil }
            }
            guard let payload = unsafe try openPacket() else { return nil }
            var reader = unsafe WireReader(payload)
            guard let type = try? reader.byte() else { throw .badPacketLength(1) }
            if try handle(type, &reader) { continue }
            return (type, reader)
        }
    }

    /// Takes a version line off the queue, or a line before it. False: more bytes needed.
    private mutating func readVersion() throws(SSHError) -> Bool {
        while true {
            let bytes = unsafe inbound.bytes
            guard let end = unsafe bytes.firstIndex(of: 10) else {
                guard bytes.count < limits.versionLineBytes else { throw .badVersion("line too long") }
                return false
            }
            var line = unsafe Array(bytes[..<end])
            if line.last == 13 { line.removeLast() }
            let isVersion = line.starts(with: Array("SSH-".utf8))
            // RFC 4253 §4.2: only the server may send other lines before.
            guard isVersion || role == .client else { throw .badVersion("not SSH") }
            guard end < (isVersion ? limits.versionLineBytes : limits.preambleBytes) else {
                throw .badVersion("line too long")
            }
            inbound.consume(end + 1)
            guard isVersion else {
                preambleBytes += end + 1
                guard preambleBytes <= limits.preambleBytes else {
                    throw .badVersion("too much text before it")
                }
                continue
            }
            let isTwo =
                line.starts(with: Array("SSH-2.0-".utf8)) || line.starts(with: Array("SSH-1.99-".utf8))
            guard isTwo else { throw .badVersion(String(decoding: line.prefix(40), as: UTF8.self)) }
            peerVersion = line
            return true
        }
    }

    /// Opens the packet at the head of the queue in place and returns its payload.
    private mutating func openPacket() throws(SSHError) -> UnsafeRawBufferPointer? {
        guard inbound.count >= 4 else { return nil }
        let packet = unsafe inbound.address(0)
        let length: Int
        if let knownLength {
            length = knownLength
        } else {
            let field =
                if let opener {
                    unsafe opener.length(of: packet, sequence: receiveSequence)
                } else {
                    unsafe UInt32(bigEndian: packet.loadUnaligned(as: UInt32.self))
                }
            length = try check(length: field)
            knownLength = length
        }
        let tagBytes = opener?.name.tagBytes ?? 0
        guard inbound.count >= 4 + length + tagBytes else { return nil }
        if let opener {
            guard unsafe opener.open(packet, length: length, sequence: receiveSequence) else {
                throw .badAuthenticationTag
            }
        }
        let padding = Int(unsafe packet.load(fromByteOffset: 4, as: UInt8.self))
        guard padding >= 4, padding + 2 <= length else { throw .badPadding }
        knownLength = nil
        handedOut = 4 + length + tagBytes
        receiveSequence &+= 1  // RFC 4253 §6.4: wraps; keys are renewed long before
        counters.packetsReceived += 1
        noteTraffic(handedOut)
        return unsafe UnsafeRawBufferPointer(start: packet + 5, count: length - padding - 1)
    }

    private func check(length: UInt32) throws(SSHError) -> Int {
        let block = opener?.name.blockBytes ?? 8
        let limit = opener == nil ? limits.packetBytesBeforeKeys : limits.packetBytes
        // RFC 4253 §6: a multiple of the block size, with the length field counted unless an AEAD keeps it
        // apart.
        let aligned = opener == nil ? (Int(length) + 4) % 8 == 0 : Int(length) % block == 0
        guard length >= 6, Int(length) <= limit, aligned else { throw .badPacketLength(length) }
        return Int(length)
    }

    /// Handles the messages of this layer. False: the message belongs above.
    private mutating func handle(_ type: UInt8, _ reader: inout WireReader) throws(SSHError) -> Bool {
        if exchange.isFirst { try checkStrict(type) }
        do {
            switch type {
            case Message.disconnect:
                let reason = try reader.uint32()
                let text = (try? reader.text(limit: limits.nameBytes)) ?? ""
                throw SSHError.disconnected(reason: reason, description: text)
            case Message.ignore, Message.debug, Message.unimplemented:
                counters.ignoredMessages += 1
            case Message.kexInit, Message.newKeys, Message.kexECDHInit, Message.kexECDHReply:
                try handleExchange(type, &reader)
            case Message.extInfo:
                try readExtensions(&reader)
            case Message.ping:
                let data = try reader.bytes(limit: limits.nameBytes)
                try send {
                    $0.append(Message.pong); $0.appendString(data)
                }
            default:
                // RFC 4253 §7.1: after its KEXINIT a peer sends nothing else until NEWKEYS.
                guard !exchange.isReceiving, exchange.sessionID != nil else {
                    throw SSHError.unexpectedMessage(type)
                }
                return false
            }
            return true
        } catch let error as WireError {
            throw .malformed(message: type, error)
        } catch let error as SSHError {
            throw error
        } catch {
            throw .unexpectedMessage(type)
        }
    }

    private mutating func readExtensions(_ reader: inout WireReader) throws {
        let count = try reader.uint32()
        guard count <= 64 else { throw SSHError.limitExceeded("extensions") }
        for _ in 0..<count {
            let name = try reader.text(limit: limits.nameBytes)
            peerExtensions[name] = try reader.bytes(limit: 16 * 1024)
        }
    }

    // MARK: Out

    /// Sends one message. `write` appends number and fields. During a key exchange the message waits.
    mutating func send(_ write: (inout ByteQueue) -> Void) throws(SSHError) {
        guard exchange.isSending else { return sendNow(write) }
        let start = deferred.count
        deferred.append(UInt32(0))
        write(&deferred)
        deferred.overwrite(UInt32(clamping: deferred.count - start - 4), at: start)
        guard deferred.count <= limits.deferredBytes else {
            throw .limitExceeded("messages during a key exchange")
        }
    }

    /// Sends one message at once: only messages of the key exchange, and what may come beside it.
    mutating func sendNow(_ write: (inout ByteQueue) -> Void) {
        let start = beginPacket()
        write(&outbound)
        finishPacket(start)
    }

    /// Starts a packet at the tail of `outbound`: length and padding length are filled in by `finishPacket`.
    mutating func beginPacket() -> Int {
        let start = outbound.count
        outbound.append(UInt32(0))
        outbound.append(UInt8(0))
        return start
    }

    /// Pads and seals the packet that starts at `start`.
    mutating func finishPacket(_ start: Int) {
        let payload = outbound.count - start - 5
        assert(payload > 0)
        let block = sealer?.name.blockBytes ?? 8
        let counted = sealer == nil ? 5 + payload : 1 + payload
        var padding = block - counted % block
        if padding < 4 { padding += block }
        var room = padding
        while room > 0 {
            outbound.append(entropy.drawPadding())
            room -= 8
        }
        outbound.truncate(to: start + 5 + payload + padding)
        let length = 1 + payload + padding
        outbound.overwrite(UInt32(length), at: start)
        outbound.overwrite(UInt8(padding), at: start + 4)
        if let sealer {
            outbound.reserve(sealer.name.tagBytes)
            outbound.commit(sealer.name.tagBytes)
            unsafe sealer.seal(outbound.address(start), length: length, sequence: sendSequence)
        }
        sendSequence &+= 1  // RFC 4253 §6.4: wraps; keys are renewed long before
        counters.packetsSent += 1
        let total = outbound.count - start
        counters.bytesSent += UInt64(total)
        noteTraffic(total)
    }

    /// Sends what a key exchange has held back.
    mutating func flushDeferred() {
        while !deferred.isEmpty {
            var reader = unsafe WireReader(deferred.bytes)
            guard let length = try? Int(reader.uint32()), length <= reader.remaining else {
                preconditionFailure("deferred messages are whole")
            }
            let start = beginPacket()
            unsafe outbound.append(reader.view(4..<4 + length))
            finishPacket(start)
            deferred.consume(4 + length)
        }
    }

    /// Queues a DISCONNECT; nothing may be sent after it.
    mutating func sendDisconnect(reason: UInt32, description: String) {
        sendNow {
            $0.append(Message.disconnect)
            $0.append(reason)
            $0.appendString(description)
            $0.appendString("")
        }
    }

    private mutating func noteTraffic(_ bytes: Int) {
        bytesUnderKeys += UInt64(bytes)
        packetsUnderKeys = packetsUnderKeys < .max ? packetsUnderKeys + 1 : .max
    }

    /// Whether the keys have served long enough by bytes or packets.
    var isRekeyDue: Bool {
        (bytesUnderKeys >= limits.rekeyBytes || packetsUnderKeys >= limits.rekeyPackets)
            && !exchange.isSending && !exchange.isReceiving && exchange.sessionID != nil
    }
}

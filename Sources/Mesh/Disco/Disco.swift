// SPDX-License-Identifier: Apache-2.0

// One message, as a UDP datagram or as the payload of a relayed packet (`disco.md` §1):
//
//     0       6                         38                 62      78
//     +-------+-------------------------+------------------+-------+---------------------------+
//     | magic | sender's disco key (32) | random nonce (24)| tag 16| type 1, version 1, body   |
//     +-------+-------------------------+------------------+-------+---------------------------+

/// Why a discovery datagram was dropped.
package enum DiscoError: Error, Hashable, Sendable {
    /// No magic, or shorter than the header.
    case notDisco
    /// Not sealed by the key it names for us.
    case cannotOpen
    /// Fewer bytes inside than the type needs.
    case truncated
    /// A type that this code does not know.
    case unknownType(UInt8)
}

/// Pairs a Pong with its Ping: twelve random bytes.
package struct TransactionID: Hashable, Sendable {
    package var high: UInt64
    package var low: UInt32

    package init(high: UInt64, low: UInt32) {
        self.high = high
        self.low = low
    }

    package init(using random: inout SecureGenerator) {
        self.init(high: random.next(), low: UInt32(truncatingIfNeeded: random.next()))
    }
}

/// What discovery peers say to each other.
package enum DiscoMessage: Hashable, Sendable {
    /// "Do you hear me here?" `nodeKey` is the sender's claim; nil in the oldest form.
    case ping(TransactionID, nodeKey: NodePublicKey?)
    /// "Yes, and I saw you at `source`."
    case pong(TransactionID, source: SocketAddress)
    /// "Ping me at these addresses." Empty forgets those of before.
    case callMeMaybe([SocketAddress])
}

/// The codec of discovery messages.
package enum Disco {
    /// "TS" and a speech balloon.
    package static let magic: [UInt8] = [0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac]
    /// Magic, key and nonce, bytes.
    package static let headerBytes = 62
    /// Header and tag, bytes.
    package static let overheadBytes = headerBytes + BoxKey.tagBytes
    /// Pings and pongs are padded to the largest WireGuard datagram of a 1280-byte packet, so that a path which
    /// cannot carry those is never chosen. Bytes on the wire. `disco.md` §2.
    package static let paddedBytes = 1312
    /// Upstream's padding: an answer to less says nothing about the tunnel's packets. Bytes on the wire.
    package static let leastUsefulBytes = 1310
    /// Addresses of one CallMeMaybe that are looked at; a peer may send 3600. `disco.md` S13.
    package static let callMeMaybeLimit = 100
    /// Enough room for `seal` of any message of ours, bytes.
    package static let maximumSealedBytes = overheadBytes + 2 + callMeMaybeLimit * addressBytes

    static let addressBytes = 18
    /// The magic as a big-endian number of 48 bits.
    private static let magicNumber: UInt64 = 0x5453_f09f_92ac

    /// Whether these bytes are a discovery message; also the relays' test for their priority queue.
    package static func looksLikeDisco(_ bytes: RawSpan) -> Bool {
        bytes.byteCount >= headerBytes && bytes.wire64(0) >> 16 == magicNumber
    }

    /// The key in clear. Only for bytes that look like disco.
    package static func sender(of bytes: RawSpan) -> DiscoPublicKey { bytes.wireKey(6) }

    /// Opens and parses one datagram.
    package static func open(_ bytes: RawSpan, with key: BoxKey) throws(DiscoError) -> DiscoMessage {
        guard looksLikeDisco(bytes) else { throw .notDisco }
        let nonce = BoxNonce(bytes.extracting(38..<headerBytes))
        guard let text = key.open(bytes.extracting(headerBytes..<bytes.byteCount), nonce: nonce) else {
            throw .cannotOpen
        }
        return try unsafe parse(text.span.bytes)
    }

    /// Parses the text inside the box. Versions of Ping and Pong are not looked at: 0 and 1 are the same.
    package static func parse(_ text: RawSpan) throws(DiscoError) -> DiscoMessage {
        guard text.byteCount >= 2 else { throw .truncated }
        let body = text.extracting(2..<text.byteCount)
        switch text.wireByte(0) {
        case 1:
            guard body.byteCount >= 12 else { throw .truncated }
            let key: NodePublicKey = body.byteCount >= 44 ? body.wireKey(12) : .zero
            return .ping(transaction(body), nodeKey: key.isZero ? nil : key)
        case 2:
            guard body.byteCount >= 12 + addressBytes else { throw .truncated }
            return .pong(transaction(body), source: address(body, at: 12))
        case 3:
            // Another version or an odd length is a valid message without addresses.
            guard text.wireByte(1) == 0, body.byteCount % addressBytes == 0 else { return .callMeMaybe([]) }
            let count = min(body.byteCount / addressBytes, callMeMaybeLimit)
            return .callMeMaybe((0..<count).map { address(body, at: $0 * addressBytes) })
        case let type:
            throw .unknownType(type)
        }
    }

    /// Writes a sealed message and returns its length. `memory` needs `maximumSealedBytes`; pings and pongs are
    /// padded to `wireBytes` on the wire unless that is nil.
    package static func seal(
        _ message: DiscoMessage, from sender: DiscoPublicKey, with key: BoxKey, nonce: BoxNonce,
        padding wireBytes: Int? = paddedBytes, into memory: UnsafeMutableRawBufferPointer
    ) -> Int {
        var writer = unsafe WireWriter(memory)
        unsafe writer.bytes(magic.span.bytes)
        writer.key(sender)
        unsafe writer.bytes(nonce.bytes.span.bytes)
        writer.skip(BoxKey.tagBytes)
        write(message, version: wireBytes == nil ? 0 : 1, to: &writer)
        if case .callMeMaybe = message {
        } else if let wireBytes, wireBytes > writer.count {
            writer.zeros(wireBytes - writer.count)
        }
        unsafe key.seal(
            UnsafeMutableRawBufferPointer(rebasing: memory[headerBytes..<writer.count]), nonce: nonce)
        return writer.count
    }

    /// The text inside the box, without padding.
    static func write(_ message: DiscoMessage, version: UInt8, to writer: inout WireWriter) {
        switch message {
        case .ping(let id, let nodeKey):
            writer.byte(1)
            writer.byte(version)
            write(id, to: &writer)
            writer.key(nodeKey ?? .zero)
        case .pong(let id, let source):
            writer.byte(2)
            writer.byte(version)
            write(id, to: &writer)
            write(source, to: &writer)
        case .callMeMaybe(let addresses):
            writer.byte(3)
            writer.byte(0)
            for address in addresses.prefix(callMeMaybeLimit) { write(address, to: &writer) }
        }
    }

    private static func transaction(_ body: RawSpan) -> TransactionID {
        TransactionID(high: body.wire64(0), low: body.wire32(8))
    }

    private static func address(_ body: RawSpan, at offset: Int) -> SocketAddress {
        let ip = IPAddress(high: body.wire64(offset), low: body.wire64(offset + 8)).unmapped
        return SocketAddress(ip, port: body.wire16(offset + 16))
    }

    private static func write(_ id: TransactionID, to writer: inout WireWriter) {
        writer.big64(id.high)
        writer.big32(id.low)
    }

    private static func write(_ address: SocketAddress, to writer: inout WireWriter) {
        writer.big64(address.ip.high)
        writer.big64(address.ip.low)
        writer.big16(address.port)
    }
}

extension NodePublicKey {
    /// Short form for logs: `[` and five base64 digits `]`; empty for the zero key. `disco.md` §5.
    public var shortText: String {
        guard !isZero else { return "" }
        let digits = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
        let number = bytes.prefix(4).reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        return "[" + String((0..<5).map { digits[Int(number >> UInt64(26 - 6 * $0)) & 63] }) + "]"
    }
}

extension DiscoPublicKey {
    /// Short form for logs: `d:` and sixteen digits; empty for the zero key. `disco.md` §5.
    public var shortText: String { isZero ? "" : "d:" + hex.prefix(16) }
}

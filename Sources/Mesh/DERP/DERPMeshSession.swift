// SPDX-License-Identifier: Apache-2.0

/// A connection to another relay of the mesh, seen from the relay that opened it: a login with the mesh key, then
/// news of who is connected there. Holds no bytes, like `DERPServerSession`. `derp.md` §3, §8.
package struct DERPMeshSession: Sendable {
    /// What the other relay said.
    package enum Input: Hashable, Sendable {
        /// Its key. Answer with `loginFrames`, or close when the key is our own.
        case serverKey(NodePublicKey)
        /// It accepted us.
        case ready
        case peerPresent(NodePublicKey)
        case peerGone(NodePublicKey)
        /// Answer with a pong of the same eight bytes.
        case ping(UInt64)
        /// It is about to stop.
        case restarting
        /// Nothing for a relay; the body is skipped.
        case unknown(type: UInt8)
    }

    private enum State { case awaitingKey, awaitingInfo(BoxKey), open, failed }

    private let privateKey: PrivateKey
    private let meshKey: String
    private var state = State.awaitingKey
    private var skip = 0

    /// A login answer has 53 bytes and may grow; 64 KiB is far beyond all uses.
    private static let maximumServerInfoBytes = 64 << 10
    /// Bodies of all other frames that are read as a whole.
    private static let maximumBodyBytes = 1_024

    /// A connection that is upgraded already. `privateKey` is that of our own relay.
    package init(privateKey: PrivateKey, meshKey: String) {
        self.privateKey = privateKey
        self.meshKey = meshKey
    }

    /// Whether the other relay accepted us.
    package var isOpen: Bool {
        if case .open = state { return true }
        return false
    }

    /// Login and the wish to hear who is there; the answer to `serverKey`.
    package func loginFrames(random: inout SecureGenerator) -> [UInt8] {
        guard case .awaitingInfo(let box) = state else { return [] }
        let nonce = BoxNonce(using: &random)
        let sealed = box.seal(DERPClientInfo(meshKey: meshKey).json, nonce: nonce)
        return DERP.frame(.clientInfo, privateKey.nodePublicKey.bytes, nonce.bytes, sealed)
            + DERP.frame(.watchConnections)
    }

    /// Takes the next frame out of `bytes` and moves `offset` behind what was used. Nil: the rest is not a whole
    /// frame. An error means: close.
    package mutating func next(in bytes: RawSpan, offset: inout Int) throws(DERPError) -> Input? {
        if case .failed = state { return nil }
        do {
            return try parse(bytes, offset: &offset)
        } catch {
            state = .failed
            throw error
        }
    }

    private mutating func parse(_ bytes: RawSpan, offset: inout Int) throws(DERPError) -> Input? {
        if skip > 0 {
            let skipped = min(skip, bytes.byteCount - offset)
            offset += skipped
            skip -= skipped
            if skip > 0 { return nil }
        }
        let available = bytes.byteCount - offset
        guard available >= DERP.headerBytes else { return nil }
        let type = bytes.wireByte(offset)
        let length = Int(bytes.wire32(offset + 1))
        guard length <= DERP.maximumClientFrameBytes else { throw .badLength(type: type, length: length) }
        let start = offset + DERP.headerBytes
        guard try isWanted(type, length: length) else {
            offset = start
            skip = length
            return .unknown(type: type)
        }
        guard available >= DERP.headerBytes + length else { return nil }
        let body = start..<start + length
        let input = try handle(type, bytes, body)
        offset = body.upperBound
        return input
    }

    private func isWanted(_ type: UInt8, length: Int) throws(DERPError) -> Bool {
        let kind = DERPFrameType(rawValue: type)
        if case .awaitingKey = state {
            guard kind == .serverKey else { throw .unexpectedFrame(type: type) }
            guard length >= 40, length <= DERP.maximumServerKeyBytes else {
                throw .badLength(type: type, length: length)
            }
            return true
        }
        switch kind {
        case .serverInfo:
            guard length >= 24 + BoxKey.tagBytes, length <= Self.maximumServerInfoBytes else {
                throw .badLength(type: type, length: length)
            }
            return !isOpen
        case .peerPresent, .peerGone: return length >= 32 && length <= Self.maximumBodyBytes
        case .ping, .restarting: return length >= 8 && length <= Self.maximumBodyBytes
        default: return false
        }
    }

    private mutating func handle(
        _ type: UInt8, _ bytes: RawSpan, _ body: Range<Int>
    ) throws(DERPError) -> Input {
        let start = body.lowerBound
        switch DERPFrameType(rawValue: type) {
        case .serverKey:
            guard bytes.wireBytes(start..<start + 8) == DERP.magic else { throw .badMagic }
            let key: NodePublicKey = bytes.wireKey(start + 8)
            guard let box = BoxKey(ours: privateKey, theirs: key) else { throw .weakKey }
            state = .awaitingInfo(box)
            return .serverKey(key)
        case .serverInfo:
            guard case .awaitingInfo(let box) = state,
                box.open(
                    bytes.extracting(start + 24..<body.upperBound),
                    nonce: BoxNonce(bytes.extracting(start..<start + 24))) != nil
            else { throw .cannotOpen }
            state = .open
            return .ready
        case .peerPresent: return .peerPresent(bytes.wireKey(start))
        case .peerGone: return .peerGone(bytes.wireKey(start))
        case .ping: return .ping(bytes.wire64(start))
        default: return .restarting
        }
    }
}

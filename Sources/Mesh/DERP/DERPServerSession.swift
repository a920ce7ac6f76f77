// SPDX-License-Identifier: Apache-2.0

/// One client connection, seen from the relay: login, then frames. Holds no bytes: the relay keeps one read buffer for
/// all its clients and shows it here, so that an idle client costs nothing. `derp.md` §3, §6.
package struct DERPServerSession: Sendable {
    /// What a client sent. Ranges are positions in the bytes given to `next`.
    package enum Input: Hashable, Sendable {
        /// It proved to own this key. Answer with `serverInfoFrame`.
        case login(NodePublicKey, DERPClientInfo)
        case send(to: NodePublicKey, payload: Range<Int>)
        case notePreferred(Bool)
        /// Answer with a pong of the same eight bytes.
        case ping(UInt64)
        case forward(from: NodePublicKey, to: NodePublicKey, payload: Range<Int>)
        case watchConnections
        case closePeer(NodePublicKey)
        /// A frame of a type that is not for us; its body is skipped.
        case unknown(type: UInt8)
    }

    private enum State { case awaitingLogin, open, failed }

    private let serverKey: PrivateKey
    private let meshKey: [UInt8]
    private var state = State.awaitingLogin
    private var box: BoxKey?
    private var skip = 0
    /// Whether this is another relay of our mesh.
    package private(set) var isMeshPeer = false

    /// A connection that was just accepted. An empty `meshKey` never makes anyone a mesh peer.
    package init(serverKey: PrivateKey, meshKey: String = "") {
        self.serverKey = serverKey
        self.meshKey = Array(meshKey.utf8)
    }

    /// The frame to send first.
    package static func serverKeyFrame(_ key: NodePublicKey) -> [UInt8] {
        DERP.frame(.serverKey, DERP.magic, key.bytes)
    }

    /// The answer to a login that was accepted; once.
    package mutating func serverInfoFrame(
        _ info: DERPServerInfo = DERPServerInfo(), random: inout SecureGenerator
    ) -> [UInt8] {
        guard let box else { return [] }
        self.box = nil
        let nonce = BoxNonce(using: &random)
        return DERP.frame(.serverInfo, nonce.bytes, box.seal(info.json, nonce: nonce))
    }

    /// Whether the login is done.
    package var isOpen: Bool { state == .open }

    /// Takes the next frame out of `bytes` and moves `offset` behind what was used. Nil: the rest is not a whole
    /// frame; `needed` is then the length that it will have as far as known. An error means: close.
    package mutating func next(
        in bytes: RawSpan, offset: inout Int, needed: inout Int
    ) throws(DERPError) -> Input? {
        guard state != .failed else { return nil }
        do {
            return try parse(bytes, offset: &offset, needed: &needed)
        } catch {
            state = .failed
            throw error
        }
    }

    private mutating func parse(
        _ bytes: RawSpan, offset: inout Int, needed: inout Int
    ) throws(DERPError) -> Input? {
        if skip > 0 {
            let skipped = min(skip, bytes.byteCount - offset)
            offset += skipped
            skip -= skipped
            if skip > 0 {
                needed = 0
                return nil
            }
        }
        let available = bytes.byteCount - offset
        guard available >= DERP.headerBytes else {
            needed = DERP.headerBytes
            return nil
        }
        let type = bytes.wireByte(offset)
        let length = Int(bytes.wire32(offset + 1))
        let start = offset + DERP.headerBytes
        guard try isWanted(type, length: length) else {
            offset = start
            skip = length
            return .unknown(type: type)
        }
        guard available >= DERP.headerBytes + length else {
            needed = DERP.headerBytes + length
            return nil
        }
        let body = start..<start + length
        let input = try handle(type, bytes, body)
        offset = body.upperBound
        return input
    }

    /// Whether the body is to be read. Throws before a forbidden body is waited for.
    private func isWanted(_ type: UInt8, length: Int) throws(DERPError) -> Bool {
        func demand(_ condition: Bool) throws(DERPError) {
            guard condition else { throw .badLength(type: type, length: length) }
        }
        let kind = DERPFrameType(rawValue: type)
        if state == .awaitingLogin {
            guard kind == .clientInfo else { throw .unexpectedFrame(type: type) }
            // Below 72 no box fits.
            try demand(length >= 56 + BoxKey.tagBytes && length <= DERP.maximumClientInfoBytes)
            return true
        }
        switch kind {
        case .sendPacket:
            try demand(length >= DERP.keyBytes && length <= DERP.keyBytes + DERP.maximumPayloadBytes)
        case .notePreferred:
            try demand(length == 1)
        case .ping:
            try demand(length >= 8 && length <= 1_000)
        case .forwardPacket:
            guard isMeshPeer else { throw .notMeshPeer(type: type) }
            try demand(length >= 2 * DERP.keyBytes && length <= 2 * DERP.keyBytes + DERP.maximumPayloadBytes)
        case .watchConnections:
            guard isMeshPeer else { throw .notMeshPeer(type: type) }
            try demand(length == 0)
        case .closePeer:
            guard isMeshPeer else { throw .notMeshPeer(type: type) }
            try demand(length == DERP.keyBytes)
        default:
            return false
        }
        return true
    }

    private mutating func handle(
        _ type: UInt8, _ bytes: RawSpan, _ body: Range<Int>
    ) throws(DERPError) -> Input {
        let start = body.lowerBound
        switch DERPFrameType(rawValue: type) {
        case .sendPacket:
            return .send(to: bytes.wireKey(start), payload: start + 32..<body.upperBound)
        case .notePreferred:
            return .notePreferred(bytes.wireByte(start) != 0)
        case .ping:
            return .ping(bytes.wire64(start))
        case .forwardPacket:
            return .forward(
                from: bytes.wireKey(start), to: bytes.wireKey(start + 32),
                payload: start + 64..<body.upperBound)
        case .watchConnections:
            return .watchConnections
        case .closePeer:
            return .closePeer(bytes.wireKey(start))
        default:
            return try handleClientInfo(bytes.extracting(body))
        }
    }

    private mutating func handleClientInfo(_ body: RawSpan) throws(DERPError) -> Input {
        let client: NodePublicKey = body.wireKey(0)
        // A zero or low-order key has no box key; upstream crashes on it.
        guard let box = BoxKey(ours: serverKey, theirs: client) else { throw .weakKey }
        let nonce = BoxNonce(body.extracting(32..<56))
        guard let text = box.open(body.extracting(56..<body.byteCount), nonce: nonce) else {
            throw .cannotOpen
        }
        let info: DERPClientInfo
        do { info = try unsafe DERPClientInfo(json: text.span.bytes) } catch { throw .badLogin(error) }
        isMeshPeer = !meshKey.isEmpty && Self.isSame(Array(info.meshKey.utf8), meshKey)
        self.box = box
        state = .open
        return .login(client, info)
    }

    /// Constant time for equal lengths.
    private static func isSame(_ a: [UInt8], _ b: [UInt8]) -> Bool {
        guard a.count == b.count else { return false }
        var difference: UInt8 = 0
        for index in a.indices { difference |= a[index] ^ b[index] }
        return difference == 0
    }
}

// SPDX-License-Identifier: Apache-2.0

// Initiation, 148 bytes                          Response, 92 bytes
//   0 type 1   4 sender index                      0 type 2   4 sender index   8 receiver index
//   8 ephemeral (32)                              12 ephemeral (32)
//  40 static (32 + 16)                            44 empty (16)
//  88 timestamp (12 + 16)                         60 mac1 (16)   76 mac2 (16)
// 116 mac1 (16)   132 mac2 (16)

extension WireGuard {
    /// Who we are in a handshake: the long-term key and what follows from it.
    package struct Identity: Sendable {
        let privateKey: PrivateKey
        package let publicKey: Bytes32
        /// Key of MAC1 in messages for us.
        package let mac1Key: Bytes32
        /// Key of cookie replies that we send.
        package let cookieKey: Bytes32

        /// Derives what follows from the key.
        package init(_ privateKey: PrivateKey) {
            self.privateKey = privateKey
            publicKey = Bytes32(privateKey.nodePublicKey)
            mac1Key = BLAKE2s.hash(label: "mac1----", publicKey)
            cookieKey = BLAKE2s.hash(label: "cookie--", publicKey)
        }

        /// DH of our long-term key with a peer's, which the caller keeps: it never changes.
        package func staticShared(with peer: Bytes32) -> Bytes32? { Curve.shared(privateKey, peer) }
    }

    /// What a completed handshake gives to one side.
    package struct SessionKeys: BitwiseCopyable, Sendable {
        /// What we seal with.
        package let send: Bytes32
        /// What we open with.
        package let receive: Bytes32
    }

    /// An initiation that we sent and that waits for its response. Kept apart from answering the peer's own
    /// initiations, so that two peers that start at once both get through in one round trip.
    package struct InitiatorHandshake: BitwiseCopyable, Sendable {
        private var symmetric: SymmetricState
        private var ephemeral: Bytes32
        /// Sender index of the initiation.
        package let index: UInt32

        /// Writes an initiation without MACs to the first 116 bytes of `message`. Nil when the peer's key is
        /// a low-order point.
        package init?(
            writing message: UnsafeMutableRawPointer, as identity: Identity, to peer: Bytes32,
            staticShared: Bytes32, index: UInt32, ephemeral: Bytes32, timestamp: Timestamp
        ) {
            guard let shared = Curve.shared(ephemeral, peer) else { return nil }
            var symmetric = SymmetricState()
            symmetric.mixHash(peer)
            let publicEphemeral = Curve.publicKey(of: ephemeral)
            unsafe message.store32(MessageType.initiation, at: 0)
            unsafe message.store32(index, at: 4)
            unsafe publicEphemeral.withBytes {
                unsafe message.advanced(by: 8).copyMemory(from: $0.baseAddress!, byteCount: 32)
            }
            symmetric.mixEphemeral(publicEphemeral)
            let staticKey = symmetric.mixKeyGivingKey(shared)
            unsafe identity.publicKey.withBytes {
                unsafe symmetric.seal($0, key: staticKey, into: message.advanced(by: 40))
            }
            let timestampKey = symmetric.mixKeyGivingKey(staticShared)
            var stamp = Bytes16()
            unsafe stamp.withMutableBytes { unsafe timestamp.write(to: $0.baseAddress!) }
            unsafe stamp.withBytes {
                unsafe symmetric.seal(
                    UnsafeRawBufferPointer(rebasing: $0[..<12]), key: timestampKey,
                    into: message.advanced(by: 88))
            }
            self.symmetric = symmetric
            self.ephemeral = ephemeral
            self.index = index
        }

        /// Opens a response to this initiation. Nil: not a right one; the handshake goes on waiting.
        package func open(
            response message: UnsafeRawPointer, as identity: Identity, presharedKey: Bytes32
        ) -> SessionKeys? {
            var symmetric = self.symmetric
            let peerEphemeral = unsafe Bytes32(at: message.advanced(by: 12))
            guard let first = Curve.shared(ephemeral, peerEphemeral),
                let second = Curve.shared(identity.privateKey, peerEphemeral)
            else { return nil }
            symmetric.mixEphemeral(peerEphemeral)
            symmetric.mixKey(first)
            symmetric.mixKey(second)
            let key = symmetric.mixPresharedKey(presharedKey)
            let empty = unsafe UnsafeRawBufferPointer(start: message.advanced(by: 44), count: 16)
            guard unsafe symmetric.open(empty, key: key, into: nil) else { return nil }
            let keys = symmetric.transportKeys()
            symmetric.wipe()
            return SessionKeys(send: keys.initiator, receive: keys.responder)
        }

        /// Overwrites all secrets.
        mutating func wipe() {
            symmetric.wipe()
            ephemeral.wipe()
        }
    }

    /// A peer's initiation while it is answered. Lives for one call only.
    package struct ResponderHandshake: BitwiseCopyable, Sendable {
        private var symmetric: SymmetricState
        private let peerEphemeral: Bytes32
        /// Long-term key that the initiation claims; proved when the timestamp opens.
        package let peer: Bytes32
        /// Sender index of the initiation.
        package let peerIndex: UInt32

        /// Opens the static key of an initiation of 148 bytes. Nil: not for us, or damaged, or a low-order
        /// point.
        package init?(opening message: UnsafeRawPointer, as identity: Identity) {
            let ephemeral = unsafe Bytes32(at: message.advanced(by: 8))
            guard let shared = Curve.shared(identity.privateKey, ephemeral) else { return nil }
            var state = SymmetricState()
            state.mixHash(identity.publicKey)
            state.mixEphemeral(ephemeral)
            let key = state.mixKeyGivingKey(shared)
            var claimed = Bytes32()
            let sealed = unsafe UnsafeRawBufferPointer(start: message.advanced(by: 40), count: 48)
            let isOpened = unsafe claimed.withMutableBytes {
                unsafe state.open(sealed, key: key, into: $0.baseAddress!)
            }
            guard isOpened else { return nil }
            symmetric = state
            peer = claimed
            peerEphemeral = ephemeral
            peerIndex = unsafe UInt32(littleEndian: message.loadUnaligned(fromByteOffset: 4, as: UInt32.self))
        }

        /// Opens the timestamp, which proves that the peer holds its long-term key.
        package mutating func openTimestamp(_ message: UnsafeRawPointer, staticShared: Bytes32) -> Timestamp?
        {
            let key = symmetric.mixKeyGivingKey(staticShared)
            var stamp = Bytes16()
            let sealed = unsafe UnsafeRawBufferPointer(start: message.advanced(by: 88), count: 28)
            let isOpened = unsafe stamp.withMutableBytes {
                unsafe symmetric.open(sealed, key: key, into: $0.baseAddress!)
            }
            guard isOpened else { return nil }
            return unsafe stamp.withBytes { unsafe Timestamp(at: $0.baseAddress!) }
        }

        /// Writes the response without MACs to the first 60 bytes of `message` and gives the session's keys.
        /// Nil when the peer used a low-order point.
        package mutating func respond(
            into message: UnsafeMutableRawPointer, index: UInt32, ephemeral: Bytes32, presharedKey: Bytes32
        ) -> SessionKeys? {
            guard let first = Curve.shared(ephemeral, peerEphemeral),
                let second = Curve.shared(ephemeral, peer)
            else { return nil }
            let publicEphemeral = Curve.publicKey(of: ephemeral)
            unsafe message.store32(MessageType.response, at: 0)
            unsafe message.store32(index, at: 4)
            unsafe message.store32(peerIndex, at: 8)
            unsafe publicEphemeral.withBytes {
                unsafe message.advanced(by: 12).copyMemory(from: $0.baseAddress!, byteCount: 32)
            }
            symmetric.mixEphemeral(publicEphemeral)
            symmetric.mixKey(first)
            symmetric.mixKey(second)
            let key = symmetric.mixPresharedKey(presharedKey)
            unsafe symmetric.seal(
                UnsafeRawBufferPointer(start: nil, count: 0), key: key, into: message.advanced(by: 44))
            let keys = symmetric.transportKeys()
            symmetric.wipe()
            return SessionKeys(send: keys.responder, receive: keys.initiator)
        }
    }
}

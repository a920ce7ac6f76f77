// SPDX-License-Identifier: Apache-2.0

// A frame (`derp.md` §2):
//
//     0      1                5
//     | type | length, big e. | body, `length` bytes |

/// What stands in the first byte of a relay frame. Unknown ones are skipped by their length.
package enum DERPFrameType: UInt8, Sendable {
    case serverKey = 0x01
    case clientInfo = 0x02
    case serverInfo = 0x03
    case sendPacket = 0x04
    case receivePacket = 0x05
    case keepAlive = 0x06
    case notePreferred = 0x07
    case peerGone = 0x08
    case peerPresent = 0x09
    case forwardPacket = 0x0a
    case watchConnections = 0x10
    case closePeer = 0x11
    case ping = 0x12
    case pong = 0x13
    case health = 0x14
    case restarting = 0x15
}

/// Sizes of the relay protocol, bytes. `derp.md` §2.
package enum DERP {
    /// Type and length.
    package static let headerBytes = 5
    /// A node key.
    package static let keyBytes = 32
    /// Largest payload of one packet.
    package static let maximumPayloadBytes = 65_536
    /// What a relay may say of bytes per second, or at once; more counts as this much: no sender reaches it.
    package static let maximumRate = 1 << 40
    /// Largest frame that a client reads.
    package static let maximumClientFrameBytes = 1 << 20
    /// Largest ClientInfo that a server reads.
    package static let maximumClientInfoBytes = 262_144
    /// Largest ServerKey that a client reads.
    package static let maximumServerKeyBytes = 1_024
    /// Start of ServerKey: "DERP" and a key symbol.
    package static let magic: [UInt8] = [0x44, 0x45, 0x52, 0x50, 0xf0, 0x9f, 0x94, 0x91]
    /// Version in the login messages.
    package static let protocolVersion = 2

    /// A frame of these parts.
    package static func frame(_ type: DERPFrameType, _ parts: [UInt8]...) -> [UInt8] {
        let length = parts.reduce(0) { $0 + $1.count }
        var result = [type.rawValue] + (0..<4).map { UInt8(truncatingIfNeeded: length >> (24 - 8 * $0)) }
        for part in parts { result += part }
        return result
    }
}

/// Why a relay says that a peer is gone.
package enum DERPPeerGoneReason: UInt8, Sendable {
    /// It was connected here and left.
    case disconnected = 0x00
    /// It is not connected here.
    case notHere = 0x01
    /// A reason of a later protocol.
    case other = 0xff
}

/// Why a relay connection has to be closed.
package enum DERPError: Error, Hashable, Sendable {
    /// The first frame does not start as a relay's does.
    case badMagic
    /// Another frame than the one that must come now.
    case unexpectedFrame(type: UInt8)
    /// A frame whose length is not allowed for its type.
    case badLength(type: UInt8, length: Int)
    /// A login box that the named key did not seal.
    case cannotOpen
    /// Login JSON that cannot be read.
    case badLogin(LoginJSON.Failure)
    /// A key of low order: no secret is possible.
    case weakKey
    /// A frame that only relays of the same mesh may send.
    case notMeshPeer(type: UInt8)
    /// Login not finished in time.
    case loginTimeout
    /// No frame for two minutes: not even a keep-alive.
    case silence
}

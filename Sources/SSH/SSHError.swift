// SPDX-License-Identifier: Apache-2.0

/// Why a connection ended. Each one is final: what is still in `outgoing` may be sent, then the transport
/// closes.
public enum SSHError: Error, Hashable, Sendable {
    /// The peer does not speak SSH 2, or its first lines are too long.
    case badVersion(String)
    /// `packet_length` is out of range or not a multiple of the block size.
    case badPacketLength(UInt32)
    /// `padding_length` does not fit its packet.
    case badPadding
    /// The packet was altered on its way, or the keys differ.
    case badAuthenticationTag
    /// A message of this number does not parse.
    case malformed(message: UInt8, WireError)
    /// This message must not come now.
    case unexpectedMessage(UInt8)
    /// Strict key exchange (Terrapin countermeasure): something came before or between the key exchange.
    case strictKeyExchangeViolated(message: UInt8)
    /// No algorithm of this kind in common.
    case noCommonAlgorithm(String)
    /// A public key of the exchange is not acceptable.
    case badKeyExchangeValue
    /// The server's signature over the exchange hash is wrong.
    case badHostSignature
    /// The server showed another host key in a later exchange.
    case hostKeyChanged
    /// The server does not let us in, and accepts these methods.
    case authenticationRefused(methods: [String])
    /// The peer took too long to authenticate.
    case loginTimedOut
    /// No answer to several keepalives.
    case peerSilent
    /// The peer sent more data than the window or the packet size allows.
    case windowExceeded
    /// The peer widened a window beyond 2³² − 1.
    case windowOverflow
    /// A message for a channel that does not exist.
    case unknownChannel(UInt32)
    /// A reply that nothing asked for.
    case unexpectedReply
    /// A bound of `SSHLimits` was passed: which.
    case limitExceeded(String)
    /// The peer said good-bye.
    case disconnected(reason: UInt32, description: String)

    /// `reason code` of the DISCONNECT that is sent for it, RFC 4253 §11.1.
    var disconnectReason: UInt32 {
        switch self {
        case .badVersion: 8  // PROTOCOL_VERSION_NOT_SUPPORTED
        case .noCommonAlgorithm, .badKeyExchangeValue, .strictKeyExchangeViolated: 3  // KEY_EXCHANGE_FAILED
        case .badAuthenticationTag: 5  // MAC_ERROR
        case .badHostSignature, .hostKeyChanged: 9  // HOST_KEY_NOT_VERIFIABLE
        case .authenticationRefused: 14  // NO_MORE_AUTH_METHODS_AVAILABLE
        case .loginTimedOut, .peerSilent, .disconnected: 11  // BY_APPLICATION
        default: 2  // PROTOCOL_ERROR
        }
    }
}

/// What a connection has done and seen.
public struct SSHCounters: Hashable, Sendable {
    /// Packets opened and sealed.
    public var packetsReceived: UInt64 = 0, packetsSent: UInt64 = 0
    /// Bytes on the wire.
    public var bytesReceived: UInt64 = 0, bytesSent: UInt64 = 0
    /// Finished key exchanges, the first included.
    public var keyExchanges: UInt64 = 0
    /// IGNORE and DEBUG messages.
    public var ignoredMessages: UInt64 = 0
    /// Messages that we answered with UNIMPLEMENTED.
    public var unimplementedMessages: UInt64 = 0
    /// Requests and channels that were refused, by us or because nobody answered them.
    public var refusals: UInt64 = 0
    /// Data that came after the end of its stream or the close of its channel.
    public var lateDataBytes: UInt64 = 0

    /// All zero.
    public init() {}
}

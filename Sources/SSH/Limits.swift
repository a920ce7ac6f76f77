// SPDX-License-Identifier: Apache-2.0

/// Upper bounds on everything that a peer can grow. Full means refuse, stop reading or disconnect; never
/// grow.
public struct SSHLimits: Sendable {
    /// Length of a version line with its end. RFC 4253 §4.2: at most 255.
    public var versionLineBytes = 255
    /// Bytes of other lines that a server may send before its version (RFC 4253 §4.2 names no limit).
    public var preambleBytes = 8 * 1024
    /// `packet_length` that is accepted. OpenSSH's PACKET_MAX_SIZE.
    public var packetBytes = 256 * 1024
    /// One packet before keys are agreed on, and all unhandled bytes before the peer is let in: no KEXINIT of a real
    /// peer comes near.
    public var packetBytesBeforeKeys = 35_000
    /// One channel's unread data: what a peer may send before the application took it. As OpenSSH.
    public var channelWindowBytes = 2 * 1024 * 1024
    /// To this a channel's window grows while its reader keeps up: 1 Gbit/s over 130 ms.
    public var channelWindowLimitBytes = 16 * 1024 * 1024
    /// What further channels begin with when `fullWindows` are open, so that a thousand of them stay bounded.
    public var manyChannelsWindowBytes = 256 * 1024
    /// Channels with a window of `channelWindowBytes` from the beginning.
    public var fullWindows = 64
    /// By so much all channels of a connection together may grow.
    public var windowGrowthBytes = 64 * 1024 * 1024
    /// Data in one packet that we accept; larger saves little, and delays keystrokes behind it.
    public var channelPacketBytes = 64 * 1024
    /// Channels at once. VS Code opens one per forwarded connection; sshd has no limit but MaxSessions.
    public var channels = 1024
    /// Outgoing bytes at which `write` takes no more channel data: fills a large socket buffer in one call, and is
    /// all that a keystroke's echo waits behind.
    public var outgoingDataBytes = 256 * 1024
    /// Outgoing bytes at which no further packet is handled, so that a peer which asks and never reads gets
    /// stuck.
    public var outgoingBytes = 4 * 1024 * 1024
    /// Received, unhandled bytes at which `wantsInput` becomes false.
    public var incomingBytes = 1024 * 1024
    /// Messages that wait for the end of a key exchange.
    public var deferredBytes = 1024 * 1024
    /// Replies that a channel or the connection may wait for.
    public var pendingReplies = 256
    /// Failed authentication requests. OpenSSH's MaxAuthTries.
    public var authenticationAttempts = 6
    /// Terminal modes in one pty-req; there are fewer than 160 opcodes.
    public var terminalModes = 256
    /// A name, host, path or variable in a request.
    public var nameBytes = 4096
    /// A command or the value of a variable: as long as the kernel takes (MAX_ARG_STRLEN).
    public var commandBytes = 128 * 1024
    /// Bytes in either direction after which keys are renewed. RFC 4253 §9: after each gigabyte.
    public var rekeyBytes: UInt64 = 1 << 30
    /// Packets in one direction after which keys are renewed: far below the wrap of the sequence number.
    public var rekeyPackets: UInt32 = 1 << 30
    /// Nanoseconds after which keys are renewed. RFC 4253 §9: after each hour.
    public var rekeyIntervalNanoseconds: UInt64 = 3_600_000_000_000
    /// Nanoseconds that a peer may take to authenticate. OpenSSH's LoginGraceTime.
    public var loginGraceNanoseconds: UInt64 = 120_000_000_000

    /// The defaults.
    public init() {}
}

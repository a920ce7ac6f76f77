// SPDX-License-Identifier: Apache-2.0

/// Bounds on everything that a peer (or our own side) can make the stack hold, with the reason beside each number.
package struct StackLimits: Sendable {
    /// Connections of all states, TIME_WAIT included: 16,384 × ~1 KB is 16 MB at worst, and well above what one
    /// workspace serves. Full: the oldest TIME_WAIT goes first, then new ones are refused.
    package var connections = 16_384
    /// Half-open connections that peers started: an attacker inside the tunnel is authenticated, so a plain
    /// bound does instead of SYN cookies. Full: the SYN is dropped, the peer repeats it a second later.
    package var halfOpenConnections = 1_024
    /// Those of one address, so that a peer that never answers keeps nobody else out.
    package var halfOpenPerPeer = 256
    /// Connections handed out but not yet taken by `nextEvent`, implied by `connections`.
    /// Bytes of send and receive buffers of all connections together: with it a busy node stays below 40 MB. One
    /// buffer takes at most half of what is left, so that n busy ones have one part in n + 2 each; at the limit
    /// data that arrives unasked-for is dropped and must be repeated.
    package var bufferMemory = 24 << 20
    /// Largest send buffer of one connection: 4 MiB is 335 Mbit/s at 100 ms.
    package var sendBuffer = 4 << 20
    /// Largest receive buffer of one connection, and with it the window and its scale.
    package var receiveBuffer = 4 << 20
    /// What each connection starts with in both directions: one unscaled window.
    package var initialBuffer = 64 << 10
    /// Freed buffers kept for the next connection, so that a busy node does not map and unmap memory.
    package var retainedBuffers = 4 << 20
    /// Gaps remembered in front of a receive buffer. Linux senders keep at most a few dozen holes open; one
    /// range is 12 bytes and insertion is linear. Full: a segment that opens another hole is dropped.
    package var outOfOrderRanges = 128
    /// Ranges on the retransmission scoreboard; SACK blocks that would split it further are ignored.
    package var sentRanges = 4_096
    /// Bytes of datagrams waiting for `readDatagram`. Full: dropped, as UDP may.
    package var datagramQueue = 256 << 10
    /// Bytes of finished packets (RST, echo, ICMP errors, TSMP, UDP) that wait for `nextPacket`.
    package var packetQueue = 256 << 10
    /// Pong, echo and reject events waiting for `nextEvent`. Full: dropped.
    package var controlEvents = 256
    /// ICMP errors and RSTs per second for packets that belong to nobody (RFC 4443 §2.4 f: MUST limit).
    package var unsolicitedRepliesPerSecond = 500
    /// Challenge ACKs of one connection per second (RFC 5961 §7).
    package var challengeACKsPerSecond = 10
    /// Destinations whose path MTU is remembered: one per peer, and there are fewer peers than that. Full: only
    /// the connections that exist learn it.
    package var pathMTUs = 1_024
    /// IPv6 extension headers in front of the payload; real packets have at most two.
    package var extensionHeaders = 8

    /// SYN repetitions before giving up: 1+2+4+8+16+32+64 s, as Linux.
    package var synRetries = 6
    /// Repetitions of the same data before giving up: about 15 minutes, as Linux. Counted, not timed, so that a
    /// laptop that slept does not lose its sessions on waking.
    package var dataRetries = 15
    /// How long a SYN waits for the owner's decision (`listenAny(asking:)`), then it is refused.
    package var decision = Interval.seconds(20)
    /// Old data that comes again for so long means that our acknowledgements are lost (`nextStall`).
    package var stallPatience = Interval.milliseconds(400)
    /// Silence before the first keepalive probe (RFC 1122 §4.2.3.6: no less than two hours by default).
    package var keepaliveIdle = Interval.seconds(7_200)
    /// Time between keepalive probes.
    package var keepaliveInterval = Interval.seconds(75)
    /// Unanswered keepalive probes before giving up.
    package var keepaliveProbes = 9
    /// TIME_WAIT: twice the longest life of a segment inside a tunnel whose queues hold seconds, not minutes.
    package var timeWait = Interval.seconds(30)
    /// FIN_WAIT_2 of a connection that nobody reads any more.
    package var orphanWait = Interval.seconds(60)
    /// Longest delay of an ACK (RFC 9293 §3.8.6.3: under 500 ms). Below Linux' 40 ms, far below its 200 ms RTO.
    package var acknowledgementDelay = Interval.milliseconds(25)

    /// The defaults above.
    package init() {}
}

/// What happened since the start. Every drop has a number, so that nothing is lost in silence.
public struct StackCounters: Hashable, Sendable {
    public var packetsReceived: UInt64 = 0
    public var packetsSent: UInt64 = 0
    public var malformed: UInt64 = 0
    public var badChecksum: UInt64 = 0
    public var fragments: UInt64 = 0
    public var notForUs: UInt64 = 0
    public var unknownProtocol: UInt64 = 0
    public var badExtensionHeader: UInt64 = 0
    public var synDropped: UInt64 = 0
    public var connectionsRefused: UInt64 = 0
    public var resetsSent: UInt64 = 0
    public var resetsReceived: UInt64 = 0
    public var challengeACKs: UInt64 = 0
    public var pawsRejected: UInt64 = 0
    public var outOfWindow: UInt64 = 0
    public var outOfOrder: UInt64 = 0
    public var outOfOrderDropped: UInt64 = 0
    public var duplicates: UInt64 = 0
    public var receiveMemoryDropped: UInt64 = 0
    public var retransmissions: UInt64 = 0
    public var timeouts: UInt64 = 0
    public var tailProbes: UInt64 = 0
    public var recoveries: UInt64 = 0
    public var undoneRecoveries: UInt64 = 0
    public var windowProbes: UInt64 = 0
    public var keepaliveProbes: UInt64 = 0
    public var datagramsDropped: UInt64 = 0
    /// Of ours: longer than the path takes, or the addresses are of two families.
    public var datagramsTooLong: UInt64 = 0
    public var packetsDropped: UInt64 = 0
    public var controlEventsDropped: UInt64 = 0
    public var unsolicitedRepliesSuppressed: UInt64 = 0
    public var echoReplies: UInt64 = 0
    public var tsmpPongs: UInt64 = 0
    public var tsmpRejects: UInt64 = 0
    public var icmpErrorsReceived: UInt64 = 0
    /// Errors that quote nothing of ours that is outstanding (RFC 5927).
    public var icmpErrorsIgnored: UInt64 = 0

    /// All zero.
    public init() {}
}

// SPDX-License-Identifier: Apache-2.0

/// What the owner of a stack should look at.
package enum StackEvent: Hashable, Sendable {
    /// A peer wants a connection to a port that `listenAny(asking:)` covers: `accept` or `abort` it.
    case asked(ConnectionID, local: SocketAddress, remote: SocketAddress)
    /// A peer opened a connection to a listening port. It is established.
    case accepted(ConnectionID, local: SocketAddress, remote: SocketAddress)
    /// Our own connection is established; writing may begin.
    case connected(ConnectionID)
    /// New bytes can be read. Edge-like: said once per arrival, so read until nothing is left.
    case readable(ConnectionID)
    /// There is room again after a write that was cut short.
    case writable(ConnectionID)
    /// The peer will send no more, and everything it sent has been read.
    case peerClosed(ConnectionID)
    /// The connection is gone and its name is void. After `.done` everything was read and acknowledged.
    case closed(ConnectionID, CloseReason)
    /// At least one datagram waits for `readDatagram`; said once until the queue was emptied.
    case datagrams
    /// A peer says that nobody listens where a datagram of ours went.
    case datagramRefused(local: SocketAddress, remote: SocketAddress)
    /// A TSMP pong came back for the token of `pingTSMP`.
    case pong(from: IPAddress, token: UInt64)
    /// An ICMP echo reply came back for the token of `pingEcho`.
    case echoReply(from: IPAddress, token: UInt64)
    /// The peer's packet filter refused a packet of ours (TSMP reject).
    case rejected(kind: UInt8, reason: UInt8, local: SocketAddress, remote: SocketAddress)
}

extension Stack {
    /// Bytes do not get through to a peer, or its acknowledgements not back.
    package struct Stall: Hashable, Sendable {
        /// The peer.
        package var remote: IPAddress
        /// Two time-outs in a row, or old data that comes again and again; else one time-out.
        package var isCertain: Bool
    }
}

/// Why `connect` did not start.
package enum ConnectError: Error, Hashable, Sendable {
    /// No own address of the destination's family.
    case noLocalAddress
    /// The connection table is full.
    case tableFull
    /// All ephemeral ports towards this destination are taken.
    case portsExhausted
    /// Port 0, an unspecified or a multicast address.
    case badAddress
}

/// Addresses and length of a datagram.
package struct DatagramHeader: Hashable, Sendable {
    package var local: SocketAddress
    package var remote: SocketAddress
    /// Full length; more than what fits into the caller's buffer means that it was cut.
    package var length: Int

    /// From its parts.
    package init(local: SocketAddress, remote: SocketAddress, length: Int) {
        self.local = local
        self.remote = remote
        self.length = length
    }
}

/// A look at one connection, for status pages and tests.
package struct ConnectionStatistics: Hashable, Sendable {
    /// Smoothed round trip; zero before the first sample.
    package var roundTrip: Interval
    /// Congestion window in bytes.
    package var congestionWindow: Int
    /// What the peer lets us send, in bytes.
    package var sendWindow: Int
    /// Bytes believed to be in the network.
    package var inFlight: Int
    /// Bytes in the send buffer, sent or not.
    package var sendQueue: Int
    /// Size that the send buffer may grow to now.
    package var sendBuffer: Int
    /// Size that the receive buffer may grow to now.
    package var receiveBuffer: Int
    /// Payload bytes per segment.
    package var segmentSize: Int
}

/// One packet ready to be sealed.
package struct OutgoingPacket: Hashable, Sendable {
    package var length: Int
    package var destination: IPAddress
}

// SPDX-License-Identifier: Apache-2.0

/// States of RFC 9293 §3.3.2, without LISTEN (a listener is a port, not a connection).
enum TCPState: UInt8 {
    /// The slot is free.
    case closed
    case synSent
    case synReceived
    case established
    case finWait1
    case finWait2
    case closeWait
    case closing
    case lastAck
    case timeWait

    /// Handshake done: sequence numbers of both sides are known.
    var isSynchronized: Bool { self >= .established }

    /// The peer may still send data.
    var mayReceive: Bool { self == .established || self == .finWait1 || self == .finWait2 }

    static func >= (a: TCPState, b: TCPState) -> Bool { a.rawValue >= b.rawValue }
}

/// Names one connection of one stack. A slot is used again with another generation, so that an old name never
/// reaches a new connection.
package struct ConnectionID: Hashable, Sendable {
    package let slot: UInt32
    package let generation: UInt32
}

/// Why a connection is gone.
package enum CloseReason: Hashable, Sendable {
    /// Both sides finished.
    case done
    /// The peer sent RST.
    case reset
    /// The peer answered the SYN with RST.
    case refused
    /// The peer no longer answers.
    case timeout
    /// ICMP said that the destination cannot be reached (only while connecting).
    case unreachable
}

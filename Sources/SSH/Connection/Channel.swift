// SPDX-License-Identifier: Apache-2.0

/// Names a channel of one connection. A number that is used again gets another generation, so a stale name is
/// harmless.
public struct ChannelID: Hashable, Sendable, CustomStringConvertible {
    let slot: UInt32
    let generation: UInt32

    public var description: String { "\(slot).\(generation)" }
}

/// Which of the streams of a channel.
public enum DataStream: Hashable, Sendable {
    /// Plain data: stdin one way, stdout the other.
    case standard
    /// SSH_EXTENDED_DATA_STDERR
    case error
}

/// What a channel is for: `channel type` and its fields, RFC 4254 §6.1, §7.2, OpenSSH PROTOCOL §2.4.
public enum ChannelType: Hashable, Sendable {
    /// A command, shell or subsystem.
    case session
    /// The client wants a TCP connection made from the server.
    case directTCPIP(host: String, port: UInt32, originHost: String, originPort: UInt32)
    /// The client wants a connection to a unix socket of the server.
    case directStreamLocal(path: ByteString)
    /// A connection came in at a port that the client had asked to listen on.
    case forwardedTCPIP(listenHost: String, listenPort: UInt32, originHost: String, originPort: UInt32)
    /// A connection came in at a unix socket that the client had asked to listen on.
    case forwardedStreamLocal(path: ByteString)
    /// A connection to the user's ssh-agent.
    case agent
    /// A connection to the user's X server.
    case x11(originHost: String, originPort: UInt32)

    var name: String {
        switch self {
        case .session: "session"
        case .directTCPIP: "direct-tcpip"
        case .directStreamLocal: "direct-streamlocal@openssh.com"
        case .forwardedTCPIP: "forwarded-tcpip"
        case .forwardedStreamLocal: "forwarded-streamlocal@openssh.com"
        case .agent: "auth-agent@openssh.com"
        case .x11: "x11"
        }
    }

    func write(_ queue: inout ByteQueue) {
        switch self {
        case .session, .agent:
            break
        case .directTCPIP(let host, let port, let originHost, let originPort),
            .forwardedTCPIP(let host, let port, let originHost, let originPort):
            queue.appendString(host)
            queue.append(port)
            queue.appendString(originHost)
            queue.append(originPort)
        case .directStreamLocal(let path):
            queue.appendString(path)
            queue.appendString("")
            queue.append(UInt32(0))
        case .forwardedStreamLocal(let path):
            queue.appendString(path)
            queue.appendString("")
        case .x11(let host, let port):
            queue.appendString(host)
            queue.append(port)
        }
    }

    /// nil: a type that `role` does not serve.
    static func parse(
        _ name: String, _ reader: inout WireReader, role: Role, limits: SSHLimits
    ) throws(WireError) -> ChannelType? {
        let limit = limits.nameBytes
        switch (name, role) {
        case ("session", .server):
            return .session
        case ("direct-tcpip", .server):
            return .directTCPIP(
                host: try reader.text(limit: limit), port: try reader.uint32(),
                originHost: try reader.text(limit: limit), originPort: try reader.uint32())
        case ("direct-streamlocal@openssh.com", .server):
            return .directStreamLocal(path: try reader.byteString(limit: limit))
        case ("forwarded-tcpip", .client):
            return .forwardedTCPIP(
                listenHost: try reader.text(limit: limit), listenPort: try reader.uint32(),
                originHost: try reader.text(limit: limit), originPort: try reader.uint32())
        case ("forwarded-streamlocal@openssh.com", .client):
            return .forwardedStreamLocal(path: try reader.byteString(limit: limit))
        case ("auth-agent@openssh.com", .client):
            return .agent
        case ("x11", .client):
            return .x11(originHost: try reader.text(limit: limit), originPort: try reader.uint32())
        default:
            return nil
        }
    }
}

/// Why a channel is refused, RFC 4254 §5.1.
public enum OpenFailure: UInt32, Hashable, Sendable {
    /// Not allowed.
    case administrativelyProhibited = 1
    /// The target could not be reached.
    case connectFailed = 2
    /// No such channel type here.
    case unknownChannelType = 3
    /// Too many channels.
    case resourceShortage = 4
}

/// State of one channel slot.
struct Channel {
    enum State {
        case free
        /// We asked the peer.
        case requested
        /// The peer asked; the caller has not decided yet.
        case offered
        case open
    }

    var state = State.free
    var generation: UInt32 = 0
    var remoteID: UInt32 = 0
    /// What we may send.
    var sendWindow = 0
    var remotePacketBytes = 0
    /// What the peer may send.
    var receiveWindow = 0
    /// What `receiveWindow` began with.
    var windowBase = 0
    /// What `receiveWindow` is filled up to; grows while the peer, not the caller, is what waits.
    var windowTarget = 0
    /// The peer used up most of its window although the caller keeps up.
    var isStarved = false
    /// Taken by the caller, not yet announced to the peer.
    var consumed = 0
    /// Handed to the caller, not yet taken.
    var held = 0
    var sentEOF = false
    var receivedEOF = false
    var sentClose = false
    /// Requests of ours that await SUCCESS or FAILURE.
    var pendingReplies = 0
    /// The caller wanted to write more than went.
    var isWriterWaiting = false
}

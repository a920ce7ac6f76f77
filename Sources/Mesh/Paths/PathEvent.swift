// SPDX-License-Identifier: Apache-2.0

/// Names a peer at the path machine. The caller chooses the number and must not use it for two peers at a time.
public struct PeerID: RawRepresentable, Hashable, Comparable, Sendable, Codable {
    /// The caller's number.
    public var rawValue: UInt32
    /// A name from the caller's number.
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static func < (a: PeerID, b: PeerID) -> Bool { a.rawValue < b.rawValue }
}

/// A way to a peer.
public enum PathVia: Hashable, Sendable, Codable, CustomStringConvertible {
    /// Straight to this address.
    case udp(SocketAddress)
    /// Through the relay of this region.
    case relay(region: Int)

    public var description: String {
        switch self {
        case .udp(let address): "\(address)"
        case .relay(let region): "relay \(region)"
        }
    }
}

/// Where an address of a peer was learnt.
public enum CandidateSource: String, Hashable, Sendable, Codable {
    /// From the coordinator's node.
    case nodeList = "node-list"
    /// From a CallMeMaybe that came through a relay.
    case callMeMaybe = "call-me-maybe"
    /// A ping of the peer came from there.
    case ping
    /// Packets of the peer came from there.
    case data
}

/// Why an address is not tried. The text is part of the JSON output.
public enum CandidateRefusal: String, Hashable, Sendable, Codable {
    /// `0.0.0.0`, `::` or port 0.
    case unspecified
    /// A multicast or broadcast address.
    case multicast
    /// An IPv6 link-local address: it means nothing without a zone.
    case linkLocal = "link-local"
    /// An address inside the tunnel.
    case tunnelAddress = "tunnel-address"
    /// Our own loopback.
    case loopback
    /// The table of this peer is full.
    case tableFull = "table-full"
    /// Direct connections are switched off.
    case policy
}

/// Why an address of a peer was dropped.
public enum CandidateRemoval: String, Hashable, Sendable, Codable {
    /// The coordinator or a later CallMeMaybe no longer names it.
    case noLongerNamed = "no-longer-named"
    /// It was only seen as source of pings, and they stopped.
    case silent
    /// Another one needed its place.
    case displaced
    /// The peer started anew, or went away.
    case peerReset = "peer-reset"
    /// Direct connections were switched off.
    case policy
}

/// Why a ping is sent.
public enum ProbePurpose: Hashable, Sendable, Codable, CustomStringConvertible {
    /// To find out which addresses work.
    case discovery
    /// To keep the chosen address open and trusted.
    case heartbeat
    /// A heartbeat was not answered: again, at once.
    case liveness
    /// Somebody asked: `coder ping`.
    case user(token: UInt64)
    /// Full ones are not answered: is the path too narrow?
    case sizing

    public var description: String {
        switch self {
        case .discovery: "discovery"
        case .heartbeat: "heartbeat"
        case .liveness: "liveness"
        case .user: "user"
        case .sizing: "sizing"
        }
    }
}

/// Why the chosen address is no longer trusted, so that packets go both ways.
public enum DoubtReason: String, Hashable, Sendable, Codable {
    /// Heartbeats were not answered.
    case unanswered = "timeout"
    /// The session was idle, the last answer is too old.
    case expired
    /// The network of this machine changed.
    case linkChanged = "link-changed"
    /// The system refused to send there.
    case sendFailed = "send-failed"
    /// Discovery lives, data does not.
    case dataDead = "data-dead"
    /// Packets left, none came back, nor did the answer to a ping.
    case silent
    /// The peer's packets come from another port now.
    case moved
    /// The peer's packets come through a relay again: its side of the path failed.
    case relayed

    /// Whether packets that just left were surely lost.
    package var meansLoss: Bool {
        switch self {
        case .unanswered, .silent, .sendFailed, .dataDead, .relayed: true
        case .expired, .linkChanged, .moved: false
        }
    }
}

/// Why the chosen address was given up.
public enum PathLoss: String, Hashable, Sendable, Codable {
    /// Nothing was answered while it was doubted.
    case unanswered = "timeout"
    /// Discovery lives, data does not.
    case dataDead = "data-dead"
    /// The address is no candidate any more.
    case candidateGone = "candidate-gone"
    /// The peer started anew, or went away.
    case peerReset = "peer-reset"
    /// Direct connections were switched off.
    case policy
}

/// Why a discovery message was dropped.
public enum DiscoRefusal: String, Hashable, Sendable, Codable {
    /// Sender's key belongs to no peer.
    case unknownSender = "unknown-sender"
    /// The box does not open: an old key, or forged.
    case cannotOpen = "cannot-open"
    /// Too short, or of an unknown type.
    case malformed
    /// Too many bad boxes from this key lately.
    case rateLimited = "rate-limited"
    /// A pong that answers no ping of ours.
    case unknownTransaction = "unknown-transaction"
    /// The same ping again.
    case duplicate
    /// CallMeMaybe outside of a relay, or relayed by another node than the one it speaks for.
    case wrongWay = "wrong-way"
    /// Direct connections are switched off.
    case policy
}

/// One decision of the path machine. Everything that is shown, logged or recorded about paths comes from here.
public struct PathEvent: Hashable, Sendable {
    /// When.
    public var at: Instant
    /// Whose path; nil for what concerns all.
    public var peer: PeerID?
    /// What.
    public var kind: Kind

    /// What was decided or seen.
    public enum Kind: Hashable, Sendable {
        /// An address will be tried.
        case candidateAdded(SocketAddress, CandidateSource)
        /// An address will not be tried.
        case candidateRefused(SocketAddress, CandidateSource, CandidateRefusal)
        /// An address is no longer tried.
        case candidateRemoved(SocketAddress, CandidateRemoval)
        /// A ping left, with this many bytes on the wire.
        case probed(PathVia, ProbePurpose, bytes: Int)
        /// Our ping was answered. `seenAs` is our address as the peer saw it.
        case answered(PathVia, ProbePurpose, latency: Interval, seenAs: SocketAddress)
        /// Our ping was not answered in time.
        case unanswered(PathVia, ProbePurpose)
        /// The peer pinged us, with this many bytes on the wire.
        case pinged(PathVia, bytes: Int)
        /// The address answers small pings only.
        case narrow(SocketAddress, bytes: Int)
        /// The address answers, and is not chosen.
        case passedOver(SocketAddress, PathReason)
        /// The system would not send to the address.
        case sendFailed(SocketAddress, SendFailure)
        /// Packets go to this address from now on.
        case chosen(SocketAddress, latency: Interval, previous: SocketAddress?)
        /// Packets go to the address and to the relay.
        case doubted(SocketAddress, DoubtReason)
        /// The doubted address answered.
        case trustedAgain(SocketAddress)
        /// Packets no longer go to the address.
        case lost(SocketAddress, PathLoss)
        /// We asked the peer to ping these of our addresses.
        case callMeMaybeSent(region: Int, addresses: Int)
        /// The peer asked us to ping its addresses.
        case callMeMaybeReceived(addresses: Int)
        /// A message was dropped.
        case refused(PathVia, DiscoRefusal)
        /// The relay that the peer is reached through changed.
        case relayChanged(region: Int?)
        /// Answer to `ping(_:now:)`; several may come for one token.
        case pong(token: UInt64, PathVia, latency: Interval)
        /// No answer at all to `ping(_:now:)`.
        case pingTimedOut(token: UInt64)
        /// The peer came back with another discovery key.
        case peerRestarted
        /// Direct connections were switched off or on.
        case directBlocked(Bool)
        /// The network of this machine changed.
        case linkChanged
    }
}

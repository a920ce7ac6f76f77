// SPDX-License-Identifier: Apache-2.0

/// An address with its round trip, compared as upstream does, so that both ends choose alike.
package struct MeasuredAddress: Hashable, Sendable, Codable {
    package var address: SocketAddress
    package var latency: Interval

    package init(address: SocketAddress, latency: Interval) {
        self.address = address
        self.latency = latency
    }

    /// Whether this is to be used instead of `other`: percent points for latency and kind of address, with some
    /// inertia. `path-selection.md` §4.5.
    package func isBetter(than other: MeasuredAddress?) -> Bool {
        guard let other else { return true }
        guard address != other.address else { return false }
        var mine = kindPoints
        var theirs = other.kindPoints
        if latency > other.latency {
            theirs += Self.percentLower(other.latency, than: latency)
        } else if other.latency > .zero {
            mine += Self.percentLower(latency, than: other.latency)
        }
        return mine <= 1 && theirs == 0 ? false : mine > theirs
    }

    private var kindPoints: Int {
        (address.ip.isLoopback ? 50 : address.ip.isPrivate ? 20 : 0) + (address.ip.isV4 ? 0 : 10)
    }

    /// `high` is above zero. Saturates where nanoseconds times 100 would not fit.
    private static func percentLower(_ low: Interval, than high: Interval) -> Int {
        100 - Int((low * 100).nanoseconds / high.nanoseconds)
    }
}

/// One address of a peer that may work.
struct Candidate: Hashable, Sendable, Codable {
    let address: SocketAddress
    /// When it was first heard of.
    let seenAt: Instant
    /// Named by the coordinator.
    var isInNodeList = false
    /// When a CallMeMaybe named it.
    var callMeMaybeAt: Instant?
    /// When a ping came from it.
    var pingedUsAt: Instant?
    /// Transaction of that ping.
    var lastTransaction: TransactionID?
    /// When we pinged it at full size.
    var probedAt: Instant?
    /// When it answered such a ping.
    var answeredAt: Instant?
    /// How fast it answered.
    var latency: Interval?
    /// Pings that left for it, of any size, and answers.
    var probes = 0
    var answers = 0
    /// Largest ping that was answered, bytes on the wire; 0 for none.
    var passedBytes = 0
    /// Data sent there was lost though pings are answered: not chosen before this, while there is a relay.
    var shunnedUntil: Instant?
    /// How often that happened.
    var timesShunned = 0
    /// The system would not send there.
    var sendFailure: SendFailure?

    init(_ address: SocketAddress, now: Instant) {
        self.address = address
        seenAt = now
    }

    /// Whether the last ping of ours is still unanswered.
    var isUnanswered: Bool {
        guard let probedAt else { return false }
        return answeredAt.map { $0 < probedAt } ?? true
    }

    /// Small pings came through, full ones never did.
    var isNarrow: Bool { passedBytes > 0 && passedBytes < Disco.leastUsefulBytes }

    // The transaction is left out: it tells nothing, and a record has no duplicates.
    private enum CodingKeys: CodingKey {
        case address, seenAt, isInNodeList, callMeMaybeAt, pingedUsAt, probedAt, answeredAt, latency
        case probes, answers, passedBytes, shunnedUntil, timesShunned, sendFailure
    }
}

/// Why a datagram did not leave.
public enum SendFailure: String, Hashable, Sendable, Codable {
    /// `EMSGSIZE`: an interface of this machine is too narrow.
    case tooBig = "mtu"
    /// `ENETUNREACH`, `EHOSTUNREACH`, `EPERM`, …
    case unreachable = "no-route"
}

extension IPAddress {
    /// Why an address that a peer names cannot be one of its addresses, or nil. Loopback is left to the caller.
    func refusalAsCandidate(tunnels: [IPPrefix]) -> CandidateRefusal? {
        if isUnspecified { return .unspecified }
        if isMulticast || isV4 && v4 == .max { return .multicast }
        if !isV4, isLinkLocal { return .linkLocal }
        return tunnels.contains { $0.contains(self) } ? .tunnelAddress : nil
    }
}

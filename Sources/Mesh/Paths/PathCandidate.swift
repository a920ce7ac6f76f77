// SPDX-License-Identifier: Apache-2.0

/// An address with its round trip, compared as upstream does, so that both ends choose alike.
package struct MeasuredAddress: Hashable, Sendable {
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
struct Candidate {
    let address: SocketAddress
    /// Named by the coordinator.
    var isInNodeList = false
    /// When a CallMeMaybe named it.
    var callMeMaybeAt: Instant?
    /// When a ping came from it.
    var pingedUsAt: Instant?
    /// Transaction of that ping.
    var lastTransaction: TransactionID?
    /// When we pinged it.
    var probedAt: Instant?
    /// When it answered.
    var answeredAt: Instant?
    /// How fast it answered.
    var latency: Interval?
    /// Data sent there was lost though pings are answered: not chosen before this.
    var shunnedUntil: Instant?
    /// How often that happened.
    var timesShunned = 0

    init(_ address: SocketAddress) { self.address = address }

    /// Whether the last ping of ours is still unanswered.
    var isUnanswered: Bool {
        guard let probedAt else { return false }
        return answeredAt.map { $0 < probedAt } ?? true
    }
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

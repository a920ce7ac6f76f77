// SPDX-License-Identifier: Apache-2.0

/// The state of one peer's paths at one moment, without keys: where a record begins.
package struct PathSnapshot: Hashable, Sendable, Codable {
    var home: Int
    var relayRoute: Int?
    var reportedRelay: Int?
    var candidates: [Candidate]
    var best: PathPeer.Best?
    var dataDeadAt: Instant?
    var sentPings: [PathPeer.SentPing]
    var fruitlessRounds: Int
    var pingCount: UInt64
    var lastSend: Instant?
    var lastRound: Instant?
    var heartbeatAt: Instant
    var resendAt: Instant
    var resendStep: Int
    var callMeMaybeAt: Instant
    var lastCallMeMaybe: Instant?
    var lastSizing: Instant?
    var pingBudget: Budget
    var refused: [PathPeer.Refused]
    // Of the node:
    var ownEndpoints: [SocketAddress]
    var ownEndpointsAt: Instant?
    var openRegions: [Int]
    var isDirectBlocked: Bool
}

extension Paths {
    func snapshot(_ slot: Int) -> PathSnapshot {
        let peer = peers[slot]!
        return PathSnapshot(
            home: peer.home, relayRoute: peer.relayRoute, reportedRelay: peer.reportedRelay,
            candidates: peer.candidates, best: peer.best, dataDeadAt: peer.dataDeadAt,
            sentPings: peer.sentPings,
            fruitlessRounds: peer.fruitlessRounds, pingCount: peer.pingCount, lastSend: peer.lastSend,
            lastRound: peer.lastRound,
            heartbeatAt: peer.heartbeatAt, resendAt: peer.resendAt, resendStep: peer.resendStep,
            callMeMaybeAt: peer.callMeMaybeAt, lastCallMeMaybe: peer.lastCallMeMaybe,
            lastSizing: peer.lastSizing, pingBudget: peer.pingBudget, refused: peer.refused,
            ownEndpoints: ownEndpoints, ownEndpointsAt: ownEndpointsAt, openRegions: openRegions,
            isDirectBlocked: isDirectBlocked)
    }

    mutating func restore(_ slot: Int, _ snapshot: PathSnapshot) {
        peers[slot]!.home = snapshot.home
        peers[slot]!.relayRoute = snapshot.relayRoute
        peers[slot]!.reportedRelay = snapshot.reportedRelay
        peers[slot]!.candidates = snapshot.candidates
        peers[slot]!.best = snapshot.best
        peers[slot]!.dataDeadAt = snapshot.dataDeadAt
        peers[slot]!.sentPings = snapshot.sentPings
        peers[slot]!.fruitlessRounds = snapshot.fruitlessRounds
        peers[slot]!.pingCount = snapshot.pingCount
        peers[slot]!.lastSend = snapshot.lastSend
        peers[slot]!.lastRound = snapshot.lastRound
        peers[slot]!.heartbeatAt = snapshot.heartbeatAt
        peers[slot]!.resendAt = snapshot.resendAt
        peers[slot]!.resendStep = snapshot.resendStep
        peers[slot]!.callMeMaybeAt = snapshot.callMeMaybeAt
        peers[slot]!.lastCallMeMaybe = snapshot.lastCallMeMaybe
        peers[slot]!.lastSizing = snapshot.lastSizing
        peers[slot]!.pingBudget = snapshot.pingBudget
        peers[slot]!.refused = snapshot.refused
        ownEndpoints = snapshot.ownEndpoints
        ownEndpointsAt = snapshot.ownEndpointsAt
        openRegions = snapshot.openRegions
        isDirectBlocked = snapshot.isDirectBlocked
    }
}

// JSON forms: numbers and texts instead of nested objects.

extension Instant: Codable {
    /// Nanoseconds of the clock.
    public init(from decoder: any Decoder) throws {
        self.init(nanoseconds: try decoder.singleValueContainer().decode(UInt64.self))
    }
    /// Nanoseconds of the clock.
    public func encode(to encoder: any Encoder) throws {
        var value = encoder.singleValueContainer()
        try value.encode(nanoseconds)
    }
}

extension Interval: Codable {
    /// Nanoseconds.
    public init(from decoder: any Decoder) throws {
        self.init(nanoseconds: try decoder.singleValueContainer().decode(UInt64.self))
    }
    /// Nanoseconds.
    public func encode(to encoder: any Encoder) throws {
        var value = encoder.singleValueContainer()
        try value.encode(nanoseconds)
    }
}

extension SocketAddress: Codable {
    /// `1.2.3.4:5` or `[::1]:5`.
    public init(from decoder: any Decoder) throws {
        let value = try decoder.singleValueContainer()
        let text = try value.decode(String.self)
        guard let address = SocketAddress(text) else {
            throw DecodingError.dataCorruptedError(in: value, debugDescription: "no address with port")
        }
        self = address
    }
    /// `1.2.3.4:5` or `[::1]:5`.
    public func encode(to encoder: any Encoder) throws {
        var value = encoder.singleValueContainer()
        try value.encode(description)
    }
}

// SPDX-License-Identifier: Apache-2.0

public import LinuxIO

/// Supplies connections to relays. Mesh knows nothing of HTTP and TLS: what it gets is a connected stream
/// descriptor that carries plain DERP bytes, after the HTTP upgrade; TLS and WebSocket are bridged behind a socket
/// pair by the supplier. Called from tasks that the node owns and cancels; both calls should give up by themselves
/// after about ten seconds.
public protocol RelayDialer: Sendable {
    /// Connects to a relay of `region`, trying its nodes in order (`derp.md` §7.1).
    func connect(region: DERPMap.Region) async throws -> OwnedDescriptor

    /// Measures one round trip of `GET /derp/latency-check` to `region` (`stun-netcheck.md` §2.5).
    func measureLatency(region: DERPMap.Region) async throws -> RelayLatency

    /// Why WebSocket was needed for regions so far: region to text. Published in the own node.
    func forcedWebSocketReasons() -> [Int: String]

    /// The machine is in another network, or the relays are others: what was learned of them may be wrong now.
    func networkChanged()
}

extension RelayDialer {
    /// No region needed WebSocket.
    public func forcedWebSocketReasons() -> [Int: String] { [:] }
    /// Nothing was learned.
    public func networkChanged() {}
}

/// Outcome of one latency measurement.
public struct RelayLatency: Hashable, Sendable {
    /// Time from the request written to the first byte of the response.
    public var roundTrip: Interval
    /// Whether the relay was reached by IPv4.
    public var isV4: Bool

    /// A measured round trip.
    public init(roundTrip: Interval, isV4: Bool) {
        self.roundTrip = roundTrip
        self.isV4 = isV4
    }
}

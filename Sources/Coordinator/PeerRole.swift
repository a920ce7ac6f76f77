// SPDX-License-Identifier: Apache-2.0

internal import Mesh
public import RPC

/// What a peer may do. coordinator.md §3.
public enum PeerRole: Hashable, Sendable {
    /// A workspace agent under its own id: no tunnels of its own, only its own addresses.
    case agent
    /// A client that may reach just this agent.
    case clientOfAgent(RawUUID)
    /// A client whose tunnels the server decides one by one.
    case clientOfUser
    /// A server or workspace proxy: anything.
    case server

    /// Whether `add_tunnel` needs an answer of the server's before it may act.
    var asksForTunnels: Bool { self == .clientOfUser }

    var maySendReadyForHandshake: Bool {
        switch self {
        case .agent, .server: true
        case .clientOfAgent, .clientOfUser: false
        }
    }
}

/// Why a request ended its call. The text goes to the peer in `CoordinateResponse.error`.
public struct Refusal: Error, Hashable, Sendable, CustomStringConvertible {
    /// Text as upstream words it.
    public let text: String

    init(_ text: String) { self.text = text }

    /// The text.
    public var description: String { text }

    static func authorization(_ cause: String) -> Refusal { Refusal("authorization: \(cause)") }
}

/// Checks of one request before any part of it acts. Pure. coordinator.md §3, hardened: allowed IPs must be
/// among the addresses, so that no peer can claim another's traffic.
enum RequestCheck {
    /// Addresses that one node may claim.
    static let maximumAddresses = 16
    /// Endpoints, latencies and other lists of a node.
    static let maximumListLength = 256
    /// Handshake confirmations in one request; an agent confirms a whole batch at once.
    static let maximumReadyIDs = 4_096

    /// Throws when `request` is malformed or not allowed to `id` in `role`. Tunnels of `.clientOfUser` are left
    /// to the server.
    static func check(_ request: TailnetCoordinateRequest, from id: RawUUID, role: PeerRole) throws(Refusal) {
        if request.hasUpdateSelf {
            guard request.updateSelf.hasNode else { throw .authorization("update_self without node") }
            try check(request.updateSelf.node, of: id, role: role)
        }
        if request.hasAddTunnel {
            guard let target = RawUUID(request.addTunnel.id) else {
                throw .authorization(
                    "parse add tunnel id: invalid UUID (got \(request.addTunnel.id.count) bytes)")
            }
            switch role {
            case .agent: throw .authorization("agents cannot open tunnels")
            case .clientOfAgent(let agent):
                guard target == agent else {
                    throw .authorization("invalid agent id, expected \(agent), got \(target)")
                }
            case .clientOfUser, .server: break
            }
        }
        if request.hasRemoveTunnel, RawUUID(request.removeTunnel.id) == nil {
            throw Refusal("parse remove tunnel id: invalid UUID (got \(request.removeTunnel.id.count) bytes)")
        }
        guard !request.readyForHandshake.isEmpty else { return }
        guard role.maySendReadyForHandshake else {
            throw .authorization("clients may not send ready_for_handshake")
        }
        guard request.readyForHandshake.count <= maximumReadyIDs else {
            throw Refusal("too many ready_for_handshake")
        }
        for ready in request.readyForHandshake where RawUUID(ready.id) == nil {
            throw Refusal("parse ready for handshake id: invalid UUID (got \(ready.id.count) bytes)")
        }
    }

    private static func check(_ node: TailnetNode, of id: RawUUID, role: PeerRole) throws(Refusal) {
        guard node.addresses.count <= maximumAddresses, node.allowedIps.count <= maximumAddresses,
            node.endpoints.count <= maximumListLength,
            node.derpLatency.count <= maximumListLength, node.derpForcedWebsocket.count <= maximumListLength
        else { throw .authorization("node too large") }
        guard role != .server else { return }
        var addresses: Set<IPPrefix> = []
        for text in node.addresses {
            guard let address = IPPrefix(text) else {
                throw .authorization("parse node address: \"\(text)\"")
            }
            guard address.bits == 128 else {
                throw .authorization("invalid address bits, expected 128, got \(address.bits)")
            }
            if role == .agent, !id.agentAddresses.contains(address.address) {
                throw .authorization("invalid node address, got \(address.address)")
            }
            addresses.insert(address)
        }
        for text in node.allowedIps {
            guard let allowed = IPPrefix(text) else { throw .authorization("parse allowed ip: \"\(text)\"") }
            guard addresses.contains(allowed) else {
                throw .authorization("invalid allowed ip, got \(text), which is no address of the node")
            }
        }
    }
}

extension RawUUID {
    /// The addresses that an agent with this id may claim: in the tailnet's prefix, in Coder's, and the one that
    /// all agents had once. coordinator.md §3, §6.
    var agentAddresses: [IPAddress] {
        let tail = high & 0xffff
        return [
            IPAddress(high: 0xfd7a_115c_a1e0_0000 | tail, low: low),
            IPAddress(high: 0xfd60_627a_a42b_0000 | tail, low: low),
            IPAddress(high: 0xfd7a_115c_a1e0_49d6, low: 0xb259_b7ac_b1b2_48f4),
        ]
    }
}

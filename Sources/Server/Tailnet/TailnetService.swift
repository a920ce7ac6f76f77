// SPDX-License-Identifier: Apache-2.0

internal import Coordinator
internal import RPC
internal import SwiftProtobuf

/// Service `coder.tailnet.v2.Tailnet` for one session. `coordinator.md` §1. WorkspaceUpdates is for clients of a
/// user only (`TailnetRoutes`); others that ask get code 12 and go without.
struct TailnetService {
    let services: Services
    /// Id under which the peer appears to others.
    let peer: Identifier
    let role: PeerRole
    /// For people, in debug output.
    let name: String
    /// Who may come back under that id; nil for agents, whose id is their own anyway. They get code 12.
    var resumingUser: Identifier?
    /// Decides about the tunnels of a `.clientOfUser`.
    var authorize: TunnelAuthorizer = { _ in nil }

    /// Events taken per post; they are dropped.
    private static let maximumEvents = 1000

    func register(_ handlers: inout RPCHandlers) {
        let (mesh, peer, role, name, authorize) = (services.mesh, peer, role, name, authorize)
        handlers.bidirectional(TailnetMethods.coordinate) { stream in
            try await mesh.coordinator.serve(
                stream, id: peer.raw, role: role, name: name, authorize: authorize)
        }
        handlers.serverStream(TailnetMethods.streamDERPMaps) { _, stream in
            try await mesh.maps.stream { try await stream.send($0.message) }
        }
        handlers.unary(TailnetMethods.postTelemetry) { _ in TailnetTelemetryResponse() }
        guard let user = resumingUser else { return }
        handlers.unary(TailnetMethods.refreshResumeToken) { _ in
            let issued = mesh.resumeTokens.issue(peer, user: user, now: .now())
            var response = TailnetRefreshResumeTokenResponse()
            response.token = issued.token
            response.refreshIn = Google_Protobuf_Duration(seconds: ResumeTokens.lifetimeSeconds / 2)
            response.expiresAt = Google_Protobuf_Timestamp(issued.expiresAt)
            return response
        }
    }
}

extension Google_Protobuf_Timestamp {
    init(_ time: Timestamp) {
        let seconds = time.unixSeconds
        self.init(seconds: seconds, nanos: Int32(time.microseconds - seconds * 1_000_000) * 1000)
    }
}

extension Timestamp {
    /// Nil for one that is absent or zero.
    init?(_ message: Google_Protobuf_Timestamp) {
        // The years 1 to 9999 are what the message may say.
        guard (-62_135_596_800...253_402_300_799).contains(message.seconds), message.seconds != 0 else {
            return nil
        }
        self.init(microseconds: message.seconds * 1_000_000 + Int64(message.nanos) / 1000)
    }
}

// SPDX-License-Identifier: Apache-2.0

/// What the flight recorder of a node kept of one peer.
public struct NodeRecording: Hashable, Sendable {
    /// The peer.
    public var peer: MeshPeerID
    /// What happened on its paths.
    public var recording: PathRecording
}

extension Node {
    /// Why the path to a peer is what it is. Ping the peer first: what was not tried cannot be explained.
    public func explain(_ peer: MeshPeerID) async throws(NodeError) -> PathExplanation {
        let reply = await request { .explain(token: $0, peer) }
        guard case .explanation(let explanation) = reply else { throw Self.error(of: reply) }
        return explanation
    }

    /// The flight recorder's content, ordered by peer: at most the last 30 minutes, without keys.
    public func recordings() async throws(NodeError) -> [NodeRecording] {
        let reply = await request { .recordings(token: $0) }
        guard case .recordings(let recordings) = reply else { throw Self.error(of: reply) }
        return recordings
    }
}

extension Engine {
    mutating func explain(token: UInt64, _ name: MeshPeerID) {
        guard let record = peers.record(name), record.usesPaths,
            let explanation = paths.explain(record.id, discovery.surroundings, now: now)
        else { return hub.notify(.reply(token: token, .failed(.unknownPeer))) }
        hub.notify(.reply(token: token, .explanation(explanation)))
    }

    func recordings() -> [NodeRecording] {
        var result: [NodeRecording] = []
        for case let record? in peers.records where record.usesPaths {
            guard let recording = paths.recording(of: record.id) else { continue }
            result.append(NodeRecording(peer: record.peer.id, recording: recording))
        }
        return result.sorted { $0.peer < $1.peer }
    }
}

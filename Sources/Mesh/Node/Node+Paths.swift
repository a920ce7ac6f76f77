// SPDX-License-Identifier: Apache-2.0

/// What the flight recorder of a node kept of one peer.
public struct NodeRecording: Hashable, Sendable {
    /// The peer.
    public var peer: MeshPeerID
    /// Its addresses in the tunnel.
    public var addresses: [IPAddress]
    /// Whether it went away, or started anew, since then.
    public var isDeparted: Bool
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

    /// The flight recorder's content, ordered by peer: at most the last 30 minutes, without keys. Peers that left
    /// within that time are in it too, as long as there is room.
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

    mutating func recordings() -> [NodeRecording] {
        var result = departed.recent(now: now)
        for case let record? in peers.records { result += recording(of: record).map { [$0] } ?? [] }
        return result.sorted {
            ($0.peer, $0.recording.began) < ($1.peer, $1.recording.began)
        }
    }

    private func recording(of record: PeerRecord) -> NodeRecording? {
        guard record.usesPaths, let recording = paths.recording(of: record.id) else { return nil }
        return NodeRecording(
            peer: record.peer.id, addresses: record.peer.addresses, isDeparted: false, recording: recording)
    }

    /// Keeps the record of a peer that is about to be removed.
    mutating func keepRecording(of record: PeerRecord) {
        guard var recording = recording(of: record) else { return }
        recording.isDeparted = true
        departed.add(recording, now: now)
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import Synchronization

/// What serves the mesh: the DERP map, and what agents tell about their paths.
final class MeshServices: Sendable {
    private let latencies = Mutex<[Identifier: JSON]>([:])

    init() {}

    /// Latency per region of a connected agent, as `codersdk.WorkspaceAgent` shows it.
    func latency(ofAgent agent: Identifier) -> JSON? { latencies.withLock { $0[agent] } }

    /// Remembers or forgets (nil) an agent's latencies.
    func setLatency(_ latency: JSON?, ofAgent agent: Identifier) {
        latencies.withLock { $0[agent] = latency }
    }

    /// Ends what runs.
    func stop() {}
}

// SPDX-License-Identifier: Apache-2.0

internal import Mesh
internal import Tailnet

/// Tells whether the agent can be reached, for commands whose connections come and go.
enum PeerWatch {
    /// Between two looks, and how long each may take: two in vain show within 17 seconds.
    private static let pause = Duration.seconds(5)
    private static let patience = Duration.seconds(3)
    /// A single ping may be lost.
    private static let missLimit = 2

    /// Pings until the task is cancelled.
    static func run(_ link: AgentLink, _ notice: LossNotice) async throws {
        var misses = 0
        while true {
            try await Task.sleep(for: pause)
            do {
                _ = try await link.ping(within: patience)
                misses = 0
                notice.show(.connected)
            } catch {
                try Task.checkCancellation()
                misses += 1
                if misses == missLimit { notice.show(.lost(attempt: 1)) }
            }
        }
    }
}

extension AgentLink {
    /// One ping over the path that packets take now. Throws `NodeError.timedOut` when no answer came in time.
    func ping(within limit: Duration) async throws -> PingResult {
        try await limited(to: limit, or: NodeError.timedOut) { try await node.ping(peer) }
    }
}

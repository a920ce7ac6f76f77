// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
package import RPC
internal import SwiftProtobuf
internal import Synchronization

/// The agent's lifecycle: each state once, in order, across connections. agent.md §4.4.
package final class LifecycleReports: Sendable {
    package init() {}

    private let outbox = Outbox<AgentLifecycle>(limit: 16)
    private let last = Mutex<AgentLifecycle.State>(.created)

    /// A state that is not later than the last one is ignored.
    package func set(_ state: AgentLifecycle.State) {
        let isLater = last.withLock { last in
            guard state.rawValue > last.rawValue else { return false }
            last = state
            return true
        }
        guard isLater else { return }
        var lifecycle = AgentLifecycle()
        lifecycle.state = state
        lifecycle.changedAt = .now()
        outbox.put(lifecycle)
    }

    /// Whether the server knows the last state.
    package var isDelivered: Bool { outbox.isEmpty }

    /// Delivers over this connection until it fails.
    package func deliver(on connection: RPCConnection) async throws {
        while true {
            var request = AgentUpdateLifecycleRequest()
            request.lifecycle = try await outbox.first()
            do throws(RPCError) {
                _ = try await connection.unary(AgentMethods.updateLifecycle, request)
            } catch {
                // What the server refuses it will refuse again.
                guard case .failed = error else { throw error }
            }
            outbox.removeFirst()
        }
    }
}

extension Google_Protobuf_Timestamp {
    /// The wall clock.
    static func now() -> Google_Protobuf_Timestamp {
        let (seconds, nanoseconds) = Clock.wallTime()
        return Google_Protobuf_Timestamp(seconds: seconds, nanos: Int32(nanoseconds))
    }
}

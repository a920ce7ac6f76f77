// SPDX-License-Identifier: Apache-2.0

package import RPC
internal import SwiftProtobuf
internal import Synchronization

/// Runs the manifest's metadata scripts, each at its own interval, and tells the server what they print: the values of
/// a workspace in the dashboard. agent.md §4.5.
package struct MetadataReporter: Sendable {
    /// What a script printed, and what went wrong.
    package typealias Outcome = (output: String, error: String)

    /// 3 s for a script whose description names neither time-out nor interval.
    private static let usualTimeout: Int64 = 3

    /// Values that the server does not know yet, the last one of each key.
    private final class Waiting: Sendable {
        let values = Mutex<[String: AgentMetadata]>([:])
    }

    private let collect: @Sendable (_ script: String, _ timeoutSeconds: Int64) async -> Outcome
    private let waiting = Waiting()

    /// `collect` runs a script.
    package init(
        collect: @escaping @Sendable (_ script: String, _ timeoutSeconds: Int64) async -> Outcome
    ) {
        self.collect = collect
    }

    /// Reports over this connection until it fails.
    package func run(
        _ descriptions: [AgentWorkspaceAgentMetadata.Description], on connection: RPCConnection
    ) async throws {
        try await withThrowingTaskGroup(of: Void.self) { group in
            for description in descriptions { group.addTask { try await repeatedly(description) } }
            group.addTask { try await deliver(on: connection) }
            defer { group.cancelAll() }
            // A script without interval runs once and is done.
            while try await group.next() != nil {}
        }
    }

    /// One run at a time for each key, however long it takes.
    private func repeatedly(_ description: AgentWorkspaceAgentMetadata.Description) async throws {
        let interval = Self.seconds(description.interval)
        var timeout = Self.seconds(description.timeout)
        if timeout == 0 { timeout = interval > 0 ? interval : Self.usualTimeout }
        while true {
            let began = ContinuousClock.now
            var value = AgentMetadata()
            value.key = description.key
            value.result.collectedAt = .now()
            let outcome = await collect(description.script, timeout)
            try Task.checkCancellation()
            value.result.value = outcome.output
            value.result.error = outcome.error
            waiting.values.withLock { $0[description.key] = value }
            guard interval > 0 else { return }
            try await Task.sleep(until: began + .seconds(interval), clock: .continuous)
        }
    }

    private func deliver(on connection: RPCConnection) async throws {
        while true {
            try await Task.sleep(for: .seconds(1))
            let values = waiting.values.withLock { waiting in
                defer { waiting = [:] }
                return waiting
            }
            guard !values.isEmpty else { continue }
            var request = AgentBatchUpdateMetadataRequest()
            request.metadata = values.values.sorted { $0.key < $1.key }
            do throws(RPCError) {
                _ = try await connection.unary(AgentMethods.batchUpdateMetadata, request)
            } catch {
                // What the server does not take is dropped: the next value comes soon.
                guard case .failed = error else { throw error }
            }
        }
    }

    /// The server puts a number of seconds into the nanoseconds. agent.md §2.
    private static func seconds(_ duration: Google_Protobuf_Duration) -> Int64 {
        let (whole, overflow) = duration.seconds.multipliedReportingOverflow(by: 1_000_000_000)
        guard !overflow, whole < 1 << 62 else { return 1 << 30 }
        return max(0, min(whole + Int64(duration.nanos), 1 << 30))
    }
}

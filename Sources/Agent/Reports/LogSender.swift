// SPDX-License-Identifier: Apache-2.0

package import RPC
internal import SwiftProtobuf
internal import Synchronization

/// Log lines of scripts on their way to the server. agent.md §4.5: 1 MiB wait at most, batches per source after a
/// second; when the server has had enough, nothing more is kept.
package final class LogSender: Sendable {
    /// 1 MiB of output that waits, and in one batch.
    static let limit = 1 << 20
    /// 21 bytes counted for each line besides its text.
    static let overhead = 21

    private struct State {
        /// In order of first appearance.
        var sources: [RawUUID] = []
        var lines: [RawUUID: [AgentLog]] = [:]
        var size = 0
        var dropped = 0
        var isExceeded = false
    }

    private let state = Mutex(State())

    package init() {}

    /// Whether everything was sent or given up.
    package var isEmpty: Bool { state.withLock { $0.sources.isEmpty } }

    /// Adds a line without its end.
    package func add(_ text: String, level: AgentLog.Level, source: RawUUID) {
        var log = AgentLog()
        log.createdAt = .now()
        log.output = text
        log.level = level
        let size = text.utf8.count + Self.overhead
        state.withLock { state in
            guard !state.isExceeded, size <= Self.limit, state.size + size <= Self.limit else {
                state.dropped += 1
                return
            }
            if state.lines[source] == nil { state.sources.append(source) }
            state.lines[source, default: []].append(log)
            state.size += size
        }
    }

    /// Sends over this connection until it fails.
    package func deliver(on connection: RPCConnection) async throws {
        while true {
            try await Task.sleep(for: .seconds(1))
            while let batch = state.withLock({ Self.oldestBatch($0) }) {
                var isExceeded = false
                do throws(RPCError) {
                    isExceeded = try await connection.unary(AgentMethods.batchCreateLogs, batch.request)
                        .logLimitExceeded
                } catch {
                    // What the server does not take is dropped; a lost connection is tried again.
                    guard case .failed = error else { throw error }
                }
                state.withLock { state in
                    Self.remove(batch.request.logs.count, batch.source, &state)
                    if isExceeded { state = Self.exceeded(state) }
                }
            }
        }
    }

    private static func oldestBatch(
        _ state: State
    ) -> (source: RawUUID, request: AgentBatchCreateLogsRequest)? {
        guard let source = state.sources.first else { return nil }
        var request = AgentBatchCreateLogsRequest()
        request.logSourceID = source.bytes()
        request.logs = state.lines[source] ?? []
        return (source, request)
    }

    private static func remove(_ count: Int, _ source: RawUUID, _ state: inout State) {
        let sent = state.lines[source]?.prefix(count) ?? []
        state.size -= sent.reduce(0) { $0 + $1.output.utf8.count + overhead }
        state.lines[source]?.removeFirst(sent.count)
        guard state.lines[source]?.isEmpty == true else { return }
        state.lines[source] = nil
        state.sources.removeAll { $0 == source }
    }

    private static func exceeded(_ state: State) -> State {
        var result = State()
        result.isExceeded = true
        result.dropped = state.dropped + state.lines.values.reduce(0) { $0 + $1.count }
        return result
    }
}

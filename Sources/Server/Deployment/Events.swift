// SPDX-License-Identifier: Apache-2.0

internal import Synchronization

/// Tells waiting tasks of this process that something has changed. Carries no data: who is told reads again.
final class Events: Sendable {
    /// What may change.
    enum Topic: Hashable, Sendable {
        /// A workspace, its builds, or its agents.
        case workspace(Identifier)
        /// The log of an agent.
        case agentLogs(Identifier)
        /// Which agents of a workspace are valid.
        case agentsOf(Identifier)
    }

    private struct State {
        var next: UInt64 = 0
        var subscribers: [Topic: [UInt64: AsyncStream<Void>.Continuation]] = [:]
    }

    private let state = Mutex(State())

    /// Tells everybody who waits for that topic.
    func publish(_ topic: Topic) {
        let waiting = state.withLock { $0.subscribers[topic].map { Array($0.values) } ?? [] }
        for continuation in waiting { continuation.yield() }
    }

    /// Hears of changes from now on, until cancelled.
    func subscribe(_ topic: Topic) -> Subscription {
        // One pending change says as much as many.
        let (stream, continuation) = AsyncStream.makeStream(
            of: Void.self, bufferingPolicy: .bufferingNewest(1))
        let id = state.withLock { state in
            state.next += 1
            state.subscribers[topic, default: [:]][state.next] = continuation
            return state.next
        }
        return Subscription(stream: stream) { [self] in
            state.withLock { state in
                state.subscribers[topic]?[id] = nil
                if state.subscribers[topic]?.isEmpty == true { state.subscribers[topic] = nil }
            }
            continuation.finish()
        }
    }

    /// One listener.
    struct Subscription: Sendable {
        let stream: AsyncStream<Void>
        let cancel: @Sendable () -> Void

        /// True after a change, false when the time is over first. Throws when the task is cancelled.
        func next(timeoutSeconds: Int) async throws -> Bool {
            let stream = stream
            let changed = await withTaskGroup(of: Bool.self) { group in
                group.addTask {
                    var iterator = stream.makeAsyncIterator()
                    return await iterator.next() != nil
                }
                group.addTask {
                    // Cancelled when a change came first.
                    try? await Task.sleep(for: .seconds(timeoutSeconds))
                    return false
                }
                defer { group.cancelAll() }
                return await group.next() ?? false
            }
            try Task.checkCancellation()
            return changed
        }
    }
}

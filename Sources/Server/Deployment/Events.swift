// SPDX-License-Identifier: Apache-2.0

internal import Synchronization

/// Tells waiting tasks of this process that something has changed. Carries no data: who is told reads again.
final class Events: Sendable {
    /// What may change.
    enum Topic: Hashable, Sendable {
        /// A workspace, its builds, or its agents.
        case workspace(Identifier)
        /// Any workspace: told with each `workspace`.
        case anyWorkspace
        /// The log of an agent.
        case agentLogs(Identifier)
        /// Which agents of a workspace are valid.
        case agentsOf(Identifier)
    }

    private struct State {
        var next: UInt64 = 0
        var subscribers: [Topic: [UInt64: Subscription]] = [:]
    }

    private let state = Mutex(State())

    /// Tells everybody who waits for that topic.
    func publish(_ topic: Topic) {
        var topics = [topic]
        if case .workspace = topic { topics.append(.anyWorkspace) }
        let waiting = state.withLock { state in
            topics.flatMap { state.subscribers[$0]?.values.map(\.self) ?? [] }
        }
        for subscription in waiting { subscription.notify() }
    }

    /// Hears of changes from now on, until cancelled.
    func subscribe(_ topic: Topic) -> Subscription {
        state.withLock { state in
            state.next += 1
            let id = state.next
            let subscription = Subscription { [self] in forget(topic, id) }
            state.subscribers[topic, default: [:]][id] = subscription
            return subscription
        }
    }

    private func forget(_ topic: Topic, _ id: UInt64) {
        state.withLock { state in
            state.subscribers[topic]?[id] = nil
            if state.subscribers[topic]?.isEmpty == true { state.subscribers[topic] = nil }
        }
    }

    /// One listener: remembers that something has changed until it is asked. One task asks.
    final class Subscription: Sendable {
        private struct Pending {
            var hasChanged = false
            var waiter: CheckedContinuation<Bool, Never>?
        }

        private let pending = Mutex(Pending())
        /// Ends the subscription.
        let cancel: @Sendable () -> Void

        fileprivate init(cancel: @escaping @Sendable () -> Void) { self.cancel = cancel }

        /// True after a change, false when the time is over first. Throws when the task is cancelled.
        func next(timeoutSeconds: Int) async throws -> Bool {
            let timer = Task {
                try await Task.sleep(for: .seconds(timeoutSeconds))
                self.wake(changed: false)
            }
            defer { timer.cancel() }
            let changed = await withTaskCancellationHandler {
                await withCheckedContinuation { continuation in
                    let answer: Bool? = pending.withLock { pending in
                        if pending.hasChanged || Task.isCancelled {
                            defer { pending.hasChanged = false }
                            return pending.hasChanged
                        }
                        pending.waiter = continuation
                        return nil
                    }
                    if let answer { continuation.resume(returning: answer) }
                }
            } onCancel: {
                wake(changed: false)
            }
            try Task.checkCancellation()
            return changed
        }

        fileprivate func notify() { wake(changed: true) }

        private func wake(changed: Bool) {
            let waiter = pending.withLock { pending in
                defer { pending.waiter = nil }
                if pending.waiter == nil, changed { pending.hasChanged = true }
                return pending.waiter
            }
            waiter?.resume(returning: changed)
        }
    }
}

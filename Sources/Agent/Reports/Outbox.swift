// SPDX-License-Identifier: Apache-2.0

internal import Synchronization

/// What waits to be told to the server, oldest first, over any number of connections. Bounded: when it is full, new
/// entries are dropped and counted. Any task puts in; one task at a time takes out.
final class Outbox<Entry: Sendable>: Sendable {
    private struct State {
        var entries: [Entry] = []
        var dropped = 0
        var waiter: CheckedContinuation<Void, Never>?
    }

    private let limit: Int
    private let state = Mutex(State())

    init(limit: Int) { self.limit = limit }

    /// Entries that found no room.
    var dropped: Int { state.withLock { $0.dropped } }
    /// Whether everything was told.
    var isEmpty: Bool { state.withLock { $0.entries.isEmpty } }

    func put(_ entry: Entry) {
        let waiter = state.withLock { state -> CheckedContinuation<Void, Never>? in
            guard state.entries.count < limit else {
                state.dropped += 1
                return nil
            }
            state.entries.append(entry)
            defer { state.waiter = nil }
            return state.waiter
        }
        waiter?.resume()
    }

    /// The oldest entry; waits for one. It stays until `removeFirst`, so that a failed attempt loses nothing.
    func first() async throws(CancellationError) -> Entry {
        while true {
            if let entry = state.withLock({ $0.entries.first }) { return entry }
            if Task.isCancelled { throw CancellationError() }
            await wait()
        }
    }

    func removeFirst() {
        state.withLock { state in
            if !state.entries.isEmpty { state.entries.removeFirst() }
        }
    }

    private func wait() async {
        await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                let goesOn = state.withLock { state in
                    if Task.isCancelled || !state.entries.isEmpty { return true }
                    // One task takes out; an older waiter was cancelled and is about to leave.
                    state.waiter?.resume()
                    state.waiter = continuation
                    return false
                }
                if goesOn { continuation.resume() }
            }
        } onCancel: {
            let waiter = state.withLock { state in
                defer { state.waiter = nil }
                return state.waiter
            }
            waiter?.resume()
        }
    }
}

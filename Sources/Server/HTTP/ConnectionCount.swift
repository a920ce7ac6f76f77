// SPDX-License-Identifier: Apache-2.0

internal import Synchronization

/// Counts what is open, up to a limit. Any thread.
final class ConnectionCount: Sendable {
    private let limit: Int
    private let count = Mutex(0)

    init(limit: Int) { self.limit = limit }

    /// False when the limit is reached.
    func enter() -> Bool {
        count.withLock { value in
            guard value < limit else { return false }
            value += 1
            return true
        }
    }

    func leave() { count.withLock { $0 -= 1 } }

    /// How many are open.
    var current: Int { count.withLock { $0 } }
}

// SPDX-License-Identifier: Apache-2.0

internal import Synchronization

/// Counts requests per key in windows of one minute. Pure but for the lock; the caller says what time it is.
final class RateLimiter: Sendable {
    private struct State {
        var minute: Int64 = 0
        var counts: [String: Int] = [:]
    }

    private let limit: Int
    private let state = Mutex(State())

    /// Keys remembered within a minute; a flood of addresses beyond that shares one counter.
    private static let maximumKeys = 20_000

    /// At most `limit` per minute and key; zero or less: no limit.
    init(limit: Int) { self.limit = limit }

    /// Counts one request; throws 429 beyond the limit.
    func admit(_ key: String, now: Timestamp) throws(APIError) {
        guard limit > 0 else { return }
        let count = state.withLock { state in
            let minute = now.unixSeconds / 60
            if state.minute != minute {
                state.minute = minute
                state.counts.removeAll(keepingCapacity: true)
            }
            let slot = state.counts[key] != nil || state.counts.count < Self.maximumKeys ? key : ""
            state.counts[slot, default: 0] += 1
            return state.counts[slot, default: 0]
        }
        guard count <= limit else {
            throw APIError(429, "You've been rate limited for sending more than \(limit) requests in 1m0s.")
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import Mesh
internal import Synchronization

/// Counts requests per key in windows of one minute. Pure but for the lock; the caller says what time it is.
final class RateLimiter: Sendable {
    private struct State {
        var minute: Int64 = 0
        var counts: [String: Int] = [:]
    }

    private let limit: Int
    private let state = Mutex(State())

    /// Keys remembered within a minute.
    static let maximumKeys = 20_000

    /// At most `limit` per minute and key; zero or less: no limit.
    init(limit: Int) { self.limit = limit }

    /// Counts one request; throws 429 beyond the limit.
    func admit(_ key: String, now: Timestamp) throws(APIError) {
        guard limit > 0 else { return }
        let minute = now.unixSeconds / 60
        let count = state.withLock { state in
            if state.minute != minute {
                state.minute = minute
                state.counts.removeAll(keepingCapacity: true)
            }
            if state.counts[key] == nil, state.counts.count >= Self.maximumKeys { Self.forget(&state, limit) }
            state.counts[key, default: 0] += 1
            return state.counts[key, default: 0]
        }
        guard count <= limit else { throw Self.refusal(limit, resetsAt: (minute + 1) * 60, now: now) }
    }

    /// A flood of keys must not make anybody share a counter with it: those that asked for little are forgotten, and
    /// all of them when that is not enough.
    private static func forget(_ state: inout State, _ limit: Int) {
        state.counts = state.counts.filter { $0.value > limit / 2 }
        if state.counts.count > maximumKeys / 2 { state.counts = [:] }
    }

    private static func refusal(_ limit: Int, resetsAt reset: Int64, now: Timestamp) -> APIError {
        var error = APIError(
            429, "You've been rate limited for sending more than \(limit) requests in 1m0s.")
        error.fields = [
            .init(name: "Retry-After", value: String(max(1, reset - now.unixSeconds))),
            .init(name: "X-RateLimit-Limit", value: String(limit)),
            .init(name: "X-RateLimit-Remaining", value: "0"),
            .init(name: "X-RateLimit-Reset", value: String(reset)),
        ]
        return error
    }

    /// What stands for a stranger: the address, or the network of an IPv6 address, of which anybody has 2⁶⁴.
    static func source(_ address: String) -> String {
        guard let parsed = IPAddress(address)?.unmapped else { return address }
        if parsed.isV4 { return "\(parsed)" }
        return "\(IPAddress(high: parsed.high, low: 0))/64"
    }
}

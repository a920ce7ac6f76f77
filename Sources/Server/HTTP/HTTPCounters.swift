// SPDX-License-Identifier: Apache-2.0

internal import Synchronization

/// What came to HTTP listeners and was not served. Any thread.
final class HTTPCounters: Sendable {
    /// Why a connection was closed.
    struct Counts: Sendable {
        /// There were too many.
        var refused: UInt64 = 0
        /// A request could not be read.
        var malformed: UInt64 = 0
        /// It did not say in time what it wants.
        var silent: UInt64 = 0
    }

    private let counts = Mutex(Counts())

    /// Counts one. Returns how many there were before.
    @discardableResult
    func add(_ member: any WritableKeyPath<Counts, UInt64> & Sendable) -> UInt64 {
        counts.withLock { counts in
            defer { counts[keyPath: member] += 1 }
            return counts[keyPath: member]
        }
    }

    /// The counters as Prometheus text.
    var prometheusText: String {
        let counts = counts.withLock { $0 }
        let name = "coder_http_connections_closed_total"
        return """
            # TYPE \(name) counter
            \(name){reason="limit"} \(counts.refused)
            \(name){reason="malformed"} \(counts.malformed)
            \(name){reason="silent"} \(counts.silent)

            """
    }
}

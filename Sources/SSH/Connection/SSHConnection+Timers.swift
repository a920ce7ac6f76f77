// SPDX-License-Identifier: Apache-2.0

// Time: renewal of keys, keepalives, patience before authentication. Monotonic nanoseconds come from the
// shell.
extension SSHConnection {
    /// Probes a silent peer every `intervalNanoseconds` (0: never) and gives up after `limit` unanswered
    /// probes.
    public mutating func setKeepalive(intervalNanoseconds: UInt64, limit: Int = 3) {
        timers.keepaliveInterval = intervalNanoseconds
        timers.keepaliveLimit = max(limit, 1)
    }

    /// When `handleTimeout` is due; nil before its first call.
    public var nextDeadlineNanoseconds: UInt64? {
        guard let started = timers.startedAt, failure == nil else { return nil }
        guard authentication.isDone else { return Self.sum(started, transport.limits.loginGraceNanoseconds) }
        let rekey = Self.sum(timers.keysSince, transport.limits.rekeyIntervalNanoseconds)
        guard timers.keepaliveInterval > 0 else { return rekey }
        let probes = UInt64(timers.probesUnanswered) + 1
        let (wait, overflow) = timers.keepaliveInterval.multipliedReportingOverflow(by: probes)
        return min(rekey, overflow ? .max : Self.sum(timers.heardAt, wait))
    }

    /// Does what time demands. Call it once at the start, when the deadline has passed, and as often as you
    /// like.
    public mutating func handleTimeout(nowNanoseconds now: UInt64) throws(SSHError) {
        if let failure { throw failure }
        if timers.startedAt == nil {
            timers.startedAt = now
            timers.keysSince = now
            timers.heardAt = now
        }
        if timers.exchangesSeen != transport.counters.keyExchanges {
            timers.exchangesSeen = transport.counters.keyExchanges
            timers.keysSince = now
        }
        if timers.bytesHeard != transport.counters.bytesReceived {
            timers.bytesHeard = transport.counters.bytesReceived
            timers.heardAt = now
            timers.probesUnanswered = 0
        }
        guard let deadline = nextDeadlineNanoseconds, now >= deadline else { return }
        guard authentication.isDone else { throw fail(.loginTimedOut) }
        if now >= Self.sum(timers.keysSince, transport.limits.rekeyIntervalNanoseconds) {
            timers.keysSince = now
            renewKeys()
        }
        guard timers.keepaliveInterval > 0, let due = nextDeadlineNanoseconds, now >= due else { return }
        guard timers.probesUnanswered < timers.keepaliveLimit else { throw fail(.peerSilent) }
        timers.probesUnanswered += 1
        sendKeepalive()
    }

    private mutating func fail(_ error: SSHError) -> SSHError {
        failure = error
        transport.sendDisconnect(reason: error.disconnectReason, description: "\(error)")
        return error
    }

    private mutating func sendKeepalive() {
        guard pendingGlobals.count < transport.limits.pendingReplies else { return }
        pendingGlobals.append(.keepalive)
        send {
            $0.append(Message.globalRequest)
            $0.appendString("keepalive@openssh.com")
            $0.append(true)
        }
    }

    private static func sum(_ a: UInt64, _ b: UInt64) -> UInt64 {
        let (sum, overflow) = a.addingReportingOverflow(b)
        return overflow ? .max : sum
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO

// Between two turns.
extension Engine {
    /// Waits for the next event or deadline, after a turn that moved so many bytes; returns how many events there are.
    mutating func wait(movedBytes: Int) -> Int {
        shortWaits.moved(movedBytes)
        if !readyStreams.isEmpty || !bulkStreams.isEmpty || hasMoreOutput || unreadRelays > 0 {
            return poll(nanoseconds: 0)
        }
        let deadline = nextDeadline
        let start = Instant(nanoseconds: Clock.monotonicNanoseconds())
        guard deadline > start else { return poll(nanoseconds: 0) }
        var time = start
        if shortWaits.looks(now: start.nanoseconds) {
            let count = look(from: &time)
            if count > 0 { return count }
        }
        let count = poll(nanoseconds: deadline == .never ? nil : deadline.since(time).nanoseconds)
        let end = Instant(nanoseconds: Clock.monotonicNanoseconds())
        shortWaits.slept(nanoseconds: end.since(start).nanoseconds)
        return count
    }

    /// Looks without sleeping, and lets others run in between. Leaves `time` at the end of it.
    private mutating func look(from time: inout Instant) -> Int {
        let start = time
        while true {
            let count = poll(nanoseconds: 0)
            if count > 0 {
                shortWaits.found()
                return count
            }
            DedicatedThread.yield()
            let before = time
            time = Instant(nanoseconds: Clock.monotonicNanoseconds())
            if time.since(before).nanoseconds >= ShortWaits.intrusion {
                shortWaits.intruded(now: time.nanoseconds)
                return 0
            }
            if time.since(start).nanoseconds >= ShortWaits.lookLimit {
                shortWaits.lookedInVain()
                return 0
            }
        }
    }

    private func poll(nanoseconds: UInt64?) -> Int {
        epoll.next(timeoutNanoseconds: nanoseconds, into: events)
    }
}

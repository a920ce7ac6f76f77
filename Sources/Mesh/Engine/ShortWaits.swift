// SPDX-License-Identifier: Apache-2.0

/// Whether a thread should look for events a few more times before it sleeps.
///
/// To be woken from sleep costs some 20 µs on an otherwise idle machine: another processor must be called out of its
/// rest. Where a peer answers within a few times that, and question follows question (copies of many small files), it
/// is what most of the time goes to. So after some short waits in a row the next one is spent looking, for at most
/// `lookLimit`; one look in vain ends it until there were short waits again. Long waits (whoever types, a far peer,
/// nobody at all) never begin it, and neither do bulk transfers, which need the processor for others.
package struct ShortWaits: Sendable {
    /// 200 µs: waits up to here count as short, their wake-up included.
    package static let shortWait: UInt64 = 200_000
    /// 100 µs: what one look may cost. A round trip through two nodes on one machine is less when it wakes nobody.
    package static let lookLimit: UInt64 = 100_000
    /// Short waits in a row before the first look. One alone is the echo of a keystroke.
    package static let needed = 3
    /// 16 KiB in one turn are bulk.
    package static let bulkBytes = 16 << 10
    /// 200 µs: when somebody else had the processor for so long, it is wanted elsewhere.
    package static let intrusion: UInt64 = 200_000
    /// 10 ms without looking after the first intrusion, twice as long after each further one, up to 1 s.
    package static let shortestPause: UInt64 = 10_000_000, longestPause: UInt64 = 1_000_000_000
    /// Successful looks after which an intrusion counts as the first again: a tenth of a second of them.
    package static let undisturbed = 1_000

    private var inARow = 0
    private var finds = 0
    private var pause = Self.shortestPause
    private var pausedUntil: UInt64 = 0

    /// Has seen nothing yet, so sleeps.
    package init() {}

    /// A turn has moved so many bytes.
    package mutating func moved(_ bytes: Int) { if bytes >= Self.bulkBytes { inARow = 0 } }

    /// Whether to look for a while before sleeping.
    package func looks(now: UInt64) -> Bool { inARow >= Self.needed && now >= pausedUntil }

    /// Looking brought something.
    package mutating func found() {
        finds += 1
        if finds >= Self.undisturbed { pause = Self.shortestPause }
    }

    /// Nothing came while it looked.
    package mutating func lookedInVain() { inARow = 0 }

    /// Another thread had the processor for too long between two looks.
    package mutating func intruded(now: UInt64) {
        inARow = 0
        finds = 0
        pausedUntil = now &+ pause
        pause = min(pause &* 2, Self.longestPause)
    }

    /// It slept, and the whole wait was so long.
    package mutating func slept(nanoseconds: UInt64) {
        inARow = nanoseconds <= Self.shortWait ? min(inARow + 1, Self.needed) : 0
    }
}

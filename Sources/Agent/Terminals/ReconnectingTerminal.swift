// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
internal import Synchronization

/// A program in a terminal that outlives its viewers: what it wrote last is played back to each that comes. Any thread
/// may call it; the work is done on a thread of its own (`TerminalBody`).
final class ReconnectingTerminal: Sendable {
    /// What is decided before it starts.
    struct Plan: Sendable {
        var environment: SSHEnvironment
        /// Empty: a login shell.
        var command: String
        /// How long it goes on without a viewer.
        var idleNanoseconds: UInt64
        /// How long a viewer may hold the others up.
        var stallNanoseconds: UInt64
        var viewerLimit: Int
        var report: @Sendable (SSHSessionReport) -> Void
    }

    /// A viewer that comes.
    struct Arrival: Sendable {
        /// Owned by whoever took the arrival.
        var socket: Int32
        var size: (rows: UInt16, columns: UInt16)?
        var address: String
    }

    private struct Mailbox {
        var arrivals: [Arrival] = []
        var isStopped = false
        /// Whether the thread still looks.
        var isOpen = true
    }

    let plan: Plan
    let wakeUp: WakeUp
    let orphans: OrphanReaper
    private let mailbox = Mutex(Mailbox())

    init(_ plan: Plan, orphans: OrphanReaper) throws(SystemError) {
        self.plan = plan
        self.orphans = orphans
        wakeUp = try WakeUp()
    }

    /// Starts the program; `ended` is called on its thread after the last viewer was let go.
    func start(ended: @escaping @Sendable () -> Void) throws(SystemError) {
        try DedicatedThread(name: "terminal") { [self] in
            TerminalBody(self).run()
            let left = mailbox.withLock { box in
                box.isOpen = false
                defer { box.arrivals = [] }
                return box.arrivals
            }
            for arrival in left { OwnedDescriptor(taking: arrival.socket).close() }
            ended()
        }.detach()
    }

    /// Shows it to one more viewer and takes its socket over. False: it is over, the socket is the caller's.
    func join(_ arrival: Arrival) -> Bool {
        let isTaken = mailbox.withLock { box in
            if box.isOpen { box.arrivals.append(arrival) }
            return box.isOpen
        }
        wakeUp.signal()
        return isTaken
    }

    /// Hangs up.
    func stop() {
        mailbox.withLock { $0.isStopped = true }
        wakeUp.signal()
    }

    var isStopped: Bool { mailbox.withLock { $0.isStopped } }

    func takeArrivals() -> [Arrival] {
        mailbox.withLock { box in
            defer { box.arrivals = [] }
            return box.arrivals
        }
    }

    /// Nobody comes any more, unless somebody has come already.
    func closeIfDeserted() -> Bool {
        mailbox.withLock { box in
            guard box.arrivals.isEmpty else { return false }
            box.isOpen = false
            return true
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Synchronization

/// Children that outlive their session: programs without a terminal may go on, those with one are given two
/// seconds. Waits for all of them on one thread, which exists only while there are any.
final class OrphanReaper: Sendable {
    private struct Orphan: Sendable {
        let process: Int32
        let ended: Int32
        /// When it is killed; nil: it may go on.
        var deadline: UInt64?
    }

    private struct State {
        var arriving: [Orphan] = []
        var killsAll = false
        var isRunning = false
    }

    private let state = Mutex(State())
    private let wakeUp = try? WakeUp()
    private static let graceNanoseconds: UInt64 = 2_000_000_000

    /// Takes a child over. `ends`: it is hung up now and killed soon.
    func adopt(_ child: consuming ChildProcess, ends: Bool) {
        if ends {
            child.signal(SIGHUP)
            child.signal(SIGCONT)
        }
        guard let copy = try? child.ended.duplicate() else { return }
        let deadline = ends ? Clock.monotonicNanoseconds() + Self.graceNanoseconds : nil
        let orphan = Orphan(process: child.id, ended: copy.release(), deadline: deadline)
        let starts = state.withLock { state in
            state.arriving.append(orphan)
            defer { state.isRunning = true }
            return !state.isRunning
        }
        guard starts else {
            wakeUp?.signal()
            return
        }
        do {
            try DedicatedThread(name: "ssh-reaper") { [self] in run() }.detach()
        } catch {
            state.withLock { $0.isRunning = false }
        }
    }

    /// Kills every child that is left.
    func killAll() {
        state.withLock { $0.killsAll = true }
        wakeUp?.signal()
    }

    private func run() {
        var orphans: [Orphan] = []
        while true {
            let (arrived, kills, ends) = state.withLock { state in
                defer { state.arriving = [] }
                let ends = orphans.isEmpty && state.arriving.isEmpty
                if ends { state.isRunning = false }
                return (state.arriving, state.killsAll, ends)
            }
            if ends { return }
            orphans += arrived
            let now = Clock.monotonicNanoseconds()
            orphans.removeAll { orphan in
                guard waitpid(orphan.process, nil, WNOHANG) == 0 else {
                    close(orphan.ended)
                    return true
                }
                if kills || orphan.deadline.map({ $0 <= now }) == true { _ = kill(-orphan.process, SIGKILL) }
                return false
            }
            guard !orphans.isEmpty else { continue }
            var list = orphans.map { pollfd(fd: $0.ended, events: Int16(POLLIN), revents: 0) }
            if let wakeUp { list.append(pollfd(fd: wakeUp.number, events: Int16(POLLIN), revents: 0)) }
            let waits = orphans.contains { $0.deadline != nil } || kills
            _ = poll(&list, nfds_t(list.count), waits ? 200 : 60_000)
            wakeUp?.drain()
        }
    }
}

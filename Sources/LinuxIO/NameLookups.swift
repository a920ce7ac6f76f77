// SPDX-License-Identifier: Apache-2.0

internal import Synchronization

/// Looks up many host names at once, each on a thread of its own: a name that no resolver answers keeps its thread for
/// ten seconds or more, and must delay neither the other names nor whoever asked. Any thread may call it.
public final class NameLookups: Sendable {
    /// Blocks until the addresses of a host are known; empty when there are none.
    public typealias LookUp = @Sendable (_ host: String) -> [KernelAddress]
    /// Hears of a host's addresses, on some thread.
    public typealias Found = @Sendable (_ host: String, _ addresses: [KernelAddress]) -> Void

    /// Threads at once: more names than a map of relays has, and few enough for any machine.
    public static let defaultLimit = 64

    private struct Work: Sendable {
        var host: String
        var found: Found
    }

    private struct State {
        var running: Set<String> = []
        var waiting: [Work] = []
    }

    private let limit: Int
    private let lookUp: LookUp
    private let state = Mutex(State())

    /// Asks the system's resolver, or `lookUp`, for up to `limit` names at once.
    public init(
        limit: Int = defaultLimit, lookUp: @escaping LookUp = { Resolver.lookUp($0, port: 0) }
    ) {
        precondition(limit > 0)
        self.limit = limit
        self.lookUp = lookUp
    }

    /// Calls `found` for each of the names as it is answered. Returns at once. A name that is on its way already is
    /// not asked again: who asked first hears of it. Names of earlier calls that still wait are forgotten.
    public func start(_ hosts: [String], found: @escaping Found) {
        let begun = state.withLock { state in
            var seen: Set<String> = []
            state.waiting = hosts.filter { !state.running.contains($0) && seen.insert($0).inserted }
                .map { Work(host: $0, found: found) }
            var begun: [Work] = []
            while state.running.count < limit, let work = Self.next(&state) { begun.append(work) }
            return begun
        }
        for work in begun { run(work) }
    }

    private static func next(_ state: inout State) -> Work? {
        guard !state.waiting.isEmpty else { return nil }
        let work = state.waiting.removeFirst()
        state.running.insert(work.host)
        return work
    }

    /// Takes names on a thread of its own until none waits.
    private func run(_ first: Work) {
        do {
            try DedicatedThread(name: "name-lookup") { [self] in
                var work: Work? = first
                while let current = work {
                    let addresses = lookUp(current.host)
                    work = finish(current)
                    current.found(current.host, addresses)
                }
            }.detach()
        } catch {
            // No thread: not found, as would be any that waits for this one.
            var work: Work? = first
            while let current = work {
                work = finish(current)
                current.found(current.host, [])
            }
        }
    }

    private func finish(_ work: Work) -> Work? {
        state.withLock { state in
            state.running.remove(work.host)
            return Self.next(&state)
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
internal import Synchronization

/// Which ports of the workspace lead to a JetBrains back end. Its gateway opens hundreds of sessions, so what counts
/// as a JetBrains connection is a forward to the port of such a process. agent.md §6.
final class JetBrainsPorts: Sendable {
    /// 10 s that an answer holds: an editor opens many forwards to one port at a time.
    private static let memoryNanoseconds: UInt64 = 10_000_000_000
    /// Look-ups at once; who comes then is not counted.
    private static let lookupLimit = 4
    /// Ports that are remembered.
    private static let memoryLimit = 1_024

    private struct State {
        var known: [UInt16: (isJetBrains: Bool, at: UInt64)] = [:]
        var lookups = 0
    }

    private let state = Mutex(State())

    /// Tells whether `port` is one, at once or from another thread.
    func look(at port: UInt16, _ tell: @escaping @Sendable (Bool) -> Void) {
        let now = Clock.monotonicNanoseconds()
        let (answer, looks) = state.withLock { state -> (Bool?, Bool) in
            if let known = state.known[port], now &- known.at < Self.memoryNanoseconds {
                return (known.isJetBrains, false)
            }
            guard state.lookups < Self.lookupLimit else { return (nil, false) }
            state.lookups += 1
            return (nil, true)
        }
        if let answer { return tell(answer) }
        guard looks else { return }
        do {
            try DedicatedThread(name: "ssh-owner") { [self] in
                let found = Self.isJetBrains(ListeningPort.commandLine(of: port) ?? [])
                state.withLock { state in
                    state.lookups -= 1
                    if state.known.count >= Self.memoryLimit { state.known = [:] }
                    state.known[port] = (found, now)
                }
                tell(found)
            }.detach()
        } catch {
            state.withLock { $0.lookups -= 1 }
        }
    }

    /// A command line as `/proc` gives it: words that end with NUL.
    static func isJetBrains(_ commandLine: [UInt8]) -> Bool {
        let text = String(decoding: commandLine, as: UTF8.self).lowercased()
        return ["idea.vendor.name=jetbrains", "com.jetbrains.toolbox", "remote-dev-server"]
            .contains { text.contains($0) }
    }
}

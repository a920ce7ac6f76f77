// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
internal import Synchronization

/// Names that are being looked up for a thread that does other things meanwhile.
final class FoundNames: Sendable {
    private struct State {
        var waiting: Int
        var found: [(name: String, addresses: [KernelAddress])] = []
    }

    private let state: Mutex<State>

    /// Starts to look these up, each of them different.
    init(_ names: [String], _ lookups: NameLookups) {
        state = Mutex(State(waiting: names.count))
        lookups.start(names) { [self] name, addresses in
            state.withLock { state in
                state.waiting -= 1
                state.found.append((name, addresses))
            }
        }
    }

    /// Whether some name is neither found nor given up.
    var isWaiting: Bool { state.withLock { $0.waiting > 0 } }

    /// What was found since the last call.
    func takeAll() -> [(name: String, addresses: [KernelAddress])] {
        state.withLock { state in
            defer { state.found = [] }
            return state.found
        }
    }
}

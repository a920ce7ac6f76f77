// SPDX-License-Identifier: Apache-2.0

internal import Synchronization

/// Which connections listen on which ports of the workspace. A client that was killed looks like one whose lid is
/// closed, and its connection lives on for hours: when its successor asks for the same port, it gets it.
final class ForwardOwners: Sendable {
    private let ports = Mutex<[UInt32: [ConnectionControl]]>([:])

    func add(_ port: UInt32, _ owner: ConnectionControl) {
        ports.withLock { $0[port, default: []].append(owner) }
    }

    /// Once for each `add`.
    func remove(_ port: UInt32, _ owner: ConnectionControl) {
        ports.withLock { ports in
            guard let index = ports[port]?.firstIndex(where: { $0 === owner }) else { return }
            ports[port]?.remove(at: index)
            if ports[port]?.isEmpty == true { ports[port] = nil }
        }
    }

    /// Tells the owners that cannot be reached now to let go of a port. False: there are none.
    func reclaim(_ port: UInt32) -> Bool {
        let owners = ports.withLock { $0[port] ?? [] }.filter { !$0.isReachable() }
        for owner in owners { owner.reclaim(port) }
        return !owners.isEmpty
    }
}

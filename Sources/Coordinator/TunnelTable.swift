// SPDX-License-Identifier: Apache-2.0

internal import RPC

/// Tunnels by source and by destination. Answers in ascending order, so that runs repeat.
struct TunnelTable: Sendable {
    private var bySource: [RawUUID: Set<RawUUID>] = [:]
    private var byDestination: [RawUUID: Set<RawUUID>] = [:]

    private(set) var count = 0

    /// Adds a tunnel; false when the source has too many.
    mutating func add(from source: RawUUID, to destination: RawUUID, limit: Int) -> Bool {
        guard bySource[source]?.contains(destination) != true else { return true }
        guard bySource[source]?.count ?? 0 < limit else { return false }
        bySource[source, default: []].insert(destination)
        byDestination[destination, default: []].insert(source)
        count += 1
        return true
    }

    /// Whether there was such a tunnel.
    mutating func remove(from source: RawUUID, to destination: RawUUID) -> Bool {
        guard bySource[source]?.remove(destination) != nil else { return false }
        byDestination[destination]?.remove(source)
        if bySource[source]?.isEmpty == true { bySource[source] = nil }
        if byDestination[destination]?.isEmpty == true { byDestination[destination] = nil }
        count -= 1
        return true
    }

    /// Removes all tunnels that start at `source`.
    mutating func removeAll(from source: RawUUID) {
        for destination in bySource[source] ?? [] { _ = remove(from: source, to: destination) }
    }

    /// Both ends of tunnels with `id`, in either direction.
    func partners(of id: RawUUID) -> [RawUUID] {
        (bySource[id] ?? []).union(byDestination[id] ?? []).sorted()
    }

    func arePartners(_ a: RawUUID, _ b: RawUUID) -> Bool {
        bySource[a]?.contains(b) == true || bySource[b]?.contains(a) == true
    }
}

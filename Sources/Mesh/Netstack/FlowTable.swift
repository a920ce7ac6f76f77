// SPDX-License-Identifier: Apache-2.0

/// Finds a connection by its four corners: open addressing with linear probing over slot numbers, hashed with the
/// stack's key, so that a peer cannot choose ports that collide.
struct FlowTable {
    private struct Entry {
        var local: SocketAddress
        var remote: SocketAddress
        /// Low half of the hash: the home position.
        var hash: UInt32
        var slot: UInt32
    }

    private static let purpose: UInt64 = 1
    private static let empty = UInt32.max
    /// Index into `entries`, or `empty`. Size is a power of two, at most half full.
    private var table: [UInt32]
    private var entries: [Entry] = []
    /// Index of the entry that was found last. Only a hint.
    private var recent = 0
    private let key: KeyedHash

    init(key: KeyedHash) {
        self.key = key
        table = Array(repeating: Self.empty, count: 64)
    }

    var count: Int { entries.count }

    private func hash(_ local: SocketAddress, _ remote: SocketAddress) -> UInt32 {
        UInt32(truncatingIfNeeded: key.hash(local, remote, purpose: Self.purpose))
    }

    /// The slot of this connection.
    @inline(__always)
    mutating func find(_ local: SocketAddress, _ remote: SocketAddress) -> UInt32? {
        // Bursts come from one connection: look where the last one was before hashing.
        if recent < entries.count, entries[recent].remote == remote, entries[recent].local == local {
            return entries[recent].slot
        }
        guard let at = position(local, remote, hash(local, remote)) else { return nil }
        recent = Int(table[at])
        return entries[recent].slot
    }

    private func position(_ local: SocketAddress, _ remote: SocketAddress, _ hash: UInt32) -> Int? {
        let mask = table.count - 1
        var at = Int(hash) & mask
        while table[at] != Self.empty {
            let entry = entries[Int(table[at])]
            if entry.hash == hash, entry.remote == remote, entry.local == local { return at }
            at = (at + 1) & mask
        }
        return nil
    }

    /// Adds a connection that is not yet in the table.
    mutating func insert(_ local: SocketAddress, _ remote: SocketAddress, slot: UInt32) {
        entries.append(Entry(local: local, remote: remote, hash: hash(local, remote), slot: slot))
        if entries.count * 2 > table.count {
            table = Array(repeating: Self.empty, count: table.count * 2)
            for index in entries.indices { link(index) }
        } else {
            link(entries.count - 1)
        }
    }

    private mutating func link(_ index: Int) {
        let mask = table.count - 1
        var at = Int(entries[index].hash) & mask
        while table[at] != Self.empty { at = (at + 1) & mask }
        table[at] = UInt32(truncatingIfNeeded: index)
    }

    /// Removes a connection if it is the one in `slot`.
    mutating func remove(_ local: SocketAddress, _ remote: SocketAddress, slot: UInt32) {
        guard let found = position(local, remote, hash(local, remote)) else { return }
        let index = Int(table[found])
        guard entries[index].slot == slot else { return }
        unlink(found)
        // The last entry takes the freed place.
        let last = entries.count - 1
        if index != last {
            let moved = entries[last]
            if let at = position(moved.local, moved.remote, moved.hash) {
                table[at] = UInt32(truncatingIfNeeded: index)
            }
            entries[index] = moved
        }
        entries.removeLast()
    }

    /// Closes the gap so that probing never stops early.
    private mutating func unlink(_ found: Int) {
        let mask = table.count - 1
        var hole = found
        var at = (found + 1) & mask
        while table[at] != Self.empty {
            let home = Int(entries[Int(table[at])].hash) & mask
            if (at - home) & mask >= (at - hole) & mask {
                table[hole] = table[at]
                hole = at
            }
            at = (at + 1) & mask
        }
        table[hole] = Self.empty
    }
}

// SPDX-License-Identifier: Apache-2.0

extension WireGuard {
    /// From the random indices that we gave to handshakes and sessions to the peer they belong to. Open
    /// addressing without tombstones, at most half full. The keys are our own random numbers, so their low
    /// bits are the hash and nobody else can make them collide.
    struct IndexTable {
        /// What an index stands for.
        struct Entry {
            fileprivate(set) var index: UInt32
            fileprivate(set) var slot: UInt32
            /// The session; nil while the index belongs to an initiation of ours.
            let pair: UnsafeOwned<KeyPair>?
        }

        private var entries: [Entry]
        private(set) var count = 0

        private static var empty: Entry { Entry(index: 0, slot: .max, pair: nil) }

        init() { entries = Array(repeating: Self.empty, count: 16) }

        @inline(__always)
        private var mask: Int { entries.count &- 1 }

        /// What the index stands for; nil for an index that we did not give out.
        @inline(__always)
        func find(_ index: UInt32) -> Entry? {
            var place = Int(index) & mask
            while entries[place].slot != .max {
                if entries[place].index == index { return entries[place] }
                place = (place &+ 1) & mask
            }
            return nil
        }

        /// Enters an index that is not in the table yet.
        mutating func insert(_ index: UInt32, slot: UInt32, pair: UnsafeOwned<KeyPair>?) {
            precondition(slot != .max, "the last slot number marks empty entries")
            if (count + 1) * 2 > entries.count { grow() }
            place(Entry(index: index, slot: slot, pair: pair))
            count += 1
        }

        private mutating func place(_ entry: Entry) {
            var place = Int(entry.index) & mask
            while entries[place].slot != .max {
                assert(entries[place].index != entry.index, "indices are unique")
                place = (place + 1) & mask
            }
            entries[place] = entry
        }

        private mutating func grow() {
            let old = entries
            entries = Array(repeating: Self.empty, count: old.count * 2)
            for entry in old where entry.slot != .max { place(entry) }
        }

        /// Forgets an index, and moves later entries of its run back so that they stay reachable.
        mutating func remove(_ index: UInt32) {
            var hole = Int(index) & mask
            while entries[hole].slot == .max || entries[hole].index != index {
                guard entries[hole].slot != .max else { return }
                hole = (hole + 1) & mask
            }
            count -= 1
            var next = hole
            while true {
                next = (next + 1) & mask
                guard entries[next].slot != .max else { break }
                let home = Int(entries[next].index) & mask
                if (next - home) & mask >= (next - hole) & mask {
                    entries[hole] = entries[next]
                    hole = next
                }
            }
            entries[hole] = Self.empty
        }
    }
}

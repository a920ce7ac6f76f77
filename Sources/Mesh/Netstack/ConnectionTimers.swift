// SPDX-License-Identifier: Apache-2.0

/// One deadline per connection slot in a binary heap with positions, so that it can be moved. Moving a deadline
/// later is left to the moment it fires: an ACK that re-arms the retransmission timer costs one comparison.
struct ConnectionTimers {
    private var heap: [UInt32] = []
    private var deadline: [Instant] = []
    private var position: [Int32] = []

    /// The earliest deadline.
    var first: Instant { heap.isEmpty ? .never : deadline[Int(heap[0])] }

    /// Makes sure that `slot` fires no later than `moment`.
    @inline(__always)
    mutating func schedule(_ slot: UInt32, _ moment: Instant) {
        guard moment != .never else { return }
        let index = Int(slot)
        if index < position.count, position[index] >= 0, deadline[index] <= moment { return }
        insert(slot, moment)
    }

    private mutating func insert(_ slot: UInt32, _ moment: Instant) {
        let index = Int(slot)
        while position.count <= index {
            position.append(-1)
            deadline.append(.never)
        }
        deadline[index] = moment
        if position[index] < 0 {
            position[index] = Int32(truncatingIfNeeded: heap.count)
            heap.append(slot)
        }
        siftUp(Int(position[index]))
    }

    /// Takes out a slot whose deadline has come.
    mutating func popDue(_ now: Instant) -> UInt32? {
        guard let slot = heap.first, deadline[Int(slot)] <= now else { return nil }
        remove(slot)
        return slot
    }

    /// Forgets the slot's deadline.
    mutating func remove(_ slot: UInt32) {
        let index = Int(slot)
        guard index < position.count, position[index] >= 0 else { return }
        let at = Int(position[index])
        position[index] = -1
        let last = heap.removeLast()
        guard at < heap.count else { return }
        heap[at] = last
        position[Int(last)] = Int32(truncatingIfNeeded: at)
        siftUp(at)
        siftDown(Int(position[Int(last)]))
    }

    private mutating func siftUp(_ start: Int) {
        var at = start
        while at > 0 {
            let parent = (at - 1) / 2
            guard deadline[Int(heap[at])] < deadline[Int(heap[parent])] else { return }
            swap(at, parent)
            at = parent
        }
    }

    private mutating func siftDown(_ start: Int) {
        var at = start
        while true {
            var least = at
            for child in [2 * at + 1, 2 * at + 2] where child < heap.count {
                if deadline[Int(heap[child])] < deadline[Int(heap[least])] { least = child }
            }
            guard least != at else { return }
            swap(at, least)
            at = least
        }
    }

    private mutating func swap(_ a: Int, _ b: Int) {
        heap.swapAt(a, b)
        position[Int(heap[a])] = Int32(truncatingIfNeeded: a)
        position[Int(heap[b])] = Int32(truncatingIfNeeded: b)
    }
}

// SPDX-License-Identifier: Apache-2.0

extension WireGuard {
    /// The next deadline of each peer slot, earliest first: a binary heap with the place of each slot noted.
    /// Asking for the earliest is one load; peers without a deadline are not in it.
    package struct TimerHeap: Sendable {
        private var heap: [(at: Instant, slot: UInt32)] = []
        private var places: [Int32] = []

        /// No deadlines.
        package init() {}

        /// Earliest deadline of all.
        package var first: (at: Instant, slot: UInt32)? { heap.first }

        /// When the slot is due; `never` when it has no deadline.
        package func deadline(of slot: UInt32) -> Instant {
            let slot = Int(slot)
            guard slot < places.count, places[slot] >= 0 else { return .never }
            return heap[Int(places[slot])].at
        }

        /// Sets the slot's deadline; `never` takes it out.
        package mutating func set(_ slot: UInt32, to at: Instant) {
            while places.count <= Int(slot) { places.append(-1) }
            let place = Int(places[Int(slot)])
            if at == .never {
                if place >= 0 { remove(place) }
            } else if place < 0 {
                heap.append((at, slot))
                places[Int(slot)] = Int32(heap.count - 1)
                rise(heap.count - 1)
            } else {
                let isEarlier = at < heap[place].at
                heap[place].at = at
                if isEarlier { rise(place) } else { sink(place) }
            }
        }

        private mutating func remove(_ place: Int) {
            places[Int(heap[place].slot)] = -1
            let last = heap.removeLast()
            guard place < heap.count else { return }
            heap[place] = last
            places[Int(last.slot)] = Int32(place)
            rise(place)
            sink(Int(places[Int(last.slot)]))
        }

        private mutating func rise(_ start: Int) {
            var place = start
            while place > 0 {
                let parent = (place - 1) / 2
                guard heap[place].at < heap[parent].at else { return }
                exchange(place, parent)
                place = parent
            }
        }

        private mutating func sink(_ start: Int) {
            var place = start
            while true {
                var least = place
                for child in (2 * place + 1)...(2 * place + 2)
                where child < heap.count && heap[child].at < heap[least].at { least = child }
                guard least != place else { return }
                exchange(place, least)
                place = least
            }
        }

        private mutating func exchange(_ a: Int, _ b: Int) {
            heap.swapAt(a, b)
            places[Int(heap[a].slot)] = Int32(a)
            places[Int(heap[b].slot)] = Int32(b)
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

/// A first-in-first-out list of connection slots in which each slot stands at most once, linked through one array,
/// so that it never grows beyond the number of connections.
struct SlotQueue {
    private static let absent = UInt32.max
    private static let end = UInt32.max - 1
    private var next: [UInt32] = []
    private var head = SlotQueue.end
    private var tail = SlotQueue.end

    var isEmpty: Bool { head == Self.end }

    /// The slot whose turn it is.
    var first: UInt32? { head == Self.end ? nil : head }

    func contains(_ slot: UInt32) -> Bool { Int(slot) < next.count && next[Int(slot)] != Self.absent }

    /// Puts `slot` at the end unless it stands in the list already. Returns whether it was put.
    @inline(__always) @discardableResult
    mutating func append(_ slot: UInt32) -> Bool {
        let index = Int(slot)
        while next.count <= index { next.append(Self.absent) }
        guard next[index] == Self.absent else { return false }
        next[index] = Self.end
        if tail == Self.end { head = slot } else { next[Int(tail)] = slot }
        tail = slot
        return true
    }

    /// Takes the first slot.
    @inline(__always) @discardableResult
    mutating func popFirst() -> UInt32? {
        guard head != Self.end else { return nil }
        let slot = head
        head = next[Int(slot)]
        if head == Self.end { tail = Self.end }
        next[Int(slot)] = Self.absent
        return slot
    }
}

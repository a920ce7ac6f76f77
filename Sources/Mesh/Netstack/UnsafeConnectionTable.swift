// SPDX-License-Identifier: Apache-2.0

/// Slots for connections at addresses that never move, in chunks, so that growing copies nothing. A slot is used
/// again after `release`; its generation tells old names from new ones.
@safe struct UnsafeConnectionTable: ~Copyable {
    private static let chunkSize = 64

    private var chunks: [UnsafeMutablePointer<Connection>]
    private var free: [UInt32] = []
    private(set) var used = 0
    let limit: Int

    init(limit: Int) {
        self.limit = limit
        unsafe chunks = []
    }

    deinit {
        for index in unsafe chunks.indices {
            unsafe chunks[index].deinitialize(count: Self.chunkSize)
            unsafe chunks[index].deallocate()
        }
    }

    /// Slots that exist, used or free.
    var capacity: Int { unsafe chunks.count * Self.chunkSize }

    /// The connection in `slot`, which must exist.
    subscript(slot: UInt32) -> Connection {
        unsafeAddress {
            precondition(Int(slot) < capacity, "no such slot")
            return unsafe UnsafePointer(chunks[Int(slot) / Self.chunkSize] + Int(slot) % Self.chunkSize)
        }
        unsafeMutableAddress {
            precondition(Int(slot) < capacity, "no such slot")
            return unsafe chunks[Int(slot) / Self.chunkSize] + Int(slot) % Self.chunkSize
        }
    }

    /// A free slot; nil when the table is full.
    mutating func take() -> UInt32? {
        guard used < limit else { return nil }
        if free.isEmpty { grow() }
        guard let slot = free.popLast() else { return nil }
        used += 1
        return slot
    }

    /// Gives a slot back. Its connection must be closed.
    mutating func release(_ slot: UInt32) {
        used -= 1
        free.append(slot)
    }

    private mutating func grow() {
        let chunk = UnsafeMutablePointer<Connection>.allocate(capacity: Self.chunkSize)
        let first = capacity
        for index in 0..<Self.chunkSize {
            unsafe (chunk + index).initialize(to: Connection(slot: UInt32(truncatingIfNeeded: first + index)))
        }
        unsafe chunks.append(chunk)
        for index in (0..<Self.chunkSize).reversed() {
            free.append(UInt32(truncatingIfNeeded: first + index))
        }
    }
}

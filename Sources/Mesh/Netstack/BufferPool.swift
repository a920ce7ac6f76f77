// SPDX-License-Identifier: Apache-2.0

/// Memory of all send and receive rings of one stack: powers of two from 4 KiB to 16 MiB, counted against one
/// limit. Some freed blocks are kept for the next user.
@safe struct BufferPool: ~Copyable {
    /// Smallest block, 4 KiB.
    static let smallest = 4_096
    private static let classes = 13

    private var free: [[UnsafeMutableRawPointer]]
    private(set) var used = 0
    private var retained = 0
    private let limit: Int
    private let retainLimit: Int

    init(limit: Int, retainLimit: Int) {
        self.limit = limit
        self.retainLimit = retainLimit
        unsafe free = Array(repeating: [], count: Self.classes)
    }

    deinit {
        for index in 0..<Self.classes { unsafe free[index].forEach { unsafe $0.deallocate() } }
    }

    /// Bytes up to the limit.
    var available: Int { max(0, limit - used) }

    /// The block size that holds `count` bytes.
    static func blockSize(_ count: Int) -> Int {
        guard count > smallest else { return smallest }
        return 1 << (Int.bitWidth - (count - 1).leadingZeroBitCount)
    }

    private static func sizeClass(_ size: Int) -> Int {
        size.trailingZeroBitCount - smallest.trailingZeroBitCount
    }

    /// A block of exactly `size` bytes, a power of two; nil when the limit is reached and it is not the smallest.
    mutating func take(_ size: Int) -> UnsafeMutableRawPointer? {
        let index = Self.sizeClass(size)
        precondition(index >= 0 && index < Self.classes, "no such block size")
        // The smallest block is always given, so that no connection is stuck for ever; their number is bounded.
        guard used + size <= limit || size == Self.smallest else { return nil }
        used += size
        if let block = unsafe free[index].popLast() {
            retained -= size
            return unsafe block
        }
        return UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 64)
    }

    /// Gives a block back.
    mutating func give(_ block: UnsafeMutableRawPointer, _ size: Int) {
        used -= size
        if retained + size <= retainLimit {
            retained += size
            unsafe free[Self.sizeClass(size)].append(block)
        } else {
            unsafe block.deallocate()
        }
    }
}

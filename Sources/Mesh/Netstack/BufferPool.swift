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
    /// Blocks up to this size are always given, so that no connection is stuck for ever; their number is bounded.
    private(set) var guaranteed = smallest

    init(limit: Int, retainLimit: Int, mtu: Int) {
        self.limit = limit
        self.retainLimit = retainLimit
        guaranteed = Self.blockSize(mtu)
        unsafe free = Array(repeating: [], count: Self.classes)
    }

    deinit {
        for index in 0..<Self.classes { unsafe free[index].forEach { unsafe $0.deallocate() } }
    }

    /// Bytes up to the limit.
    var available: Int { max(0, limit - used) }

    /// One packet must fit into what is always given.
    mutating func setMTU(_ mtu: Int) { guaranteed = Self.blockSize(mtu) }

    /// The largest block that can be had now in exchange for one of `size` bytes.
    @inline(__always) func reach(from size: Int) -> Int {
        let left = available
        return max(size, guaranteed, left == 0 ? 0 : 1 << (Int.bitWidth - 1 - left.leadingZeroBitCount))
    }

    /// The block size that holds `count` bytes.
    static func blockSize(_ count: Int) -> Int {
        guard count > smallest else { return smallest }
        return 1 << (Int.bitWidth - (count - 1).leadingZeroBitCount)
    }

    private static func sizeClass(_ size: Int) -> Int {
        size.trailingZeroBitCount - smallest.trailingZeroBitCount
    }

    /// A block of exactly `size` bytes, a power of two; nil when the limit is reached and it is more than `guaranteed`.
    mutating func take(_ size: Int) -> UnsafeMutableRawPointer? {
        let index = Self.sizeClass(size)
        precondition(index >= 0 && index < Self.classes, "no such block size")
        guard used + size <= limit || size <= guaranteed else { return nil }
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

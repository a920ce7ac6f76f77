// SPDX-License-Identifier: Apache-2.0

extension WireGuard {
    /// Which of the last counters were seen: RFC 6479 with a ring of 8192 bits, of which 8128 below the
    /// greatest counter count. 1,032 bytes.
    package struct ReplayWindow: Sendable {
        /// How far below the greatest counter a packet may be.
        package static let size: UInt64 = 8128
        private static let blockCount: UInt64 = 128

        private var greatest: UInt64 = 0
        private var ring = InlineArray<128, UInt64>(repeating: 0)

        /// Nothing seen.
        package init() {}

        /// Notes an authenticated counter. False: seen before, or too old to tell.
        @inline(__always)
        package mutating func accept(_ counter: UInt64) -> Bool {
            let block = counter >> 6
            if counter > greatest {
                var stale = greatest >> 6
                if block - stale >= Self.blockCount { stale = block - Self.blockCount }
                while stale < block {
                    stale += 1
                    ring[Int(stale & (Self.blockCount - 1))] = 0
                }
                greatest = counter
            } else if greatest - counter > Self.size {
                return false
            }
            let slot = Int(block & (Self.blockCount - 1))
            let bit: UInt64 = 1 &<< (counter & 63)
            let isNew = ring[slot] & bit == 0
            ring[slot] |= bit
            return isNew
        }
    }
}

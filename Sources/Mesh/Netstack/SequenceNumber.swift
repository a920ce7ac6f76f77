// SPDX-License-Identifier: Apache-2.0

/// A TCP sequence number: 32 bits that wrap. Two of them are compared by their signed distance, which is right as
/// long as they are less than 2 GiB apart (windows are at most 1 GiB), and so is wrapping arithmetic (`&+`) here:
/// overflow is how these numbers work (RFC 9293 §3.4). Not `Comparable`: the order is not transitive.
package struct SequenceNumber: Hashable, Sendable {
    package var raw: UInt32

    @inline(__always) package init(_ raw: UInt32) { self.raw = raw }

    @inline(__always) static func + (a: SequenceNumber, count: Int) -> SequenceNumber {
        SequenceNumber(a.raw &+ UInt32(truncatingIfNeeded: count))
    }
    @inline(__always) static func - (a: SequenceNumber, count: Int) -> SequenceNumber {
        SequenceNumber(a.raw &- UInt32(truncatingIfNeeded: count))
    }
    /// Signed distance.
    @inline(__always) static func - (a: SequenceNumber, b: SequenceNumber) -> Int {
        Int(Int32(bitPattern: a.raw &- b.raw))
    }
    @inline(__always) static func < (a: SequenceNumber, b: SequenceNumber) -> Bool { a - b < 0 }
    @inline(__always) static func <= (a: SequenceNumber, b: SequenceNumber) -> Bool { a - b <= 0 }
    @inline(__always) static func > (a: SequenceNumber, b: SequenceNumber) -> Bool { a - b > 0 }
    @inline(__always) static func >= (a: SequenceNumber, b: SequenceNumber) -> Bool { a - b >= 0 }
    @inline(__always) static func later(_ a: SequenceNumber, _ b: SequenceNumber) -> SequenceNumber {
        a > b ? a : b
    }
    @inline(__always) static func earlier(_ a: SequenceNumber, _ b: SequenceNumber) -> SequenceNumber {
        a < b ? a : b
    }
}

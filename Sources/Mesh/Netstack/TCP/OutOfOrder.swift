// SPDX-License-Identifier: Apache-2.0

/// Which bytes beyond the first gap have arrived. The bytes themselves lie in the receive ring already.
struct OutOfOrder {
    struct Range {
        var start: SequenceNumber
        var end: SequenceNumber
        /// When it last changed: RFC 2018 §4 wants the newest block first.
        var stamp: UInt32
    }

    /// Disjoint, ascending, never touching.
    private(set) var ranges: [Range] = []
    private var stamp: UInt32 = 0

    var isEmpty: Bool { ranges.isEmpty }

    /// Notes the arrival of `start ..< end`. False when another range would exceed `limit`.
    mutating func insert(_ start: SequenceNumber, _ end: SequenceNumber, limit: Int) -> Bool {
        var low = 0
        while low < ranges.count, ranges[low].end < start { low += 1 }
        var high = low
        var merged = Range(start: start, end: end, stamp: 0)
        while high < ranges.count, ranges[high].start <= end {
            merged.start = .earlier(merged.start, ranges[high].start)
            merged.end = .later(merged.end, ranges[high].end)
            high += 1
        }
        guard high > low || ranges.count < limit else { return false }
        stamp &+= 1
        merged.stamp = stamp
        ranges.replaceSubrange(low..<high, with: CollectionOfOne(merged))
        return true
    }

    /// Whether all of `start ..< end` is here already.
    func covers(_ start: SequenceNumber, _ end: SequenceNumber) -> Bool {
        ranges.contains { $0.start <= start && end <= $0.end }
    }

    /// The bytes up to `next` have arrived in order. Returns where the data without a gap now ends.
    mutating func advance(to next: SequenceNumber) -> SequenceNumber {
        var end = next
        var count = 0
        while count < ranges.count, ranges[count].start <= end {
            end = .later(end, ranges[count].end)
            count += 1
        }
        if count == ranges.count { ranges = [] } else { ranges.removeFirst(count) }
        return end
    }

    /// Calls `body` with up to `limit` ranges, the newest first.
    func newest(_ limit: Int, _ body: (SequenceNumber, SequenceNumber) -> Void) {
        var before = UInt64.max
        for _ in 0..<min(limit, ranges.count) {
            var best: Range?
            for range in ranges where UInt64(range.stamp) < before {
                if best.map({ range.stamp > $0.stamp }) ?? true { best = range }
            }
            guard let best else { return }
            body(best.start, best.end)
            before = UInt64(best.stamp)
        }
    }

    mutating func removeAll() { ranges = [] }
}

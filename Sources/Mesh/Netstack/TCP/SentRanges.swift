// SPDX-License-Identifier: Apache-2.0

/// What became of bytes that were sent.
enum SentState: UInt8 {
    case inFlight
    /// Reported by SACK; will not be sent again (RFC 2018: kept until acknowledged).
    case sacked
    /// Deemed lost and not yet repeated.
    case lost
}

/// A run of bytes with one history: sent at the same moment, in the same state. A whole burst is one range, cut only
/// where an acknowledgement cuts it.
struct SentRange {
    var start: SequenceNumber
    var end: SequenceNumber
    var sentAt: Instant
    var state: SentState
    var retransmitted: Bool

    var length: Int { end - start }
}

/// The retransmission scoreboard: ascending, adjacent ranges from the oldest unacknowledged to the newest sent byte.
struct SentRanges {
    /// A burst longer than this starts a new range.
    private static let mergeLimit = 64 << 10

    private var items: [SentRange] = []
    private var head = 0
    private(set) var inFlightBytes = 0
    private(set) var sackedBytes = 0
    private(set) var lostBytes = 0

    var isEmpty: Bool { head == items.count }
    var count: Int { items.count - head }
    var first: SentRange? { isEmpty ? nil : items[head] }
    var last: SentRange? { items.last }

    subscript(index: Int) -> SentRange { items[head + index] }

    private mutating func account(_ state: SentState, _ delta: Int) {
        switch state {
        case .inFlight: inFlightBytes += delta
        case .sacked: sackedBytes += delta
        case .lost: lostBytes += delta
        }
    }

    /// Notes new bytes.
    @inline(__always)
    mutating func append(_ start: SequenceNumber, _ end: SequenceNumber, now: Instant) {
        inFlightBytes += end - start
        let last = items.count - 1
        if last >= head, items[last].sentAt == now, items[last].state == .inFlight,
            !items[last].retransmitted,
            items[last].end == start, end - items[last].start <= Self.mergeLimit
        {
            items[last].end = end
        } else {
            items.append(
                SentRange(start: start, end: end, sentAt: now, state: .inFlight, retransmitted: false))
        }
    }

    /// Drops everything below `ack` and calls `body` with each dropped piece.
    @inline(__always)
    mutating func acknowledge(_ ack: SequenceNumber, _ body: (SentRange) -> Void) {
        while head < items.count, items[head].start < ack {
            var piece = items[head]
            if piece.end > ack {
                piece.end = ack
                items[head].start = ack
            } else {
                head += 1
            }
            account(piece.state, -piece.length)
            body(piece)
        }
        if head == items.count {
            items.removeAll(keepingCapacity: items.capacity <= 16)
            head = 0
        } else if head >= 64, head * 2 >= items.count {
            items.removeFirst(head)
            head = 0
        }
    }

    /// Index of the range that contains `number`, or `count`.
    func index(of number: SequenceNumber) -> Int {
        var low = head
        var high = items.count
        while low < high {
            let middle = (low + high) / 2
            if items[middle].end <= number { low = middle + 1 } else { high = middle }
        }
        return low - head
    }

    /// Cuts the range that contains `number` so that one starts there. False if `limit` forbids.
    private mutating func split(at number: SequenceNumber, limit: Int) -> Bool {
        let index = head + index(of: number)
        guard index < items.count, items[index].start < number else { return true }
        guard count < limit else { return false }
        var upper = items[index]
        upper.start = number
        items[index].end = number
        items.insert(upper, at: index + 1)
        return true
    }

    /// Marks `start ..< end` as arrived and calls `body` with each piece that was not marked before.
    mutating func sack(
        _ start: SequenceNumber, _ end: SequenceNumber, limit: Int, _ body: (SentRange) -> Void
    ) {
        guard split(at: start, limit: limit), split(at: end, limit: limit) else { return }
        var index = head + index(of: start)
        while index < items.count, items[index].start < end {
            if items[index].state != .sacked {
                body(items[index])
                account(items[index].state, -items[index].length)
                items[index].state = .sacked
                sackedBytes += items[index].length
            }
            index += 1
        }
    }

    /// Marks ranges lost for which `isLost` says so; asked only for ranges in flight. Returns the bytes.
    mutating func markLost(_ isLost: (SentRange) -> Bool) -> Int {
        let before = lostBytes
        for index in head..<items.count where items[index].state == .inFlight {
            guard isLost(items[index]) else { continue }
            items[index].state = .lost
            inFlightBytes -= items[index].length
            lostBytes += items[index].length
        }
        return lostBytes - before
    }

    /// Marks up to `bytes` of the oldest range lost (loss recovery without SACK).
    mutating func markFirstLost(_ bytes: Int) -> Int {
        guard let first, first.state == .inFlight else { return 0 }
        guard split(at: first.start + min(bytes, first.length), limit: .max) else { return 0 }
        let piece = items[head]
        items[head].state = .lost
        inFlightBytes -= piece.length
        lostBytes += piece.length
        return piece.length
    }

    /// Takes back every loss (the retransmission was needless).
    mutating func unmarkLost() {
        for index in head..<items.count where items[index].state == .lost {
            items[index].state = .inFlight
            inFlightBytes += items[index].length
            lostBytes -= items[index].length
        }
    }

    /// RFC 6675 §5.1 and RFC 2018 §8: after a time-out the receiver may have thrown SACKed bytes away.
    mutating func forgetSacks() {
        for index in head..<items.count where items[index].state == .sacked {
            items[index].state = .inFlight
        }
        inFlightBytes += sackedBytes
        sackedBytes = 0
    }

    /// The oldest lost range.
    var firstLost: SentRange? {
        guard lostBytes > 0 else { return nil }
        return items[head...].first { $0.state == .lost }
    }

    /// The first `bytes` of the lost range at `start` are on their way again.
    mutating func retransmitted(_ start: SequenceNumber, _ bytes: Int, now: Instant) {
        guard split(at: start, limit: .max), split(at: start + bytes, limit: .max) else { return }
        var index = head + index(of: start)
        while index < items.count, items[index].start < start + bytes {
            account(items[index].state, -items[index].length)
            items[index].state = .inFlight
            items[index].sentAt = now
            items[index].retransmitted = true
            inFlightBytes += items[index].length
            index += 1
        }
    }

    mutating func removeAll() { self = SentRanges() }
}

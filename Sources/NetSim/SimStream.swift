// SPDX-License-Identifier: Apache-2.0

internal import Mesh

/// One direction of a session: numbered segments at a steady rate, acknowledged, repeated after a time-out that doubles
/// and after three newer ones got through. Simpler than the real stack, and no faster to recover.
struct SimStream {
    private struct Sent {
        var number: UInt32
        var at: Instant
        var first: Instant
        var newerAcknowledged = 0
    }

    /// A segment or an acknowledgement on the wire.
    struct Segment: Hashable {
        var session: Int
        var number: UInt32
        /// Next number that is wanted; nil for data.
        var acknowledges: UInt32?
    }

    static let period = Interval.milliseconds(20)
    private static let window = 256
    private static let shortestTimeout = Interval.milliseconds(200)

    // Sender.
    private var nextNumber: UInt32 = 0
    private var unacknowledged: [Sent] = []
    private var timeout = Self.shortestTimeout
    private(set) var timeoutAt = Instant.never
    private(set) var lastHeard = Instant(nanoseconds: 0)
    // Receiver.
    private(set) var wanted: UInt32 = 0
    private var early: Set<UInt32> = []
    private(set) var lastProgress: Instant?

    /// How old the oldest segment is that was not acknowledged.
    func oldest(now: Instant) -> Interval { unacknowledged.first.map { now.since($0.first) } ?? .zero }

    mutating func next(now: Instant) -> UInt32? {
        guard unacknowledged.count < Self.window else { return nil }
        let number = nextNumber
        nextNumber += 1
        unacknowledged.append(Sent(number: number, at: now, first: now))
        if timeoutAt == .never { timeoutAt = now + timeout }
        return number
    }

    /// The path failed a moment ago: the oldest segment goes again at once.
    mutating func repeatLost(now: Instant) -> UInt32? {
        guard let first = unacknowledged.first else { return nil }
        timeoutAt = now + timeout
        unacknowledged[0].at = now
        return first.number
    }

    /// Segments to send again now.
    mutating func handleTimeout(now: Instant) -> UInt32? {
        guard now >= timeoutAt, let first = unacknowledged.first else { return nil }
        timeout = min(timeout * 2, .seconds(10))
        timeoutAt = now + timeout
        unacknowledged[0].at = now
        return first.number
    }

    /// Takes an acknowledgement of everything before `next`, sent because `got` arrived. Returns what to repeat.
    mutating func acknowledged(_ next: UInt32, got: UInt32, now: Instant) -> [UInt32] {
        lastHeard = now
        let before = unacknowledged.count
        unacknowledged.removeAll { $0.number < next || $0.number == got }
        guard unacknowledged.count < before else { return [] }
        timeout = Self.shortestTimeout
        timeoutAt = unacknowledged.isEmpty ? .never : now + timeout
        var repeated: [UInt32] = []
        for index in unacknowledged.indices {
            guard unacknowledged[index].number < got else { break }
            unacknowledged[index].newerAcknowledged += 1
            if unacknowledged[index].newerAcknowledged == 3 {
                unacknowledged[index].newerAcknowledged = 0
                unacknowledged[index].at = now
                repeated.append(unacknowledged[index].number)
            }
        }
        return repeated
    }

    /// Takes a segment; returns how long the stream stood still when this ends it.
    mutating func received(_ number: UInt32, now: Instant) -> Interval? {
        guard number >= wanted, early.count < 1_024 else { return nil }
        early.insert(number)
        guard early.contains(wanted) else { return nil }
        while early.remove(wanted) != nil { wanted += 1 }
        defer { lastProgress = now }
        return lastProgress.map { now.since($0) }
    }
}

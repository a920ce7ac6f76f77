// SPDX-License-Identifier: Apache-2.0

internal import DequeModule

/// Frames that were sent before the relay's key was known. Bounded by bytes and, when they leave, by age.
struct EarlyFrames: Sendable {
    private struct Frame {
        /// Nil: of no age.
        var at: Instant?
        var isUrgent: Bool
        var bytes: [UInt8]
    }

    private var frames = Deque<Frame>()
    private var byteCount = 0

    /// Keeps a frame. When there are more than `limit` bytes the oldest data goes first, then the oldest of all;
    /// returns how many went.
    mutating func keep(_ bytes: [UInt8], isUrgent: Bool, at: Instant?, limit: Int) -> Int {
        var dropped = 0
        while byteCount + bytes.count > limit, !frames.isEmpty {
            let oldest = frames.firstIndex { !$0.isUrgent } ?? 0
            byteCount -= frames.remove(at: oldest).bytes.count
            dropped += 1
        }
        byteCount += bytes.count
        frames.append(Frame(at: at, isUrgent: isUrgent, bytes: bytes))
        return dropped
    }

    /// Takes all out in the order in which they leave: the newest handshakes and discovery first, then data in its
    /// order; and says how many were too old.
    mutating func release(
        urgentAge: Interval, dataAge: Interval, now: Instant
    ) -> (frames: [[UInt8]], dropped: Int) {
        let all = Array(frames)
        frames = []
        byteCount = 0
        let ordered = all.reversed().filter(\.isUrgent) + all.filter { !$0.isUrgent }
        let fresh = ordered.filter { frame in
            frame.at.map { now.since($0) <= (frame.isUrgent ? urgentAge : dataAge) } ?? true
        }
        return (fresh.map(\.bytes), ordered.count - fresh.count)
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import Mesh

/// Pauses between attempts: doubled each time up to a limit, each shortened by a random part so that a thousand
/// clients of a restarted server do not return at the same moment.
public struct Backoff: Sendable {
    private let first: Duration
    private let limit: Duration
    private var current: Duration
    private var generator: SeededGenerator

    /// Pauses from `first` to `limit`.
    public init(from first: Duration, to limit: Duration, seed: UInt64) {
        self.first = first
        self.limit = limit
        current = first
        generator = SeededGenerator(seed: seed)
    }

    /// The next pause: between half of it and all of it.
    public mutating func next() -> Duration {
        let pause = current
        current = min(current * 2, limit)
        return pause * Double.random(in: 0.5...1, using: &generator)
    }

    /// Starts over, after something worked.
    public mutating func reset() { current = first }
}

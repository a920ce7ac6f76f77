// SPDX-License-Identifier: Apache-2.0

/// A fast, reproducible source of numbers (xoshiro256++): simulators, jitter and tests. Never for keys or nonces,
/// which shells take from the system.
public struct SeededGenerator: RandomNumberGenerator, Sendable {
    private var state: (UInt64, UInt64, UInt64, UInt64)

    /// Any seed is good, also 0.
    public init(seed: UInt64) {
        var mix = seed
        func next() -> UInt64 {  // SplitMix64, as xoshiro's authors advise for seeding
            mix &+= 0x9e37_79b9_7f4a_7c15
            var z = mix
            z = (z ^ z >> 30) &* 0xbf58_476d_1ce4_e5b9
            z = (z ^ z >> 27) &* 0x94d0_49bb_1331_11eb
            return z ^ z >> 31
        }
        state = (next(), next(), next(), next())
    }

    public mutating func next() -> UInt64 {
        let sum = state.0 &+ state.3
        let result = (sum << 23 | sum >> 41) &+ state.0
        let shifted = state.1 << 17
        state.2 ^= state.0
        state.3 ^= state.1
        state.1 ^= state.2
        state.0 ^= state.3
        state.2 ^= shifted
        state.3 = state.3 << 45 | state.3 >> 19
        return result
    }
}

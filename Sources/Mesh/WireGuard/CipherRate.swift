// SPDX-License-Identifier: Apache-2.0

extension WireGuard {
    /// What one core seals and opens with a back end, packet by packet in bursts of 64, each with a fresh nonce.
    package struct CipherRate: Sendable {
        private static let packets = 64
        private static let stride = 2_048

        /// Name of the back end.
        package let backEnd: String
        /// Bytes of a packet.
        package let length: Int
        /// Best time of a packet.
        package private(set) var sealNanoseconds = Double.infinity
        /// Best time of a packet.
        package private(set) var openNanoseconds = Double.infinity

        /// Every back end of this machine at every length (at most 1,984 bytes), with the best of `rounds`
        /// bursts. `clock` tells nanoseconds.
        package static func measure(lengths: [Int], rounds: Int, clock: () -> UInt64) -> [CipherRate] {
            PacketCipher.BackEnd.allCases.flatMap { backEnd in
                lengths.map { measure(backEnd, length: $0, rounds: rounds, clock: clock) }
            }
        }

        private static func measure(
            _ backEnd: PacketCipher.BackEnd, length: Int, rounds: Int, clock: () -> UInt64
        ) -> CipherRate {
            precondition((0...1_984).contains(length), "packets that do not overlap")
            let cipher = PacketCipher(backEnd)
            var rate = CipherRate(backEnd: backEnd.rawValue, length: length)
            var memory = [UInt8](repeating: 7, count: packets * stride)
            unsafe memory.withUnsafeMutableBytes { memory in
                let base = memory.baseAddress!
                for round in 0..<rounds {
                    let first = UInt64(round * packets)
                    let begin = clock()
                    for packet in 0..<packets {
                        unsafe cipher.seal(
                            base + packet * stride, length: length, counter: first + UInt64(packet))
                    }
                    let middle = clock()
                    for packet in 0..<packets {
                        let isRight = unsafe cipher.open(
                            base + packet * stride, length: length, counter: first + UInt64(packet))
                        precondition(isRight, "what was sealed opens")
                    }
                    rate.note(seal: middle - begin, open: clock() - middle)
                }
            }
            return rate
        }

        private init(backEnd: String, length: Int) {
            self.backEnd = backEnd
            self.length = length
        }

        private mutating func note(seal: UInt64, open: UInt64) {
            sealNanoseconds = min(sealNanoseconds, Double(seal) / Double(Self.packets))
            openNanoseconds = min(openNanoseconds, Double(open) / Double(Self.packets))
        }
    }
}

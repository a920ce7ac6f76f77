// SPDX-License-Identifier: Apache-2.0

import FoundationEssentials
import LinuxIO
import Mesh
import Testing

/// What one core seals and opens, with every back end that the machine has; run by hand:
/// `WIREGUARD_BENCH=1 swift test -c release --filter CipherBenchmark`.
@Suite(.serialized, .enabled(if: ProcessInfo.processInfo.environment["WIREGUARD_BENCH"] != nil))
struct CipherBenchmark {
    private static let packets = 64

    /// Bursts of 64 packets, each with a fresh nonce; the best of 200.
    @Test(arguments: WireGuard.PacketCipher.BackEnd.allCases, [64, 512, 1_280, 1_420])
    func bursts(_ backEnd: WireGuard.PacketCipher.BackEnd, _ length: Int) {
        let cipher = WireGuard.PacketCipher(backEnd)
        var memory = [UInt8](repeating: 7, count: Self.packets * 2_048)
        var best = (seal: UInt64.max, open: UInt64.max)
        var areRight = true
        memory.withUnsafeMutableBytes { memory in
            let base = memory.baseAddress!
            for round in 0..<200 {
                let counter = UInt64(round * Self.packets)
                let begin = Clock.monotonicNanoseconds()
                for packet in 0..<Self.packets {
                    cipher.seal(base + packet * 2_048, length: length, counter: counter + UInt64(packet))
                }
                let middle = Clock.monotonicNanoseconds()
                for packet in 0..<Self.packets {
                    let counter = counter + UInt64(packet)
                    areRight =
                        cipher.open(base + packet * 2_048, length: length, counter: counter) && areRight
                }
                best.seal = min(best.seal, middle - begin)
                best.open = min(best.open, Clock.monotonicNanoseconds() - middle)
            }
        }
        #expect(areRight)
        let (seal, open) = (Double(best.seal) / 64_000, Double(best.open) / 64_000)
        print(
            "\(backEnd), \(length) bytes: seal \(seal) µs (\(Double(length) / seal / 1_000) GB/s), open \(open) µs"
        )
    }
}

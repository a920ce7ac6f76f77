// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
internal import Mesh

/// `coder wireguard-aead`: what one core encrypts, for the benchmarks. Hidden.
enum CipherRateCommand {
    static let command = Command(
        name: "wireguard-aead",
        summary: "Measure the encryption of packets on one core and print it as JSON.",
        arguments: .exactly(0),
        options: [
            CommandOption("rounds", .int, default: "2000", help: "Bursts of 64 packets; the best one counts.")
        ], isHidden: true, run: run)

    @Sendable static func run(_ invocation: Invocation) async throws -> Int32 {
        let rounds = max(1, invocation.values.int("rounds") ?? 2_000)
        let rates = try await DedicatedThread.run(name: "aead") {
            WireGuard.CipherRate.measure(
                lengths: [64, 512, 1_280, 1_420], rounds: rounds, clock: Clock.monotonicNanoseconds)
        }
        let list = rates.map { rate -> JSON in
            .object([
                .init(key: "back_end", value: .string(rate.backEnd)),
                .init(key: "bytes", value: .number("\(rate.length)")),
                .init(key: "seal_ns", value: .number("\(rate.sealNanoseconds)")),
                .init(key: "open_ns", value: .number("\(rate.openNanoseconds)")),
            ])
        }
        invocation.console.say(JSON.array(list).compact)
        return 0
    }
}

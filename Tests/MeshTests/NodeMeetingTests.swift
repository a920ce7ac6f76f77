// SPDX-License-Identifier: Apache-2.0

import Glibc
import LinuxIO
import Mesh
import Testing

/// The first bytes between two nodes that have just heard of each other. WireGuard alone repeats a lost initiation
/// after five seconds.
@Suite(.serialized, .timeLimit(.minutes(3))) struct NodeMeetingTests {
    /// Seconds until an echoed byte came back.
    private static func firstByte(_ pair: NodePair) async throws -> Double {
        let echo = try await pair.serveEcho()
        defer { echo.cancel() }
        let began = ContinuousClock.now
        let descriptor = try await pair.client.dial(
            SocketAddress(NodePair.serverAddress, port: NodePair.echoPort))
        let number = descriptor.number
        let answer = await Blocking.run { () -> UInt8 in
            Blocking.write(number, [42])
            var byte: UInt8 = 0
            return read(number, &byte, 1) == 1 ? byte : 0
        }
        let took = (ContinuousClock.now - began) / .seconds(1)
        descriptor.close()
        #expect(answer == 42)
        return took
    }

    /// The initiation is lost: the relay knows no such node yet, and says nothing, since it is no discovery.
    @Test func aPeerThatLogsInLateIsMetAtOnce() async throws {
        let pair = try await NodePair(
            isDirectBlocked: true, binding: .none, serverLogin: .milliseconds(400))
        #expect(try await Self.firstByte(pair) < 4)
        let counters = try await pair.client.status().counters
        #expect(counters.repeatedHandshakes > 0)
        await pair.close()
    }

    /// The initiation is lost: the other node knows no such peer yet.
    @Test(arguments: [true, false])
    func aPeerThatHearsOfUsLateIsMetAtOnce(isDirectBlocked: Bool) async throws {
        let pair = try await NodePair(
            isDirectBlocked: isDirectBlocked, binding: isDirectBlocked ? .none : .loopback,
            serverKnows: .milliseconds(400))
        #expect(try await Self.firstByte(pair) < 4)
        await pair.close()
    }

    @Test func bothMayStartAtOnce() async throws {
        let pair = try await NodePair(isDirectBlocked: true, binding: .none)
        async let there = pair.client.reachable(NodePair.serverAddress, within: .seconds(30))
        async let back = pair.server.reachable(NodePair.clientAddress, within: .seconds(30))
        let began = ContinuousClock.now
        _ = try await (there, back)
        #expect((ContinuousClock.now - began) / .seconds(1) < 4)
        #expect(try await Self.firstByte(pair) < 4)
        await pair.close()
    }

    fileprivate static let pairs = getenv("FRESH_PAIRS").flatMap { Int(String(cString: $0)) } ?? 0

    /// `FRESH_PAIRS=200 swift test --filter freshPairs`: how late first bytes are, eight pairs at a time.
    @Test(.enabled(if: NodeMeetingTests.pairs > 0)) func freshPairs() async throws {
        for isDirectBlocked in [true, false] {
            var times: [Double] = []
            try await withThrowingTaskGroup(of: Double.self) { group in
                for index in 0..<Self.pairs {
                    if index >= 8, let time = try await group.next() { times.append(time) }
                    group.addTask {
                        let pair = try await NodePair(
                            isDirectBlocked: isDirectBlocked, binding: isDirectBlocked ? .none : .loopback)
                        let time = try await Self.firstByte(pair)
                        await pair.close()
                        return time
                    }
                }
                for try await time in group { times.append(time) }
            }
            times.sort()
            let at = { (share: Double) in
                Int(times[min(times.count - 1, Int(Double(times.count) * share))] * 1e6)
            }
            let text =
                "\(isDirectBlocked ? "relayed" : "direct"): \(times.count) pairs, first byte after "
                + "\(at(0.5)) us (p50), \(at(0.9)) (p90), \(at(0.99)) (p99), \(at(1)) (max)\n"
            Array(text.utf8).withUnsafeBytes { _ = Glibc.write(2, $0.baseAddress, $0.count) }
        }
    }
}

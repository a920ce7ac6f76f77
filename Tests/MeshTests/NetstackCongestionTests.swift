// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

/// How the window grows and shrinks, seen from outside, against the formulas of the RFCs.
@Suite struct NetstackCongestionTests {
    static let size = 1_220

    /// Sends as much as it may to a peer that acknowledges everything one round trip later.
    struct Sender: ~Copyable {
        var peer: ScriptPeer

        init(rtt: Interval) {
            peer = ScriptPeer()
            peer.play(accepted(shift: 7, rtt: rtt))
        }

        var statistics: ConnectionStatistics? { peer.id.flatMap { peer.stack.statistics($0) } }
        /// In segments.
        var window: Double { Double(statistics?.congestionWindow ?? 0) / Double(size) }

        /// What the window lets out now.
        mutating func flight() -> [ScriptSegment] {
            peer.play([.fill])
            return peer.takeSent().filter { $0.length > 0 }
        }

        /// One round trip; each segment is acknowledged.
        mutating func round(_ rtt: Interval) {
            let sent = flight()
            peer.play([.wait(rtt)])
            for segment in sent {
                peer.send(S(flags: "A", sequence: 1, ack: segment.sequence + segment.length, window: 65_535))
            }
        }

        /// The first segment is lost, all others are reported. Returns what each report lets out.
        mutating func lossyRound(_ rtt: Interval) -> [Int] {
            let sent = flight()
            guard let first = sent.first else { return [] }
            peer.play([.wait(rtt)])
            var counts: [Int] = []
            let hole = first.sequence + first.length
            for segment in sent.dropFirst() {
                let end = segment.sequence + segment.length
                peer.send(S(flags: "A", sequence: 1, ack: first.sequence, sacks: [hole..<end]))
                peer.play([.fill])
                let out = peer.takeSent()
                counts.append(out.count)
                newest = max(newest, out.map { $0.sequence + $0.length }.max() ?? 0)
            }
            peer.play([.wait(rtt)])
            peer.send(S(flags: "A", sequence: 1, ack: max(newest, hole)))
            return counts
        }

        private var newest = 0
    }

    @Test func cubicFollowsItsCurve() {
        var sender = Sender(rtt: .milliseconds(100))
        for _ in 0..<3 { sender.round(.milliseconds(100)) }
        let most = sender.window
        #expect(most > 70 && most < 90, "slow start doubles: \(most)")
        _ = sender.lossyRound(.milliseconds(100))
        #expect(abs(sender.window - most * 0.7) < 5, "RFC 9438 §4.6: \(sender.window) of \(most)")
        // RFC 9438 §4.2 and §4.3, in segments and seconds.
        let plateau = most
        var k = 0.0
        while k * k * k < plateau * 0.3 / 0.4 { k += 0.001 }
        var estimate = sender.window
        for round in 1...70 {
            sender.round(.milliseconds(100))
            let seconds = Double(round) * 0.1
            let cubic = plateau + 0.4 * (seconds - k) * (seconds - k) * (seconds - k)
            estimate += estimate < plateau ? 3 * 0.3 / 1.7 : 1
            let expected = max(cubic, estimate)
            #expect(
                abs(sender.window - expected) < expected * 0.08, "\(seconds) s: \(sender.window), \(expected)"
            )
        }
    }

    @Test func aSecondLossBelowTheLastLowersThePlateau() {
        var sender = Sender(rtt: .milliseconds(100))
        for _ in 0..<3 { sender.round(.milliseconds(100)) }
        _ = sender.lossyRound(.milliseconds(100))
        let first = sender.window
        sender.round(.milliseconds(100))
        _ = sender.lossyRound(.milliseconds(100))
        #expect(sender.window < first * 0.8 && sender.window > first * 0.6)
        // Fast convergence (RFC 9438 §4.7): flat around 0.85 of what was reached, not around the old plateau.
        for _ in 0..<30 { sender.round(.milliseconds(100)) }
        #expect(sender.window < first * 1.15, "\(sender.window), \(first)")
    }

    @Test func slowStartEndsGentlyWhenTheRoundTripGrows() {
        var sender = Sender(rtt: .milliseconds(100))
        sender.round(.milliseconds(100))
        sender.round(.milliseconds(100))
        let before = sender.window
        #expect(before > 35 && before < 45)
        // RFC 9406 §4.2: an eighth longer for eight samples, then a quarter of the growth.
        sender.round(.milliseconds(120))
        let after = sender.window
        #expect(after > before + 8 && after < before * 1.6, "\(before), \(after)")
        sender.round(.milliseconds(120))
        #expect(sender.window < after * 1.4, "\(after), \(sender.window)")
        let conservative = sender.window
        // It was jitter: slow start goes on.
        sender.round(.milliseconds(100))
        #expect(sender.window > conservative * 1.6, "\(conservative), \(sender.window)")
    }

    @Test func recoverySendsInProportion() {
        var sender = Sender(rtt: .milliseconds(100))
        sender.round(.milliseconds(100))
        let counts = sender.lossyRound(.milliseconds(100))
        #expect(counts.count == 19)
        // RFC 9937: seven leave for ten that arrive, never a burst.
        #expect(counts.max() ?? 0 <= 2, "\(counts)")
        let sum = counts.reduce(0, +)
        #expect(sum >= 12 && sum <= 17, "\(counts)")
    }

    @Test func afterAPauseTheWindowIsSmall() {
        var sender = Sender(rtt: .milliseconds(100))
        for _ in 0..<3 { sender.round(.milliseconds(100)) }
        // All of it is on its way and arrives; then nothing for long.
        var sent = sender.flight()
        while let last = sent.last {
            sender.peer.send(S(flags: "A", sequence: 1, ack: last.sequence + last.length))
            sent = sender.peer.takeSent().filter { $0.length > 0 }
        }
        #expect(sender.window > 70)
        sender.peer.play([.wait(.seconds(20)), .write(100), .drop])
        #expect(sender.window == 10, "RFC 5681 §4.1: \(sender.window)")
    }

    @Test func theSendBufferFollowsTheWindow() {
        var sender = Sender(rtt: .milliseconds(100))
        #expect(sender.statistics?.sendBuffer == 64 << 10)
        for _ in 0..<5 { sender.round(.milliseconds(100)) }
        let (buffer, window) = (sender.statistics?.sendBuffer ?? 0, sender.statistics?.congestionWindow ?? 0)
        #expect(buffer >= 2 * window - 4 * Self.size && buffer <= 4 << 20, "\(buffer), \(window)")
    }

    /// A peer that uses the whole window gets a larger one; one that sends little does not.
    @Test(arguments: [(52, true), (10, false)]) func theReceiveBufferFollowsTheReader(
        segments: Int, grows: Bool
    ) {
        var peer = ScriptPeer()
        peer.play(accepted(shift: 7, rtt: .milliseconds(50)))
        var sequence = 1
        var memory = [UInt8](repeating: 0, count: 128 << 10)
        for _ in 0..<6 {
            for _ in 0..<segments {
                peer.send(S(flags: "A", sequence: sequence, ack: 1, length: Self.size))
                sequence += Self.size
            }
            peer.play([.drop])
            let (now, id) = (peer.now, peer.id)
            if let id {
                while memory.withUnsafeMutableBytes({ peer.stack.read(id, into: $0, now: now) }) > 0 {}
            }
            peer.play([.drop, .wait(.milliseconds(50)), .drop])
        }
        let buffer = peer.id.flatMap { peer.stack.statistics($0)?.receiveBuffer } ?? 0
        #expect(grows ? buffer >= 128 << 10 : buffer == 64 << 10, "\(buffer)")
    }
}

// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

/// A named script with what it needs.
struct Script: Sendable, CustomTestStringConvertible {
    var name: String
    var opens = false
    var limits = StackLimits()
    let steps: @Sendable () -> [ScriptStep]

    var testDescription: String { name }
}

typealias S = ScriptSegment

/// Handshake opened by the peer, without timestamps so that numbers stay simple; payload per segment 1220.
func accepted(
    window: Int = 65_535, shift: Int? = nil, sack: Bool = true, stamps: Bool = false, rtt: Interval = .zero
) -> [ScriptStep] {
    [
        .send(
            S(
                flags: "S", sequence: 0, window: window, mss: 1_220, shift: shift, sackPermitted: sack,
                timestamp: stamps ? 1 : nil)),
        .expect(S(flags: "SA", sequence: 0, ack: 1, mss: 1_220)), .wait(rtt),
        .send(S(flags: "A", sequence: 1, ack: 1, window: window, timestamp: stamps ? 2 : nil)),
        .event(.accepted), .silence,
    ]
}

/// RFC corner cases: packet in, packets out.
@Suite struct NetstackScriptTests {
    static let scripts: [Script] =
        handshakes + resets + receiving + sending + closing + timers + ends + recovering + told

    @Test(arguments: scripts) func plays(_ script: Script) throws {
        var peer = ScriptPeer(limits: script.limits)
        if script.opens { try peer.connect() }
        peer.play(script.steps())
        #expect(peer.failures == [])
    }

    static let handshakes = [
        Script(name: "SYN-ACK mirrors the options of the SYN") {
            [
                .send(S(flags: "S", sequence: 0, window: 1_000, mss: 1_000, shift: 5, sackPermitted: true)),
                .expect(
                    S(
                        flags: "SA", sequence: 0, ack: 1, window: 65_535, mss: 1_220, shift: 7,
                        sackPermitted: true)),
                .send(S(flags: "A", sequence: 1, ack: 1, window: 100)), .event(.accepted),
                .write(3_000),
                .expect(S(flags: "A", sequence: 1, ack: 1, length: 1_000)),
                .expect(S(flags: "A", sequence: 1_001, ack: 1, length: 1_000)),
                .expect(S(flags: "PA", sequence: 2_001, ack: 1, length: 1_000)), .silence,
            ]
        },
        Script(name: "no options: MSS 1220, no scale") {
            [
                .send(S(flags: "S", sequence: 0, window: 500)),
                .expect(S(flags: "SA", sequence: 0, ack: 1, window: 65_535)),
                .send(S(flags: "A", sequence: 1, ack: 1, window: 700)), .event(.accepted),
                .write(1_000), .expect(S(flags: "A", sequence: 1, length: 700)), .silence,
            ]
        },
        Script(name: "SYN again: SYN-ACK again") {
            [
                .send(S(flags: "S", sequence: 0, mss: 1_220)), .expect(S(flags: "SA", sequence: 0, ack: 1)),
                .send(S(flags: "S", sequence: 0, mss: 1_220)), .expect(S(flags: "SA", sequence: 0, ack: 1)),
                .silence,
                .noEvent,
            ]
        },
        Script(name: "data with the handshake's last ACK") {
            [
                .send(S(flags: "S", sequence: 0, mss: 1_220)), .expect(S(flags: "SA", sequence: 0, ack: 1)),
                .send(S(flags: "PA", sequence: 1, ack: 1, length: 5)),
                .event(.accepted), .event(.readable), .expect(S(flags: "A", sequence: 1, ack: 6)), .read(5),
            ]
        },
        Script(name: "wrong ACK in SYN-RECEIVED: RST with its number") {
            [
                .send(S(flags: "S", sequence: 0, mss: 1_220)), .expect(S(flags: "SA", sequence: 0, ack: 1)),
                .send(S(flags: "A", sequence: 1, ack: 77)), .expect(S(flags: "R", sequence: 77)), .noEvent,
            ]
        },
        Script(name: "active open", opens: true) {
            [
                .expect(
                    S(flags: "S", sequence: 0, window: 65_535, mss: 1_220, shift: 7, sackPermitted: true)),
                .send(S(flags: "SA", sequence: 0, ack: 1, mss: 1_220)), .event(.connected),
                .expect(S(flags: "A", sequence: 1, ack: 1)), .silence,
            ]
        },
        Script(name: "SYN-SENT: wrong ACK is answered by RST, then the right one connects", opens: true) {
            [
                .expect(S(flags: "S", sequence: 0)),
                .send(S(flags: "SA", sequence: 0, ack: 9_000, mss: 1_220)),
                .expect(S(flags: "R", sequence: 9_000)),
                .send(S(flags: "R", sequence: 0)), .noEvent,
                .send(S(flags: "RA", sequence: 0, ack: 9_000)), .noEvent,
                .send(S(flags: "SA", sequence: 0, ack: 1, mss: 1_220)), .event(.connected),
            ]
        },
        Script(name: "SYN-SENT: RST with the right ACK refuses", opens: true) {
            [
                .expect(S(flags: "S", sequence: 0)), .send(S(flags: "RA", sequence: 0, ack: 1)),
                .event(.closed(.refused)), .silence,
            ]
        },
        Script(name: "the SYN-ACK again: our ACK was lost", opens: true) {
            [
                .expect(S(flags: "S", sequence: 0)),
                .send(S(flags: "SA", sequence: 0, ack: 1, mss: 1_220)), .event(.connected),
                .expect(S(flags: "A", sequence: 1, ack: 1)),
                .send(S(flags: "SA", sequence: 0, ack: 1, mss: 1_220)),
                .expect(S(flags: "A", sequence: 1, ack: 1)), .silence, .noEvent,
            ]
        },
        Script(name: "both open at once", opens: true) {
            [
                .expect(S(flags: "S", sequence: 0)), .send(S(flags: "S", sequence: 0, mss: 1_220)),
                .expect(S(flags: "SA", sequence: 0, ack: 1)),
                .send(S(flags: "SA", sequence: 0, ack: 1, mss: 1_220)), .event(.connected),
                .write(10), .expect(S(flags: "PA", sequence: 1, ack: 1, length: 10)), .silence,
            ]
        },
        Script(
            name: "a full backlog drops SYNs",
            limits: {
                var limits = StackLimits()
                limits.halfOpenConnections = 0
                return limits
            }()
        ) { [.send(S(flags: "S", sequence: 0, mss: 1_220)), .silence, .noEvent] },
    ]

    static let resets = [
        Script(name: "RST with the exact number resets") {
            accepted() + [.send(S(flags: "R", sequence: 1)), .event(.closed(.reset)), .silence]
        },
        Script(name: "RST elsewhere in the window is challenged (RFC 5961)") {
            accepted() + [
                .send(S(flags: "R", sequence: 100)), .expect(S(flags: "A", sequence: 1, ack: 1)), .noEvent,
                .send(S(flags: "R", sequence: 1)), .event(.closed(.reset)),
            ]
        },
        Script(name: "RST outside of the window is ignored") {
            accepted() + [.send(S(flags: "R", sequence: 200_000)), .silence, .noEvent]
        },
        Script(name: "SYN on an open connection is challenged (RFC 5961)") {
            accepted() + [
                .send(S(flags: "S", sequence: 1)), .expect(S(flags: "A", sequence: 1, ack: 1)),
                .send(S(flags: "S", sequence: 90_000)), .expect(S(flags: "A", sequence: 1, ack: 1)), .noEvent,
            ]
        },
        Script(name: "challenges are limited to ten per second") {
            accepted()
                + (0..<10).flatMap { _ in
                    [.send(S(flags: "S", sequence: 1)), .expect(S(flags: "A", sequence: 1, ack: 1))]
                        as [ScriptStep]
                } + [
                    .send(S(flags: "S", sequence: 1)), .silence, .wait(.seconds(1)),
                    .send(S(flags: "S", sequence: 1)), .expect(S(flags: "A", sequence: 1, ack: 1)),
                ]
        },
        Script(name: "ACK of what was never sent is challenged, its data dropped") {
            accepted() + [
                .send(S(flags: "A", sequence: 1, ack: 500, length: 3)),
                .expect(S(flags: "A", sequence: 1, ack: 1)),
                .noEvent,
            ]
        },
        Script(name: "ACK of long ago is challenged (RFC 5961 §5)") {
            accepted() + [
                .send(S(flags: "A", sequence: 1, ack: -70_000, length: 3)),
                .expect(S(flags: "A", sequence: 1, ack: 1)), .noEvent,
            ]
        },
        Script(name: "nobody's ACK, SYN and RST") {
            [
                .send(S(flags: "F", sequence: 5)), .expect(S(flags: "RA", sequence: 0, ack: 6)),
                .send(S(flags: "RA", sequence: 5, ack: 1)), .send(S(flags: "R", sequence: 5)), .silence,
                .send(S(flags: "S", sequence: 0, mss: 1_220)), .expect(S(flags: "SA", sequence: 0, ack: 1)),
                .send(S(flags: "R", sequence: 1)), .silence,
                .send(S(flags: "A", sequence: 50, ack: 77)), .expect(S(flags: "R", sequence: 77)),
                .silence, .noEvent,
            ]
        },
        Script(name: "abort sends RST") {
            accepted() + [.abort, .expect(S(flags: "RA", sequence: 1, ack: 1)), .silence, .noEvent]
        },
        Script(name: "close with unread bytes sends RST (RFC 2525)") {
            accepted() + [
                .send(S(flags: "PA", sequence: 1, ack: 1, length: 4)),
                .expect(S(flags: "A", sequence: 1, ack: 5)),
                .close, .expect(S(flags: "RA", sequence: 1, ack: 5)), .silence,
            ]
        },
        Script(name: "bytes after close are answered by RST") {
            accepted() + [
                .close, .expect(S(flags: "FA", sequence: 1, ack: 1)),
                .send(S(flags: "A", sequence: 1, ack: 2)), .silence,
                .send(S(flags: "PA", sequence: 1, ack: 2, length: 4)),
                .expect(S(flags: "RA", sequence: 2, ack: 1)),
            ]
        },
    ]

    static let receiving = [
        Script(name: "a gap is reported by SACK, and its filling at once") {
            accepted() + [
                .send(S(flags: "A", sequence: 1_221, ack: 1, length: 1_220)),
                .expect(S(flags: "A", sequence: 1, ack: 1, sacks: [1_221..<2_441])), .noEvent,
                .send(S(flags: "A", sequence: 3_661, ack: 1, length: 100)),
                .expect(S(flags: "A", sequence: 1, ack: 1, sacks: [3_661..<3_761, 1_221..<2_441])),
                .send(S(flags: "A", sequence: 1, ack: 1, length: 1_220)),
                .expect(S(flags: "A", sequence: 1, ack: 2_441, sacks: [3_661..<3_761])), .event(.readable),
                .read(2_440),
            ]
        },
        Script(name: "duplicates are reported by D-SACK (RFC 2883)") {
            accepted() + [
                .send(S(flags: "PA", sequence: 1, ack: 1, length: 100)),
                .expect(S(flags: "A", sequence: 1, ack: 101)),
                .send(S(flags: "PA", sequence: 1, ack: 1, length: 100)),
                .expect(S(flags: "A", sequence: 1, ack: 101, sacks: [1..<101])),
                .send(S(flags: "PA", sequence: 51, ack: 1, length: 100)),
                .expect(S(flags: "A", sequence: 1, ack: 151, sacks: [51..<101])),
                .event(.readable), .read(150),
            ]
        },
        Script(name: "a peer without SACK gets one duplicate ACK per segment") {
            accepted(sack: false) + [
                .send(S(flags: "A", sequence: 1_221, ack: 1, length: 1_220)),
                .send(S(flags: "A", sequence: 2_441, ack: 1, length: 1_220)),
                .send(S(flags: "A", sequence: 3_661, ack: 1, length: 1_220)),
                .expect(S(flags: "A", sequence: 1, ack: 1)), .expect(S(flags: "A", sequence: 1, ack: 1)),
                .expect(S(flags: "A", sequence: 1, ack: 1)), .silence,
            ]
        },
        Script(name: "a burst is acknowledged once") {
            accepted() + (0..<8).map { .send(S(flags: "A", sequence: 1 + $0 * 1_220, ack: 1, length: 1_220)) }
                + [
                    .expect(S(flags: "A", sequence: 1, ack: 9_761)), .silence,
                ]
        },
        Script(name: "after the start small segments wait for the delayed ACK") {
            accepted()
                + (0..<16).flatMap { index -> [ScriptStep] in
                    [
                        .send(S(flags: "PA", sequence: 1 + index, ack: 1, length: 1)),
                        .expect(S(flags: "A", sequence: 1, ack: 2 + index)),
                    ]
                } + [
                    .send(S(flags: "PA", sequence: 17, ack: 1, length: 1)), .silence,
                    .wait(.milliseconds(24)), .silence, .wait(.milliseconds(1)),
                    .expect(S(flags: "A", sequence: 1, ack: 18)), .silence,
                    .send(S(flags: "PA", sequence: 18, ack: 1, length: 1)), .write(2),
                    .expect(S(flags: "PA", sequence: 1, ack: 19, length: 2)), .silence,
                ]
        },
        Script(name: "every second segment is acknowledged when segments become smaller") {
            accepted()
                + (0..<16).flatMap { index -> [ScriptStep] in
                    [
                        .send(S(flags: "A", sequence: 1 + index * 1_220, ack: 1, length: 1_220)),
                        .expect(S(flags: "A", sequence: 1, ack: 1_221 + index * 1_220)),
                    ]
                } + [
                    .send(S(flags: "A", sequence: 19_521, ack: 1, length: 600)), .silence,
                    .send(S(flags: "A", sequence: 20_121, ack: 1, length: 600)),
                    .expect(S(flags: "A", sequence: 1, ack: 20_721)), .silence,
                ]
        },
        Script(name: "bytes beyond the window are cut off") {
            accepted() + [
                .send(S(flags: "A", sequence: 65_000, ack: 1, length: 1_200)),
                .expect(S(flags: "A", sequence: 1, ack: 1, sacks: [65_000..<65_536])),
                .send(S(flags: "A", sequence: 65_600, ack: 1, length: 100)),
                .expect(S(flags: "A", sequence: 1, ack: 1, sacks: [65_000..<65_536])),
            ]
        },
        Script(name: "the window closes, and opens in a large step") {
            accepted()
                + (0..<53).map { .send(S(flags: "A", sequence: 1 + $0 * 1_220, ack: 1, length: 1_220)) } + [
                    .expect(S(flags: "A", sequence: 1, ack: 64_661, window: 876)),
                    .send(S(flags: "A", sequence: 64_661, ack: 1, length: 875)), .wait(.milliseconds(25)),
                    .expect(S(flags: "A", sequence: 1, ack: 65_536, window: 1)),
                    .send(S(flags: "A", sequence: 65_536, ack: 1, length: 1)), .wait(.milliseconds(25)),
                    .expect(S(flags: "A", sequence: 1, ack: 65_537, window: 0)),
                    .send(S(flags: "A", sequence: 65_537, ack: 1, length: 1)),
                    .expect(S(flags: "A", sequence: 1, ack: 65_537, window: 0)),
                    .read(1_000), .silence, .read(1_440),
                    .expect(S(flags: "A", sequence: 1, ack: 65_537, window: 2_440)),
                ]
        },
        Script(name: "PAWS: an older timestamp is dropped and answered") {
            accepted(stamps: true) + [
                .send(S(flags: "PA", sequence: 1, ack: 1, length: 5, timestamp: 10)),
                .expect(S(flags: "A", sequence: 1, ack: 6)), .event(.readable),
                .send(S(flags: "PA", sequence: 6, ack: 1, length: 5, timestamp: 9)),
                .expect(S(flags: "A", sequence: 1, ack: 6)), .noEvent,
                .send(S(flags: "PA", sequence: 6, ack: 1, length: 5)), .silence, .noEvent,
                .send(S(flags: "PA", sequence: 6, ack: 1, length: 5, timestamp: 10)),
                .expect(S(flags: "A", sequence: 1, ack: 11)), .event(.readable),
            ]
        },
        Script(name: "urgent data is data") {
            accepted() + [
                .send(S(flags: "PAU", sequence: 1, ack: 1, length: 5, urgent: 3)),
                .expect(S(flags: "A", sequence: 1, ack: 6)), .event(.readable), .read(5),
            ]
        },
        Script(name: "bytes and end given before the handshake is complete are delivered") {
            [
                .askFirst, .send(S(flags: "S", sequence: 0, mss: 1_220)), .silence, .event(.asked), .accept,
                .write(5), .close, .expect(S(flags: "SA", sequence: 0, ack: 1)),
                .send(S(flags: "A", sequence: 1, ack: 1)),
                .expect(S(flags: "FPA", sequence: 1, ack: 1, length: 5)),
                .send(S(flags: "FA", sequence: 1, ack: 7)), .expect(S(flags: "A", sequence: 7, ack: 2)),
                .noEvent,
            ]
        },
        Script(name: "a reset in LAST-ACK leaves what the peer said before") {
            accepted() + [
                .send(S(flags: "FPA", sequence: 1, ack: 1, length: 5)),
                .expect(S(flags: "A", sequence: 1, ack: 7)), .event(.readable), .shutdown,
                .expect(S(flags: "FA", sequence: 1, ack: 7)),
                .send(S(flags: "R", sequence: 7)), .silence, .wait(.seconds(1)), .read(5),
                .event(.peerClosed), .event(.closed(.done)),
            ]
        },
        Script(name: "a keepalive of the peer is answered") {
            accepted() + [
                .send(S(flags: "A", sequence: 0, ack: 1)), .expect(S(flags: "A", sequence: 1, ack: 1)),
            ]
        },
    ]
}

// SPDX-License-Identifier: Apache-2.0

import Mesh

// Scripts of sending, closing and timers.
extension NetstackScriptTests {
    static let sending = [
        Script(name: "SACK repairs a hole") {
            accepted(rtt: .milliseconds(100)) + [
                .write(6_100),
                .expect(S(flags: "A", sequence: 1, length: 1_220)),
                .expect(S(flags: "A", sequence: 1_221, length: 1_220)),
                .expect(S(flags: "A", sequence: 2_441, length: 1_220)),
                .expect(S(flags: "A", sequence: 3_661, length: 1_220)),
                .expect(S(flags: "PA", sequence: 4_881, length: 1_220)), .wait(.milliseconds(10)),
                .send(S(flags: "A", sequence: 1, ack: 1, sacks: [1_221..<4_881])),
                .expect(S(flags: "A", sequence: 1, length: 1_220)), .silence,
                .send(S(flags: "A", sequence: 1, ack: 6_101)), .silence,
            ]
        },
        Script(name: "three duplicate ACKs repair a hole without SACK") {
            accepted(sack: false, rtt: .milliseconds(100)) + [
                .write(6_100),
                .expect(S(flags: "A", sequence: 1, length: 1_220)),
                .expect(S(flags: "A", sequence: 1_221, length: 1_220)),
                .expect(S(flags: "A", sequence: 2_441, length: 1_220)),
                .expect(S(flags: "A", sequence: 3_661, length: 1_220)),
                .expect(S(flags: "PA", sequence: 4_881, length: 1_220)), .wait(.milliseconds(10)),
                .send(S(flags: "A", sequence: 1, ack: 1_221)), .silence,
                .send(S(flags: "A", sequence: 1, ack: 1_221)), .send(S(flags: "A", sequence: 1, ack: 1_221)),
                .silence,
                .send(S(flags: "A", sequence: 1, ack: 1_221)),
                .expect(S(flags: "A", sequence: 1_221, length: 1_220)),
                .silence,
                // A partial acknowledgement reveals the next hole (RFC 6582).
                .send(S(flags: "A", sequence: 1, ack: 2_441)),
                .expect(S(flags: "A", sequence: 2_441, length: 1_220)),
                .send(S(flags: "A", sequence: 1, ack: 6_101)), .silence,
            ]
        },
        Script(name: "a zero window is probed and its opening used") {
            accepted() + [
                .send(S(flags: "A", sequence: 1, ack: 1, window: 0)), .write(100), .silence,
                .wait(.milliseconds(300)), .expect(S(flags: "A", sequence: 0, ack: 1)),
                .send(S(flags: "A", sequence: 1, ack: 1, window: 0)), .silence,
                .send(S(flags: "A", sequence: 1, ack: 1, window: 50)), .silence,
                // The override of silly-window avoidance, on the persist timer.
                .wait(.milliseconds(320)), .expect(S(flags: "A", sequence: 1, length: 50)), .silence,
                .send(S(flags: "A", sequence: 1, ack: 51, window: 100)),
                .expect(S(flags: "PA", sequence: 51, length: 50)), .silence,
            ]
        },
        Script(name: "no small segments because of a small window (RFC 9293 §3.8.6.2.1)") {
            accepted() + [
                .send(S(flags: "A", sequence: 1, ack: 1, window: 1_500)), .write(5_000),
                .expect(S(flags: "A", sequence: 1, length: 1_220)), .silence,
                .send(S(flags: "A", sequence: 1, ack: 1_221, window: 1_500)),
                .expect(S(flags: "A", sequence: 1_221, length: 1_220)), .silence,
            ]
        },
        Script(name: "the first two duplicate ACKs let new segments out (RFC 3042)") {
            accepted(sack: false, rtt: .milliseconds(100)) + [.write(15_860)]
                + (0..<10).map { .expect(S(flags: "A", sequence: 1 + $0 * 1_220, length: 1_220)) } + [
                    .silence, .wait(.milliseconds(10)),
                    .send(S(flags: "A", sequence: 1, ack: 1)),
                    .expect(S(flags: "A", sequence: 12_201, length: 1_220)), .silence,
                    .send(S(flags: "A", sequence: 1, ack: 1)),
                    .expect(S(flags: "A", sequence: 13_421, length: 1_220)), .silence,
                    .send(S(flags: "A", sequence: 1, ack: 1)),
                    .expect(S(flags: "A", sequence: 1, length: 1_220)),
                ]
        },
        Script(name: "a repetition that was needless is taken back (RFC 3708)") {
            accepted(rtt: .milliseconds(100)) + [
                .write(6_100),
                .expect(S(flags: "A", sequence: 1, length: 1_220)),
                .expect(S(flags: "A", sequence: 1_221, length: 1_220)),
                .expect(S(flags: "A", sequence: 2_441, length: 1_220)),
                .expect(S(flags: "A", sequence: 3_661, length: 1_220)),
                .expect(S(flags: "PA", sequence: 4_881, length: 1_220)), .wait(.milliseconds(10)),
                .send(S(flags: "A", sequence: 1, ack: 1, sacks: [1_221..<4_881])),
                .expect(S(flags: "A", sequence: 1, length: 1_220)), .silence,
                .send(S(flags: "A", sequence: 1, ack: 6_101, sacks: [1..<1_221])), .silence,
                .write(15_860),
            ]
                // All ten segments of the window as it was before.
                + (0..<10).map { .expect(S(flags: "A", sequence: 6_101 + $0 * 1_220, length: 1_220)) }
                + [.silence]
        },
        Script(name: "no Nagle") {
            accepted() + [
                .write(1), .expect(S(flags: "PA", sequence: 1, length: 1)),
                .write(1), .expect(S(flags: "PA", sequence: 2, length: 1)), .silence,
            ]
        },
        Script(name: "the window scale of the peer counts after the handshake") {
            accepted(window: 10, shift: 3) + [
                .write(200), .expect(S(flags: "A", sequence: 1, length: 80)), .silence,
            ]
        },
    ]

    static let closing = [
        Script(name: "a FIN is repeated until it is acknowledged") {
            accepted() + [
                .shutdown, .expect(S(flags: "FA", sequence: 1, ack: 1)), .wait(.milliseconds(250)),
                .expect(S(flags: "FA", sequence: 1, ack: 1)), .silence,
                .send(S(flags: "A", sequence: 1, ack: 2)), .wait(.seconds(5)), .silence,
            ]
        },
        Script(name: "we close first") {
            accepted() + [
                .write(3), .shutdown, .expect(S(flags: "FPA", sequence: 1, ack: 1, length: 3)),
                .send(S(flags: "A", sequence: 1, ack: 5)), .noEvent,
                .send(S(flags: "PA", sequence: 1, ack: 5, length: 7)), .event(.readable),
                .expect(S(flags: "A", sequence: 5, ack: 8)), .read(7),
                .send(S(flags: "FA", sequence: 8, ack: 5)), .event(.peerClosed), .event(.closed(.done)),
                .expect(S(flags: "A", sequence: 5, ack: 9)),
                .send(S(flags: "FA", sequence: 8, ack: 5)), .expect(S(flags: "A", sequence: 5, ack: 9)),
                .silence,
                .wait(.seconds(31)), .send(S(flags: "FA", sequence: 8, ack: 5)),
                .expect(S(flags: "R", sequence: 5)),
            ]
        },
        Script(name: "the peer closes first") {
            accepted() + [
                .send(S(flags: "FPA", sequence: 1, ack: 1, length: 2)), .event(.readable),
                .expect(S(flags: "A", sequence: 1, ack: 4)), .noEvent, .read(2), .event(.peerClosed),
                .write(4), .expect(S(flags: "PA", sequence: 1, ack: 4, length: 4)),
                .shutdown, .expect(S(flags: "FA", sequence: 5, ack: 4)), .noEvent,
                .send(S(flags: "A", sequence: 4, ack: 6)), .event(.closed(.done)), .silence,
            ]
        },
        Script(name: "both close at once") {
            accepted() + [
                .shutdown, .expect(S(flags: "FA", sequence: 1, ack: 1)),
                .send(S(flags: "FA", sequence: 1, ack: 1)), .event(.peerClosed),
                .expect(S(flags: "A", sequence: 2, ack: 2)), .noEvent,
                .send(S(flags: "A", sequence: 2, ack: 2)), .event(.closed(.done)), .silence,
            ]
        },
        Script(name: "a FIN ahead of missing bytes waits for them") {
            accepted() + [
                .send(S(flags: "FPA", sequence: 11, ack: 1, length: 5)),
                .expect(S(flags: "A", sequence: 1, ack: 1, sacks: [11..<16])), .noEvent,
                .send(S(flags: "A", sequence: 1, ack: 1, length: 10)), .event(.readable),
                .expect(S(flags: "A", sequence: 1, ack: 17)), .read(15), .event(.peerClosed),
            ]
        },
        Script(name: "a new SYN ends TIME-WAIT when it is newer") {
            accepted(stamps: true) + [
                .shutdown, .expect(S(flags: "FA", sequence: 1, ack: 1)),
                .send(S(flags: "FA", sequence: 1, ack: 2, timestamp: 3)), .event(.peerClosed),
                .event(.closed(.done)),
                .expect(S(flags: "A", sequence: 2, ack: 2)),
                .send(S(flags: "S", sequence: 2_000, mss: 1_220, timestamp: 4)),
                .expect(S(flags: "SA", sequence: 0, ack: 2_001)),
            ]
        },
        Script(name: "FIN-WAIT-2 of a connection that was let go ends") {
            accepted() + [
                .close, .expect(S(flags: "FA", sequence: 1, ack: 1)),
                .send(S(flags: "A", sequence: 1, ack: 2)),
                .wait(.seconds(61)), .send(S(flags: "A", sequence: 1, ack: 2)),
                .expect(S(flags: "R", sequence: 2)),
            ]
        },
    ]

    static let timers = [
        Script(name: "retransmission backs off: 1, 2, 4 s before the first sample of data") {
            [
                .send(S(flags: "S", sequence: 0, mss: 1_220)), .expect(S(flags: "SA", sequence: 0, ack: 1)),
                .wait(.milliseconds(999)), .silence, .wait(.milliseconds(1)),
                .expect(S(flags: "SA", sequence: 0)),
                .wait(.milliseconds(1_999)), .silence, .wait(.milliseconds(1)),
                .expect(S(flags: "SA", sequence: 0)),
                .wait(.milliseconds(3_999)), .silence, .wait(.milliseconds(1)),
                .expect(S(flags: "SA", sequence: 0)),
            ]
        },
        Script(name: "without an answer the SYN is given up", opens: true) {
            [
                .expect(S(flags: "S", sequence: 0)), .wait(.seconds(63)),
                .expect(S(flags: "S", sequence: 0)), .expect(S(flags: "S", sequence: 0)),
                .expect(S(flags: "S", sequence: 0)), .expect(S(flags: "S", sequence: 0)),
                .expect(S(flags: "S", sequence: 0)), .expect(S(flags: "S", sequence: 0)), .noEvent, .silence,
                .wait(.seconds(65)), .silence, .event(.closed(.timeout)),
            ]
        },
        Script(name: "a lost tail is probed after two round trips and a delayed ACK (RFC 8985)") {
            accepted() + [
                .write(100), .expect(S(flags: "PA", sequence: 1, length: 100)), .wait(.milliseconds(50)),
                .send(S(flags: "A", sequence: 1, ack: 101)),
                .write(100), .expect(S(flags: "PA", sequence: 101, length: 100)), .wait(.milliseconds(150)),
                .silence,
                .wait(.milliseconds(110)), .expect(S(flags: "PA", sequence: 101, length: 100)), .silence,
            ]
        },
        Script(name: "after a time-out one segment at a time, then more") {
            accepted(sack: false) + [
                .write(2_440), .expect(S(flags: "A", sequence: 1, length: 1_220)),
                .expect(S(flags: "PA", sequence: 1_221, length: 1_220)), .wait(.milliseconds(400)),
                .expect(S(flags: "A", sequence: 1, length: 1_220)), .silence,
                .send(S(flags: "A", sequence: 1, ack: 1_221)),
                .expect(S(flags: "PA", sequence: 1_221, length: 1_220)),
                .silence,
            ]
        },
        Script(
            name: "keepalive probes, then gives up",
            limits: {
                var limits = StackLimits()
                limits.keepaliveIdle = .seconds(10)
                limits.keepaliveInterval = .seconds(1)
                limits.keepaliveProbes = 2
                return limits
            }()
        ) {
            accepted() + [
                .wait(.seconds(10)), .expect(S(flags: "A", sequence: 0, ack: 1)),
                .send(S(flags: "A", sequence: 1, ack: 1)), .wait(.seconds(9)), .silence, .wait(.seconds(2)),
                .expect(S(flags: "A", sequence: 0, ack: 1)), .expect(S(flags: "A", sequence: 0, ack: 1)),
                .wait(.seconds(1)), .event(.closed(.timeout)), .silence,
            ]
        },
    ]
}

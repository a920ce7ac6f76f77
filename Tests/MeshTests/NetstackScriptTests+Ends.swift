// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

// Scripts of connections that end early, and of owners that are gone.
extension NetstackScriptTests {
    static let ends = [
        Script(name: "what came before a reset can be read") {
            accepted() + [
                .send(S(flags: "PA", sequence: 1, ack: 1, length: 5)),
                .send(S(flags: "R", sequence: 6)), .event(.readable), .noEvent, .read(3), .noEvent,
                .read(2), .event(.closed(.reset)), .noEvent, .silence,
            ]
        },
        Script(name: "what came before a time-out can be read") {
            accepted(stamps: true) + [
                .send(S(flags: "PA", sequence: 1, ack: 1, length: 5, timestamp: 3)), .event(.readable),
                .expect(S(flags: "A", sequence: 1, ack: 6)), .write(1),
                .expect(S(flags: "PA", sequence: 1, length: 1)), .wait(.seconds(3_000)),
            ] + Array(repeating: .expect(S(flags: "PA", sequence: 1, length: 1)), count: 15) + [
                .silence, .noEvent, .read(5), .event(.closed(.timeout)),
            ]
        },
        Script(name: "a connection that was reset takes no more bytes") {
            accepted() + [
                .send(S(flags: "PA", sequence: 1, ack: 1, length: 5)),
                .send(S(flags: "R", sequence: 6)), .event(.readable), .shutdown, .silence, .close, .noEvent,
                .silence,
            ]
        },
        Script(name: "a reset in TIME-WAIT leaves what the peer said before") {
            accepted() + [
                .shutdown, .expect(S(flags: "FA", sequence: 1, ack: 1)),
                .send(S(flags: "FPA", sequence: 1, ack: 2, length: 5)),
                .expect(S(flags: "A", sequence: 2, ack: 7)), .event(.readable),
                .send(S(flags: "R", sequence: 7)), .wait(.seconds(1)), .noEvent, .read(5),
                .event(.peerClosed), .event(.closed(.done)), .silence,
            ]
        },
        Script(name: "last words arrive before the reset") {
            accepted() + [
                .write(5), .expect(S(flags: "PA", sequence: 1, ack: 1, length: 5)),
                .send(S(flags: "PA", sequence: 1, ack: 1, length: 10)), .event(.readable),
                .expect(S(flags: "A", sequence: 6, ack: 11)), .abortWhenSent, .silence,
                // The peer does not know yet, and goes on.
                .send(S(flags: "PA", sequence: 11, ack: 1, length: 10)),
                .expect(S(flags: "A", sequence: 6, ack: 21)), .noEvent,
                .send(S(flags: "A", sequence: 21, ack: 6)), .expect(S(flags: "RA", sequence: 6, ack: 21)),
                .silence, .noEvent,
            ]
        },
        Script(name: "last words are repeated before the reset") {
            accepted() + [
                .write(2_440), .discardInput, .abortWhenSent,
                .expect(S(flags: "A", sequence: 1, length: 1_220)),
                .expect(S(flags: "PA", sequence: 1_221, length: 1_220)),
                .send(S(flags: "A", sequence: 1, ack: 1_221)), .silence, .wait(.milliseconds(900)),
                .expect(S(flags: "PA", sequence: 1_221, length: 1_220)), .drop,
                .send(S(flags: "A", sequence: 1, ack: 2_441)),
                .expect(S(flags: "RA", sequence: 2_441, ack: 1)),
            ]
        },
        Script(name: "without last words the reset comes at once") {
            accepted() + [.abortWhenSent, .expect(S(flags: "RA", sequence: 1, ack: 1)), .silence]
        },
        Script(name: "nobody waits for ever for a window that never opens") {
            accepted(window: 0) + [.write(5), .close]
                + (0..<8).flatMap { round -> [ScriptStep] in
                    [
                        .wait(.milliseconds(201 << UInt64(round))), .expect(S(flags: "A", sequence: 0)),
                        .send(S(flags: "A", sequence: 1, ack: 1, window: 0)), .silence,
                    ]
                } + [.wait(.seconds(60)), .expect(S(flags: "RA", sequence: 1)), .silence]
        },
        Script(name: "a window that opens late gets the bytes of an owner that is gone") {
            accepted(window: 0) + [
                .write(5), .close, .wait(.milliseconds(300)), .expect(S(flags: "A", sequence: 0)),
                .send(S(flags: "A", sequence: 1, ack: 1, window: 100)),
                .expect(S(flags: "FPA", sequence: 1, length: 5)),
            ]
        },
        Script(name: "a round trip that became longer is learnt at once (RFC 4015)") {
            accepted(stamps: true, rtt: .milliseconds(10)) + [
                .write(100), .expect(S(flags: "PA", sequence: 1, length: 100)), .wait(.milliseconds(700)),
                .expect(S(flags: "PA", sequence: 1, length: 100)),
                .expect(S(flags: "PA", sequence: 1, length: 100)), .silence, .stalls(2),
                .send(S(flags: "A", sequence: 1, ack: 101, timestamp: 3, echoAge: 630)),
                .write(100), .expect(S(flags: "PA", sequence: 101, length: 100)), .wait(.milliseconds(700)),
                .silence, .send(S(flags: "A", sequence: 1, ack: 201, timestamp: 4)),
                .write(100), .expect(S(flags: "PA", sequence: 201, length: 100)), .wait(.milliseconds(700)),
                .silence, .stalls(0),
            ]
        },
        Script(name: "without timestamps the back-off stays until there is a sample (RFC 6298 §5.7)") {
            accepted(sack: false, rtt: .milliseconds(10)) + [
                .write(100), .expect(S(flags: "PA", sequence: 1, length: 100)), .wait(.milliseconds(700)),
                .expect(S(flags: "PA", sequence: 1, length: 100)),
                .expect(S(flags: "PA", sequence: 1, length: 100)), .silence,
                .send(S(flags: "A", sequence: 1, ack: 101)),
                .write(100), .expect(S(flags: "PA", sequence: 101, length: 100)), .wait(.milliseconds(700)),
                .silence, .send(S(flags: "A", sequence: 1, ack: 201)),
            ]
        },
        Script(name: "a write cut short is followed by one event when there is room") {
            accepted(sack: false) + [
                .fill, .noEvent, .drop, .send(S(flags: "A", sequence: 1, ack: 1_221)), .noEvent,
                .send(S(flags: "A", sequence: 1, ack: 12_201)), .drop,
                .send(S(flags: "A", sequence: 1, ack: 24_401)), .event(.writable), .noEvent,
            ]
        },
    ]

    /// Both halves of the space of sequence numbers, several times.
    @Test(arguments: UInt64(1)...8) func afterReorderingLossIsSuspectedLater(seed: UInt64) {
        var peer = ScriptPeer(seed: seed)
        peer.play(
            accepted(rtt: .milliseconds(100)) + [
                .write(100), .expect(S(flags: "PA", sequence: 1, length: 100)), .wait(.milliseconds(100)),
                // It arrived twice (RFC 2883), so something had only been late.
                .send(S(flags: "A", sequence: 1, ack: 101, sacks: [1..<101])),
                .write(2_440), .expect(S(flags: "A", sequence: 101, length: 1_220)),
                .expect(S(flags: "PA", sequence: 1_321, length: 1_220)), .wait(.milliseconds(100)),
                .send(S(flags: "A", sequence: 1, ack: 101, sacks: [1_321..<2_541])), .silence,
                // RFC 8985 §6.2 step 4: two quarters of the round trip, not one.
                .wait(.milliseconds(40)), .silence, .wait(.milliseconds(15)),
                .expect(S(flags: "A", sequence: 101, length: 1_220)),
            ])
        #expect(peer.failures == [])
    }
}

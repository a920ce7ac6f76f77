// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

// Scripts of what is repeated because the owner knows of another way: no timer ran out, and nothing is learnt from it.
extension NetstackScriptTests {
    static let told = [
        Script(name: "what was told to be lost is no sign of a dead path, and its timer starts anew") {
            accepted(rtt: .milliseconds(100)) + [.write(2_440)] + both + [
                .silence, .wait(.milliseconds(50)), .tellLoss,
            ] + both + [.silence, .stalls(0)] + [
                .wait(.milliseconds(100)), .tellLoss,
            ] + both + [
                .stalls(0), .roundTrip(.milliseconds(100)),
                // 100 ms + 4 x 50 ms after the last of them, no back-off.
                .wait(.milliseconds(299)), .silence, .wait(.milliseconds(2)), first, .silence, .stalls(1),
                .wait(.milliseconds(597)), .silence, .wait(.milliseconds(3)), first, .silence, .stalls(1),
            ]
        },
        Script(name: "a way that is found is no further sign of a dead path") {
            accepted(rtt: .milliseconds(100)) + [.write(1_220), only, .wait(.milliseconds(301)), only]
                + [.wait(.milliseconds(600)), only, .stalls(2), .wait(.milliseconds(200)), .tellWay, only]
                + [.silence, .stalls(0), .wait(.milliseconds(298)), .silence, .wait(.milliseconds(3)), only]
                + [.stalls(1)]
        },
        Script(name: "an answer to what was repeated is no sample without timestamps (Karn)") {
            accepted(rtt: .milliseconds(100)) + [
                .write(1_220), only, .wait(.milliseconds(150)), .tellLoss, only, .wait(.milliseconds(5)),
                .send(S(flags: "A", sequence: 1, ack: 1_221)), .silence, .roundTrip(.milliseconds(100)),
            ]
        },
        Script(name: "nor is one to a SYN", opens: true) {
            [
                .expect(S(flags: "S", sequence: 0)), .wait(.milliseconds(700)), .tellLoss,
                .expect(S(flags: "S", sequence: 0)), .silence, .wait(.milliseconds(10)),
                .send(S(flags: "SA", sequence: 0, ack: 1, mss: 1_220, sackPermitted: true)),
                .event(.connected), .expect(S(flags: "A", sequence: 1, ack: 1)), .roundTrip(.zero),
                .stalls(0),
            ]
        },
        Script(name: "what arrived all the same does not slow the timer down") {
            accepted(stamps: true, rtt: .milliseconds(10)) + [
                .write(1_208), .expect(S(flags: "PA", sequence: 1, length: 1_208)), .wait(.milliseconds(200)),
                .tellLoss, .expect(S(flags: "PA", sequence: 1, length: 1_208)), .wait(.milliseconds(5)),
                // Of the first transmission, 205 ms ago.
                .send(S(flags: "A", sequence: 1, ack: 1_209, timestamp: 3, echoAge: 200)), .silence,
                .write(1_208), .expect(S(flags: "PA", sequence: 1_209, length: 1_208)),
                // The tail probe, after twice the round trip and a delayed acknowledgement.
                .wait(.milliseconds(290)), .expect(S(flags: "PA", sequence: 1_209, length: 1_208)),
            ]
        },
    ]

    private static let first = ScriptStep.expect(S(flags: "A", sequence: 1, length: 1_220))
    private static let only = ScriptStep.expect(S(flags: "PA", sequence: 1, length: 1_220))
    private static let both = [first, .expect(S(flags: "PA", sequence: 1_221, length: 1_220))]
}

// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

// Scripts of what is repeated when, and of ends that meet an obstacle.
extension NetstackScriptTests {
    static let recovering = [
        Script(name: "a tail is probed with new bytes if there are any (RFC 8985 §7.3)") {
            accepted(rtt: .milliseconds(100)) + [
                .write(12_200 + 100)
            ] + segments(1, 10) + [
                .silence, .wait(.milliseconds(201)), .silence, .wait(.milliseconds(2)),
                .expect(S(flags: "PA", sequence: 12_201, length: 100)), .silence,
            ]
        },
        Script(name: "what was reported and thrown away is repeated after a time-out (RFC 2018 §8)") {
            accepted(rtt: .milliseconds(100)) + [.write(3_660)]
                + segments(1, 2) + [.expect(S(flags: "PA", sequence: 2_441, length: 1_220))] + [
                    .wait(.milliseconds(100)),
                    .send(S(flags: "A", sequence: 1, ack: 1, sacks: [1_221..<2_441])), .silence,
                    .send(S(flags: "A", sequence: 1, ack: 1_221)), .silence, .wait(.milliseconds(900)),
                    .expect(S(flags: "A", sequence: 1_221, length: 1_220)), .drop,
                    .send(S(flags: "A", sequence: 1, ack: 2_441)),
                    .expect(S(flags: "PA", sequence: 2_441, length: 1_220)),
                ]
        },
        Script(name: "a late acknowledgement takes a time-out back (RFC 3522)") {
            accepted(stamps: true, rtt: .milliseconds(10)) + [.write(4 * 1_208)]
                + (0..<3).map { .expect(S(flags: "A", sequence: 1 + $0 * 1_208, length: 1_208)) } + [
                    .expect(S(flags: "PA", sequence: 1 + 3 * 1_208, length: 1_208)),
                    .wait(.milliseconds(300)), .drop,
                    // All of the first transmission arrived, only late: nothing is left to repeat.
                    .send(S(flags: "A", sequence: 1, ack: 1_209, timestamp: 3, echoAge: 210)), .silence,
                    .send(S(flags: "A", sequence: 1, ack: 4 * 1_208 + 1, timestamp: 3, echoAge: 210)),
                    .silence,
                ]
        },
        Script(name: "a FIN waits behind bytes that a closed window holds back") {
            accepted(window: 0) + [
                .write(5), .shutdown, .silence, .wait(.milliseconds(201)),
                .expect(S(flags: "A", sequence: 0, ack: 1)),
                .send(S(flags: "A", sequence: 1, ack: 1, window: 100)),
                .expect(S(flags: "FPA", sequence: 1, ack: 1, length: 5)),
            ]
        },
        Script(name: "a FIN alone needs room in the window as well") {
            accepted(window: 0) + [
                .shutdown, .silence, .wait(.milliseconds(201)), .expect(S(flags: "A", sequence: 0, ack: 1)),
                .send(S(flags: "A", sequence: 1, ack: 1, window: 1)),
                .expect(S(flags: "FA", sequence: 1, ack: 1)),
            ]
        },
        Script(name: "without timestamps a SYN ends TIME-WAIT if its number is newer") {
            accepted() + [
                .shutdown, .expect(S(flags: "FA", sequence: 1, ack: 1)),
                .send(S(flags: "FA", sequence: 1, ack: 2)), .event(.peerClosed), .event(.closed(.done)),
                .expect(S(flags: "A", sequence: 2, ack: 2)),
                .send(S(flags: "S", sequence: -5_000, mss: 1_220)),
                .expect(S(flags: "A", sequence: 2, ack: 2)),
                .send(S(flags: "S", sequence: 5_000, mss: 1_220)),
                .expect(S(flags: "SA", sequence: 0, ack: 5_001)),
            ]
        },
    ]

    private static func segments(_ first: Int, _ count: Int) -> [ScriptStep] {
        (0..<count).map { .expect(S(flags: "A", sequence: first + $0 * 1_220, length: 1_220)) }
    }
}

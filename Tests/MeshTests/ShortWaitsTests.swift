// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

/// When the engine's thread looks for events instead of sleeping.
@Suite struct ShortWaitsTests {
    private let short = ShortWaits.shortWait, long = ShortWaits.shortWait + 1

    /// One that has slept shortly as often as is needed.
    private func ready() -> ShortWaits {
        var waits = ShortWaits()
        for _ in 0..<ShortWaits.needed { waits.slept(nanoseconds: short) }
        return waits
    }

    @Test func looksAfterShortWaitsInARow() {
        var waits = ShortWaits()
        for _ in 0..<ShortWaits.needed {
            #expect(!waits.looks(now: 0))
            waits.slept(nanoseconds: short)
        }
        #expect(waits.looks(now: 0))
        waits.found()
        #expect(waits.looks(now: 0))
    }

    /// Whoever types waits shortly for the echo, and long for the next key: it never looks.
    @Test func echoOfKeystrokesSleeps() {
        var waits = ShortWaits()
        for _ in 0..<100 {
            for wait in [short, short, long] {
                waits.slept(nanoseconds: wait)
                #expect(!waits.looks(now: 0))
            }
        }
    }

    @Test func oneLookInVainEndsIt() {
        var waits = ready()
        waits.lookedInVain()
        waits.slept(nanoseconds: long)
        #expect(!waits.looks(now: 0))
    }

    /// Answers that come just after each look cost at most one look per `needed` waits.
    @Test func answersThatComeTooLateCostLittle() {
        var waits = ready()
        var looks = 0
        for _ in 0..<400 {
            if waits.looks(now: 0) {
                looks += 1
                waits.lookedInVain()
            }
            waits.slept(nanoseconds: short)
        }
        #expect(looks <= 1 + 400 / ShortWaits.needed)
    }

    @Test func bulkSleeps() {
        var waits = ready()
        waits.moved(ShortWaits.bulkBytes - 1)
        #expect(waits.looks(now: 0))
        waits.moved(ShortWaits.bulkBytes)
        #expect(!waits.looks(now: 0))
    }

    /// Where others want the processor it keeps away, longer each time, until looks have gone well for a while.
    @Test func intrusionsPause() {
        var waits = ready()
        var now: UInt64 = 0
        var expected = ShortWaits.shortestPause
        for _ in 0..<12 {
            waits.intruded(now: now)
            for _ in 0..<ShortWaits.needed { waits.slept(nanoseconds: short) }
            #expect(!waits.looks(now: now + expected - 1))
            #expect(waits.looks(now: now + expected))
            now += expected
            expected = min(expected * 2, ShortWaits.longestPause)
            waits.found()
        }
        for _ in 0..<ShortWaits.undisturbed { waits.found() }
        waits.intruded(now: now)
        for _ in 0..<ShortWaits.needed { waits.slept(nanoseconds: short) }
        #expect(waits.looks(now: now + ShortWaits.shortestPause))
    }
}

// SPDX-License-Identifier: Apache-2.0

import Glibc
import Resume
import Testing

@Suite struct StreamTests {
    /// A conversation of a few frames each way, with ends; the carrier is lost once after `cut` bytes of each
    /// direction have arrived, with `lost` more under way.
    private func converse(cutAfter cut: Int, lost: Int) throws -> (carriers: Int, total: Int) {
        var limits = ResumableStream.Limits()
        limits.acknowledgementBytes = 32
        var link = Link(limits: limits)
        let wanted = (up: randomBytes(90, 1), down: randomBytes(70, 2))
        var up = wanted.up, down = wanted.down
        var arrived = 0
        var isCut = false
        try link.connect()
        for turn in 0..<4_000 where !(link.client.isComplete && link.agent.isComplete) {
            if turn % 3 == 0 { write(&link.client, &up, upTo: 11) }
            if turn % 4 == 0 { write(&link.agent, &down, upTo: 7) }
            if up.isEmpty { link.client.finish() }
            if down.isEmpty { link.agent.finish() }
            if !isCut, arrived >= cut {
                link.send(upTo: lost)
                link.cut()
                isCut = true
                continue
            }
            if !link.isOpen { try link.connect() }
            link.send(upTo: 1)
            try link.arrive(upTo: 1)
            arrived += 1
            link.now += 10_000_000
            let isGivenUp = (
                link.client.handleTimeout(now: link.now), link.agent.handleTimeout(now: link.now)
            )
            #expect(isGivenUp == (false, false))
        }
        #expect(link.atAgent == wanted.up)
        #expect(link.atClient == wanted.down)
        let isComplete = link.client.isComplete && link.agent.isComplete
        #expect(isComplete)
        return (link.client.counters.carriers, arrived)
    }

    @Test func lossOfTheCarrierAtEveryByte() throws {
        let whole = try converse(cutAfter: .max, lost: 0)
        #expect(whole.carriers == 1)
        for cut in 0..<whole.total {
            for lost in [0, 5, 200] {
                let run = try converse(cutAfter: cut, lost: lost)
                #expect(run.carriers == 2, "cut after \(cut)")
            }
        }
    }

    @Test(arguments: simulationSeeds())
    func randomSimulation(seed: UInt64) throws {
        var generator = Seeded(seed)
        var limits = ResumableStream.Limits()
        limits.windowBytes = Int.random(in: 1_000...60_000, using: &generator)
        limits.acknowledgementBytes = Int.random(in: 1...20_000, using: &generator)
        var link = Link(limits: limits)
        let wanted = (
            up: randomBytes(Int.random(in: 0...150_000, using: &generator), seed),
            down: randomBytes(Int.random(in: 0...150_000, using: &generator), seed ^ 7)
        )
        var up = wanted.up[...], down = wanted.down[...]
        var turns = 0
        while !(link.client.isComplete && link.agent.isComplete) {
            turns += 1
            try #require(turns < 200_000, "seed \(seed) does not come to an end")
            var upPiece = Array(up.prefix(Int.random(in: 0...9_000, using: &generator)))
            var downPiece = Array(down.prefix(Int.random(in: 0...9_000, using: &generator)))
            let before = (upPiece.count, downPiece.count)
            write(&link.client, &upPiece)
            write(&link.agent, &downPiece)
            up = up.dropFirst(before.0 - upPiece.count)
            down = down.dropFirst(before.1 - downPiece.count)
            if up.isEmpty { link.client.finish() }
            if down.isEmpty { link.agent.finish() }
            if !link.isOpen {
                if Int.random(in: 0..<3, using: &generator) == 0 { try link.connect() }
            } else if Int.random(in: 0..<40, using: &generator) == 0 {
                link.cut()
            } else {
                link.send(upTo: Int.random(in: 0...20_000, using: &generator))
                try link.arrive(upTo: Int.random(in: 0...20_000, using: &generator))
            }
            link.now += UInt64.random(in: 0...50_000_000, using: &generator)
            _ = link.client.handleTimeout(now: link.now)
            _ = link.agent.handleTimeout(now: link.now)
            let held = (link.client.unacknowledgedCount, link.agent.deliverableCount)
            #expect(held.0 <= limits.windowBytes && held.1 <= limits.windowBytes)
        }
        #expect(link.atAgent == wanted.up, "seed \(seed)")
        #expect(link.atClient == wanted.down, "seed \(seed)")
    }

    @Test func aReaderThatDoesNotReadStopsTheWriter() throws {
        var limits = ResumableStream.Limits()
        limits.windowBytes = 10_000
        var link = Link(limits: limits)
        try link.connect()
        var source = randomBytes(100_000, 3)
        var delivered: [UInt8] = []
        for _ in 0..<100 {
            write(&link.client, &source)
            link.send(upTo: .max)
            try Link.feed(&link.agent, &link.up, .max, link.now)
            try Link.feed(&link.client, &link.down, .max, link.now)
            link.now += 300_000_000
            let isGivenUp = link.agent.handleTimeout(now: link.now)
            #expect(!isGivenUp)
        }
        // One window with the reader, one in the replay buffer of the writer; nothing was lost.
        let held = link.agent.deliverableCount
        #expect(held == 10_000)
        #expect(source.count == 80_000)
        while delivered.count < 100_000 {
            Link.deliver(&link.agent, &delivered, 3_000)
            write(&link.client, &source)
            link.send(upTo: .max)
            try Link.feed(&link.agent, &link.up, .max, link.now)
            try Link.feed(&link.client, &link.down, .max, link.now)
        }
        #expect(delivered == randomBytes(100_000, 3))
    }

    @Test func silenceIsFoundOutSoonerWhenSomethingIsOwed() throws {
        for (owes, seconds) in [(false, 14.0), (true, 7.0)] {
            var link = Link()
            try link.connect()
            if owes {
                var bytes = randomBytes(10, 1)
                write(&link.client, &bytes)
                link.send(upTo: .max)
            }
            let began = link.now
            var isDead = false
            while !isDead, link.now < began + 60_000_000_000 {
                link.now += 100_000_000
                isDead = link.client.handleTimeout(now: link.now)
                Link.collect(&link.client, &link.up, .max, link.now)
            }
            #expect(isDead)
            #expect(abs(Double(link.now - began) / 1e9 - seconds) < 0.3)
        }
    }

    @Test func aPingIsAnsweredAndKeepsTheCarrier() throws {
        var link = Link()
        try link.connect()
        for _ in 0..<1_000 {
            link.now += 100_000_000
            let isGivenUp = (
                link.client.handleTimeout(now: link.now), link.agent.handleTimeout(now: link.now)
            )
            #expect(isGivenUp == (false, false))
            link.send(upTo: .max)
            try link.arrive(upTo: .max)
        }
    }

    @Test func aResetEndsTheOtherSide() throws {
        var link = Link()
        try link.connect()
        link.client.reset(reason: 4)
        link.send(upTo: .max)
        var error: ResumeError?
        do { try link.arrive(upTo: .max) } catch let thrown { error = thrown }
        #expect(error == .reset(4))
        let failure = link.agent.failure
        #expect(failure == .reset(4))
        // Nothing is left to say: neither end may wait for room on the carrier.
        let wantsToSend = (link.client.wantsToSend, link.agent.wantsToSend)
        #expect(wantsToSend == (false, false))
    }

    @Test func aResetGoesOutAlthoughThePeerStillSends() throws {
        var link = Link()
        try link.connect()
        var bytes = randomBytes(1_000, 1)
        write(&link.agent, &bytes)
        link.send(upTo: .max)
        link.client.reset(reason: 1)
        var error: ResumeError?
        do { try link.arrive(upTo: .max) } catch let thrown { error = thrown }
        #expect(error == nil)
        link.send(upTo: .max)
        do { try link.arrive(upTo: .max) } catch let thrown { error = thrown }
        #expect(error == .reset(1))
    }

    @Test func aResetAfterTheOwnEndLeavesNothingToSay() throws {
        var link = Link()
        try link.connect()
        link.client.finish()
        link.client.reset()
        link.send(upTo: .max)
        let wantsToSend = link.client.wantsToSend
        #expect(!wantsToSend)
    }
}

/// 60, or as many as `SIM_SEEDS` says.
func simulationSeeds() -> [UInt64] {
    let wanted = getenv("SIM_SEEDS").flatMap { UInt64(String(cString: $0)) } ?? 60
    return Array(1...max(1, wanted))
}

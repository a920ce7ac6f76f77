// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

@Suite struct NetstackRepeatTests {
    /// The link is cut for two seconds: the pauses between repetitions have grown to more than a second. How long
    /// after its return until everything has arrived?
    /// `isMisled`: told ten times a second during the cut.
    private func secondsAfterCut(isTold: Bool, isMisled: Bool = false) throws -> Double {
        var run = try NetstackScenarioTests.Run(
            seed: 5, link: LinkProfile(name: "plain", rate: 2_000_000), streams: 2, bytes: 600_000)
        let cutAt = run.world.now + .milliseconds(100)
        while run.world.now < cutAt, run.step(until: cutAt) {}
        run.world.isCut = true
        let backAt = cutAt + .seconds(2)
        while run.world.now < backAt {
            let limit = isMisled ? min(backAt, run.world.now + .milliseconds(100)) : backAt
            while run.world.now < limit, run.step(until: limit) {}
            run.world.now = max(run.world.now, limit)
            guard isMisled, limit < backAt else { continue }
            run.world.a.repeatNow(run.world.now)
            run.world.b.repeatNow(run.world.now)
        }
        run.world.isCut = false
        run.world.now = max(run.world.now, backAt)
        if isTold {
            run.world.a.repeatNow(run.world.now)
            run.world.b.repeatNow(run.world.now)
        }
        run.finish(within: 60)
        let isDone = run.isDone
        #expect(isDone)
        return run.world.now.since(backAt).inSeconds
    }

    @Test func nobodyWaitsForAGrownPauseOnceThereIsAWayAgain() throws {
        let told = try secondsAfterCut(isTold: true)
        let untold = try secondsAfterCut(isTold: false)
        #expect(told + 0.5 < untold, "told \(told) s, untold \(untold) s")
    }

    /// A short cut, shorter than any time-out, over a link without a queue. How long until everything has arrived,
    /// where the sender is told of it at its end, or told so although nothing is lost?
    private func secondsAfterLoss(isTold: Bool, isCut: Bool = true) throws -> Double {
        let link = LinkProfile(
            name: "paced", latency: .milliseconds(20), rate: 2_000_000, isPaced: true)
        var run = try NetstackScenarioTests.Run(seed: 5, link: link, streams: 2, bytes: 600_000)
        let cutAt = run.world.now + .milliseconds(250)
        while run.world.now < cutAt, run.step(until: cutAt) {}
        run.world.isCut = isCut
        let backAt = cutAt + .milliseconds(120)
        while run.world.now < backAt, run.step(until: backAt) {}
        run.world.now = max(run.world.now, backAt)
        run.world.isCut = false
        if isTold {
            let all = [
                IPPrefix(IPAddress(v4: 0), bits: 0), IPPrefix(IPAddress(high: 0, low: 0), bits: 0),
            ]
            run.world.a.repeatLost(run.world.now, to: all)
            run.world.b.repeatLost(run.world.now, to: all)
        }
        run.finish(within: 60)
        let isDone = run.isDone
        #expect(isDone)
        return run.world.now.since(backAt).inSeconds
    }

    @Test func whatWasLostIsRepeatedBeforeItsTimeOut() throws {
        let told = try secondsAfterLoss(isTold: true)
        let untold = try secondsAfterLoss(isTold: false)
        #expect(told + 0.05 < untold, "told \(told) s, untold \(untold) s")
    }

    /// The window that was reached is back as soon as an answer shows that nothing was lost.
    @Test func aLossThatWasNoneCostsNothing() throws {
        let told = try secondsAfterLoss(isTold: true, isCut: false)
        let untold = try secondsAfterLoss(isTold: false, isCut: false)
        #expect(told < untold + 0.1, "told \(told) s, untold \(untold) s")
    }

    @Test func waysThatAreFoundInVainCostNothing() throws {
        let misled = try secondsAfterCut(isTold: false, isMisled: true)
        let untold = try secondsAfterCut(isTold: false)
        #expect(misled < untold + 0.5, "misled \(misled) s, untold \(untold) s")
    }
}

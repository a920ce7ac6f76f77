// SPDX-License-Identifier: Apache-2.0

import LinuxIO
import Synchronization
import Testing

/// Names are looked up beside each other. The look-ups here end when the test says so.
@Suite(.timeLimit(.minutes(1))) struct NameLookupsTests {
    private let found = AsyncStream<(String, Int)>.makeStream()
    private let dead: WakeUp
    private let asked = Counts()

    private final class Counts: Sendable {
        private let counts = Mutex<[String: Int]>([:])
        func add(_ name: String) { counts.withLock { $0[name, default: 0] += 1 } }
        subscript(_ name: String) -> Int { counts.withLock { $0[name, default: 0] } }
    }

    init() throws { dead = try WakeUp() }

    /// Names that begin with "dead" are answered with nothing when the test ends.
    private func lookups(limit: Int = NameLookups.defaultLimit) -> NameLookups {
        NameLookups(limit: limit) { [dead, asked] name in
            asked.add(name)
            if name == "nothing" { return [] }
            guard name.hasPrefix("dead") else { return [KernelAddress.loopback(v4: true)] }
            dead.wait()
            return []
        }
    }

    private func start(_ lookups: NameLookups, _ names: [String]) {
        lookups.start(names) { [found] in found.continuation.yield(($0, $1.count)) }
    }

    private func next(_ count: Int) async -> [String: Int] {
        var result: [String: Int] = [:]
        for await (name, addresses) in found.stream {
            result[name] = addresses
            if result.count == count { break }
        }
        return result
    }

    @Test func deadNamesHoldUpNobody() async {
        defer { dead.signal() }
        start(lookups(), (0..<30).map { "dead\($0)" } + ["a", "b", "nothing"])
        #expect(await next(3) == ["a": 1, "b": 1, "nothing": 0])
    }

    @Test func aNameOnItsWayIsNotAskedAgain() async {
        defer { dead.signal() }
        let lookups = lookups()
        start(lookups, ["dead", "a", "a"])
        #expect(await next(1) == ["a": 1])
        start(lookups, ["dead", "b"])
        #expect(await next(1) == ["b": 1])
        #expect(asked["a"] == 1 && asked["dead"] == 1)
    }

    @Test func noMoreThreadsThanAllowed() async {
        let lookups = lookups(limit: 2)
        start(lookups, ["dead1", "dead2", "old"])
        // Another list takes the place of what waits.
        start(lookups, ["dead1", "a", "b"])
        #expect(asked["old"] == 0 && asked["a"] == 0)
        dead.signal()
        #expect(await next(4) == ["dead1": 0, "dead2": 0, "a": 1, "b": 1])
        #expect(asked["old"] == 0)
    }
}

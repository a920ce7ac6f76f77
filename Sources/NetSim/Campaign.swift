// SPDX-License-Identifier: Apache-2.0

internal import Mesh

/// Networks made at random, and what must be so in each: a pair (or many) behind any two NATs, with faults.
public enum Campaign {
    /// Whether two sides can talk directly, by their NATs.
    public enum Possible: Sendable { case yes, no, perhaps }

    /// After RFC 4787 and RFC 5128 §3.3: with independent mapping on both sides always; with one dependent mapping
    /// when the other side's filter looks at addresses at most.
    public static func direct(_ a: Scenario.Router?, _ b: Scenario.Router?) -> Possible {
        if a?.blocksUDP == true || b?.blocksUDP == true || a?.proxyOnly == true || b?.proxyOnly == true {
            return .no
        }
        if a?.v6 == true, b?.v6 == true { return .yes }
        let isEasy = { (router: Scenario.Router?) in
            router.map { $0.mapping == .independent || $0.opensPorts } ?? true
        }
        let admits = { (router: Scenario.Router?) in
            router.map { $0.filtering != .addressAndPort || $0.opensPorts } ?? true
        }
        switch (isEasy(a), isEasy(b)) {
        case (true, true): return .yes
        case (true, false): return admits(a) ? .yes : b?.filtering == .independent ? .perhaps : .no
        case (false, true): return admits(b) ? .yes : a?.filtering == .independent ? .perhaps : .no
        // Address-dependent mapping gives one port per address: the other side may guess right.
        case (false, false):
            return a?.mapping == .address || b?.mapping == .address || a?.filtering == .independent
                || b?.filtering == .independent ? .perhaps : .no
        }
    }

    /// A pair with faults; everything is a function of `seed`.
    public static func pair(seed: UInt64) -> Scenario {
        var random = SeededGenerator(seed: seed)
        var scenario = Scenario(name: "random pair", duration: 60)
        scenario.regions[0].latency = Double(random.next() % 40 + 2)
        if random.next() % 3 == 0 {
            var second = Scenario.Region(id: 2)
            second.latency = Double(random.next() % 60 + 2)
            scenario.regions.append(second)
        }
        for name in ["a", "b"] {
            let hasRouter = random.next() % 5 != 0
            if hasRouter { scenario.routers.append(router("nat-\(name)", &random)) }
            var host = Scenario.Host(name: name, router: hasRouter ? "nat-\(name)" : nil)
            host.latency = Double(random.next() % 30 + 1)
            if random.next() % 4 == 0 {
                host.lossOut = Double(random.next() % 5) / 100
                host.lossIn = Double(random.next() % 5) / 100
            }
            scenario.hosts.append(host)
        }
        scenario.sessions = [Scenario.Session(from: "a", to: "b")]
        let find = { (name: String) in scenario.routers.first { $0.name == "nat-\(name)" } }
        let possible = direct(find("a"), find("b"))
        let isLossy = scenario.hosts.contains { $0.lossIn > 0 || $0.lossOut > 0 }
        if possible != .perhaps {
            var early = Scenario.Expectation(
                from: "a", to: "b", at: isLossy ? 6 : 3, path: possible == .yes ? .direct : .relayed)
            early.stall = 2.5
            scenario.expectations.append(early)
        }
        addFault(to: &scenario, possible, &random)
        return scenario
    }

    private static func router(_ name: String, _ random: inout SeededGenerator) -> Scenario.Router {
        var router = Scenario.Router(name: name)
        let kinds = Scenario.Dependence.allCases
        router.mapping = kinds[Int(random.next() % 3)]
        router.filtering = kinds[Int(random.next() % 3)]
        router.hairpin = random.next() % 2 == 0
        router.mappingLife = Double(random.next() % 90 + 30)
        router.v6 = random.next() % 4 == 0
        switch random.next() % 10 {
        case 0: router.blocksUDP = true
        case 1: router.proxyOnly = true
        case 2: router.opensPorts = true
        default: break
        }
        return router
    }

    private static func addFault(
        to scenario: inout Scenario, _ possible: Possible, _ random: inout SeededGenerator
    ) {
        let kinds: [Scenario.Fault.Kind] = [
            .udpDown, .dataDead, .mtu, .loss, .sleep, .clockJump, .roam, .rebind, .relayDown, .restart,
            .blockDirect,
        ]
        let kind = kinds[Int(random.next() % UInt64(kinds.count))]
        let host = random.next() % 2 == 0 ? "a" : "b"
        let at = 12 + Double(random.next() % 5_000) / 1_000
        let length = Double(random.next() % 6_000) / 1_000 + 1
        var fault = Scenario.Fault(kind: kind, who: host, at: at, until: at + length)
        switch kind {
        case .mtu: fault.value = Double(random.next() % 2 == 0 ? 1_300 : 1_280)
        case .loss: fault.value = 0.3
        case .clockJump: fault.value = Double(random.next() % 3_000)
        case .relayDown: fault.who = "1"
        case .roam: fault.target = nil
        case .rebind:
            guard let router = scenario.routers.first else { return }
            fault.who = router.name
        default: break
        }
        scenario.faults = [fault]
        // Silent for as long as the fault makes it, and a while to recover: back-off of the stream included.
        scenario.stallLimit = [.sleep, .relayDown, .restart].contains(kind) ? length + 15 : 8
        if kind == .relayDown { scenario.stallLimit = length * 2 + 15 }
        var after = Scenario.Expectation(
            from: "a", to: "b", at: 58,
            path: possible == .yes ? .direct : possible == .no && kind != .roam ? .relayed : .any)
        if kind == .dataDead { after.path = .any }
        after.since = 50
        after.stall = 2.5
        scenario.expectations.append(after)
    }

    /// One node with sessions to many, as an agent that many use.
    public static func star(_ count: Int, seed: UInt64, duration: Double = 10) -> Scenario {
        var random = SeededGenerator(seed: seed)
        var scenario = Scenario(name: "star of \(count)", duration: duration)
        scenario.hosts.append(Scenario.Host(name: "hub", router: nil))
        for index in 0..<count {
            var router = router("r\(index)", &random)
            router.proxyOnly = false
            scenario.routers.append(router)
            scenario.hosts.append(Scenario.Host(name: "h\(index)", router: "r\(index)"))
            var session = Scenario.Session(from: "h\(index)", to: "hub")
            session.at = 1 + Double(random.next() % 2_000) / 1_000
            scenario.sessions.append(session)
            scenario.expectations.append(
                Scenario.Expectation(
                    from: session.from, to: session.to, at: session.at + 4,
                    path: router.blocksUDP ? .relayed : .direct))
        }
        return scenario
    }

    /// Many nodes, each in a session with its neighbour, behind all kinds of NATs.
    public static func crowd(_ count: Int, seed: UInt64, duration: Double = 10) -> Scenario {
        var random = SeededGenerator(seed: seed)
        var scenario = Scenario(name: "crowd of \(count)", duration: duration)
        scenario.regions.append(Scenario.Region(id: 2))
        for index in 0..<count {
            var router = router("r\(index)", &random)
            router.proxyOnly = false
            scenario.routers.append(router)
            var host = Scenario.Host(name: "h\(index)", router: "r\(index)")
            host.latency = Double(random.next() % 30 + 1)
            scenario.hosts.append(host)
            if index % 2 == 1 {
                var session = Scenario.Session(from: "h\(index - 1)", to: "h\(index)")
                session.at = 1 + Double(random.next() % 3_000) / 1_000
                scenario.sessions.append(session)
                let possible = direct(scenario.routers[index - 1], scenario.routers[index])
                guard possible != .perhaps else { continue }
                scenario.expectations.append(
                    Scenario.Expectation(
                        from: session.from, to: session.to, at: session.at + 4,
                        path: possible == .yes ? .direct : .relayed))
            }
        }
        return scenario
    }
}

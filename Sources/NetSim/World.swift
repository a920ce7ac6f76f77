// SPDX-License-Identifier: Apache-2.0

internal import HeapModule
public import Mesh

/// One run of a scenario in virtual time. A function of scenario and seed: the same two give the same trace.
public final class World {
    /// Something that happens at a moment.
    enum Happening {
        case timer(host: Int, at: Instant)
        case udp(to: Int, Packet)
        case router(Int, Packet)
        case stun(region: Int, Packet)
        case opened(link: Int)
        case toRelay(link: Int, [UInt8])
        case toHost(link: Int, [UInt8])
        case relayLost(link: Int)
        case news(about: Int, to: Int)
        case tick(session: Int, side: Int)
        case repeated(session: Int, side: Int, UInt32)
        case fault(Int, isEnd: Bool)
        case linkNoticed(Int)
        case dial(region: Int, host: Int, generation: Int)
        case measure(host: Int, generation: Int)
        case expectation(Int)
    }

    private struct Entry: Comparable {
        var at: Instant
        var order: UInt64
        var happening: Happening
        static func < (a: Entry, b: Entry) -> Bool { a.at != b.at ? a.at < b.at : a.order < b.order }
        static func == (a: Entry, b: Entry) -> Bool { a.order == b.order }
    }

    struct Session {
        var hosts: (Int, Int)
        /// Sent by side 0 and by side 1.
        var streams = [SimStream(), SimStream()]
        var began: Instant?
        /// Longest stalls, by side that waited, with their ends.
        var stalls: [(side: Int, end: Instant, length: Interval)] = []

        func host(_ side: Int) -> Int { side == 0 ? hosts.0 : hosts.1 }
    }

    /// What is simulated.
    public let scenario: Scenario
    /// The seed.
    public let seed: UInt64
    /// Zero of all scenarios: clocks do not begin with 0.
    static let start = Instant(nanoseconds: 1_000_000_000_000)
    /// Virtual time.
    public internal(set) var now = World.start
    var random: SeededGenerator
    var hosts: [SimHost] = []
    var routers: [NAT] = []
    var sessions: [Session] = []
    var relays: [Int: SimRelay] = [:]
    var relaysDown: Set<Int> = []
    var links: [SimLink] = []
    var hostOfAddress: [IPAddress: Int] = [:]
    var routerOfAddress: [IPAddress: Int] = [:]
    var hostOfKey: [NodePublicKey: Int] = [:]
    var hostNames: [String: Int] = [:]
    var routerNames: [String: Int] = [:]
    private var heap = Heap<Entry>()
    private var order: UInt64 = 0
    /// What was found wrong.
    public internal(set) var violations: [String] = []
    /// Checksum of everything that happened.
    public private(set) var trace: UInt64 = 0xcbf2_9ce4_8422_2325
    /// Happenings so far.
    public private(set) var steps = 0
    /// Seconds from a session's start to its first direct path, by `from-to`; absent without one.
    public internal(set) var timeToDirect: [String: Double] = [:]
    /// When sides of a session began to go directly, or stopped.
    var directChanges: [(at: Instant, host: Int, isDirect: Bool)] = []
    var buffer = [UInt8](repeating: 0, count: Disco.maximumSealedBytes)
    /// Called with a line for each decision, in order.
    var log: ((String) -> Void)?

    /// Builds the network. Unknown names are violations at once.
    public init(_ scenario: Scenario, seed: UInt64, log: ((String) -> Void)? = nil) {
        self.scenario = scenario
        self.seed = seed
        self.log = log
        random = SeededGenerator(seed: seed)
        buildRouters()
        buildHosts()
        buildRelays()
        for (index, session) in scenario.sessions.enumerated() {
            guard let a = hostNames[session.from], let b = hostNames[session.to] else {
                violations.append("unknown host in session \(session.from)-\(session.to)")
                continue
            }
            sessions.append(Session(hosts: (a, b)))
            hosts[a].sessions.append(sessions.count - 1)
            hosts[b].sessions.append(sessions.count - 1)
            // Sessions of a scenario do not all begin in the same nanosecond.
            let jitter = Interval(nanoseconds: random.next() % 20_000_000)
            for side in 0..<2 {
                schedule(.tick(session: index, side: side), at: Self.moment(session.at) + jitter)
            }
        }
        for (index, fault) in scenario.faults.enumerated() {
            schedule(.fault(index, isEnd: false), at: Self.moment(fault.at))
            if let until = fault.until { schedule(.fault(index, isEnd: true), at: Self.moment(until)) }
        }
        for (index, expectation) in scenario.expectations.enumerated() {
            schedule(.expectation(index), at: Self.moment(expectation.at))
        }
    }

    static func moment(_ seconds: Double) -> Instant {
        start + Interval(nanoseconds: UInt64(max(0, seconds) * 1e9))
    }

    /// Seconds since the start.
    var seconds: Double { now.since(Self.start).inSeconds }

    func schedule(_ happening: Happening, at: Instant) {
        order += 1
        heap.insert(Entry(at: max(at, now), order: order, happening: happening))
    }

    func schedule(_ happening: Happening, in interval: Interval) { schedule(happening, at: now + interval) }

    /// Runs to the end and checks what is checked at the end.
    public func run() {
        for host in hosts { begin(host) }
        let end = Self.moment(scenario.duration)
        while let entry = heap.min, entry.at <= end {
            heap.removeMin()
            now = entry.at
            steps += 1
            carryOut(entry.happening)
        }
        now = end
        checkAtEnd()
    }

    /// Adds to the checksum.
    func note(_ text: @autoclosure () -> String) {
        let text = text()
        log?(text)
        for byte in text.utf8 { trace = (trace ^ UInt64(byte)) &* 0x100_0000_01b3 }
    }

    private func carryOut(_ happening: Happening) {
        switch happening {
        case .timer(let index, let at): timer(hosts[index], at)
        case .udp(let index, let packet): receive(hosts[index], packet)
        case .router(let index, let packet): arrive(packet, atRouter: index)
        case .stun(let region, let packet): answerSTUN(region, packet)
        case .opened(let link): opened(link)
        case .toRelay(let link, let bytes): arrivedAtRelay(link, bytes)
        case .toHost(let link, let bytes): arrivedAtHost(link, bytes)
        case .relayLost(let link): relayLost(link)
        case .news(let about, let to): news(about, to)
        case .tick(let session, let side): tick(session, side)
        case .repeated(let session, let side, let number): repeated(session, side, number)
        case .fault(let index, let isEnd): apply(scenario.faults[index], isEnd: isEnd)
        case .linkNoticed(let index): linkNoticed(hosts[index])
        case .dial(let region, let index, let generation):
            if hosts[index].generation == generation { dial(region, hosts[index]) }
        case .measure(let index, let generation):
            guard hosts[index].generation == generation else { return }
            measure(hosts[index])
            pump(hosts[index])
        case .expectation(let index): check(scenario.expectations[index])
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

import FoundationEssentials
import Mesh
import Testing

private let start = Instant(nanoseconds: 5_000_000_000)

/// The machine in a class, since the testing macros want copies of what they look at.
private final class Discovery {
    var machine = EndpointDiscovery(random: PathVectors.generator(3))
    var isRunning: Bool { machine.isRunning }
    var nextDeadline: Instant { machine.nextDeadline }
    var strayAnswers: UInt64 { machine.strayAnswers }

    func nextEvent() -> EndpointDiscovery.Event? { machine.nextEvent() }

    func receive(_ bytes: [UInt8], from source: SocketAddress, now: Instant) -> Bool {
        machine.receive(bytes.span.bytes, from: source, now: now)
    }

    var events: [EndpointDiscovery.Event] {
        var result: [EndpointDiscovery.Event] = []
        while let event = machine.nextEvent() { result.append(event) }
        return result
    }

    /// What was asked: target and request.
    func requests() -> [(to: SocketAddress, id: TransactionID)] {
        var buffer = [UInt8](repeating: 0, count: STUN.requestBytes)
        var result: [(SocketAddress, TransactionID)] = []
        while let to = buffer.withUnsafeMutableBytes({ machine.nextOutput(into: $0) }) {
            result.append((to, try! STUN.request(buffer, strict: true)))
        }
        return result
    }
}

@Suite struct EndpointDiscoveryTests {
    private let servers = [
        EndpointDiscovery.Server(region: 1, addresses: [SocketAddress("192.0.2.1:3478")!]),
        EndpointDiscovery.Server(
            region: 2, addresses: [SocketAddress("192.0.2.2:3478")!, SocketAddress("[2001:db8::2]:3478")!]),
    ]
    private let mapped = SocketAddress("198.51.100.7:4444")!

    private func make() -> Discovery {
        let discovery = Discovery()
        discovery.machine.setLocal(
            addresses: [IPAddress("10.0.0.5")!], portV4: 4000, portV6: 4000, now: start)
        _ = discovery.events
        discovery.machine.setServers(servers, now: start)
        return discovery
    }

    private func reply(_ id: TransactionID, _ mapped: SocketAddress) -> [UInt8] {
        var buffer = [UInt8](repeating: 0, count: STUN.maximumReplyBytes)
        let length = buffer.withUnsafeMutableBytes { STUN.writeReply(id, mapped: mapped, into: $0) }
        return Array(buffer[..<length])
    }

    // stun-netcheck.md N3
    @Test(arguments: [nil, false, true]) func mappingVaries(_ varies: Bool?) {
        let discovery = make()
        let sent = discovery.requests()
        #expect(Set(sent.map(\.to)) == Set(servers.flatMap(\.addresses)))
        var answered = 0
        for (to, id) in sent where to.ip.isV4 {
            if varies == nil, answered == 1 { continue }
            let address = varies == true && answered == 1 ? SocketAddress("198.51.100.7:5555")! : mapped
            #expect(discovery.receive(reply(id, address), from: to, now: start + .milliseconds(20)))
            answered += 1
        }
        // The first answer is told at once, not at the end of the run.
        guard case .endpoints(let first, true)? = discovery.nextEvent() else {
            Issue.record("no endpoints")
            return
        }
        #expect(first.map(\.address) == [mapped, SocketAddress("10.0.0.5:4000")!])
        #expect(first.map(\.kind) == [.stun, .local])
        discovery.machine.handleTimeout(now: start + .seconds(2))
        guard case .finished(let report)? = discovery.events.last else {
            Issue.record("not finished")
            return
        }
        #expect(report.udp && report.ipv4 && !report.ipv6 && report.globalV4 == mapped)
        #expect(report.mappingVariesByDestIP == varies)
    }

    // stun-netcheck.md N4
    @Test func silenceEndsTheRunInTime() {
        let discovery = make()
        var asked = discovery.requests().count
        var now = start
        while discovery.isRunning {
            now = discovery.nextDeadline
            discovery.machine.handleTimeout(now: now)
            asked += discovery.requests().count
        }
        #expect(now == start + .seconds(2))
        #expect(asked == 12)
        guard case .finished(let report)? = discovery.events.last else {
            Issue.record("not finished")
            return
        }
        #expect(!report.udp && report.mappingVariesByDestIP == nil)
    }

    // stun-netcheck.md N9
    @Test func answersMustComeFromWhomWasAsked() {
        let discovery = make()
        let (to, id) = discovery.requests()[0]
        let answer = reply(id, mapped)
        #expect(!discovery.receive(answer, from: SocketAddress("203.0.113.1:3478")!, now: start))
        let unknown = reply(TransactionID(high: 1, low: 2), mapped)
        #expect(!discovery.receive(unknown, from: to, now: start))
        #expect(discovery.strayAnswers == 2 && discovery.events.isEmpty)
        #expect(discovery.receive(answer, from: to, now: start))
    }

    @Test func periodAndQueuedRequests() {
        let discovery = make()
        discovery.machine.setPeriodic(true, now: start)  // During a run: one more follows.
        for _ in 0..<2 {
            #expect(discovery.isRunning)
            let now = discovery.nextDeadline
            for (to, id) in discovery.requests() {
                _ = discovery.receive(reply(id, mapped), from: to, now: now)
            }
        }
        #expect(!discovery.isRunning)
        let wait = discovery.nextDeadline.since(start)
        #expect(wait >= .seconds(20) && wait <= .seconds(27))
        discovery.machine.handleTimeout(now: discovery.nextDeadline)
        #expect(discovery.isRunning)
    }

    @Test func withoutServersTheRunEndsAtOnce() {
        let discovery = Discovery()
        discovery.machine.setLocal(addresses: [IPAddress("10.0.0.5")!], portV4: 4000, portV6: nil, now: start)
        #expect(!discovery.isRunning)
        let found = [OwnEndpoint(address: SocketAddress("10.0.0.5:4000")!, kind: .local)]
        #expect(discovery.events.contains(.endpoints(found, isChanged: true)))
        discovery.machine.requestUpdate(now: start)
        #expect(discovery.events.first == .endpoints(found, isChanged: false))
        discovery.machine.setDirectBlocked(true, now: start)
        #expect(discovery.events.contains(.endpoints([], isChanged: true)))
    }

    // stun-netcheck.md N11
    @Test func ofEachRegionSeveralServersAreAskedInTurn() {
        let discovery = Discovery()
        discovery.machine.setLocal(
            addresses: [IPAddress("10.0.0.5")!], portV4: 4000, portV6: nil, now: start)
        let all = (1...20).flatMap { region in
            (1...5).map { number in
                EndpointDiscovery.Server(
                    region: region, addresses: [SocketAddress("192.0.\(number).\(region):3478")!])
            }
        }
        discovery.machine.setServers(all, now: start)
        let asked = discovery.requests().map { "\($0.to.ip)" }.sorted()
        let wanted = (1...20).map { "192.0.1.\($0)" } + (1...12).map { "192.0.2.\($0)" }
        #expect(asked == wanted.sorted())
    }

    @Test func manyAddressesOfOneNameAreBounded() {
        let discovery = Discovery()
        discovery.machine.setLocal(addresses: [IPAddress("10.0.0.5")!], portV4: 4000, portV6: nil, now: start)
        let addresses = (0..<1000).map { SocketAddress(IPAddress(v4: 0xc000_0200 + UInt32($0)), port: 3478) }
        discovery.machine.setServers([EndpointDiscovery.Server(region: 1, addresses: addresses)], now: start)
        #expect(discovery.requests().count == 1)
    }

    @Test func mappedAddressesAreRememberedForAWhile() {
        var merged = OwnEndpoints()
        let old = SocketAddress("198.51.100.1:1")!
        let local = [SocketAddress("10.0.0.5:4000")!]
        func collect(_ stun: [SocketAddress], _ now: Instant, varies: Bool = false) -> [SocketAddress] {
            merged.collect(
                stunV4: stun, stunV6: [], mappingVaries: varies, fixedPort: 41641, local: local, now: now
            ).map(\.address)
        }
        #expect(collect([old], start) == [old] + local)
        #expect(collect([mapped], start + .seconds(100)) == [mapped, old] + local)
        #expect(collect([mapped], start + .seconds(311)) == [mapped] + local)
        let guess = SocketAddress("198.51.100.7:41641")!
        #expect(collect([mapped], start + .seconds(312), varies: true) == [mapped, guess] + local)
    }

    @Test func localAddressFilter() {
        func usable(_ texts: String...) -> [String] {
            OwnEndpoints.usable(texts.map { IPAddress($0)! }).map(\.description)
        }
        #expect(usable("127.0.0.1", "::1") == ["127.0.0.1", "::1"])
        #expect(usable("2001:db8::1", "127.0.0.1", "192.168.1.2") == ["192.168.1.2", "2001:db8::1"])
        #expect(usable("169.254.1.1", "fd00::1", "fe80::1") == ["169.254.1.1", "fd00::1"])
        #expect(usable("169.254.1.1", "fd00::1", "10.0.0.1") == ["10.0.0.1"])
        #expect(usable("10.0.0.1", "fd60:627a:a42b::1", "fd7a:115c:a1e0::1") == ["10.0.0.1"])
    }
}

@Suite struct HomeRegionTests {
    private func ms(_ latencies: [Int: UInt64]) -> [Int: Interval] {
        latencies.mapValues { .milliseconds($0) }
    }

    // stun-netcheck.md N6
    @Test func stickiness() {
        var home = HomeRegion(random: PathVectors.generator(1))
        #expect(home.choose(latencies: ms([1: 45, 2: 90]), relays: [1, 2], now: start) == 1)
        let later = start + .seconds(301)
        #expect(home.choose(latencies: ms([1: 45, 2: 40]), relays: [1, 2], now: later) == 1)
        let muchLater = start + .seconds(700)
        #expect(home.choose(latencies: ms([1: 45, 2: 20]), relays: [1, 2], now: muchLater) == 2)
        #expect(home.choose(latencies: ms([1: 60]), relays: [1, 2], now: muchLater + .seconds(1)) == 1)
    }

    // stun-netcheck.md N5, N7
    @Test func onlyRelaysThatAnswer() {
        var home = HomeRegion(random: PathVectors.generator(1))
        #expect(home.choose(latencies: [:], relays: [], now: start) == 0)
        let fallback = home.choose(latencies: [:], relays: [5, 6, 7], now: start)
        #expect([5, 6, 7].contains(fallback))
        for second in 1...20 {
            let now = start + .seconds(UInt64(second))
            #expect(home.choose(latencies: [:], relays: [5, 6, 7], now: now) == fallback)
        }
        // 9 only answers STUN: it is measured, and never home.
        #expect(home.choose(latencies: ms([9: 1, 6: 50]), relays: [5, 6, 7], now: start) == 6)
    }

    @Test func scoresAndAvoidance() {
        var home = HomeRegion(random: PathVectors.generator(1))
        let latencies = ms([1: 20, 2: 30, 3: 1])
        #expect(
            home.choose(latencies: latencies, relays: [1, 2, 3], avoided: [3], scores: [2: 0.3], now: start)
                == 2)
    }
}

@Suite struct NetcheckTests {
    // stun-netcheck.md N12
    @Test func goJSON() throws {
        var report = Netcheck()
        report.udp = true
        report.mappingVariesByDestIP = false
        report.preferredDERP = 999
        report.globalV4 = SocketAddress("192.0.2.1:5")
        report.note(region: 999, latency: .milliseconds(3), isV4: true)
        report.note(region: 999, latency: .milliseconds(2), isV4: false)
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys]
        let text = String(decoding: try encoder.encode(report), as: UTF8.self)
        let expected = """
            {"CaptivePortal":null,"GlobalV4":"192.0.2.1:5","GlobalV6":"","HairPinning":null,"ICMPv4":false,\
            "IPv4":true,"IPv4CanSend":false,"IPv6":true,"IPv6CanSend":false,"MappingVariesByDestIP":false,\
            "OSHasIPv6":false,"PCP":null,"PMP":null,"PreferredDERP":999,"RegionLatency":{"999":2000000},\
            "RegionV4Latency":{"999":3000000},"RegionV6Latency":{"999":2000000},"UDP":true,"UPnP":null}
            """
        #expect(text == expected)
        #expect(try JSONDecoder().decode(Netcheck.self, from: Data(text.utf8)) == report)
        #expect(report.derpLatency == ["999-v4": 0.003, "999-v6": 0.002])
    }
}

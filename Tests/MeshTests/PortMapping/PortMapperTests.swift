// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

/// A router in virtual time: answers what it knows, counts what it is asked.
struct ScriptedGateway {
    var knowsPMP = false
    var knowsPCP = false
    var knowsUPnP = false
    var address = IPAddress(v4: 0xcb00_7109)
    var startedAt = Instant(nanoseconds: 0)
    var lifetime: UInt32 = 3_600
    var takenPorts: Set<String> = []
    var onlyPermanent = false
    /// Outer ports granted, newest last.
    var grants: [UInt16] = []
    var released = 0
    var requests = 0

    private func epoch(_ now: Instant) -> UInt32 { UInt32(now.since(startedAt).nanoseconds / 1_000_000_000) }
    private func big(_ value: some FixedWidthInteger) -> [UInt8] {
        (0..<value.bitWidth / 8).reversed().map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) }
    }

    mutating func answer(_ bytes: [UInt8], now: Instant) -> [[UInt8]] {
        requests += 1
        if bytes.first == 2, bytes.count == 60, knowsPCP {
            let port = UInt16(bytes[42]) << 8 | UInt16(bytes[43])
            let wanted = bytes[4..<8].reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
            let external = port == 0 ? 41_700 : port
            if wanted == 0 { released += 1 } else { grants.append(external) }
            var answer: [UInt8] = [2, 0x81, 0, 0] + big(wanted == 0 ? 0 : lifetime) + big(epoch(now))
            answer += [UInt8](repeating: 0, count: 12) + bytes[24..<42] + big(external)
            answer += [UInt8](repeating: 0, count: 10) + [0xff, 0xff] + big(address.v4)
            return [answer]
        }
        if bytes.first == 2, knowsPCP {
            return [[2, 0x80, 0, 0, 0, 0, 0, 0] + big(epoch(now)) + [UInt8](repeating: 0, count: 12)]
        }
        if bytes.first == 2, knowsPMP { return [[0, 0x80, 0, 1] + big(epoch(now))] }
        guard bytes.first == 0, knowsPMP else { return [] }
        if bytes.count == 2 { return [[0, 0x80, 0, 0] + big(epoch(now)) + big(address.v4)] }
        let inner = bytes[4..<6]
        let outer = UInt16(bytes[6]) << 8 | UInt16(bytes[7])
        let isRelease = bytes[8...].allSatisfy { $0 == 0 }
        if isRelease { released += 1 } else { grants.append(outer == 0 ? 41_701 : outer) }
        return [
            [0, 0x81, 0, 0] + big(epoch(now)) + inner + big(isRelease ? 0 : outer == 0 ? 41_701 : outer)
                + big(isRelease ? 0 : lifetime)
        ]
    }

    mutating func answerHTTP(_ text: String) -> String {
        requests += 1
        func ok(_ body: String) -> String {
            "HTTP/1.1 200 OK\r\nContent-Length: \(body.utf8.count)\r\n\r\n\(body)"
        }
        func fault(_ code: Int) -> String {
            "HTTP/1.1 500 Error\r\n\r\n<s:Envelope><errorCode>\(code)</errorCode></s:Envelope>"
        }
        if text.hasPrefix("GET /root.xml") {
            return ok(
                """
                <?xml version="1.0"?><root><device><serviceList>
                <service><serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType>
                <controlURL>/no</controlURL></service>
                <service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>
                <controlURL> http://192.0.2.99:5001/ctl </controlURL></service>
                </serviceList></device></root>
                """)
        }
        guard text.hasPrefix("POST /ctl") else { return "HTTP/1.1 404 No\r\n\r\n" }
        if text.contains("#GetExternalIPAddress") {
            return ok("<u:R xmlns:u=\"x\"><NewExternalIPAddress>203.0.113.9</NewExternalIPAddress></u:R>")
        }
        if text.contains("#DeletePortMapping") {
            released += 1
            return ok("<u:DeletePortMappingResponse/>")
        }
        let port = UPnP.element("NewExternalPort", of: text[...]).map(String.init) ?? ""
        if takenPorts.contains(port) { return fault(718) }
        if onlyPermanent, UPnP.element("NewLeaseDuration", of: text[...]) != "0" { return fault(725) }
        grants.append(UInt16(port) ?? 0)
        return ok("<u:AddPortMappingResponse/>")
    }
}

@Suite struct PortMapperTests {
    private static let gateway = IPAddress(v4: 0x0a00_0001)
    private static let own = IPAddress(v4: 0x0a00_0032)
    private static let start = Instant(nanoseconds: 5_000_000_000)

    /// Runs mapper and gateway in virtual time. Answers come 1 ms later.
    private static func run(
        _ mapper: inout PortMapper, _ gateway: inout ScriptedGateway, from start: Instant,
        for length: Interval
    ) -> Instant {
        var now = start
        let end = start + length
        while true {
            while let output = mapper.nextOutput() {
                now = now + .milliseconds(1)
                switch output {
                case .udp(let address, let bytes):
                    if address == SocketAddress(Self.gateway, port: NATPMP.port) {
                        for answer in gateway.answer(bytes, now: now) {
                            mapper.receive(answer, from: address, now: now)
                        }
                    } else if address.port == UPnP.port, gateway.knowsUPnP {
                        let text =
                            "HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n"
                            + "LOCATION: http://evil.example:5000/root.xml\r\n\r\n"
                        mapper.receive(
                            Array(text.utf8), from: SocketAddress(Self.gateway, port: 1_900), now: now)
                    }
                case .http(let id, let address, let request):
                    #expect(address.ip == Self.gateway)
                    let answer = gateway.answerHTTP(String(decoding: request, as: UTF8.self))
                    mapper.receiveHTTP(id, Array(answer.utf8), now: now)
                }
            }
            guard mapper.nextDeadline <= end else { return end }
            now = max(now, mapper.nextDeadline)
            mapper.handleTimeout(now: now)
        }
    }

    private static func mapper() -> PortMapper {
        var mapper = PortMapper(random: PathVectors.generator(3))
        mapper.setNetwork(gateway: gateway, own: own, port: 41_641, now: start)
        return mapper
    }

    @Test(arguments: [PortMapper.Service.pcp, .natPMP, .upnp]) func isMappedWithinASecond(
        _ service: PortMapper.Service
    ) {
        var mapper = Self.mapper()
        var gateway = ScriptedGateway(
            knowsPMP: service == .natPMP, knowsPCP: service == .pcp, knowsUPnP: service == .upnp)
        _ = Self.run(&mapper, &gateway, from: Self.start, for: .seconds(1))
        #expect(mapper.service == service)
        #expect(mapper.external?.ip == gateway.address)
        #expect(mapper.external?.port == gateway.grants.last)
        #expect(mapper.seen.contains(service))
    }

    @Test(arguments: [PortMapper.Service.pcp, .natPMP, .upnp]) func isRenewedAtHalfLifeWithTheSamePort(
        _ service: PortMapper.Service
    ) {
        var mapper = Self.mapper()
        var gateway = ScriptedGateway(
            knowsPMP: service == .natPMP, knowsPCP: service == .pcp, knowsUPnP: service == .upnp)
        gateway.startedAt = Instant(nanoseconds: 0)
        let soon = Self.run(&mapper, &gateway, from: Self.start, for: .seconds(1_000))
        let first = mapper.external
        #expect(first != nil && Set(gateway.grants).count == 1)
        let grants = gateway.grants.count
        _ = Self.run(&mapper, &gateway, from: soon, for: .seconds(6_000))
        #expect(mapper.external == first)
        #expect(gateway.grants.count > grants)
        #expect(Set(gateway.grants).count == 1)
    }

    @Test func aDeadGatewayLosesTheMappingAtItsEndAndIsLeftInPeace() {
        var mapper = Self.mapper()
        var gateway = ScriptedGateway(knowsPMP: true)
        let soon = Self.run(&mapper, &gateway, from: Self.start, for: .seconds(10))
        #expect(mapper.external != nil)
        gateway.knowsPMP = false
        let later = Self.run(&mapper, &gateway, from: soon, for: .seconds(3_000))
        #expect(mapper.external != nil, "the mapping is used until its end")
        let end = Self.run(&mapper, &gateway, from: later, for: .seconds(1_000))
        #expect(mapper.external == nil)
        let asked = gateway.requests
        _ = Self.run(&mapper, &gateway, from: end, for: .seconds(3_600))
        #expect(gateway.requests - asked <= 7 * 9)
    }

    @Test(arguments: [true, false]) func aRestartedGatewayIsAskedAgain(_ isPCP: Bool) {
        var mapper = Self.mapper()
        var gateway = ScriptedGateway(knowsPMP: !isPCP, knowsPCP: isPCP)
        let soon = Self.run(&mapper, &gateway, from: Self.start, for: .seconds(300))
        let grants = gateway.grants.count
        gateway.startedAt = soon
        _ = Self.run(&mapper, &gateway, from: soon, for: .seconds(200))
        #expect(gateway.grants.count > grants, "the epoch went back: the table is lost")
        #expect(mapper.external != nil)
    }

    @Test func anotherOuterAddressIsNoticed() {
        var mapper = Self.mapper()
        var gateway = ScriptedGateway(knowsPMP: true)
        let soon = Self.run(&mapper, &gateway, from: Self.start, for: .seconds(10))
        gateway.address = IPAddress(v4: 0xc633_6407)
        _ = Self.run(&mapper, &gateway, from: soon, for: .seconds(200))
        #expect(mapper.external?.ip == gateway.address)
    }

    @Test func takenPortsAndLeasesWithoutEnd() {
        var mapper = Self.mapper()
        var gateway = ScriptedGateway(knowsUPnP: true)
        gateway.takenPorts = ["41641"]
        gateway.onlyPermanent = true
        _ = Self.run(&mapper, &gateway, from: Self.start, for: .seconds(2))
        #expect(mapper.service == .upnp)
        #expect(mapper.external?.port != 41_641 && mapper.external?.port == gateway.grants.last)
    }

    @Test(arguments: [PortMapper.Service.pcp, .natPMP, .upnp]) func anotherNetworkForgetsAndGivesBack(
        _ service: PortMapper.Service
    ) {
        var mapper = Self.mapper()
        var gateway = ScriptedGateway(
            knowsPMP: service == .natPMP, knowsPCP: service == .pcp, knowsUPnP: service == .upnp)
        let soon = Self.run(&mapper, &gateway, from: Self.start, for: .seconds(10))
        #expect(mapper.external != nil)
        mapper.setNetwork(gateway: nil, own: nil, port: nil, now: soon)
        #expect(mapper.external == nil)
        _ = Self.run(&mapper, &gateway, from: soon, for: .seconds(10))
        #expect(gateway.released == 1)
        #expect(mapper.nextDeadline == .never)
    }

    /// Some routers leave the connection open although they were asked to close it.
    @Test func anAnswerEndsWithItsLength() {
        let head = "HTTP/1.1 200 OK\r\ncontent-Length:  4\r\n\r\n"
        for (text, isComplete) in [
            (head + "abcd", true), (head + "abc", false), (head, false), ("HTTP/1.1 200 OK\r\n", false),
            ("HTTP/1.1 200 OK\r\n\r\nabcd", false),
        ] {
            #expect(UPnP.isComplete(Array(text.utf8)) == isComplete, "\(text)")
        }
    }

    @Test func publicGatewaysAreNotAsked() {
        var mapper = PortMapper(random: PathVectors.generator(3))
        mapper.setNetwork(
            gateway: IPAddress(v4: 0xcb00_7101), own: IPAddress(v4: 0xcb00_7102), port: 1, now: Self.start)
        #expect(mapper.nextOutput() == nil && mapper.nextDeadline == .never)
    }

    // path-selection.md P15
    @Test func strangersAndNonsenseChangeNothing() throws {
        var mapper = Self.mapper()
        var gateway = ScriptedGateway(knowsPMP: true)
        let stranger = try #require(SocketAddress("10.0.0.66:5351"))
        for answer in gateway.answer([0, 0], now: Self.start)
            + gateway.answer([0, 1, 0, 0, 0xa2, 0xa9, 0, 0, 0, 0, 28, 32], now: Self.start)
        {
            mapper.receive(answer, from: stranger, now: Self.start)
        }
        #expect(mapper.external == nil && mapper.strangers == 2)
        let source = SocketAddress(Self.gateway, port: 5_351)
        // Another port than ours, an address of nobody, truncated, and a long row of noise.
        gateway.address = IPAddress(v4: 0)
        let wrong =
            gateway.answer([0, 1, 0, 0, 1, 2, 0, 0, 0, 0, 28, 32], now: Self.start)
            + gateway.answer([0, 0], now: Self.start)
            + gateway.answer([0, 1, 0, 0, 0xa2, 0xa9, 0, 0, 0, 0, 28, 32], now: Self.start) + [
                [0], [2, 0x81], [],
            ]
        for answer in wrong { mapper.receive(answer, from: source, now: Self.start) }
        var random = SeededGenerator(seed: 4)
        for _ in 0..<5_000 {
            let bytes = (0..<Int(random.next() % 80)).map { _ in UInt8(truncatingIfNeeded: random.next()) }
            mapper.receive(bytes, from: source, now: Self.start)
            mapper.receiveHTTP(random.next() % 4, bytes, now: Self.start)
        }
        #expect(mapper.external == nil)
        var waiting = 0
        while mapper.nextOutput() != nil { waiting += 1 }
        #expect(waiting <= 32)
    }
}

// SPDX-License-Identifier: Apache-2.0

import Mesh
import Testing

/// Faults that whole streams must survive.
@Suite struct NetstackScenarioTests {
    /// Streams from `a` to `b` and back, and what happens to the world on the way.
    struct Run: ~Copyable {
        var world: NetstackSimulation
        var clients: [StreamEnd] = []
        var servers: [StreamEnd] = []

        init(
            seed: UInt64, link: LinkProfile, streams: Int, bytes: Int, mtu: Int = 1_280,
            limits: StackLimits = StackLimits(), isV6: Bool = true, isEventDriven: Bool = false
        ) throws {
            world = NetstackSimulation(seed: seed, link: link, mtu: mtu, limits: limits)
            world.b.listenAny()
            for index in 0..<streams {
                var client = StreamEnd(salt: 1, total: bytes)
                client.isEventDriven = isEventDriven
                let port = UInt16(1_000 + index)
                client.id = try world.a.connect(
                    to: SocketAddress(isV6 ? NetstackSimulation.b6 : NetstackSimulation.b4, port: port),
                    now: world.now)
                clients.append(client)
                var server = StreamEnd(salt: 7, total: bytes / 2)
                server.isEventDriven = isEventDriven
                servers.append(server)
            }
        }

        var isDone: Bool {
            clients.allSatisfy { $0.closed != nil } && servers.allSatisfy { $0.closed != nil }
        }

        /// One step and all that both owners do then. False when nothing more happens.
        mutating func step(until limit: Instant) -> Bool {
            let lived = world.step(until: limit)
            takeEvents()
            for index in clients.indices { clients[index].pump(&world.a, peerSalt: 7, now: world.now) }
            for index in servers.indices { servers[index].pump(&world.b, peerSalt: 1, now: world.now) }
            takeEvents()
            return lived
        }

        private mutating func takeEvents() {
            while let event = world.a.nextEvent() {
                for index in clients.indices { clients[index].take(event) }
            }
            while let event = world.b.nextEvent() {
                if case .accepted(_, let local, _) = event {
                    servers[Int(local.port) - 1_000].take(event)
                } else {
                    for index in servers.indices where servers[index].id != nil { servers[index].take(event) }
                }
            }
        }

        mutating func finish(within seconds: UInt64) {
            let limit = world.now + .seconds(seconds)
            while !isDone, step(until: limit) {}
        }

        /// Streams of which something is missing or wrong.
        func mismatches(_ bytes: Int) -> Int {
            zip(clients, servers).filter { client, server in
                server.read != bytes || client.read != bytes / 2 || client.mismatches + server.mismatches > 0
                    || client.closed != .done || server.closed != .done
            }.count
        }

        func check(_ bytes: Int, _ note: String) {
            for (client, server) in zip(clients, servers) {
                #expect(server.read == bytes && client.read == bytes / 2, "\(note)")
                #expect(client.mismatches == 0 && server.mismatches == 0, "\(note)")
                #expect(client.closed == .done && server.closed == .done, "\(note)")
            }
        }
    }

    static let seeds: [UInt64] = [1, 2, 3]

    @Test(arguments: seeds) func linkOutageIsSurvived(seed: UInt64) throws {
        var run = try Run(
            seed: seed, link: LinkProfile(name: "outages", loss: 0.005), streams: 3, bytes: 300_000)
        for seconds in [UInt64(1), 20, 90] {
            for _ in 0..<40 { _ = run.step(until: run.world.now + .seconds(1)) }
            run.world.isCut = true
            let end = run.world.now + .seconds(seconds)
            while run.step(until: end) {}
            run.world.now = end
            run.world.isCut = false
        }
        run.finish(within: 400)
        run.check(300_000, "seed \(seed)")
    }

    @Test(arguments: seeds) func sleepingLaptopKeepsItsStreams(seed: UInt64) throws {
        var run = try Run(seed: seed, link: LinkProfile(name: "sleep"), streams: 2, bytes: 400_000)
        for hours in [UInt64(1), 30] {
            for _ in 0..<30 { _ = run.step(until: run.world.now + .seconds(1)) }
            run.world.flights = []
            run.world.now = run.world.now + .seconds(hours * 3_600)
        }
        run.finish(within: 400)
        run.check(400_000, "seed \(seed)")
    }

    @Test(arguments: seeds) func stuckReaderStallsOnlyItself(seed: UInt64) throws {
        var run = try Run(
            seed: seed, link: LinkProfile(name: "stuck", latency: .milliseconds(2)), streams: 3,
            bytes: 500_000)
        run.servers[1].appetite = 0
        let limit = run.world.now + .seconds(60)
        while run.clients[0].closed == nil || run.clients[2].closed == nil, run.step(until: limit) {}
        #expect(run.servers[0].read == 500_000 && run.servers[2].read == 500_000)
        #expect(run.servers[1].read == 0)
        let stuck = try #require(run.servers[1].id)
        let held = run.world.b.readableCount(stuck)
        #expect(held >= 60_000 && held <= 128 << 10, "the window closed")
        while run.step(until: limit) {}
        #expect(run.world.a.counters.windowProbes > 0)
        #expect(run.clients[1].closed == nil, "a stuck reader is no reason to give up")
        run.servers[1].appetite = 3_000
        run.finish(within: 600)
        // What is left lies in its own buffer, and needs no packet to be read.
        run.servers[1].appetite = .max
        run.finish(within: 600)
        run.check(500_000, "seed \(seed)")
    }

    @Test(arguments: seeds, [false, true])
    func smallMemoryIsSharedByManyStreams(seed: UInt64, isEventDriven: Bool) throws {
        var limits = StackLimits()
        limits.bufferMemory = 512 << 10
        var run = try Run(
            seed: seed, link: LinkProfile(name: "poor", loss: 0.01), streams: 24, bytes: 60_000,
            limits: limits, isEventDriven: isEventDriven)
        run.finish(within: 600)
        run.check(60_000, "seed \(seed)")
        #expect(run.world.a.bufferBytes == 0 && run.world.b.bufferBytes == 0)
    }

    @Test(arguments: seeds, [1_280, 9_000])
    func whereOthersHoldAllMemoryTheRestGoesOn(seed: UInt64, mtu: Int) throws {
        var limits = StackLimits()
        limits.bufferMemory = 384 << 10
        var run = try Run(
            seed: seed, link: LinkProfile(name: "full"), streams: 12, bytes: 200_000, mtu: mtu,
            limits: limits, isEventDriven: true)
        for index in 0..<6 { run.servers[index].appetite = 0 }
        let limit = run.world.now + .seconds(900)
        let isDone = { (run: borrowing Run) in
            run.clients[6...].allSatisfy { $0.closed != nil }
                && run.servers[6...].allSatisfy { $0.closed != nil }
        }
        while !isDone(run), run.step(until: limit) {}
        for index in 6..<12 {
            #expect(run.servers[index].read == 200_000 && run.clients[index].read == 100_000)
        }
        for index in 0..<6 { run.servers[index].appetite = .max }
        run.finish(within: 900)
        run.finish(within: 900)
        run.check(200_000, "seed \(seed)")
    }

    @Test func streamsThatNeverCarriedAByteHoldNoMemory() throws {
        var limits = StackLimits()
        limits.bufferMemory = 1 << 20
        var run = try Run(
            seed: 1, link: LinkProfile(name: "silent"), streams: 300, bytes: 100, limits: limits,
            isEventDriven: true)
        // As the engine does: room first, then a descriptor that has nothing.
        let silent = run.clients.compactMap(\.id)
        let limit = run.world.now + .seconds(1)
        while run.world.step(until: limit) {}
        for id in silent { _ = run.world.a.write(id, limit: 64 << 10) { _ in 0 } }
        #expect(run.world.a.bufferBytes == 0)
        run.finish(within: 60)
        run.check(100, "silent")
    }

    @Test(arguments: seeds) func packetTooBigLowersTheSegmentSize(seed: UInt64) throws {
        var link = LinkProfile(name: "narrow")
        link.mtu = 1_290
        link.answersTooBig = true
        var run = try Run(seed: seed, link: link, streams: 2, bytes: 200_000, mtu: 1_400)
        run.finish(within: 60)
        run.check(200_000, "seed \(seed)")
        #expect(run.world.a.counters.icmpErrorsReceived > 0)
    }

    @Test func streamsTakeTurns() throws {
        var run = try Run(
            seed: 5, link: LinkProfile(name: "shared", latency: .milliseconds(10), rate: 4_000_000),
            streams: 8,
            bytes: 2_000_000)
        let limit = run.world.now + .seconds(2)
        while run.step(until: limit) {}
        let read = run.servers.map(\.read).sorted()
        #expect(read[0] * 3 > read[7], "\(read)")
        // A keystroke is not queued behind the bulk of its own stack.
        var small = StreamEnd(salt: 1, total: 1)
        small.id = try run.world.a.connect(
            to: SocketAddress(NetstackSimulation.b6, port: 999), now: run.world.now)
        var memory = [UInt8](repeating: 0, count: 2_048)
        let moment = run.world.now
        let first = memory.withUnsafeMutableBytes { run.world.a.nextPacket(into: $0, now: moment) }
        #expect(first?.length == 80, "its SYN goes first")
        #expect(memory[42] == 3 && memory[43] == 0xe7)
    }

    @Test func tenThousandIdleConnectionsAreCheap() throws {
        var world = NetstackSimulation(seed: 1, link: LinkProfile(name: "idle", latency: .microseconds(100)))
        world.b.listenAny()
        var ids: [ConnectionID] = []
        for index in 0..<10_000 {
            let target = SocketAddress(NetstackSimulation.b6, port: UInt16(1 + index % 50_000))
            ids.append(try world.a.connect(to: target, now: world.now))
            if index % 200 == 199 {
                let limit = world.now + .milliseconds(5)
                while world.step(until: limit) {}
                while world.a.nextEvent() != nil {}
                while world.b.nextEvent() != nil {}
            }
        }
        #expect(world.a.connectionCount == 10_000 && world.b.connectionCount == 10_000)
        #expect(world.a.bufferBytes == 0 && world.b.bufferBytes == 0)
        #expect(Stack.connectionSize <= 1_024, "\(Stack.connectionSize) bytes each")
        // All of them ask for a sign of life after two hours, and all are answered.
        let start = world.now
        world.now = start + .seconds(7_201)
        let limit = world.now + .seconds(60)
        while world.step(until: limit) {}
        #expect(world.a.connectionCount == 10_000 && world.b.connectionCount == 10_000)
        for id in ids { world.a.close(id, now: world.now) }
        let end = world.now + .seconds(200)
        while world.step(until: end) {
            while let event = world.b.nextEvent() {
                if case .peerClosed(let id) = event { world.b.close(id, now: world.now) }
            }
        }
        #expect(world.a.connectionCount == 0 && world.b.connectionCount == 0)
    }
}

// SPDX-License-Identifier: Apache-2.0

import Glibc
import SSH
import Testing

/// Random courses of both machines, one per seed: `SIM_SEEDS=1000` runs that many, `SIM_SEED=17` replays one.
@Suite struct SSHFuzzTests {
    static func seeds(_ usual: UInt64) -> [UInt64] {
        func number(_ name: String) -> UInt64? { getenv(name).flatMap { UInt64(String(cString: $0)) } }
        if let one = number("SIM_SEED") { return [one] }
        return Array(1...max(1, number("SIM_SEEDS") ?? usual))
    }

    /// Small bounds, so that windows close and keys are renewed in the middle of everything.
    private static func limits(_ generator: inout TestGenerator) -> SSHLimits {
        var limits = SSHLimits()
        limits.channelWindowBytes = Int.random(in: 400...30_000, using: &generator)
        limits.channelWindowLimitBytes = limits.channelWindowBytes * 4
        limits.channelPacketBytes = Int.random(in: 200...9_000, using: &generator)
        limits.outgoingDataBytes = Int.random(in: 2_000...60_000, using: &generator)
        limits.rekeyBytes = UInt64.random(in: 30_000...400_000, using: &generator)
        limits.channels = 8
        return limits
    }

    // MARK: Two honest ends

    /// Both ends write, renew keys and end in any order, over bytes split anywhere: everything arrives once, in order.
    @Test(arguments: seeds(40)) func honestEnds(seed: UInt64) throws {
        var generator = TestGenerator(seed)
        var pair = Pair(seed: seed, limits: Self.limits(&generator))
        let session = try pair.openSession()
        pair.pieceBytes = Int.random(in: 1...4_000, using: &generator)
        let wanted = (
            up: generator.bytes(Int.random(in: 0...120_000, using: &generator)),
            down: generator.bytes(Int.random(in: 0...120_000, using: &generator))
        )
        var sent = (up: 0, down: 0)
        var turns = 0
        while pair.serverData.count < wanted.up.count || pair.clientData.count < wanted.down.count {
            turns += 1
            if turns > 20_000 {
                Issue.record("seed \(seed) does not come to an end")
                return
            }
            let piece = Int.random(in: 1...20_000, using: &generator)
            sent.up += pair.client.write(session.client, Array(wanted.up[sent.up...].prefix(piece)))
            sent.down += pair.server.write(session.server, Array(wanted.down[sent.down...].prefix(piece)))
            switch Int.random(in: 0..<30, using: &generator) {
            case 0: pair.client.renewKeys()
            case 1: pair.server.renewKeys()
            case 2: pair.client.request(session.client, .signal("HUP"), wantsReply: true)
            default: break
            }
            try pair.pump()
        }
        expect(pair.serverData == wanted.up && pair.clientData == wanted.down, "seed \(seed)")
        pair.client.sendEOF(session.client)
        pair.server.close(session.server)
        try pair.pump()
        expect(pair.client.channelCount == 0 && pair.server.channelCount == 0, "seed \(seed)")
    }

    // MARK: Hostile ends

    /// A hostile client: messages of all kinds, valid, changed or cut, on channels in any state, while the server does
    /// what a server does. It ends with a typed error or goes on; what it holds stays bounded.
    @Test(arguments: seeds(60)) func hostileClient(seed: UInt64) throws {
        var generator = TestGenerator(seed)
        var pair = Pair(seed: seed, limits: Self.limits(&generator))
        _ = try pair.openSession()
        pair.consumesAtOnce = Bool.random(using: &generator)
        do {
            for _ in 0..<200 {
                pair.client.sendPayload(Self.payload(HostilePeerTests.payloads, &generator))
                _ = Pair.move(&pair.client, &pair.server, .max)
                Self.serve(&pair, &generator)
                try pair.drainServer()
                pair.server.consumeOutgoing(pair.server.outgoingCount)
                let limits = SSHLimits()
                expect(pair.server.channelCount <= 8, "seed \(seed)")
                expect(pair.server.outgoingCount <= limits.outgoingBytes + limits.packetBytes, "seed \(seed)")
            }
        } catch is SSHError {
            #expect(throws: SSHError.self) { _ = try pair.server.nextEvent() }
        }
    }

    /// What the caller of a server may do at any time, to channels that may be gone.
    private static func serve(_ pair: inout Pair, _ generator: inout TestGenerator) {
        let names = pair.serverEvents.compactMap { event -> ChannelID? in
            if case .channelRequested(let id, _) = event { id } else { nil }
        }
        guard let id = names.randomElement(using: &generator) else { return }
        switch generator.next() % 100 / 5 {
        case 0, 7...19: _ = pair.server.write(id, generator.bytes(Int(generator.next() % 3_000)))
        case 1: pair.server.sendEOF(id)
        case 2: pair.server.close(id)
        case 3: pair.server.request(id, .exitStatus(1), wantsReply: true)
        case 4: _ = pair.server.openChannel(.agent)
        case 5: if generator.next() % 8 == 0 { pair.server.renewKeys() }
        default: pair.server.refuse(id, .connectFailed)
        }
    }

    /// A hostile server against our client, as a workspace is to its user: confirmations, refusals, requests and
    /// channels that nobody asked for.
    @Test(arguments: seeds(60)) func hostileServer(seed: UInt64) throws {
        var generator = TestGenerator(seed)
        var pair = Pair(seed: seed, limits: Self.limits(&generator))
        let session = try pair.openSession()
        do {
            for _ in 0..<200 {
                pair.server.sendPayload(Self.payload(Self.serverPayloads, &generator))
                _ = Pair.move(&pair.server, &pair.client, .max)
                switch generator.next() % 6 {
                case 0: _ = pair.client.openChannel(.session)
                case 1: _ = pair.client.requestGlobal(.tcpipForward(host: "", port: 0))
                case 2: _ = pair.client.write(session.client, generator.bytes(500))
                case 3: pair.client.request(session.client, .shell, wantsReply: true)
                default: break
                }
                try pair.drainClient()
                pair.client.consumeOutgoing(pair.client.outgoingCount)
                expect(pair.client.channelCount <= 8, "seed \(seed)")
            }
        } catch is SSHError {
            #expect(throws: SSHError.self) { _ = try pair.client.nextEvent() }
        }
    }

    private static func join(_ parts: [UInt8]...) -> [UInt8] { parts.flatMap(\.self) }

    private static let serverPayloads: [[UInt8]] = {
        let (number, string) = (HostilePeerTests.number, HostilePeerTests.string)
        let sizes = join(number(3), number(1_000), number(1_000))
        return [
            join([90], string("forwarded-tcpip"), sizes, string("h"), number(80), string("o"), number(2)),
            join([90], string("auth-agent@openssh.com"), sizes),
            join([90], string("x11"), sizes, string("h"), number(6_000)),
            join([91], number(0), number(7), number(90_000), number(1_000)),
            join([92], number(1), number(2), string("no"), string("")),
            join([98], number(0), string("exit-status"), [0], number(3)),
            join([98], number(0), string("exit-signal"), [0], string("TERM"), [0], string(""), string("")),
            join([80], string("keepalive@openssh.com"), [1]), join([53], string("hello"), string("")),
            join([94], number(0), string("data")), join([95], number(0), number(1), string("e")),
            join([93], number(0), number(100)), join([96], number(0)), join([97], number(0)),
            join([99], number(0)), join([100], number(0)), join([81], number(80)), [82], [52],
            join([7], number(1), string("a"), string("b")), join([192], string("p")),
        ]
    }()

    /// Mostly as it is, on another channel; sometimes changed, sometimes cut.
    private static func payload(_ all: [[UInt8]], _ generator: inout TestGenerator) -> [UInt8] {
        var payload = all[Int.random(in: 0..<all.count, using: &generator)]
        if 91...100 ~= payload[0], payload.count >= 5, Bool.random(using: &generator) {
            payload[4] = UInt8.random(in: 0...4, using: &generator)
        }
        switch generator.next() % 8 {
        case 0:
            let at = Int.random(in: 0..<payload.count, using: &generator)
            payload[at] = UInt8.random(in: 0...255, using: &generator)
        case 1: payload = Array(payload.prefix(Int.random(in: 1...payload.count, using: &generator)))
        case 2: payload += generator.bytes(Int(generator.next() % 50))
        default: break
        }
        return payload
    }
}

/// Courses of requests to the sftp server, some of them damaged.
@Suite struct SFTPFuzzTests {
    private typealias Packets = SFTPTests

    /// Each request is answered once, in order, whatever it says; only a length that cannot be ends the session.
    @Test(arguments: SSHFuzzTests.seeds(60)) func everyRequestIsAnsweredOnce(seed: UInt64) throws {
        var generator = TestGenerator(seed)
        var system = MemoryFileSystem()
        var server = SFTPServer<MemoryFileSystem>()
        var bytes = Packets.start
        var wanted: [UInt32] = []
        for id in UInt32(1)...200 {
            var body = Self.request(id, &generator)
            if generator.next() % 6 == 0 {
                // Type and number stay: the answer must name it.
                let at = Int.random(in: 5...max(5, body.count - 1), using: &generator)
                if at < body.count { body[at] = UInt8.random(in: 0...255, using: &generator) }
            }
            if generator.next() % 12 == 0 {
                body = Array(body.prefix(Int.random(in: 5...body.count, using: &generator)))
            }
            wanted.append(id)
            bytes += Packets.packet(body)
        }
        var answers: [UInt8] = []
        while !bytes.isEmpty || server.incomingCount > 0 {
            let piece = bytes.prefix(Int.random(in: 1...4_000, using: &generator))
            bytes.removeFirst(piece.count)
            Array(piece).withUnsafeBytes { server.receive($0) }
            var idle = 0
            while idle < 2 {
                idle = try server.serve(&system) ? 0 : idle + 1
                answers += server.outgoing
                server.consumeOutgoing(server.outgoingCount)
            }
            if bytes.isEmpty, piece.isEmpty { break }
        }
        server.closeAll(&system)
        #expect(Self.numbers(answers) == wanted, "seed \(seed)")
    }

    private static let names = ["a", "b", "/", "c/d", "", String(repeating: "n", count: 5_000)]

    private static func join(_ parts: [UInt8]...) -> [UInt8] { parts.flatMap(\.self) }

    private static func request(_ id: UInt32, _ generator: inout TestGenerator) -> [UInt8] {
        let name = Packets.string(names.randomElement(using: &generator) ?? "a")
        let other = Packets.string(names.randomElement(using: &generator) ?? "b")
        let handle = join(Packets.number(4), Packets.number(UInt32(generator.next() % 5)))
        let offset = Packets.long(generator.next() % 4 == 0 ? .max : generator.next() % 5_000)
        let head = Packets.number(id)
        let attributes = Packets.number(UInt32(generator.next() % 16))
        switch generator.next() % 14 {
        case 0, 1: return join([3], head, name, Packets.number(UInt32(generator.next() % 64)), attributes)
        case 2: return join([4], head, handle)
        case 3: return join([5], head, handle, offset, Packets.number(UInt32(generator.next() % 400_000)))
        case 4: return join([6], head, handle, offset, Packets.string(String(repeating: "x", count: 300)))
        case 5: return join([7], head, name)
        case 6: return join([8], head, handle)
        case 7: return join([9], head, name, attributes)
        case 8: return join([11], head, name)
        case 9: return join([12], head, handle)
        case 10: return join([18], head, name, other)
        case 11: return join([200], head, Packets.string("statvfs@openssh.com"), name)
        case 12:
            return join([200], head, Packets.string("copy-data"), handle, offset, offset, handle, offset)
        default: return join([UInt8(generator.next() % 250 + 3)], head, name)
        }
    }

    /// Numbers of the answers behind VERSION.
    private static func numbers(_ bytes: [UInt8]) -> [UInt32] {
        var rest = bytes[...]
        var result: [UInt32] = []
        while rest.count >= 9 {
            let word = { (bytes: ArraySlice<UInt8>) in bytes.reduce(UInt32(0)) { $0 << 8 | UInt32($1) } }
            let length = Int(word(rest.prefix(4)))
            let body = rest.dropFirst(4).prefix(length)
            if body.first != 2 { result.append(word(body.dropFirst().prefix(4))) }
            rest = rest.dropFirst(4 + length)
        }
        return result
    }
}

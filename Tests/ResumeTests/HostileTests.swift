// SPDX-License-Identifier: Apache-2.0

import Resume
import Testing

@Suite struct HostileTests {
    /// An attached end that has sent 10 bytes and received none.
    private func prepared() throws -> Link2 {
        let holder = Link2()
        try holder.link.connect()
        var bytes = randomBytes(10, 1)
        write(&holder.link.agent, &bytes)
        holder.link.send(upTo: .max)
        return holder
    }

    /// A class, because expectations capture it.
    final class Link2 {
        var link = Link()
        var failure: ResumeError? { link.agent.failure }
        var deliverableCount: Int { link.agent.deliverableCount }
        var counters: ResumableStream.Counters { link.agent.counters }
        var delivered: [UInt8] { Array(link.agent.deliverable) }
        var unacknowledgedCount: Int { link.agent.unacknowledgedCount }
        func attach(_ received: UInt64, _ limit: UInt64) throws(ResumeError) {
            try link.agent.attach(received: received, limit: limit, now: 1)
        }
        func feed(_ bytes: [UInt8]) throws(ResumeError) {
            var wire = bytes
            try Link.feed(&link.agent, &wire, .max, link.now)
        }
    }

    private static func frame(
        _ type: UInt8, _ length: Int, _ offset: UInt64, _ payload: [UInt8] = []
    ) -> [UInt8] {
        let first = UInt32(type) << 24 | UInt32(length)
        return (0..<4).map { UInt8(truncatingIfNeeded: first >> UInt32(24 - 8 * $0)) }
            + (0..<8).map { UInt8(truncatingIfNeeded: offset >> UInt64(56 - 8 * $0)) } + payload
    }

    private static func number(_ value: UInt64) -> [UInt8] {
        (0..<8).map { UInt8(truncatingIfNeeded: value >> UInt64(56 - 8 * $0)) }
    }

    static let cases: [(name: String, bytes: [UInt8], error: ResumeError)] = [
        ("gap", frame(1, 1, 5, [0]), .gap(expected: 0, got: 5)),
        ("empty data", frame(1, 0, 0), .badFrame(type: 1, length: 0)),
        ("long data", frame(1, 65_537, 0), .badFrame(type: 1, length: 65_537)),
        ("data far away", frame(1, 1, .max, [0]), .gap(expected: 0, got: .max)),
        ("acknowledgement of what was not sent", frame(2, 8, 11, number(1 << 22)), .badAcknowledgement(11)),
        ("acknowledgement of all", frame(2, 8, .max, number(1 << 22)), .badAcknowledgement(.max)),
        ("limit taken back", frame(2, 8, 10, number(10)), .badAcknowledgement(10)),
        ("limit without limit", frame(2, 8, 10, number(.max)), .badAcknowledgement(.max)),
        ("acknowledgement of wrong size", frame(2, 9, 0), .badFrame(type: 2, length: 9)),
        ("end beyond", frame(3, 0, 1), .gap(expected: 0, got: 1)),
        ("reset", frame(4, 0, 99), .reset(99)),
        ("ping with payload", frame(5, 1, 0), .badFrame(type: 5, length: 1)),
        ("unknown and endless", frame(77, 0xff_ffff, 0), .badFrame(type: 77, length: 0xff_ffff)),
        ("data after the end", frame(3, 0, 0) + frame(1, 1, 0, [1]), .dataAfterEnd),
    ]

    @Test(arguments: cases.indices)
    func isFoundOut(index: Int) throws {
        let one = Self.cases[index]
        let holder = try prepared()
        #expect(throws: one.error, "\(one.name)") { try holder.feed(one.bytes) }
        #expect(holder.failure == one.error)
    }

    @Test func moreThanTheWindow() throws {
        let holder = try prepared()
        var offset: UInt64 = 0
        let piece = [UInt8](repeating: 1, count: 65_536)
        for _ in 0..<64 {
            try holder.feed(Self.frame(1, piece.count, offset, piece))
            offset += UInt64(piece.count)
        }
        #expect(holder.deliverableCount == 4 << 20)
        #expect(throws: ResumeError.windowExceeded) { try holder.feed(Self.frame(1, 1, offset, [0])) }
    }

    /// The end counts as one byte, which nobody can have before the bytes in front of it: `sent` of `written` bytes
    /// went out before the local side ended.
    @Test(arguments: [(0, 5), (10, 11), (10, 4_000)]) func anEndBeforeItsBytes(sent: Int, written: Int) throws
    {
        let holder = Link2()
        try holder.link.connect()
        var bytes = randomBytes(sent, 1)
        write(&holder.link.agent, &bytes)
        holder.link.send(upTo: .max)
        holder.link.cut()
        bytes = randomBytes(written - sent, 2)
        write(&holder.link.agent, &bytes)
        holder.link.agent.finish()
        let mark = UInt64(sent + 1)
        #expect(throws: ResumeError.badAcknowledgement(mark)) { try holder.attach(mark, 1 << 22) }
        #expect(holder.failure == .badAcknowledgement(mark))
    }

    /// Whatever a greeting says in whatever state: it is taken or refused, and what goes out afterwards is in order.
    @Test(arguments: UInt64(1)...100) func fuzzedGreetings(seed: UInt64) throws {
        var generator = Seeded(seed)
        let holder = Link2()
        try holder.link.connect()
        do {
            for _ in 0..<50 {
                var bytes = randomBytes(Int.random(in: 0...20, using: &generator), generator.next())
                write(&holder.link.agent, &bytes)
                if generator.next() % 10 == 0 { holder.link.agent.finish() }
                holder.link.send(upTo: Int.random(in: 0...60, using: &generator))
                holder.link.cut()
                let sent = UInt64.random(in: 0...3, using: &generator)
                let numbers: [UInt64] = [sent, sent &+ 40, generator.next() % 400, .max, .max - sent]
                let received = numbers[Int.random(in: 0..<5, using: &generator)]
                try holder.attach(received, generator.next() % 8 == 0 ? .max : received &+ 100)
            }
        } catch {
            #expect(holder.failure == error)
        }
    }

    @Test func unknownFramesAreSkipped() throws {
        let holder = try prepared()
        try holder.feed(Self.frame(77, 3, 0, [1, 2, 3]) + Self.frame(1, 2, 0, [7, 8]))
        #expect(holder.deliverableCount == 2)
        #expect(holder.counters.unknownFrames == 1)
    }

    @Test func duplicatesAreTakenOnce() throws {
        let holder = try prepared()
        try holder.feed(
            Self.frame(1, 3, 0, [1, 2, 3]) + Self.frame(1, 3, 1, [2, 3, 4]) + Self.frame(1, 1, 0, [9]))
        #expect(holder.delivered == [1, 2, 3, 4])
        #expect(holder.counters.duplicateBytes == 3)
    }

    @Test(arguments: [(11, 1 << 22), (UInt64.max, 1 << 22), (0, UInt64.max)] as [(UInt64, UInt64)])
    func greetingsThatCannotBe(received: UInt64, limit: UInt64) throws {
        let holder = try prepared()
        #expect(throws: ResumeError.self) {
            try holder.attach(received, limit)
        }
    }

    @Test func greetingsForgetNothing() throws {
        let holder = try prepared()
        try holder.link.arrive(upTo: .max)
        holder.link.now += 300_000_000
        _ = holder.link.client.handleTimeout(now: holder.link.now)
        holder.link.send(upTo: .max)
        try holder.link.arrive(upTo: .max)
        #expect(holder.unacknowledgedCount == 0)
        // The peer acknowledged ten bytes, and now says that it has three.
        #expect(throws: ResumeError.badAcknowledgement(3)) {
            try holder.attach(3, 1 << 22)
        }
    }

    @Test func greetingsRoundTripAndAreTold() throws {
        var generator = Seeded(4)
        var greeting = ResumeGreeting(.resume)
        greeting.port = 22
        greeting.id = .random(using: &generator)
        let (client, agent, other) = (randomBytes(32, 5), randomBytes(32, 6), randomBytes(32, 7))
        let secret = randomBytes(32, 8)
        greeting.token = StreamToken(secret: secret, id: greeting.id, clientKey: client, agentKey: agent)
        greeting.received = 0x0102_0304_0506_0708
        greeting.limit = .max
        let bytes = greeting.bytes
        #expect(bytes.count == ResumeGreeting.size)
        #expect(try ResumeGreeting(parsing: bytes, isAnswer: false) == greeting)
        #expect(throws: ResumeError.notResumable) { try ResumeGreeting(parsing: bytes, isAnswer: true) }
        for count in 0..<bytes.count {
            #expect(throws: ResumeError.notResumable) {
                try ResumeGreeting(parsing: Array(bytes[..<count]), isAnswer: false)
            }
        }
        #expect(!ResumeGreeting.canBeAnswer(bytes))
        #expect(ResumeGreeting.canBeAnswer(ResumeGreeting(.accepted).bytes))
        // Another node, or another agent's secret: another token.
        let stolen = StreamToken(secret: secret, id: greeting.id, clientKey: other, agentKey: agent)
        #expect(!stolen.matches(greeting.token))
        #expect(
            StreamToken(secret: secret, id: greeting.id, clientKey: client, agentKey: agent).matches(
                greeting.token))
        #expect(
            !StreamToken(secret: other, id: greeting.id, clientKey: client, agentKey: agent).matches(
                greeting.token))
    }

    /// Random bytes, random bytes that look like frames: never a crash, never more memory than the window.
    @Test(arguments: UInt64(1)...200)
    func fuzzed(seed: UInt64) throws {
        var generator = Seeded(seed)
        let holder = try prepared()
        do {
            for _ in 0..<300 {
                var bytes = randomBytes(Int.random(in: 0...40, using: &generator), generator.next())
                if Bool.random(using: &generator) {
                    let length = Int.random(in: 0...30, using: &generator)
                    let offsets: [UInt64] = [0, 1, 10, 11, .max, generator.next() % 64]
                    let offset = offsets[Int.random(in: 0..<6, using: &generator)]
                    bytes = Self.frame(UInt8.random(in: 0...8, using: &generator), length, offset, bytes)
                }
                try holder.feed(bytes)
                holder.link.now += 100_000_000
                _ = holder.link.agent.handleTimeout(now: holder.link.now)
                holder.link.send(upTo: .max)
            }
        } catch {
            #expect(holder.failure == error)
        }
        #expect(holder.deliverableCount <= 4 << 20)
    }
}

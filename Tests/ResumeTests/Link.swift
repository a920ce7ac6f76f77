// SPDX-License-Identifier: Apache-2.0

import Resume

/// Two ends and a carrier between them whose bytes move when a test says so.
struct Link: ~Copyable {
    var client: ResumableStream
    var agent: ResumableStream
    /// Bytes under way.
    var up: [UInt8] = []
    var down: [UInt8] = []
    var now: UInt64 = 1_000_000_000
    var isOpen = false
    /// What each side was given by the other.
    var atAgent: [UInt8] = []
    var atClient: [UInt8] = []

    init(limits: ResumableStream.Limits = ResumableStream.Limits()) {
        client = ResumableStream(limits: limits)
        agent = ResumableStream(limits: limits)
    }

    /// A new carrier: both greetings cross.
    mutating func connect() throws(ResumeError) {
        up = []
        down = []
        var hello = ResumeGreeting(.resume)
        var answer = ResumeGreeting(.accepted)
        client.fill(&hello)
        agent.fill(&answer)
        try agent.attach(received: hello.received, limit: hello.limit, now: now)
        try client.attach(received: answer.received, limit: answer.limit, now: now)
        isOpen = true
    }

    /// The carrier breaks; what was under way is lost.
    mutating func cut() {
        client.detach()
        agent.detach()
        isOpen = false
    }

    /// Each side puts at most `count` bytes on the carrier.
    mutating func send(upTo count: Int) {
        Self.collect(&client, &up, count, now)
        Self.collect(&agent, &down, count, now)
    }

    /// At most so many bytes arrive, and are delivered.
    mutating func arrive(upTo count: Int) throws(ResumeError) {
        try Self.feed(&agent, &up, count, now)
        try Self.feed(&client, &down, count, now)
        Self.deliver(&agent, &atAgent, .max)
        Self.deliver(&client, &atClient, .max)
    }

    static func collect(_ end: inout ResumableStream, _ wire: inout [UInt8], _ limit: Int, _ now: UInt64) {
        var left = limit
        while left > 0, let (header, payload) = end.nextOutgoing(now: now) {
            let bytes = Array((Array(header) + Array(payload)).prefix(left))
            wire += bytes
            left -= bytes.count
            end.sent(bytes.count, now: now)
        }
    }

    static func feed(
        _ end: inout ResumableStream, _ wire: inout [UInt8], _ limit: Int, _ now: UInt64
    ) throws(ResumeError) {
        let count = min(limit, wire.count)
        guard count > 0 else { return }
        let bytes = Array(wire[..<count])
        wire.removeFirst(count)
        _ = try end.receive(upTo: count, now: now) {
            $0.copyBytes(from: bytes); return count
        }
    }

    static func deliver(_ end: inout ResumableStream, _ sink: inout [UInt8], _ limit: Int) {
        let count = min(limit, end.deliverableCount)
        sink += Array(end.deliverable.prefix(count))
        end.delivered(count)
    }
}

/// Takes from `source` what the end has room for.
func write(_ end: inout ResumableStream, _ source: inout [UInt8], upTo limit: Int = .max) {
    let count = min(limit, source.count, end.writableCount)
    guard count > 0 else { return }
    let bytes = Array(source[..<count])
    source.removeFirst(count)
    _ = end.write(upTo: count) {
        $0.copyBytes(from: bytes); return count
    }
}

/// A small generator whose runs can be repeated.
struct Seeded: RandomNumberGenerator {
    var state: UInt64
    init(_ seed: UInt64) { state = seed &* 0x9e37_79b9_7f4a_7c15 | 1 }
    mutating func next() -> UInt64 {
        state ^= state << 13
        state ^= state >> 7
        state ^= state << 17
        return state &* 0x2545_f491_4f6c_dd1d
    }
}

func randomBytes(_ count: Int, _ seed: UInt64) -> [UInt8] {
    var generator = Seeded(seed)
    return (0..<count).map { _ in UInt8.random(in: 0...255, using: &generator) }
}

// SPDX-License-Identifier: Apache-2.0

import Mesh

/// What a simulated link does to packets. Probabilities are per packet and direction.
struct LinkProfile: Sendable, CustomStringConvertible {
    var name: String
    var loss = 0.0
    var duplication = 0.0
    var corruption = 0.0
    /// Extra delay that lets later packets overtake.
    var reordering = 0.0
    var latency = Interval.milliseconds(5)
    /// Bytes per second; nil is infinitely fast.
    var rate: UInt64?
    /// Bytes waiting for the rate before the tail is dropped.
    var queue = 256 << 10
    /// Packets above this vanish.
    var mtu = 65_535
    /// Says so (ICMPv6 packet too big) when they do.
    var answersTooBig = false
    /// The sender waits for the rate, as an engine waits for its socket, instead of overrunning the queue.
    var isPaced = false

    var description: String { name }
}

/// Two stacks joined by a link, in virtual time. A function of its seed.
struct NetstackSimulation: ~Copyable {
    struct Flight {
        var due: Instant
        var order: UInt64
        var toB: Bool
        var bytes: [UInt8]
        var isAltered = false
    }

    var now = Instant(nanoseconds: 1_000_000_000)
    var a: Stack
    var b: Stack
    var link: LinkProfile
    var generator: SeededGenerator
    var flights: [Flight] = []
    var order: UInt64 = 0
    var busyUntil = [Instant(nanoseconds: 0), Instant(nanoseconds: 0)]
    var dropped = 0
    var delivered = 0
    var isCut = false
    var bytesCarried = 0
    var faults = FaultCounts()
    var checker = SegmentChecker()
    /// Packet lengths of the burst at hand.
    private var memory = [UInt8](repeating: 0, count: 128 << 10)

    static let a4 = IPAddress("100.64.0.1")!
    static let b4 = IPAddress("100.64.0.2")!
    static let a6 = IPAddress("fd7a:115c:a1e0::1")!
    static let b6 = IPAddress("fd7a:115c:a1e0::2")!

    init(seed: UInt64, link: LinkProfile, mtu: Int = 1_280, limits: StackLimits = StackLimits()) {
        generator = SeededGenerator(seed: seed)
        self.link = link
        a = Stack(addresses: [Self.a4, Self.a6], mtu: mtu, limits: limits, seed: seed &+ 1)
        b = Stack(addresses: [Self.b4, Self.b6], mtu: mtu, limits: limits, seed: seed &+ 2)
    }

    mutating func chance(_ probability: Double) -> Bool {
        probability > 0 && Double.random(in: 0..<1, using: &generator) < probability
    }

    /// Puts a packet on the link.
    mutating func transmit(_ packet: [UInt8], toB: Bool) {
        checker.check(packet, now: now)
        bytesCarried += packet.count
        if packet.count > link.mtu {
            faults.tooBig += 1
            if link.answersTooBig, packet[0] >> 4 == 6 { answerTooBig(packet, toB: toB) }
        }
        guard !isCut, packet.count <= link.mtu, !chance(link.loss) else {
            faults.lost += 1
            dropped += 1
            return
        }
        var copies = [packet]
        if chance(link.duplication) {
            faults.duplicated += 1
            copies.append(packet)
        }
        for var copy in copies {
            let isAltered = chance(link.corruption)
            if isAltered {
                let bit = Int.random(in: 0..<copy.count * 8, using: &generator)
                copy[bit / 8] ^= 1 << UInt8(bit % 8)
                faults.corrupted += 1
            }
            var due = now + link.latency
            if let rate = link.rate {
                let lane = toB ? 0 : 1
                let start = max(now, busyUntil[lane])
                guard start.since(now).inSeconds * Double(rate) < Double(link.queue) else {
                    dropped += 1
                    faults.overrun += 1
                    continue
                }
                busyUntil[lane] = start + Interval(nanoseconds: UInt64(copy.count) * 1_000_000_000 / rate)
                due = busyUntil[lane] + link.latency
            }
            if chance(link.reordering) {
                due = due + Interval(nanoseconds: UInt64.random(in: 0..<20_000_000, using: &generator))
                faults.reordered += 1
            }
            order += 1
            push(Flight(due: due, order: order, toB: toB, bytes: copy, isAltered: isAltered))
        }
    }

    private mutating func answerTooBig(_ packet: [UInt8], toB: Bool) {
        let limit = [UInt8(link.mtu >> 8), UInt8(link.mtu & 255)]
        let message = [2, 0, 0, 0, 0, 0] + limit + packet.prefix(1_200)
        let answer = WirePacket.ip6(
            source: toB ? Self.b6 : Self.a6, destination: toB ? Self.a6 : Self.b6, kind: 58, message,
            checksumAt: 2)
        order += 1
        push(Flight(due: now + link.latency, order: order, toB: !toB, bytes: answer))
    }

    private mutating func push(_ flight: Flight) {
        var at = flights.count
        while at > 0, flights[at - 1].due > flight.due { at -= 1 }
        flights.insert(flight, at: at)
    }

    /// Takes everything the stacks have to say, as far as the link's pace lets it.
    mutating func drain() {
        while mayTransmit(toB: true), pull(toB: true) {}
        while mayTransmit(toB: false), pull(toB: false) {}
    }

    private func mayTransmit(toB: Bool) -> Bool { !link.isPaced || busyUntil[toB ? 0 : 1] <= now }

    /// One burst, laid out in one of several ways, so that none of them is special.
    private mutating func pull(toB: Bool) -> Bool {
        let limit = link.isPaced ? 1 : [1, 2, 7, 64][Int.random(in: 0..<4, using: &generator)]
        let layouts = [
            BurstLayout.plain, BurstLayout(head: 16, tail: 16, alignment: 16, paddedLimit: 1_280),
            BurstLayout(head: 3, tail: 0, alignment: 4, paddedLimit: 9_000),
        ]
        let layout = layouts[Int.random(in: 0..<3, using: &generator)]
        let moment = now
        let burst = memory.withUnsafeMutableBytes {
            toB
                ? a.nextBurst(into: $0, layout: layout, limit: limit, now: moment)
                : b.nextBurst(into: $0, layout: layout, limit: limit, now: moment)
        }
        guard let burst else { return false }
        var at = layout.head
        for index in 0..<burst.count {
            let length = burst.length(of: index)
            transmit(Array(memory[at..<at + length]), toB: toB)
            at += layout.stride(length)
        }
        return true
    }

    /// Goes to the next thing that happens. False when nothing ever will before `limit`.
    mutating func step(until limit: Instant) -> Bool {
        drain()
        var next = min(a.nextDeadline, b.nextDeadline)
        if let first = flights.first { next = min(next, first.due) }
        if link.isPaced, a.hasOutput { next = min(next, busyUntil[0]) }
        if link.isPaced, b.hasOutput { next = min(next, busyUntil[1]) }
        guard next <= limit else { return false }
        now = max(now, next)
        var count = 0
        while count < flights.count, flights[count].due <= now {
            let flight = flights[count]
            count += 1
            delivered += 1
            // Behind a seal nothing can be corrupted: then the checksum need not be looked at.
            let isAuthentic = !flight.isAltered && count % 2 == 0
            flight.bytes.withUnsafeBytes {
                if flight.toB {
                    b.receive($0, isAuthentic: isAuthentic, now: now)
                } else {
                    a.receive($0, isAuthentic: isAuthentic, now: now)
                }
            }
        }
        flights.removeFirst(count)
        if a.nextDeadline <= now { a.handleTimeout(now) }
        if b.nextDeadline <= now { b.handleTimeout(now) }
        return true
    }
}

/// The bytes that one side of a test stream sends: a function of position, so that any slip shows.
enum Pattern {
    static func byte(_ position: Int, _ salt: UInt8) -> UInt8 {
        UInt8(truncatingIfNeeded: position &* 31 ^ position >> 8 ^ position >> 16) &+ salt
    }
}

/// One end of a stream under test: writes `total` bytes of its pattern, checks what it reads, closes by halves.
struct StreamEnd {
    var id: ConnectionID?
    let salt: UInt8
    let total: Int
    var written = 0
    var read = 0
    var mismatches = 0
    var sawEnd = false
    var closed: CloseReason?
    var hasShutDown = false
    /// Bytes it takes per turn; 0 is a stuck reader.
    var appetite = Int.max
    /// Writes and reads only when an event said so, as the engine does, instead of trying each time.
    var isEventDriven = false
    private var mayWrite = false
    private var mayRead = false

    init(salt: UInt8, total: Int) {
        self.salt = salt
        self.total = total
    }

    mutating func pump(_ stack: inout Stack, peerSalt: UInt8, now: Instant) {
        guard let id, closed == nil else { return }
        if !isEventDriven || mayWrite { write(id, &stack) }
        if !isEventDriven || mayRead { read(id, &stack, peerSalt: peerSalt, now: now) }
    }

    private mutating func write(_ id: ConnectionID, _ stack: inout Stack) {
        while written < total {
            let position = written
            let mine = salt
            let limit = min(total - written, 32 << 10)
            let count = stack.write(id, limit: limit) { room in
                for index in 0..<room.count { room[index] = Pattern.byte(position + index, mine) }
                return room.count
            }
            guard count > 0 else {
                mayWrite = false
                return
            }
            written += count
        }
        if !hasShutDown {
            hasShutDown = true
            stack.shutdownWrite(id)
        }
    }

    private mutating func read(_ id: ConnectionID, _ stack: inout Stack, peerSalt: UInt8, now: Instant) {
        var hunger = appetite
        while hunger > 0 {
            let position = read
            var wrong = 0
            let count = stack.read(id, now: now) { bytes in
                let length = min(bytes.count, hunger)
                for index in 0..<length where bytes[index] != Pattern.byte(position + index, peerSalt) {
                    wrong += 1
                }
                return length
            }
            guard count > 0 else {
                mayRead = false
                return
            }
            mismatches += wrong
            read += count
            hunger -= count
        }
    }

    mutating func take(_ event: StackEvent) {
        switch event {
        case .accepted(let id, _, _) where self.id == nil:
            self.id = id
            // Bytes may have come with the handshake.
            mayRead = true
            mayWrite = true
        case .connected(let id) where id == self.id: mayWrite = true
        case .writable(let id) where id == self.id: mayWrite = true
        case .readable(let id) where id == self.id: mayRead = true
        case .peerClosed(let id) where id == self.id: sawEnd = true
        case .closed(let id, let reason) where id == self.id: closed = reason
        default: break
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

import Mesh

/// A TCP that is slow and obvious: every byte has its number, what was received is a dictionary, what is not
/// acknowledged is sent again and again. It has no congestion control and no timers but a tick. It may be rude within
/// the rules (odd segment sizes, overlaps, duplicates, small and closing windows, late acknowledgements), and it
/// checks every segment of the stack against what a stack may do.
struct ReferencePeer {
    static let address = SocketAddress(IPAddress("fd7a::77")!, port: 7_777)
    static let stack = SocketAddress(IPAddress("fd7a::1")!, port: 22)

    var generator: SeededGenerator
    /// All bytes to send; the FIN follows them.
    let outgoing: [UInt8]
    let isn: UInt32
    let usesSACK: Bool
    let usesTimestamps: Bool
    let shift: Int
    var stackISN: UInt32?
    var stackShift = 0
    /// Bytes of the stack by offset.
    var received: [Int: UInt8] = [:]
    var contiguous = 0
    var finAt: Int?
    /// Bytes of ours that the stack acknowledged; one more with the FIN.
    var acknowledged = 0
    var isEstablished = false
    /// One behind the last number sent.
    var sentEnd = 0
    /// Offset up to which the stack may send.
    var promised = 0
    var stackEdge = 0
    var clock: UInt32 = 1
    var stackClock: UInt32 = 0
    var failures: [String] = []
    var sawSACK = 0

    init(seed: UInt64, bytes: Int) {
        generator = SeededGenerator(seed: seed)
        outgoing = (0..<bytes).map { Pattern.byte($0, 7) }
        isn = UInt32(truncatingIfNeeded: generator.next())
        usesSACK = Bool.random(using: &generator)
        usesTimestamps = Bool.random(using: &generator)
        shift = Int.random(in: 0...8, using: &generator)
    }

    mutating func pick(_ count: Int) -> Int { Int.random(in: 0..<count, using: &generator) }

    var isDone: Bool { acknowledged == outgoing.count + 1 && finAt == contiguous }

    // MARK: - Sending

    private static func put16(_ value: Int) -> [UInt8] { [UInt8(value >> 8 & 255), UInt8(value & 255)] }
    private static func put32(_ value: UInt32) -> [UInt8] {
        [24, 16, 8, 0].map { UInt8(value >> UInt32($0) & 255) }
    }

    private func packet(
        _ flags: UInt8, sequence: UInt32, _ options: [UInt8], window: Int, _ payload: ArraySlice<UInt8> = []
    ) -> [UInt8] {
        var options = options
        if usesTimestamps { options = [1, 1, 8, 10] + Self.put32(clock) + Self.put32(stackClock) + options }
        while options.count % 4 != 0 { options.append(0) }
        var tcp = Self.put16(Int(Self.address.port)) + Self.put16(Int(Self.stack.port)) + Self.put32(sequence)
        let ack = stackISN.map { $0 &+ 1 &+ UInt32(contiguous) &+ (finAt == contiguous ? 1 : 0) } ?? 0
        tcp += Self.put32(flags & 16 != 0 ? ack : 0)
        tcp += [UInt8((20 + options.count) / 4) << 4, flags] + Self.put16(window) + [0, 0, 0, 0]
        tcp += options + payload
        return WirePacket.ip6(
            source: Self.address.ip, destination: Self.stack.ip, kind: 6, tcp, checksumAt: 16)
    }

    /// What it says this tick: the handshake, or an acknowledgement and some of what is missing.
    mutating func tick() -> [[UInt8]] {
        clock &+= 10
        guard isEstablished else {
            var options: [UInt8] = [2, 4] + Self.put16([536, 1_220, 8_960][pick(3)])
            if usesSACK { options += [4, 2] }
            options += [3, 3, UInt8(shift)]
            return [packet(2, sequence: isn, options, window: 10_000)]
        }
        var result = [acknowledgement()]
        guard stackEdge > acknowledged || acknowledged >= outgoing.count else {
            // The window is closed: one byte too many asks for news.
            let next = acknowledged..<acknowledged + 1
            let number = isn &+ 1 &+ UInt32(acknowledged)
            result.append(packet(16, sequence: number, [], window: window16(), outgoing[next]))
            return result
        }
        for _ in 0..<(1 + pick(6)) {
            if acknowledged >= outgoing.count, pick(2) == 0 { break }
            result.append(data())
        }
        return result
    }

    private mutating func data() -> [UInt8] {
        // Anything within the window, mostly what is missing first, sometimes what was sent before.
        let window = max(0, min(outgoing.count, stackEdge) - acknowledged)
        var start = acknowledged + (pick(3) == 0 && window > 0 ? pick(window) : 0)
        if pick(12) == 0 { start = max(0, start - pick(2_000)) }
        start = min(start, outgoing.count)
        let length = min([1, 100, 536, 1_200][pick(4)], max(0, min(outgoing.count, stackEdge) - start))
        let end = start + length
        let fin: UInt8 = end == outgoing.count && stackEdge >= end ? 1 : 0
        sentEnd = max(sentEnd, end + Int(fin))
        return packet(
            16 | fin, sequence: isn &+ 1 &+ UInt32(start), [], window: window16(),
            outgoing[start..<end])
    }

    private mutating func acknowledgement() -> [UInt8] {
        var options: [UInt8] = []
        if usesSACK, let first = received.keys.filter({ $0 > contiguous }).min(), let base = stackISN {
            var end = first
            while received[end] != nil { end += 1 }
            options =
                [1, 1, 5, 10] + Self.put32(base &+ 1 &+ UInt32(first)) + Self.put32(base &+ 1 &+ UInt32(end))
        }
        return packet(
            16, sequence: isn &+ 1 &+ UInt32(max(sentEnd, acknowledged)), options, window: window16())
    }

    /// A window that grows in fits and starts, sometimes not at all, and never shrinks.
    private mutating func window16() -> Int {
        if pick(3) > 0 { promised = max(promised, contiguous + [0, 500, 3_000, 20_000][pick(4)]) }
        let left = max(promised - contiguous, 0)
        let field = min((left + (1 << shift) - 1) >> shift, 65_535)
        promised = max(promised, contiguous + field << shift)
        return field
    }

    // MARK: - Receiving

    mutating func receive(_ bytes: [UInt8]) {
        guard bytes[6] == 6 else { return }
        if !WirePacket.isChecksumRight(bytes) { failures.append("checksum") }
        let tcp = Array(bytes[40...])
        func at16(_ at: Int) -> Int { Int(tcp[at]) << 8 | Int(tcp[at + 1]) }
        func at32(_ at: Int) -> UInt32 { UInt32(at16(at)) << 16 | UInt32(at16(at + 2)) }
        let header = Int(tcp[12] >> 4) * 4
        let flags = tcp[13]
        if flags & 4 != 0 { return failures.append("reset") }
        var at = 20
        var sacks: [(UInt32, UInt32)] = []
        while at < header, tcp[at] != 0 {
            if tcp[at] == 1 {
                at += 1
                continue
            }
            switch tcp[at] {
            case 3: stackShift = Int(tcp[at + 2])
            case 5:
                for block in stride(from: at + 2, to: at + Int(tcp[at + 1]), by: 8) {
                    sacks.append((at32(block), at32(block + 4)))
                }
            case 8: stackClock = at32(at + 2)
            default: break
            }
            at += Int(tcp[at + 1])
        }
        if flags & 2 != 0 {
            stackISN = at32(4)
            isEstablished = true
            stackEdge = at16(14)
            promised = max(promised, 10_000)
            return
        }
        guard let base = stackISN else { return failures.append("data before SYN") }
        takeAcknowledgement(
            Int(Int32(bitPattern: at32(8) &- isn &- 1)), window: at16(14) << stackShift, sacks)
        let start = Int(Int32(bitPattern: at32(4) &- base &- 1))
        take(Array(tcp[header...]), at: start, isLast: flags & 1 != 0)
    }

    private mutating func takeAcknowledgement(_ ack: Int, window: Int, _ sacks: [(UInt32, UInt32)]) {
        if ack > outgoing.count + 1 { failures.append("acknowledged what was never sent") }
        if ack < acknowledged - 200_000 {
            failures.append("acknowledgement \(ack) far below \(acknowledged)")
        }
        acknowledged = max(acknowledged, ack)
        stackEdge = max(stackEdge, ack + window)
        if !usesSACK, !sacks.isEmpty { failures.append("SACK without leave") }
        for (start, end) in sacks {
            sawSACK += 1
            let range = (Int(Int32(bitPattern: start &- isn &- 1)), Int(Int32(bitPattern: end &- isn &- 1)))
            if range.0 >= range.1 || range.1 > outgoing.count { failures.append("SACK of \(range)") }
        }
    }

    private mutating func take(_ bytes: [UInt8], at start: Int, isLast: Bool) {
        if start + bytes.count > promised {
            failures.append("\(start + bytes.count - promised) beyond the window")
        }
        for (index, byte) in bytes.enumerated() {
            let at = start + index
            if at < 0 { continue }  // a probe
            if byte != Pattern.byte(at, 1) { failures.append("wrong byte at \(at)") }
            received[at] = byte
        }
        if isLast {
            let end = start + bytes.count
            if let finAt, finAt != end { failures.append("FIN moved") }
            finAt = end
        }
        if let finAt, received.keys.contains(where: { $0 >= finAt }) { failures.append("bytes behind FIN") }
        while received[contiguous] != nil { contiguous += 1 }
    }
}

/// The stack against the reference.
struct ReferenceRun: ~Copyable {
    var peer: ReferencePeer
    var stack: Stack
    var end: StreamEnd
    var now = Instant(nanoseconds: 1_000_000_000)
    let loss: Int

    init(seed: UInt64) {
        peer = ReferencePeer(seed: seed, bytes: 2_000 + Int(seed % 7) * 3_000)
        stack = Stack(addresses: [ReferencePeer.stack.ip], mtu: seed % 2 == 0 ? 1_280 : 9_000, seed: seed)
        stack.listen(22)
        end = StreamEnd(salt: 1, total: 5_000 + Int(seed % 5) * 7_000)
        loss = Int(seed % 4) * 4
    }

    mutating func run() {
        var memory = [UInt8](repeating: 0, count: 70_000)
        var packets: [[UInt8]] = []
        for _ in 0..<60_000 where !(peer.isDone && end.closed != nil) && peer.failures.isEmpty {
            for packet in peer.tick() where peer.pick(100) >= loss {
                packet.withUnsafeBytes { stack.receive($0, now: now) }
                if peer.pick(10) == 0 { packet.withUnsafeBytes { stack.receive($0, now: now) } }
            }
            while let event = stack.nextEvent() { end.take(event) }
            end.appetite = [0, 10, 5_000, .max][peer.pick(4)]
            end.pump(&stack, peerSalt: 7, now: now)
            while let event = stack.nextEvent() { end.take(event) }
            let (moment, limit) = (now, 1 + peer.pick(20))
            while let burst = memory.withUnsafeMutableBytes({
                stack.nextBurst(into: $0, layout: .plain, limit: limit, now: moment)
            }) {
                var at = 0
                for index in 0..<burst.count {
                    packets.append(Array(memory[at..<at + burst.length(of: index)]))
                    at += burst.length(of: index)
                }
            }
            if peer.pick(8) == 0 { packets.shuffle(using: &peer.generator) }
            for packet in packets where peer.pick(100) >= loss { peer.receive(packet) }
            packets.removeAll()
            now = now + .milliseconds(UInt64([1, 10, 40, 300][peer.pick(4)]))
            if stack.nextDeadline <= now { stack.handleTimeout(now) }
        }
    }
}

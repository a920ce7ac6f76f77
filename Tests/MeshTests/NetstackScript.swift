// SPDX-License-Identifier: Apache-2.0

import Mesh

/// A TCP segment as a script writes it. Numbers are relative to the initial sequence numbers of the two sides.
struct ScriptSegment: Hashable, CustomStringConvertible {
    /// Letters of `SFRPA`.
    var flags: String
    var sequence: Int
    var ack: Int?
    var length = 0
    var window: Int?
    var mss: Int?
    var shift: Int?
    var sackPermitted = false
    var timestamp: Int?
    /// The timestamp that is echoed is so many milliseconds older than the last one.
    var echoAge = 0
    var sacks: [Range<Int>] = []
    var urgent = 0

    var description: String {
        var text = "\(flags) \(sequence)+\(length)"
        if let ack { text += " ack \(ack)" }
        if let window { text += " win \(window)" }
        if !sacks.isEmpty { text += " sack \(sacks)" }
        return text
    }
}

/// One line of a script.
enum ScriptStep {
    /// The scripted peer sends this.
    case send(ScriptSegment)
    /// The stack must send exactly this next; what the line leaves out may be anything.
    case expect(ScriptSegment)
    /// The stack must have nothing to say.
    case silence
    /// Time passes; timers fire on the way, and what they send waits for the next `expect`.
    case wait(Interval)
    case write(Int)
    /// Writes until there is no room.
    case fill
    /// What was sent does not matter.
    case drop
    case read(Int)
    case shutdown
    case close
    case abort
    case discardInput
    case abortWhenSent
    /// So many times a lack of progress is reported.
    case stalls(Int)
    /// The owner learns that there is a way again; that what is on the way was lost.
    case tellWay, tellLoss
    /// The estimate of the round trip.
    case roundTrip(Interval)
    /// From now on the stack asks before it answers a SYN.
    case askFirst
    /// The owner says yes.
    case accept
    case event(ScriptEvent)
    case noEvent
}

enum ScriptEvent: Hashable {
    case asked, accepted, connected, readable, writable, peerClosed
    case closed(CloseReason)
}

/// A peer that plays a script against a stack, byte by byte, without a TCP of its own.
struct ScriptPeer: ~Copyable {
    static let own = SocketAddress(IPAddress("fd7a::9")!, port: 5_555)
    static let stackAddress = IPAddress("fd7a::1")!
    static let peerISN: UInt32 = 0xffff_ff00  // wraps soon
    static let clock: UInt32 = 0x7fff_ffff  // so do timestamps

    var stack: Stack
    var now = Instant(nanoseconds: 5_000_000_000)
    var stackISN: UInt32?
    var stackPort: UInt16 = 22
    var id: ConnectionID?
    var usesTimestamps = false
    var lastStackTimestamp: UInt32 = 0
    var queue: [ScriptSegment] = []
    var failures: [String] = []

    init(limits: StackLimits = StackLimits(), mtu: Int = 1_280, seed: UInt64 = 42) {
        stack = Stack(addresses: [Self.stackAddress], mtu: mtu, limits: limits, seed: seed)
        stack.listen(22)
    }

    mutating func connect() throws {
        id = try stack.connect(to: Self.own, now: now)
    }

    mutating func play(_ steps: [ScriptStep]) {
        for (line, step) in steps.enumerated() where failures.isEmpty {
            perform(step, line)
        }
    }

    /// Everything that the stack has to say now.
    mutating func takeSent() -> [ScriptSegment] {
        collect()
        defer { queue = [] }
        return queue
    }

    private mutating func fail(_ line: Int, _ text: String) { failures.append("line \(line): \(text)") }

    private mutating func perform(_ step: ScriptStep, _ line: Int) {
        switch step {
        case .send(let segment): send(segment)
        case .expect(let wanted):
            collect()
            guard !queue.isEmpty else { return fail(line, "nothing sent, expected \(wanted)") }
            let got = queue.removeFirst()
            if !Self.matches(got, wanted) { fail(line, "sent \(got), expected \(wanted)") }
        case .silence:
            collect()
            if !queue.isEmpty { fail(line, "sent \(queue), expected nothing") }
        case .wait(let interval): pass(interval)
        case .write(let count):
            guard let id else { return fail(line, "no connection") }
            let done = Array(repeating: UInt8(0x61), count: count).withUnsafeBytes { stack.write(id, $0) }
            if done != count { fail(line, "wrote \(done) of \(count)") }
        case .read(let count):
            guard let id else { return fail(line, "no connection") }
            var memory = [UInt8](repeating: 0, count: max(count, 1))
            let got = memory.withUnsafeMutableBytes { stack.read(id, into: $0, now: now) }
            if got != count { fail(line, "read \(got) of \(count)") }
        case .fill:
            guard let id else { return fail(line, "no connection") }
            while stack.write(id, { $0.count }) > 0 {}
        case .drop:
            collect()
            queue = []
        case .shutdown: if let id { stack.shutdownWrite(id) }
        case .close: if let id { stack.close(id, now: now) }
        case .abort: if let id { stack.abort(id) }
        case .discardInput: if let id { stack.discardInput(id) }
        case .abortWhenSent: if let id { stack.abortWhenSent(id) }
        case .stalls(let wanted):
            var count = 0
            while stack.nextStall() != nil { count += 1 }
            if count != wanted { fail(line, "\(count) stalls, expected \(wanted)") }
        case .tellWay: stack.repeatNow(now)
        case .tellLoss: stack.repeatLost(now, to: [IPPrefix(Self.own.ip, bits: 128)])
        case .roundTrip(let wanted):
            let got = id.flatMap { stack.statistics($0)?.roundTrip }
            if got != wanted { fail(line, "round trip \(String(describing: got)), expected \(wanted)") }
        case .askFirst:
            stack.unlisten(22)
            stack.listenAny(asking: true)
        case .accept: if let id { stack.accept(id) }
        case .event(let wanted):
            let got = nextEvent()
            if got != wanted { fail(line, "event \(String(describing: got)), expected \(wanted)") }
        case .noEvent:
            if let got = nextEvent() { fail(line, "event \(got), expected none") }
        }
    }

    private mutating func nextEvent() -> ScriptEvent? {
        switch stack.nextEvent() {
        case .asked(let id, _, _):
            self.id = id
            return .asked
        case .accepted(let id, _, _):
            self.id = id
            return .accepted
        case .connected: return .connected
        case .readable: return .readable
        case .writable: return .writable
        case .peerClosed: return .peerClosed
        case .closed(_, let reason): return .closed(reason)
        default: return nil
        }
    }

    private mutating func pass(_ interval: Interval) {
        let end = now + interval
        collect()
        while stack.nextDeadline <= end {
            now = max(now, stack.nextDeadline)
            stack.handleTimeout(now)
            collect()
        }
        now = end
    }

    private static func matches(_ got: ScriptSegment, _ wanted: ScriptSegment) -> Bool {
        Set(got.flags) == Set(wanted.flags) && got.sequence == wanted.sequence && got.length == wanted.length
            && (wanted.ack == nil || got.ack == wanted.ack)
            && (wanted.window == nil || got.window == wanted.window)
            && (wanted.mss == nil || got.mss == wanted.mss)
            && (wanted.shift == nil || got.shift == wanted.shift) && got.sacks == wanted.sacks
            && (!wanted.sackPermitted || got.sackPermitted)
    }

    // MARK: - Bytes, written independently of the stack

    mutating func send(_ segment: ScriptSegment) {
        var options: [UInt8] = []
        func put16(_ value: Int) -> [UInt8] { [UInt8(value >> 8 & 255), UInt8(value & 255)] }
        func put32(_ value: UInt32) -> [UInt8] {
            [UInt8(value >> 24), UInt8(value >> 16 & 255), UInt8(value >> 8 & 255), UInt8(value & 255)]
        }
        if let mss = segment.mss { options += [2, 4] + put16(mss) }
        if let shift = segment.shift { options += [1, 3, 3, UInt8(shift)] }
        if segment.sackPermitted { options += [1, 1, 4, 2] }
        if let stamp = segment.timestamp {
            if segment.flags.contains("S") { usesTimestamps = true }
            options +=
                [1, 1, 8, 10] + put32(Self.clock &+ UInt32(truncatingIfNeeded: stamp))
                + put32(lastStackTimestamp &- UInt32(segment.echoAge))
        }
        if !segment.sacks.isEmpty {
            options += [1, 1, 5, UInt8(2 + 8 * segment.sacks.count)]
            for block in segment.sacks {
                let base = stackISN ?? 0
                options += put32(base &+ UInt32(block.lowerBound)) + put32(base &+ UInt32(block.upperBound))
            }
        }
        var bits: UInt8 = 0
        for (letter, bit) in [("F", 1), ("S", 2), ("R", 4), ("P", 8), ("A", 16), ("U", 32)]
        where segment.flags.contains(letter) {
            bits |= UInt8(bit)
        }
        var tcp = put16(Int(Self.own.port)) + put16(Int(stackPort))
        tcp += put32(Self.peerISN &+ UInt32(truncatingIfNeeded: segment.sequence))
        tcp += put32(segment.ack.map { (stackISN ?? 0) &+ UInt32(truncatingIfNeeded: $0) } ?? 0)
        tcp += [UInt8((20 + options.count) / 4) << 4, bits] + put16(segment.window ?? 65_535) + [0, 0]
        tcp += put16(segment.urgent) + options + Array(repeating: UInt8(0x62), count: segment.length)
        let packet = WirePacket.ip6(
            source: Self.own.ip, destination: Self.stackAddress, kind: 6, tcp, checksumAt: 16)
        packet.withUnsafeBytes { stack.receive($0, now: now) }
    }

    private mutating func collect() {
        var memory = [UInt8](repeating: 0, count: 65_536)
        let moment = now
        while let packet = memory.withUnsafeMutableBytes({ stack.nextPacket(into: $0, now: moment) }) {
            guard memory[6] == 6 else { continue }
            guard WirePacket.isChecksumRight(Array(memory[..<packet.length])) else {
                failures.append("bad checksum sent")
                return
            }
            queue.append(parse(Array(memory[40..<packet.length])))
        }
    }

    private mutating func parse(_ tcp: [UInt8]) -> ScriptSegment {
        func at16(_ at: Int) -> Int { Int(tcp[at]) << 8 | Int(tcp[at + 1]) }
        func at32(_ at: Int) -> UInt32 { UInt32(at16(at)) << 16 | UInt32(at16(at + 2)) }
        let header = Int(tcp[12] >> 4) * 4
        let flags = zip("FSRPA", [1, 2, 4, 8, 16]).filter { tcp[13] & UInt8($0.1) != 0 }.map { String($0.0) }
            .joined()
        if flags.contains("S") {
            stackISN = at32(4)
            stackPort = UInt16(at16(0))
        }
        var segment = ScriptSegment(
            flags: flags, sequence: Int(Int32(bitPattern: at32(4) &- (stackISN ?? 0))),
            length: tcp.count - header, window: at16(14))
        if flags.contains("A") { segment.ack = Int(Int32(bitPattern: at32(8) &- Self.peerISN)) }
        if stackISN == nil { segment.sequence = Int(at32(4)) }
        var at = 20
        while at < header, tcp[at] != 0 {
            if tcp[at] == 1 {
                at += 1
                continue
            }
            switch tcp[at] {
            case 2: segment.mss = at16(at + 2)
            case 3: segment.shift = Int(tcp[at + 2])
            case 4: segment.sackPermitted = true
            case 5:
                for block in stride(from: at + 2, to: at + Int(tcp[at + 1]), by: 8) {
                    let start = Int(Int32(bitPattern: at32(block) &- Self.peerISN))
                    segment.sacks.append(start..<Int(Int32(bitPattern: at32(block + 4) &- Self.peerISN)))
                }
            case 8:
                lastStackTimestamp = at32(at + 2)
                segment.timestamp = Int(Int32(bitPattern: at32(at + 6) &- Self.clock))
            default: failures.append("unknown option \(tcp[at])")
            }
            at += Int(tcp[at + 1])
        }
        return segment
    }
}

/// Packets built and checked the slow, obvious way.
enum WirePacket {
    /// RFC 1071, one 16-bit word at a time.
    static func sum(_ bytes: [UInt8]) -> UInt16 {
        var total: UInt32 = 0
        for index in stride(from: 0, to: bytes.count, by: 2) {
            total += UInt32(bytes[index]) << 8 | (index + 1 < bytes.count ? UInt32(bytes[index + 1]) : 0)
            total = (total & 0xffff) + (total >> 16)
        }
        return UInt16(total)
    }

    private static func raw(_ address: IPAddress) -> [UInt8] { address.withBytes { Array($0) } }

    static func ip6(
        source: IPAddress, destination: IPAddress, kind: UInt8, _ payload: [UInt8], checksumAt: Int?
    ) -> [UInt8] {
        var payload = payload
        let length = [UInt8(payload.count >> 8), UInt8(payload.count & 255)]
        if let at = checksumAt {
            let pseudo = raw(source) + raw(destination) + [0, 0] + length + [0, 0, 0, kind]
            let check = ~sum(pseudo + payload)
            payload[at] = UInt8(check >> 8)
            payload[at + 1] = UInt8(check & 255)
        }
        return [0x60, 0, 0, 0] + length + [kind, 64] + raw(source) + raw(destination) + payload
    }

    static func ip4(
        source: IPAddress, destination: IPAddress, kind: UInt8, _ payload: [UInt8], checksumAt: Int?
    ) -> [UInt8] {
        var payload = payload
        if let at = checksumAt {
            let length = [UInt8(payload.count >> 8), UInt8(payload.count & 255)]
            let pseudo = kind == 1 ? [] : raw(source) + raw(destination) + [0, kind] + length
            let check = ~sum(pseudo + payload)
            payload[at] = UInt8(check >> 8)
            payload[at + 1] = UInt8(check & 255)
        }
        let total = payload.count + 20
        var header: [UInt8] = [0x45, 0, UInt8(total >> 8), UInt8(total & 255), 0, 0, 0, 0, 64, kind, 0, 0]
        header += raw(source) + raw(destination)
        let check = ~sum(header)
        header[10] = UInt8(check >> 8)
        header[11] = UInt8(check & 255)
        return header + payload
    }

    /// Whether the TCP, UDP or ICMPv6 checksum of an IPv6 packet is right.
    static func isChecksumRight(_ packet: [UInt8]) -> Bool {
        let length = packet.count - 40
        let pseudo =
            Array(packet[8..<40]) + [0, 0, UInt8(length >> 8), UInt8(length & 255), 0, 0, 0, packet[6]]
        return sum(pseudo + packet[40...]) == 0xffff
    }
}

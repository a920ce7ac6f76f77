// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Mesh

/// What load to make.
struct LoadPlan: Sendable {
    var seconds = 5.0
    var payload = 1_400
    /// Packets in flight per pair.
    var window = 24
    /// Whether all senders write whatever their sockets take.
    var isFlood = false
    /// The first so many senders do, whatever the others do.
    var greedy = 0
    /// Bytes of payload per second of all pairs together; 0: no pace.
    var bytesPerSecond = 0
}

/// What came of it.
struct LoadResult: Sendable {
    var seconds = 0.0
    var sent = 0
    var received = 0
    var lost = 0
    var perPair: [Int] = []
    var cpuSeconds = 0.0
    var oneWay: [Double] = []

    func json(_ plan: LoadPlan) -> JSON {
        let gigabytes = Double(received * plan.payload) / 1e9
        let polite = Array(perPair.dropFirst(plan.greedy))
        let mean = Double(polite.reduce(0, +)) / Double(max(1, polite.count))
        let at = { (share: Double) in
            oneWay.isEmpty ? Double.nan : oneWay[min(oneWay.count - 1, Int(Double(oneWay.count) * share))]
        }
        return .record([
            "pairs": .int(perPair.count), "payload": .int(plan.payload),
            "megabytes_per_second": .double(gigabytes * 1e3 / seconds, digits: 1),
            "packets_per_second": .double(Double(received) / seconds, digits: 0),
            "cpu_seconds_per_gigabyte": .double(cpuSeconds / gigabytes, digits: 3),
            "cpu_us_per_packet": .double(cpuSeconds / Double(max(1, received)) * 1e6, digits: 3),
            "relay_cores": .double(cpuSeconds / seconds, digits: 3), "sent": .int(sent),
            "received": .int(received), "lost": .int(lost),
            "loss": .double(Double(lost) / Double(max(1, sent)), digits: 5),
            "pair_minimum": .double(Double(polite.min() ?? 0) / max(1, mean), digits: 3),
            "pair_maximum": .double(Double(polite.max() ?? 0) / max(1, mean), digits: 3),
            "greedy_megabytes_per_second": .double(
                Double(perPair.prefix(plan.greedy).reduce(0, +) * plan.payload) / 1e6 / seconds, digits: 1),
            "one_way_p50_us": .double(at(0.5), digits: 1), "one_way_p99_us": .double(at(0.99), digits: 1),
        ])
    }
}

/// One sender and its receiver.
private final class LoadPair {
    let sender: Int32
    let receiver: Int32
    let isGreedy: Bool
    let frameBytes: Int
    let frames: UnsafeMutableRawBufferPointer
    /// Bytes of `frames` that are still to be written.
    var pending = 0..<0
    var sent = 0
    var received = 0
    /// Bytes of the begun frame at the end of the last read.
    var begun = 0
    var isWaiting = false

    init(_ ends: (LoadConnection, LoadConnection), _ plan: LoadPlan, isGreedy: Bool) throws {
        (sender, receiver) = (ends.0.descriptor, ends.1.descriptor)
        self.isGreedy = isGreedy
        let frame = DERP.frame(
            .sendPacket, ends.1.key.bytes, [UInt8](repeating: 0xab, count: plan.payload))
        frameBytes = frame.count
        let count = isGreedy ? max(1, (48 << 10) / frame.count) : plan.window
        frames = .allocate(byteCount: count * frame.count, alignment: 16)
        for index in 0..<count {
            frame.withUnsafeBytes {
                UnsafeMutableRawBufferPointer(rebasing: frames[(index * frame.count)...]).copyMemory(from: $0)
            }
        }
        try Descriptor.setNonBlocking(sender)
        try Descriptor.setNonBlocking(receiver)
    }

    deinit { frames.deallocate() }

    /// Prepares up to `count` frames that say when they left.
    func prepare(_ count: Int, now: UInt64) {
        let count = min(count, frames.count / frameBytes)
        for index in 0..<count {
            frames.storeBytes(of: now, toByteOffset: index * frameBytes + 37, as: UInt64.self)
        }
        pending = 0..<count * frameBytes
        sent += count
    }
}

/// The load itself, on one thread.
final class LoadRun {
    private let plan: LoadPlan
    private let pairs: [LoadPair]
    private let epoll: Epoll
    private let events = EpollEvents()
    private let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 256 << 10, alignment: 64)
    private(set) var result = LoadResult()
    private var samples: [Double] = []
    private var begin: UInt64 = 0
    private var isSending = true

    init(_ plan: LoadPlan, _ ends: [(LoadConnection, LoadConnection)]) throws {
        self.plan = plan
        let epoll = try Epoll()
        pairs = try ends.enumerated().map {
            try LoadPair($1, plan, isGreedy: plan.isFlood || $0 < plan.greedy)
        }
        for (index, pair) in pairs.enumerated() {
            try epoll.add(pair.receiver, .read, token: UInt64(index * 2))
            try epoll.add(pair.sender, [], token: UInt64(index * 2 + 1))
        }
        self.epoll = epoll
    }

    deinit { buffer.deallocate() }

    /// Sends and receives for the planned time.
    func run() throws {
        begin = Clock.monotonicNanoseconds()
        let end = begin + UInt64(plan.seconds * 1e9)
        for pair in pairs { try send(pair) }
        while true {
            let now = Clock.monotonicNanoseconds()
            guard now < end else { break }
            try turn(wait: plan.bytesPerSecond > 0 ? 200_000 : min(10_000_000, end - now))
            if plan.bytesPerSecond > 0 { for pair in pairs { try send(pair) } }
        }
        result.seconds = Double(Clock.monotonicNanoseconds() - begin) / 1e9
        result.perPair = pairs.map(\.received)
        result.received = result.perPair.reduce(0, +)
        result.sent = pairs.reduce(0) { $0 + $1.sent }
        result.oneWay = samples.sorted()
    }

    /// Waits for what is still on its way, so that losses are losses.
    func settle() throws {
        isSending = false
        for pair in pairs { try writePending(pair) }
        var quietSince = Clock.monotonicNanoseconds()
        while Clock.monotonicNanoseconds() - quietSince < 400_000_000 {
            if try turn(wait: 50_000_000) > 0 { quietSince = Clock.monotonicNanoseconds() }
        }
    }

    /// Packets that never came.
    var lost: Int { pairs.reduce(0) { $0 + $1.sent - $1.received - $1.pending.count / $1.frameBytes } }

    @discardableResult private func turn(wait: UInt64) throws -> Int {
        let count = try epoll.wait(timeoutNanoseconds: wait, into: events)
        for index in 0..<count {
            let (token, _) = events[index]
            let pair = pairs[Int(token / 2)]
            if token % 2 == 0 {
                try receive(pair)
                if isSending, !pair.isGreedy { try send(pair) }
            } else {
                try writePending(pair)
                if isSending, pair.pending.isEmpty { try send(pair) }
            }
        }
        return count
    }

    private func send(_ pair: LoadPair) throws {
        guard pair.pending.isEmpty else { return try writePending(pair) }
        for _ in 0..<4 {
            let now = Clock.monotonicNanoseconds()
            var credit = pair.isGreedy ? Int.max : plan.window - (pair.sent - pair.received)
            if plan.bytesPerSecond > 0 {
                let share = Double(now - begin) / 1e9 * Double(plan.bytesPerSecond) / Double(pairs.count)
                credit = Int(share) / plan.payload - pair.sent
            }
            guard credit > 0 else { break }
            pair.prepare(credit, now: now)
            try writePending(pair)
            guard pair.isGreedy, pair.pending.isEmpty else { break }
        }
        // A sender without window goes on as soon as its socket takes more.
        if pair.isGreedy, plan.bytesPerSecond == 0 { try wait(pair, true) }
    }

    private func writePending(_ pair: LoadPair) throws {
        while !pair.pending.isEmpty {
            let count = write(
                pair.sender, pair.frames.baseAddress! + pair.pending.lowerBound, pair.pending.count)
            guard count > 0 else {
                guard errno == EAGAIN || errno == EINTR else { throw SystemError(call: "write") }
                return try wait(pair, true)
            }
            pair.pending = pair.pending.lowerBound + count..<pair.pending.upperBound
        }
        try wait(pair, pair.isGreedy && isSending && plan.bytesPerSecond == 0)
    }

    private func wait(_ pair: LoadPair, _ isWaiting: Bool) throws {
        guard pair.isWaiting != isWaiting else { return }
        pair.isWaiting = isWaiting
        let token = pairs.firstIndex { $0 === pair } ?? 0
        try epoll.modify(pair.sender, isWaiting ? .write : [], token: UInt64(token * 2 + 1))
    }

    private func receive(_ pair: LoadPair) throws {
        let count = read(pair.receiver, buffer.baseAddress!, buffer.count)
        guard count > 0 else {
            if count < 0, errno == EAGAIN || errno == EINTR { return }
            throw LoadConnection.Failed(description: "the relay closed a connection")
        }
        // All frames have the same length; the time in one of each read is looked at.
        let first = pair.begun == 0 ? 0 : pair.frameBytes - pair.begun
        if first + 45 <= count {
            guard buffer[first] == DERPFrameType.receivePacket.rawValue else {
                throw LoadConnection.Failed(description: "a frame of type \(buffer[first]) amid packets")
            }
            let left = buffer.loadUnaligned(fromByteOffset: first + 37, as: UInt64.self)
            let now = Clock.monotonicNanoseconds()
            if now > left { samples.append(Double(now - left) / 1e3) }
        }
        let total = pair.begun + count
        pair.received += total / pair.frameBytes
        pair.begun = total % pair.frameBytes
    }
}

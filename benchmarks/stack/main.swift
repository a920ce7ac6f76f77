// SPDX-License-Identifier: Apache-2.0

// Two stacks joined in memory: what a segment costs, apart by phase. Compiled together with the stack's sources by
// `run`, so that it needs no package build.
import Glibc

func nanoseconds() -> UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
}

struct Phases {
    var write: UInt64 = 0
    var send: UInt64 = 0
    var receive: UInt64 = 0
    var read: UInt64 = 0
    var acknowledge: UInt64 = 0
    var segments = 0
    var acks = 0
    var bytes = 0
}

/// Packets of one turn, laid out as for sealing.
struct Wire: ~Copyable {
    static let layout = BurstLayout(head: 16, tail: 16, alignment: 16, paddedLimit: 9_000)
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 6 << 20, alignment: 64)
    var bursts: [OutgoingBurst] = []
    var count = 0
    var used = 0
    deinit { memory.deallocate() }

    mutating func take(from stack: inout Stack, now: Instant, limit: Int) {
        bursts.removeAll(keepingCapacity: true)
        used = 0
        count = 0
        while count < limit {
            let place = UnsafeMutableRawBufferPointer(rebasing: memory[used...])
            guard
                let burst = stack.nextBurst(
                    into: place, layout: Self.layout, limit: min(64, limit - count), now: now)
            else { return }
            bursts.append(burst)
            count += burst.count
            used += burst.extent(Self.layout)
        }
    }

    func give(to stack: inout Stack, now: Instant) {
        var at = 0
        for burst in bursts {
            for index in 0..<burst.count {
                let length = burst.length(of: index)
                let start = at + Self.layout.head
                stack.receive(
                    UnsafeRawBufferPointer(rebasing: memory[start..<start + length]), isAuthentic: true,
                    now: now)
                at += Self.layout.stride(length)
            }
        }
    }
}

func run(streams: Int, mtu: Int, isV6: Bool, bytes: Int, burst: Int) throws -> Phases {
    let a = isV6 ? IPAddress("fd7a::1")! : IPAddress("100.64.0.1")!
    let b = isV6 ? IPAddress("fd7a::2")! : IPAddress("100.64.0.2")!
    var left = Stack(addresses: [a], mtu: mtu, seed: 1)
    var right = Stack(addresses: [b], mtu: mtu, seed: 2)
    right.listenAny()
    var now = Instant(nanoseconds: 1_000_000_000)
    var out: [ConnectionID] = []
    for port in 0..<streams {
        out.append(try left.connect(to: SocketAddress(b, port: UInt16(port + 1)), now: now))
    }
    var wire = Wire()
    for _ in 0..<4 {
        wire.take(from: &left, now: now, limit: 4_000)
        wire.give(to: &right, now: now)
        wire.take(from: &right, now: now, limit: 4_000)
        wire.give(to: &left, now: now)
    }
    var into: [ConnectionID] = []
    while let event = right.nextEvent() { if case .accepted(let id, _, _) = event { into.append(id) } }
    precondition(into.count == streams)
    var phases = Phases()
    while phases.bytes < bytes {
        now = now + .microseconds(200)
        var mark = nanoseconds()
        func lap(_ phase: WritableKeyPath<Phases, UInt64>) {
            let next = nanoseconds()
            phases[keyPath: phase] += next - mark
            mark = next
        }
        while left.nextEvent() != nil {}
        for id in out { while left.write(id, { $0.count }) > 0 {} }
        lap(\.write)
        wire.take(from: &left, now: now, limit: burst)
        lap(\.send)
        phases.segments += wire.count
        wire.give(to: &right, now: now)
        lap(\.receive)
        while right.nextEvent() != nil {}
        for id in into {
            while true {
                let count = right.read(id, now: now) { $0.count }
                guard count > 0 else { break }
                phases.bytes += count
            }
        }
        lap(\.read)
        wire.take(from: &right, now: now, limit: burst)
        phases.acks += wire.count
        wire.give(to: &left, now: now)
        lap(\.acknowledge)
    }
    return phases
}

func residentBytes() -> Int {
    guard let file = fopen("/proc/self/statm", "r") else { return 0 }
    defer { fclose(file) }
    var line = [CChar](repeating: 0, count: 128)
    guard fgets(&line, 128, file) != nil else { return 0 }
    let text = String(decoding: line.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    return (text.split(separator: " ").dropFirst().first.flatMap { Int($0) } ?? 0) * 4_096
}

/// Resident bytes of one end of a connection that carried a request and an answer and is silent since.
func idle(_ count: Int) throws -> Int {
    let a = IPAddress("fd7a::1")!
    let b = IPAddress("fd7a::2")!
    let before = residentBytes()
    var left = Stack(addresses: [a], seed: 1)
    var right = Stack(addresses: [b], seed: 2)
    right.listenAny()
    var now = Instant(nanoseconds: 1_000_000_000)
    var wire = Wire()
    func exchange(_ left: inout Stack, _ right: inout Stack) {
        for _ in 0..<6 {
            now = now + .microseconds(50)
            wire.take(from: &left, now: now, limit: 4_000)
            wire.give(to: &right, now: now)
            wire.take(from: &right, now: now, limit: 4_000)
            wire.give(to: &left, now: now)
        }
    }
    func answer(_ stack: inout Stack, _ answers: Bool) {
        while let event = stack.nextEvent() {
            if case .readable(let id) = event {
                let count = stack.read(id, now: now) { $0.count }
                if answers { _ = stack.write(id, limit: count) { $0.count } }
            }
        }
    }
    for index in 0..<count {
        let id = try left.connect(to: SocketAddress(b, port: UInt16(1 + index % 60_000)), now: now)
        _ = left.write(id, limit: 64) { $0.count }
        guard index % 100 == 99 else { continue }
        exchange(&left, &right)
        answer(&right, true)
        exchange(&left, &right)
        answer(&left, false)
    }
    exchange(&left, &right)
    answer(&right, true)
    exchange(&left, &right)
    answer(&left, false)
    for _ in 0..<40 {
        now = now + .milliseconds(100)
        left.handleTimeout(now)
        right.handleTimeout(now)
        exchange(&left, &right)
        answer(&right, true)
        answer(&left, false)
    }
    let grown = residentBytes() - before
    precondition(left.connectionCount == count && right.connectionCount == count)
    precondition(
        left.bufferBytes == 0 && right.bufferBytes == 0, "buffers of silent connections are given back")
    return grown / (2 * count)
}

let total = (CommandLine.arguments.dropFirst().first.flatMap { Int($0) } ?? 1_024) << 20
var rows: [String] = []
func pad(_ text: String, _ width: Int) -> String {
    String(repeating: " ", count: max(0, width - text.count)) + text
}
func fixed(_ value: Double) -> String { "\((value * 10).rounded() / 10)" }

print("one direction, in memory, ns per segment (both stacks together: the sum)")
print("streams   mtu  ip   write   send  receive   read    acks     sum   Gbit/s  segments/ack")
let only = CommandLine.arguments.dropFirst(3).first.flatMap { Int($0) }
for (streams, mtu, isV6) in [
    (1, 1_280, true), (1, 1_280, false), (1, 1_400, false), (1, 9_000, true), (64, 1_280, true),
]
where only.map { $0 == streams * 10_000 + mtu } ?? true {
    let phases = try run(streams: streams, mtu: mtu, isV6: isV6, bytes: total, burst: 512)
    let parts = [phases.write, phases.send, phases.receive, phases.read, phases.acknowledge]
    let sum = parts.reduce(0, +)
    let each = parts.map { fixed(Double($0) / Double(phases.segments)) }
    let rate = Double(phases.bytes) * 8 / Double(sum)
    print(
        pad("\(streams)", 7), pad("\(mtu)", 5), isV6 ? " v6" : " v4",
        each.map { pad($0, 7) }.joined(separator: " "), pad(fixed(Double(sum) / Double(phases.segments)), 7),
        pad(fixed(rate), 8), pad(fixed(Double(phases.segments) / Double(max(phases.acks, 1))), 8))
    rows.append(
        "{\"streams\": \(streams), \"mtu\": \(mtu), \"v6\": \(isV6), \"ns_per_segment\": "
            + "\(fixed(Double(sum) / Double(phases.segments))), \"send_ns\": \(each[1]), \"receive_ns\": \(each[2]), "
            + "\"gbit_per_s\": \(fixed(rate))}")
}
let idleBytes = try idle(10_000)
print("10,000 idle connections that spoke once: \(idleBytes) bytes resident per end")
rows.append("{\"idle_bytes_per_connection\": \(idleBytes)}")
if let path = CommandLine.arguments.dropFirst(2).first, let file = fopen(path, "w") {
    fputs("[\(rows.joined(separator: ",\n "))]\n", file)
    fclose(file)
}

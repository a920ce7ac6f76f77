// SPDX-License-Identifier: Apache-2.0

import DERPRelay
import FoundationEssentials
import Glibc
import LinuxIO
import Mesh
import Testing

/// Load on a relay in this process, over loopback TCP; run by hand:
/// `RELAY_BENCH=1 swift test -c release --filter RelayBenchmark`. CPU time is that of the relay's thread alone.
@Suite(.serialized, .enabled(if: ProcessInfo.processInfo.environment["RELAY_BENCH"] != nil))
struct RelayBenchmark {
    private final class Pair {
        let sender: Int32
        let receiver: Int32
        let frames: [UInt8]
        let frameBytes: Int
        var unsent = 0
        var inFlight = 0
        var received = 0
        var receivedBytes = 0

        init(_ a: TestClient, _ b: TestClient, payload: Int, window: Int) throws {
            sender = a.descriptor
            receiver = b.descriptor
            let frame = DERP.frame(.sendPacket, b.publicKey.bytes, [UInt8](repeating: 0xab, count: payload))
            frameBytes = frame.count
            frames = Array(repeatElement(frame, count: window).joined())
            try Descriptor.setNonBlocking(sender)
            try Descriptor.setNonBlocking(receiver)
        }
    }

    @Test(arguments: [(1, 24, 1400), (8, 24, 1400), (8, 24, 64), (20, 24, 1400), (100, 24, 1400)])
    func window(_ pairCount: Int, _ window: Int, _ payload: Int) throws {
        let harness = try RelayHarness(usesTCP: true)
        var keep: [TestClient] = []
        let pairs = try (0..<pairCount).map { _ in
            let (a, b) = (try harness.client(), try harness.client())
            keep += [a, b]
            return try Pair(a, b, payload: payload, window: window)
        }
        var polls = pairs.map { pollfd(fd: $0.receiver, events: Int16(POLLIN), revents: 0) }
        var buffer = [UInt8](repeating: 0, count: 256 << 10)
        let begin = Clock.monotonicNanoseconds()
        let cpuBegin = Self.relayCPU()
        let end = begin + 3_000_000_000
        while Clock.monotonicNanoseconds() < end {
            for pair in pairs where pair.inFlight < window {
                let bytes = pair.unsent > 0 ? pair.unsent : (window - pair.inFlight) * pair.frameBytes
                if pair.unsent == 0 { pair.inFlight = window }
                let count = pair.frames.withUnsafeBytes {
                    write(pair.sender, $0.baseAddress! + ($0.count - bytes), bytes)
                }
                pair.unsent = bytes - max(0, count)
            }
            _ = poll(&polls, nfds_t(polls.count), 10)
            for (index, pair) in pairs.enumerated() where polls[index].revents != 0 {
                let count = read(pair.receiver, &buffer, buffer.count)
                guard count > 0 else { continue }
                pair.receivedBytes += count
                let packets = pair.receivedBytes / pair.frameBytes
                pair.inFlight -= packets - pair.received
                pair.received = packets
            }
        }
        let seconds = Double(Clock.monotonicNanoseconds() - begin) / 1e9
        let cpu = Self.relayCPU() - cpuBegin
        let packets = pairs.reduce(0) { $0 + $1.received }
        let gigabytes = Double(packets * payload) / 1e9
        let c = harness.relay.counters
        let line =
            "pairs \(pairCount) payload \(payload): \(Int(gigabytes * 1000 / seconds)) MB/s, "
            + "\(Int(Double(packets) / seconds)) packets/s, relay \(cpu / gigabytes) s/GB, "
            + "\(cpu / Double(packets) * 1e6) us/packet, dropped \(c.packetsDropped)\n"
        Self.report(line)
        #expect(packets > 0 && c.packetsDropped == 0)
    }

    @Test func roundTrip() throws {
        let harness = try RelayHarness(usesTCP: true)
        let (a, b) = (try harness.client(), try harness.client())
        var times: [UInt64] = []
        for _ in 0..<2_000 {
            let begin = Clock.monotonicNanoseconds()
            try a.send([1], to: b)
            _ = try b.waitForPacket()
            try b.send([2], to: a)
            _ = try a.waitForPacket()
            times.append(Clock.monotonicNanoseconds() - begin)
        }
        times.sort()
        Self.report("round trip p50 \(times[1000] / 1000) us, p99 \(times[1980] / 1000) us\n")
    }

    @Test func idleConnections() throws {
        let harness = try RelayHarness()
        let before = Self.residentBytes()
        let begin = Clock.monotonicNanoseconds()
        var descriptors: [Int32] = []
        var generator = SystemRandomNumberGenerator()
        let hello = DERPServerSession.serverKeyFrame(harness.relay.publicKey)
        for _ in 0..<1_000 {
            let now = Instant(nanoseconds: Clock.monotonicNanoseconds())
            var machine = DERPClient(
                privateKey: PrivateKey(using: &generator), random: SecureGenerator(seededBy: &generator),
                now: now)
            machine.receive(hello.span.bytes)
            _ = try machine.nextEvent(now: now)
            descriptors.append(
                try harness.connect(leftover: machine.withOutput { $0.wireBytes(0..<$0.byteCount) }))
        }
        #expect(harness.eventually { $0.clients == 1_000 })
        let seconds = Double(Clock.monotonicNanoseconds() - begin) / 1e9
        usleep(2_500_000)
        let bytes = (Self.residentBytes() - before) / 1_000
        Self.report("idle: \(bytes) bytes per connection, \(Int(1_000 / seconds)) logins/s (both ends)\n")
        for descriptor in descriptors { Glibc.close(descriptor) }
    }

    private static func report(_ line: String) {
        let bytes = Array(line.utf8)
        _ = bytes.withUnsafeBytes { write(2, $0.baseAddress, $0.count) }
    }

    private static func text(_ path: String) -> String {
        (try? Data(contentsOf: URL(filePath: path))).map { String(decoding: $0, as: UTF8.self) } ?? ""
    }

    private static func residentBytes() -> Int {
        (Int(text("/proc/self/statm").split(separator: " ").dropFirst().first ?? "0") ?? 0) * 4096
    }

    /// CPU seconds of all relay threads of this process, from the scheduler's nanosecond counters.
    private static func relayCPU() -> Double {
        var total = 0.0
        guard let folder = opendir("/proc/self/task") else { return 0 }
        defer { closedir(folder) }
        while let entry = readdir(folder) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            guard text("/proc/self/task/\(name)/comm").hasPrefix("derp-relay") else { continue }
            let used = text("/proc/self/task/\(name)/schedstat").split(separator: " ").first ?? "0"
            total += (Double(used) ?? 0) / 1e9
        }
        return total
    }
}

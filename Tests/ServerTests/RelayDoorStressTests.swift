// SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc
import HTTPTransport
import LinuxIO
import Mesh
import Server
import Synchronization
import TestSupport
import Testing

/// Packets through every pair of doors of a relay at once: small socket buffers, random pieces, and a machine whose
/// processors and whose shared threads have other things to do.
extension StandaloneRelayTests {
    @Test func packetsArriveWhateverElseRuns() async throws {
        let folder = try TestServer.temporaryDirectory()
        let relay = try await secureRelay(folder)
        let http = HTTPClient()
        var doors: [[StressEnd]] = []
        // Each kind of door with each, itself included: sixteen pairs.
        for kind in 0..<4 {
            var ends: [StressEnd] = []
            for _ in 0..<8 { ends.append(try await open(kind, relay, http)) }
            doors.append(ends)
        }
        var pairs: [(StressEnd, StressEnd)] = []
        for kind in 0..<4 {
            for other in 0..<4 { pairs.append((doors[kind][other], doors[other][kind + 4])) }
        }
        let state = StressState()
        let ends = pairs
        try await withThrowingTaskGroup(of: Void.self) { group in
            // The threads that tasks share: no packet may need one.
            for _ in 0..<(2 * ProcessInfo.processInfo.activeProcessorCount) {
                group.addTask { while !state.isOver.load(ordering: .relaxed) {} }
            }
            let threads = try ends.enumerated().map { index, pair in
                try DedicatedThread(name: "stress") {
                    var generator = SeededGenerator(seed: UInt64(index) + 1)
                    do {
                        for round in 0..<25 {
                            let (from, to) = round % 2 == 0 ? pair : (pair.1, pair.0)
                            try StressEnd.pass(from, to, &generator)
                        }
                    } catch {
                        state.failures.withLock { $0.append("pair \(index / 4)-\(index % 4): \(error)") }
                    }
                }
            }
            // This task's own thread may be busy, too: nothing here waits for a task.
            let watch = try DedicatedThread(name: "stress-watch") {
                for thread in threads { thread.join() }
                state.isOver.store(true, ordering: .relaxed)
            }
            try await group.waitForAll()
            watch.detach()
        }
        #expect(state.failures.withLock { $0 } == [])
        for end in doors.joined() { end.close() }
        let url = try #require(HTTPURL("http://127.0.0.1:\(relay.ports[0])/metrics"))
        let metrics = try await http.request("GET", url).text
        #expect(metrics.contains("\ncoder_derp_packets_received_total 400\n"))
        #expect(metrics.contains("\ncoder_derp_packets_sent_total 400\n"))
        #expect(metrics.contains("\ncoder_derp_packets_dropped_total 0\n"))
        await relay.stop()
        await http.shutDown()
        try FileManager.default.removeItem(atPath: folder)
    }

    /// 0: plain, 1: TLS, 2: WebSocket, 3: WebSocket over TLS.
    private func open(_ kind: Int, _ relay: HostedRelay, _ http: HTTPClient) async throws -> StressEnd {
        let scheme = kind % 2 == 0 ? "http" : "https"
        let url = try #require(HTTPURL("\(scheme)://127.0.0.1:\(relay.ports[kind % 2])/derp"))
        var options = ConnectOptions()
        options.acceptsAnyCertificate = true
        let number =
            kind < 2
            ? try await http.upgrade(url, protocol: "DERP", options: options).release()
            : try await http.derpWebSocket(url, options: options).release()
        return try await DedicatedThread.run { try StressEnd(loggingInOn: number) }
    }
}

private final class StressState: Sendable {
    let isOver = Atomic<Bool>(false)
    let failures = Mutex<[String]>([])
}

/// One client, logged in, and then bare frames.
private final class StressEnd: Sendable {
    let descriptor: Int32
    let key: NodePublicKey

    struct Failed: Error, CustomStringConvertible {
        var description: String
    }

    init(loggingInOn descriptor: Int32) throws {
        self.descriptor = descriptor
        try Descriptor.setNonBlocking(descriptor, false)
        var size: Int32 = 8_192
        for option in [SO_SNDBUF, SO_RCVBUF] {
            setsockopt(descriptor, SOL_SOCKET, option, &size, socklen_t(MemoryLayout<Int32>.size))
        }
        var generator = SystemRandomNumberGenerator()
        let privateKey = PrivateKey(using: &generator)
        key = privateKey.nodePublicKey
        let now = { Instant(nanoseconds: Clock.monotonicNanoseconds()) }
        var machine = DERPClient(
            privateKey: privateKey, random: SecureGenerator(seededBy: &generator), now: now())
        var buffer = [UInt8](repeating: 0, count: 4_096)
        while true {
            let count = read(descriptor, &buffer, buffer.count)
            guard count > 0 else { throw Failed(description: "closed at login") }
            buffer.withUnsafeBytes { machine.receive(UnsafeRawBufferPointer(rebasing: $0[..<count]).bytes) }
            while let event = try machine.nextEvent(now: now()) {
                guard case .ready = event else { continue }
                try Descriptor.setNonBlocking(descriptor)
                return
            }
            let output = machine.withOutput { bytes in bytes.withUnsafeBytes { Array($0) } }
            machine.consumeOutput(output.count)
            try output.withUnsafeBytes { try Descriptor.writeAll(descriptor, $0) }
        }
    }

    func close() { OwnedDescriptor(taking: descriptor).close() }

    /// One packet of random size from one to the other, in pieces of random sizes on both sides.
    static func pass(_ from: StressEnd, _ to: StressEnd, _ generator: inout SeededGenerator) throws {
        let count = Int.random(in: 0...40_000, using: &generator)
        let payload = (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ count) }
        let sent = DERP.frame(.sendPacket, to.key.bytes, payload)
        let expected = DERP.frame(.receivePacket, from.key.bytes, payload)
        var written = 0
        var received: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 20_000)
        while received.count < expected.count {
            var waits = [
                pollfd(fd: to.descriptor, events: Int16(POLLIN), revents: 0),
                pollfd(fd: from.descriptor, events: Int16(POLLOUT), revents: 0),
            ]
            guard poll(&waits, written < sent.count ? 2 : 1, 15_000) > 0 else {
                throw Failed(
                    description: "\(received.count) of \(expected.count) bytes came, \(written) were written")
            }
            if waits[1].revents != 0, written < sent.count {
                let piece = min(sent.count - written, Int.random(in: 1...20_000, using: &generator))
                let step = sent.withUnsafeBytes { write(from.descriptor, $0.baseAddress! + written, piece) }
                guard step > 0 || errno == EAGAIN else { throw Failed(description: "closed while writing") }
                written += max(0, step)
            }
            if waits[0].revents != 0 {
                let piece = min(
                    expected.count - received.count, Int.random(in: 1...20_000, using: &generator))
                let step = read(to.descriptor, &buffer, piece)
                guard step > 0 || step < 0 && errno == EAGAIN else {
                    throw Failed(description: "closed while reading")
                }
                received += buffer[..<max(0, step)]
            }
        }
        guard received == expected else { throw Failed(description: "other bytes than were sent") }
    }
}

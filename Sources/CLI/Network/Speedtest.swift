// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Synchronization

/// Tailscale's speed test, version 2: one JSON line, one JSON answer, then blocks of random bytes until the time is up.
/// agent.md §5.2.
enum Speedtest {
    enum Direction: Int, Sendable {
        case down = 0
        case up = 1
    }

    /// One second of the test, or all of it.
    struct Interval: Sendable {
        var start: Double
        var end: Double
        var bytes: Int

        var megabits: Double { end > start ? Double(bytes) * 8 / 1e6 / (end - start) : 0 }
    }

    struct Result: Sendable {
        var intervals: [Interval]
        var total: Interval
    }

    private static let blockBytes = 2 << 20

    /// Runs the test over a connected stream, in a thread of its own.
    static func run(
        over socket: consuming OwnedDescriptor, _ direction: Direction, for duration: Duration
    ) async throws -> Result {
        // Lets a cancelled task end the thread's reads and writes; the copy cannot become another descriptor.
        let control = try socket.duplicate()
        let (number, controlNumber) = (socket.release(), control.number)
        let result = try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { continuation in
                do {
                    try DedicatedThread(name: "speedtest") {
                        let socket = OwnedDescriptor(taking: number)
                        continuation.resume(with: Swift.Result { try test(socket, direction, duration) })
                    }.detach()
                } catch {
                    close(number)
                    continuation.resume(throwing: error)
                }
            }
        } onCancel: {
            shutdown(controlNumber, Int32(SHUT_RDWR))
        }
        control.close()
        try Task.checkCancellation()
        return result
    }

    private static func test(
        _ socket: borrowing OwnedDescriptor, _ direction: Direction, _ duration: Duration
    ) throws -> Result {
        try Descriptor.setNonBlocking(socket.number, false)
        let config = JSON.record([
            "version": .int(2), "time": .int(duration.wholeNanoseconds),
            "direction": .int(direction.rawValue),
        ])
        try Array("\(config.compact)\n".utf8).withUnsafeBytes { try Descriptor.writeAll(socket.number, $0) }
        let answer = try JSON.parse(try line(socket))
        if let error = answer["error"].string {
            throw CommandError("the workspace refused the test: \(error)")
        }
        return try direction == .down ? receive(socket, duration) : transmit(socket, duration)
    }

    /// The answer, read byte by byte because data follows it.
    private static func line(_ socket: borrowing OwnedDescriptor) throws -> [UInt8] {
        var bytes: [UInt8] = []
        var byte: UInt8 = 0
        while bytes.count < 4_096 {
            guard read(socket.number, &byte, 1) == 1 else {
                throw CommandError("the workspace ended the test")
            }
            if byte == 10 { return bytes }
            bytes.append(byte)
            // Go's encoder ends with a line break, but the answer is complete without it.
            if byte == UInt8(ascii: "}"), (try? JSON.parse(bytes)) != nil, !hasMore(socket) { return bytes }
        }
        throw CommandError("the workspace does not speak the speed test's protocol")
    }

    private static func hasMore(_ socket: borrowing OwnedDescriptor) -> Bool {
        var wait = pollfd(fd: socket.number, events: Int16(POLLIN), revents: 0)
        return poll(&wait, 1, 50) == 1
    }

    private static func receive(_ socket: borrowing OwnedDescriptor, _ duration: Duration) throws -> Result {
        var meter = Meter()
        let limit = duration.inSeconds * 4
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: blockBytes, alignment: 64)
        defer { buffer.deallocate() }
        while meter.elapsed < limit {
            var wait = pollfd(fd: socket.number, events: Int16(POLLIN), revents: 0)
            guard poll(&wait, 1, Int32(clamping: Int(limit * 1_000))) == 1 else { break }
            let count = read(socket.number, buffer.baseAddress, buffer.count)
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { break }
            meter.add(count)
        }
        return meter.finish()
    }

    private static func transmit(_ socket: borrowing OwnedDescriptor, _ duration: Duration) throws -> Result {
        var meter = Meter()
        var generator = SystemRandomNumberGenerator()
        let block = (0..<blockBytes / 8).map { _ in generator.next() }
        while meter.elapsed < duration.inSeconds {
            let count = block.withUnsafeBytes { write(socket.number, $0.baseAddress, $0.count) }
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { throw CommandError("the connection broke during the test") }
            meter.add(count)
        }
        return meter.finish()
    }

    /// Counts bytes by seconds.
    private struct Meter {
        private let began = Clock.monotonicNanoseconds()
        private var intervals: [Interval] = []
        private var current = Interval(start: 0, end: 0, bytes: 0)
        private var total = 0

        var elapsed: Double { Double(Clock.monotonicNanoseconds() - began) / 1e9 }

        mutating func add(_ count: Int) {
            total += count
            current.bytes += count
            let now = elapsed
            guard now - current.start >= 1 else { return }
            current.end = now
            intervals.append(current)
            current = Interval(start: now, end: now, bytes: 0)
        }

        mutating func finish() -> Result {
            let now = elapsed
            if current.bytes > 0, now - current.start > 0.05 || intervals.isEmpty {
                current.end = now
                intervals.append(current)
            }
            return Result(intervals: intervals, total: Interval(start: 0, end: now, bytes: total))
        }
    }
}

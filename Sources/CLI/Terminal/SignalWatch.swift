// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Synchronization

/// Where the handler writes. An atomic is all that a signal handler may touch safely.
private let signalPipe = Atomic<Int32>(-1)

/// Turns signals into bytes on a pipe, so that a poll loop or a task handles them like any input. While one watch
/// lives the signals do nothing else; the process has one at a time.
final class SignalWatch: Sendable {
    /// Becomes readable when a signal came: one byte each, its number.
    let number: Int32
    private let writer: Int32
    private let signals: [Int32]

    /// Watches these signals.
    init(_ signals: [Int32]) throws(SystemError) {
        let (reading, writing) = try Descriptor.pipe().release()
        number = reading
        writer = writing
        self.signals = signals
        try Descriptor.setNonBlocking(reading)
        try Descriptor.setNonBlocking(writing)
        signalPipe.store(writing, ordering: .sequentiallyConsistent)
        for signal in signals { Glibc.signal(signal, Self.handler) }
    }

    deinit {
        for signal in signals { Glibc.signal(signal, SIG_DFL) }
        signalPipe.store(-1, ordering: .sequentiallyConsistent)
        close(number)
        close(writer)
    }

    private static let handler: @convention(c) (Int32) -> Void = { signal in
        let saved = errno
        var byte = UInt8(truncatingIfNeeded: signal)
        _ = write(signalPipe.load(ordering: .sequentiallyConsistent), &byte, 1)
        errno = saved
    }

    /// The next signal that came; nil when there is none.
    func next() -> Int32? {
        var byte: UInt8 = 0
        return read(number, &byte, 1) == 1 ? Int32(byte) : nil
    }

    /// Waits for a signal.
    func wait() async -> Int32 {
        let number = number
        return await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                let thread = try? DedicatedThread(name: "signals") {
                    var byte: UInt8 = 0
                    var wait = pollfd(fd: number, events: Int16(POLLIN), revents: 0)
                    while read(number, &byte, 1) != 1 { _ = poll(&wait, 1, -1) }
                    continuation.resume(returning: Int32(byte))
                }
                guard let thread else { return continuation.resume(returning: 0) }
                thread.detach()
            }
        } onCancel: {
            // Signal 0 is nobody's: it ends the wait.
            var byte: UInt8 = 0
            _ = write(writer, &byte, 1)
        }
    }
}

/// Runs `body` until it ends or a signal asks the program to stop; then `body`'s task is cancelled and the signal's
/// number is returned. Signals are the usual three. Those of `noticing` only cause a call.
func untilStopped(
    noticing others: [Int32: @Sendable () -> Void] = [:], _ body: @escaping @Sendable () async throws -> Void
) async throws -> Int32? {
    let watch = try SignalWatch([SIGINT, SIGTERM, SIGHUP] + others.keys)
    return try await withThrowingTaskGroup(of: Int32?.self) { group in
        group.addTask {
            try await body()
            return nil
        }
        group.addTask {
            while true {
                let signal = await watch.wait()
                guard let notice = others[signal] else { return signal }
                notice()
            }
        }
        let first = try await group.next() ?? nil
        group.cancelAll()
        do {
            while try await group.next() != nil {}
        } catch is CancellationError {
            return first
        } catch let error where first == nil {
            throw error
        } catch {
            return first
        }
        return first
    }
}

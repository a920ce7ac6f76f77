// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Synchronization

/// Number of the eventfd that the handler writes to.
// A signal handler can reach globals only; written before the handler is installed, and atomically.
private let signalDescriptor = Atomic<Int32>(-1)

/// SIGTERM and SIGINT as something to wait for. Handlers, unlike ignored signals, are not inherited by children.
/// One per process.
struct StopSignals: Sendable {
    private let wakeUp: WakeUp?

    /// Installs the handlers.
    init() {
        wakeUp = try? WakeUp()
        signalDescriptor.store(wakeUp?.number ?? -1, ordering: .sequentiallyConsistent)
        // A closed connection is an error of its writer, not the end of the program.
        signal(SIGPIPE, SIG_IGN)
        for number in [SIGTERM, SIGINT] {
            signal(number) { number in
                // The next one ends the program at once, whatever the goodbye still waits for.
                signal(number, SIG_DFL)
                var one: UInt64 = 1
                _ = write(signalDescriptor.load(ordering: .relaxed), &one, 8)
            }
        }
    }

    /// Returns at the first signal, or when cancelled.
    func wait() async {
        guard let wakeUp else { return }
        await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                do {
                    try DedicatedThread(name: "signals") {
                        var wait = pollfd(fd: wakeUp.number, events: Int16(POLLIN), revents: 0)
                        while poll(&wait, 1, -1) < 0, errno == EINTR {}
                        continuation.resume()
                    }.detach()
                } catch {
                    continuation.resume()
                }
            }
        } onCancel: {
            wakeUp.signal()
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Synchronization

// A signal handler can reach globals only; both are written atomically.
/// Signals that came and were not passed on yet: a bit each.
private let pendingSignals = Atomic<UInt64>(0)
/// Number of the eventfd that wakes the loop.
private let initDescriptor = Atomic<Int32>(-1)

/// Process 1 of a container, which inherits every orphan: starts the agent as its child, reaps whatever ends, and
/// passes stop signals on. agent.md §4.2.
public enum InitProcess {
    /// What is passed on to the agent.
    private static let forwarded = [SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2]

    /// Whether this process is number 1.
    public static var isSelf: Bool { getpid() == 1 }

    /// Runs a program, as its child, to its end; returns its exit status.
    public static func run(path: String, arguments: [String], environment: [String: String]) async -> Int32 {
        await withCheckedContinuation { continuation in
            do {
                try DedicatedThread(name: "init") {
                    continuation.resume(returning: serve(path, arguments, environment))
                }.detach()
            } catch {
                continuation.resume(returning: 1)
            }
        }
    }

    private static func serve(_ path: String, _ arguments: [String], _ environment: [String: String]) -> Int32
    {
        do {
            let wakeUp = try WakeUp()
            initDescriptor.store(wakeUp.number, ordering: .sequentiallyConsistent)
            for number in forwarded + [SIGCHLD] {
                signal(number) { number in
                    pendingSignals.bitwiseOr(1 << UInt64(number), ordering: .sequentiallyConsistent)
                    var one: UInt64 = 1
                    _ = write(initDescriptor.load(ordering: .relaxed), &one, 8)
                }
            }
            let child = try ChildProcess(
                path: Array(path.utf8), arguments: arguments.map { Array($0.utf8) },
                environment: environment.sorted { $0.key < $1.key }.map {
                    Array("\($0.key)=\($0.value)".utf8)
                },
                directory: nil, streams: .descriptors(0, 1, 2))
            while true {
                let came = pendingSignals.exchange(0, ordering: .sequentiallyConsistent)
                for number in forwarded where came & (1 << UInt64(number)) != 0 { child.signal(number) }
                if let status = reapAll(until: child.id) { return status }
                var wait = pollfd(fd: wakeUp.number, events: Int16(POLLIN), revents: 0)
                _ = poll(&wait, 1, -1)
                wakeUp.drain()
            }
        } catch {
            let line = "coder agent cannot be started: \(error)\n"
            _ = line.withCString { write(2, $0, strlen($0)) }
            return 1
        }
    }

    /// Exit status of the agent once it has ended.
    private static func reapAll(until agent: Int32) -> Int32? {
        while true {
            var status: Int32 = 0
            let process = waitpid(-1, &status, WNOHANG)
            guard process > 0 else { return nil }
            // wait(2): the low seven bits name the signal that ended it.
            if process == agent { return status & 0x7f == 0 ? status >> 8 & 0xff : 128 + status & 0x7f }
        }
    }
}

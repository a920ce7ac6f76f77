// SPDX-License-Identifier: Apache-2.0

internal import DERPRelay
internal import LinuxIO

/// What runs until it is told to stop.
protocol RunningProgram: Sendable {
    /// Returns when it cannot go on, or the task is cancelled.
    func failed() async
    /// Ends it in order.
    func stop() async
    /// Whether it ended for another reason than being asked to.
    var hasFailed: Bool { get }
}

/// The way of a program from its start to SIGINT or SIGTERM and its end.
enum LifeCycle {
    private enum Event<Program: RunningProgram> {
        case signal, failed
        case started(Program)
        case notStarted(any Error)
    }

    /// Runs it. Returns the exit status: 0 after an orderly stop, be it in the middle of the start; 1 after a failure.
    static func run<Program: RunningProgram>(
        start: @escaping @Sendable () async throws -> Program,
        started: @escaping @Sendable (Program) -> Void, stopping: String,
        say: @escaping @Sendable (String) -> Void, complain: @escaping @Sendable (String) -> Void
    ) async -> Int32 {
        let signals = StopSignals()
        var running: Program?
        var status: Int32 = 0
        await withTaskGroup(of: Event<Program>.self) { group in
            group.addTask {
                await signals.wait()
                return .signal
            }
            group.addTask {
                do { return .started(try await start()) } catch { return .notStarted(error) }
            }
            var isStopping = false
            events: while let event = await group.next() {
                switch event {
                case .started(let program):
                    running = program
                    guard !isStopping else { break events }
                    started(program)
                    group.addTask {
                        await program.failed()
                        return .failed
                    }
                case .notStarted(let error):
                    if !isStopping {
                        complain("error: \(error)")
                        status = 1
                    }
                    break events
                case .signal:
                    say(stopping)
                    signals.endAtOnceNextTime()
                    isStopping = true
                    guard running == nil else { break events }
                    // What the start made so far it takes down itself.
                    group.cancelAll()
                case .failed: break events
                }
            }
            group.cancelAll()
        }
        guard let running else { return status }
        signals.endAtOnceNextTime()
        await running.stop()
        say("Stopped.")
        return running.hasFailed ? 1 : 0
    }

    /// How many relay connections this process has descriptors for, up to what a relay takes by itself.
    static var relayConnections: Int {
        min(Relay.Limits().connections, max(64, DescriptorLimit.current - 256))
    }
}

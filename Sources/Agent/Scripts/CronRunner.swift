// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import RPC
internal import Synchronization

/// Runs the manifest's cron scripts when they are due, by local time. A script that still runs is not started again.
struct CronRunner: Sendable {
    /// A minute: seconds that passed in sleep beyond it are not made up for.
    private static let lookBack: Int64 = 60

    private struct Job: Sendable {
        let script: AgentWorkspaceAgentScript
        let schedule: CronSchedule
    }

    private final class Running: Sendable {
        private let indices = Mutex<Set<Int>>([])
        func begin(_ index: Int) -> Bool { indices.withLock { $0.insert(index).inserted } }
        func end(_ index: Int) { indices.withLock { _ = $0.remove(index) } }
    }

    private let jobs: [Job]

    /// `report` is told of schedules that cannot be read.
    init(_ scripts: [AgentWorkspaceAgentScript], report: (AgentWorkspaceAgentScript) -> Void) {
        jobs = scripts.filter { !$0.cron.isEmpty }.compactMap { script in
            guard let schedule = CronSchedule(script.cron) else {
                report(script)
                return nil
            }
            return Job(script: script, schedule: schedule)
        }
    }

    /// Looks at each second until cancelled. `execute` runs one script.
    func run(_ execute: @escaping @Sendable (AgentWorkspaceAgentScript) async -> Void) async {
        guard !jobs.isEmpty else { return }
        let running = Running()
        await withDiscardingTaskGroup { group in
            var last = Clock.wallTime().seconds
            while true {
                let (_, nanoseconds) = Clock.wallTime()
                do { try await Task.sleep(for: .nanoseconds(1_000_000_000 - Int64(nanoseconds))) } catch {
                    break
                }
                let now = Clock.wallTime().seconds
                // A clock that was set back repeats nothing and waits for nothing.
                guard now > last else {
                    last = min(last, now)
                    continue
                }
                let moments = (max(last + 1, now - Self.lookBack)...now).map(Self.moment)
                last = now
                for (index, job) in jobs.enumerated() where moments.contains(where: job.schedule.matches) {
                    guard running.begin(index) else { continue }
                    group.addTask {
                        await execute(job.script)
                        running.end(index)
                    }
                }
            }
            group.cancelAll()
        }
    }

    private static func moment(_ seconds: Int64) -> CronSchedule.Moment {
        var time = time_t(seconds)
        var parts = tm()
        localtime_r(&time, &parts)
        return CronSchedule.Moment(
            second: min(59, Int(parts.tm_sec)), minute: Int(parts.tm_min), hour: Int(parts.tm_hour),
            day: Int(parts.tm_mday), month: Int(parts.tm_mon) + 1, weekday: Int(parts.tm_wday))
    }
}

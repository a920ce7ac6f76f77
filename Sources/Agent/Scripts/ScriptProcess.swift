// SPDX-License-Identifier: Apache-2.0

internal import Glibc
package import LinuxIO
package import RPC

/// How one script is run: everything is decided before its thread starts.
package struct ScriptPlan: Sendable {
    var path: String
    var arguments: [String]
    var environment: [[UInt8]]
    var directory: String
    var logPath: String
    /// nil: as long as it takes.
    var timeoutNanoseconds: UInt64?

    package init(
        path: String, arguments: [String], environment: [[UInt8]], directory: String, logPath: String,
        timeoutNanoseconds: UInt64? = nil
    ) {
        self.path = path
        self.arguments = arguments
        self.environment = environment
        self.directory = directory
        self.logPath = logPath
        self.timeoutNanoseconds = timeoutNanoseconds
    }
}

/// What became of a script.
package struct ScriptResult: Hashable, Sendable {
    package var status: AgentTiming.Status
    /// 255 when there is none.
    package var exitCode: Int32
}

/// A script's process with its output. Lives on a thread of its own, which waits in `poll`. agent.md §4.5.
package final class ScriptProcess {
    /// 10 s from the hang-up to the kill, and for pipes that stay open after the exit.
    static let graceNanoseconds: UInt64 = 10_000_000_000
    /// 64 KiB: a longer line is cut into several.
    static let lineLimit = 65_536

    private let plan: ScriptPlan
    private let cancelled: WakeUp
    private let line: (String, AgentLog.Level) -> Void
    private var logFile: Int32 = -1
    private var partial: [[UInt8]] = [[], []]
    private var killAt: UInt64?
    private var isTimedOut = false
    private var isLeftOpen = false

    /// `line` gets each line of output. `cancelled` ends the script like a time-out.
    package init(_ plan: ScriptPlan, cancelled: WakeUp, line: @escaping (String, AgentLog.Level) -> Void) {
        self.plan = plan
        self.cancelled = cancelled
        self.line = line
    }

    /// Runs the script to its end. Blocks.
    package func run() -> ScriptResult {
        logFile = PrivateFiles.openLog(plan.logPath)
        defer { if logFile >= 0 { close(logFile) } }
        do throws(SystemError) {
            let (outRead, outWrite) = try Descriptor.pipe().release()
            let output = OwnedDescriptor(taking: outRead), outputEnd = OwnedDescriptor(taking: outWrite)
            let (errRead, errWrite) = try Descriptor.pipe().release()
            let errors = OwnedDescriptor(taking: errRead), errorsEnd = OwnedDescriptor(taking: errWrite)
            let null = open("/dev/null", O_RDONLY | O_CLOEXEC)
            guard null >= 0 else { throw SystemError(call: "open(/dev/null)") }
            let input = OwnedDescriptor(taking: null)
            let child = try ChildProcess(
                path: Array(plan.path.utf8), arguments: plan.arguments.map { Array($0.utf8) },
                environment: plan.environment, directory: Array(plan.directory.utf8),
                streams: .descriptors(input.number, outputEnd.number, errorsEnd.number))
            // Our copies of the writing ends must go, or the end of the output never comes.
            outputEnd.close()
            errorsEnd.close()
            let exit = wait(for: child, output.number, errors.number)
            return result(exit)
        } catch {
            line("cannot run the script: \(error)", .error)
            return ScriptResult(status: .exitFailure, exitCode: 255)
        }
    }

    private func result(_ exit: ChildProcess.Exit) -> ScriptResult {
        var code: Int32 = 255
        if case .code(let number) = exit { code = number }
        if isTimedOut { return ScriptResult(status: .timedOut, exitCode: code) }
        if isLeftOpen { return ScriptResult(status: .pipesLeftOpen, exitCode: code) }
        return ScriptResult(status: code == 0 ? .ok : .exitFailure, exitCode: code)
    }

    private func wait(
        for child: borrowing ChildProcess, _ output: Int32, _ errors: Int32
    ) -> ChildProcess.Exit {
        let deadline = plan.timeoutNanoseconds.map { Clock.monotonicNanoseconds() &+ $0 }
        var pipes = [output, errors]
        var exit: ChildProcess.Exit?
        var isCancelled = false
        while exit == nil || pipes.contains(where: { $0 >= 0 }) {
            var list = pipes.map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
            list.append(pollfd(fd: exit == nil ? child.ended.number : -1, events: Int16(POLLIN), revents: 0))
            list.append(pollfd(fd: isCancelled ? -1 : cancelled.number, events: Int16(POLLIN), revents: 0))
            _ = poll(&list, 4, pollTimeout(deadline, hasExited: exit != nil))
            for index in 0..<2 where list[index].revents != 0 {
                if !read(index, pipes[index]) { pipes[index] = -1 }
            }
            if exit == nil, list[2].revents != 0 || list[0].revents != 0, let ended = child.reap() {
                exit = ended
                killAt = Clock.monotonicNanoseconds() + Self.graceNanoseconds
            }
            let now = Clock.monotonicNanoseconds()
            let isDue = deadline.map { now >= $0 } ?? false
            if exit == nil, killAt == nil, isDue || list[3].revents != 0 {
                isTimedOut = true
                isCancelled = true
                child.signal(SIGHUP)
                killAt = now + Self.graceNanoseconds
            }
            guard let at = killAt, now >= at else { continue }
            if exit != nil {
                // The children of the script keep its pipes. Its group is gone from our sight after the reaping,
                // so nothing is killed by number any more.
                isLeftOpen = true
                line("WARNING: script exited successfully, but output pipes were not closed after 10s", .warn)
                break
            }
            child.signal(SIGKILL)
            killAt = now + Self.graceNanoseconds
        }
        flush()
        return exit ?? .code(255)
    }

    private func pollTimeout(_ deadline: UInt64?, hasExited: Bool) -> Int32 {
        Clock.pollTimeout(until: [hasExited ? nil : deadline, killAt].compactMap { $0 }.min())
    }

    /// Whether there may be more.
    private func read(_ index: Int, _ number: Int32) -> Bool {
        var bytes = [UInt8](repeating: 0, count: 16_384)
        let count = Glibc.read(number, &bytes, bytes.count)
        guard count > 0 else { return count < 0 && errno == EINTR }
        if logFile >= 0 { _ = Glibc.write(logFile, &bytes, count) }
        for byte in bytes[..<count] {
            if byte == 10 || partial[index].count >= Self.lineLimit { emit(index) }
            if byte != 10 { partial[index].append(byte) }
        }
        return true
    }

    private func emit(_ index: Int) {
        if partial[index].last == 13 { partial[index].removeLast() }
        line(String(decoding: partial[index], as: UTF8.self), index == 0 ? .info : .error)
        partial[index].removeAll(keepingCapacity: true)
    }

    private func flush() {
        for index in 0..<2 where !partial[index].isEmpty { emit(index) }
    }
}

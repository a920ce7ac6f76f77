// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Logging
internal import RPC
internal import SSH
internal import SwiftProtobuf
internal import Synchronization

/// Runs the manifest's start and stop scripts, all of a set at once, and reports their output and timing.
/// agent.md §4.5.
struct ScriptRunner: Sendable {
    /// How a whole set ended, the worst of all.
    enum Outcome: Int, Comparable, Sendable {
        case ok
        case failed
        case timedOut
        static func < (a: Outcome, b: Outcome) -> Bool { a.rawValue < b.rawValue }
    }

    let logs: LogSender
    let timings: Outbox<AgentTiming>
    let logger: Logger
    let logDirectory: String
    let dataDirectory: String

    /// `coder-script-data` in the directory that the agent was given, which only its user can write to.
    static func makeDataDirectory(in parent: String) -> String? {
        mkdir(parent, 0o700)
        guard let directory = PrivateFiles.directory("\(parent)/coder-script-data") else { return nil }
        mkdir(binDirectory(in: directory), 0o700)
        return directory
    }

    /// `…/coder-script-data/bin`: first in every PATH, so that scripts can offer programs to sessions.
    static func binDirectory(in dataDirectory: String) -> String { "\(dataDirectory)/bin" }

    /// Runs all of them to their end; cancelling hangs them up.
    func run(
        _ scripts: [AgentWorkspaceAgentScript], _ stage: AgentTiming.Stage, _ environment: SSHEnvironment
    ) async -> Outcome {
        await withTaskGroup(of: Outcome.self) { group in
            for script in scripts {
                group.addTask { await run(script, stage, environment) }
            }
            var worst = Outcome.ok
            for await outcome in group { worst = max(worst, outcome) }
            return worst
        }
    }

    private func run(
        _ script: AgentWorkspaceAgentScript, _ stage: AgentTiming.Stage, _ environment: SSHEnvironment
    ) async -> Outcome {
        let source = RawUUID(script.logSourceID) ?? .zero
        let plan = plan(script, source, environment)
        logger.info("running script", metadata: ["script": "\(script.displayName)", "stage": "\(stage)"])
        var timing = AgentTiming()
        timing.scriptID = script.id
        timing.stage = stage
        timing.start = .now()
        let result = await execute(plan) { [logs] text, level in
            logs.add(text, level: level, source: source)
        }
        timing.end = .now()
        timing.exitCode = result.exitCode
        timing.status = result.status
        if !script.id.isEmpty { timings.put(timing) }
        logger.info(
            "script ended",
            metadata: [
                "script": "\(script.displayName)", "status": "\(result.status)", "code": "\(result.exitCode)",
            ])
        switch result.status {
        case .ok, .pipesLeftOpen: return result.exitCode == 0 ? .ok : .failed
        case .timedOut: return .timedOut
        case .exitFailure, .UNRECOGNIZED: return .failed
        }
    }

    private func execute(
        _ plan: ScriptPlan, _ line: @escaping @Sendable (String, AgentLog.Level) -> Void
    ) async -> ScriptResult {
        let failure = ScriptResult(status: .exitFailure, exitCode: 255)
        guard let cancelled = try? WakeUp() else { return failure }
        return await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                do {
                    try DedicatedThread(name: "script") {
                        continuation.resume(
                            returning: ScriptProcess(plan, cancelled: cancelled, line: line).run())
                    }.detach()
                } catch {
                    continuation.resume(returning: failure)
                }
            }
        } onCancel: {
            cancelled.signal()
        }
    }

    /// 10 KiB of a metadata script's output are kept.
    private static let outputLimit = 10 << 10

    private final class Output: Sendable {
        let text = Mutex("")
    }

    /// Runs a metadata script: what it prints on both streams, and what went wrong.
    func output(
        of script: String, timeoutSeconds: Int64, _ environment: SSHEnvironment
    ) async -> MetadataReporter.Outcome {
        let variables = environment.variables()
        let command = Self.command(script, shell: environment.account.shell)
        let plan = ScriptPlan(
            path: command[0], arguments: command,
            environment: variables.map { $0.name.bytes + [0x3d] + $0.value.bytes },
            directory: environment.workDirectory, logPath: "",
            timeoutNanoseconds: UInt64(clamping: timeoutSeconds) * 1_000_000_000)
        let output = Output()
        let result = await execute(plan) { text, _ in
            output.text.withLock { all in
                guard all.utf8.count <= Self.outputLimit else { return }
                all += all.isEmpty ? text : "\n" + text
            }
        }
        let text = output.text.withLock { $0 }
        var problems: [String] = []
        if text.utf8.count > Self.outputLimit { problems.append("output cut at \(Self.outputLimit) bytes") }
        switch result.status {
        case .timedOut: problems.append("no result within \(timeoutSeconds) s")
        case .ok, .pipesLeftOpen, .exitFailure, .UNRECOGNIZED:
            if result.exitCode != 0 { problems.append("exit status \(result.exitCode)") }
        }
        let kept =
            text.utf8.count > Self.outputLimit
            ? String(decoding: text.utf8.prefix(Self.outputLimit), as: UTF8.self) : text
        return (kept, problems.joined(separator: "; "))
    }

    /// The words that run a script: by its own interpreter, or the user's shell.
    private static func command(_ script: String, shell: String) -> [String] {
        var command = [shell, "-c", script]
        let trimmed = script.drop { $0 == " " || $0 == "\t" || $0.isNewline }
        if trimmed.hasPrefix("#!"), let first = trimmed.dropFirst(2).split(whereSeparator: \.isNewline).first
        {
            let words = first.split(separator: " ").map(String.init)
            if !words.isEmpty { command = words + ["-c", script] }
        }
        return command.map { String($0.filter { $0 != "\0" }) }
    }

    private func plan(
        _ script: AgentWorkspaceAgentScript, _ source: RawUUID, _ environment: SSHEnvironment
    ) -> ScriptPlan {
        let data = "\(dataDirectory)/\(source)"
        mkdir(data, 0o700)
        let variables = environment.variables(extra: [
            ("CODER_SCRIPT_DATA_DIR", ByteString(data)),
            ("CODER_SCRIPT_BIN_DIR", ByteString(Self.binDirectory(in: dataDirectory))),
        ])
        let command = Self.command(script.script, shell: environment.account.shell)
        let timeout = script.timeout.seconds
        var logPath = script.logPath.isEmpty ? "coder-script-\(source).log" : script.logPath
        let process = Dictionary(environment.processVariables.map { ($0.name, $0.value) }) { first, _ in first
        }
        logPath = SSHEnvironment.expand(logPath) { process[$0] ?? "" }
        if logPath.hasPrefix("~/") { logPath = environment.account.home + logPath.dropFirst() }
        if !logPath.hasPrefix("/") { logPath = "\(logDirectory)/\(logPath)" }
        return ScriptPlan(
            path: command[0], arguments: command,
            environment: variables.map { $0.name.bytes + [0x3d] + $0.value.bytes },
            directory: environment.workDirectory, logPath: logPath,
            timeoutNanoseconds: timeout > 0 ? UInt64(min(timeout, 1 << 30)) * 1_000_000_000 : nil)
    }

    /// Delivers timings over this connection until it fails; what the server does not take is dropped.
    func deliverTimings(on connection: RPCConnection) async throws {
        while true {
            var request = AgentWorkspaceAgentScriptCompletedRequest()
            request.timing = try await timings.first()
            do throws(RPCError) {
                _ = try await connection.unary(AgentMethods.scriptCompleted, request)
            } catch {
                guard case .failed = error else { throw error }
                logger.debug("script timing refused", metadata: ["error": "\(error)"])
            }
            timings.removeFirst()
        }
    }
}

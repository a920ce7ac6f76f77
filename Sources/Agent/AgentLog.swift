// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Logging
internal import Synchronization

/// `coder-agent.log`: 5 MB, then renamed to `.1`, up to `.10`. agent.md §4.2. Any thread may write.
package final class RotatingFile: Sendable {
    private struct State: ~Copyable {
        var descriptor: OwnedDescriptor?
        var size = 0
    }

    private let path: String
    private let limit: Int
    private let backups: Int
    private let state: Mutex<State>

    /// Opens or creates the file, readable by its owner only. A file that cannot be opened takes nothing.
    package init(path: String, limit: Int = 5_000_000, backups: Int = 10) {
        self.path = path
        self.limit = limit
        self.backups = backups
        state = Mutex(State())
        state.withLock { Self.open(path, &$0) }
    }

    package func write(_ line: String) {
        let bytes = Array(line.utf8)
        state.withLock { state in
            if state.size > 0, state.size + bytes.count > limit { rotate(&state) }
            guard let number = state.descriptor?.number else { return }
            // A full disk costs log lines, nothing else.
            _ = bytes.withUnsafeBytes { Glibc.write(number, $0.baseAddress, $0.count) }
            state.size += bytes.count
        }
    }

    private func rotate(_ state: inout State) {
        state.descriptor = nil
        unlink("\(path).\(backups)")
        for index in stride(from: backups - 1, through: 1, by: -1) {
            rename("\(path).\(index)", "\(path).\(index + 1)")
        }
        rename(path, "\(path).1")
        Self.open(path, &state)
    }

    private static func open(_ path: String, _ state: inout State) {
        state.size = 0
        let number = PrivateFiles.openLog(path)
        guard number >= 0 else { return }
        var status = stat()
        if fstat(number, &status) == 0 { state.size = Int(status.st_size) }
        state.descriptor = OwnedDescriptor(taking: number)
    }
}

/// One line per entry, for people: on standard error and in the agent's log file.
struct AgentLogHandler: LogHandler {
    var metadata = Logger.Metadata()
    var logLevel: Logger.Level
    let file: RotatingFile

    init(file: RotatingFile, level: Logger.Level) {
        self.file = file
        logLevel = level
    }

    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    func log(event: LogEvent) {
        var line = "\(Self.timestamp()) [\(event.level)] \(event.message)"
        let all = metadata.merging(event.metadata ?? [:]) { $1 }
        for key in all.keys.sorted() {
            line += "  \(key)=\(all[key].map { "\($0)" } ?? "")"
        }
        // A line is a line: what peers put into it cannot start another one.
        line = String(line.map { $0.isNewline ? " " : $0 }) + "\n"
        file.write(line)
        let bytes = Array(line.utf8)
        _ = bytes.withUnsafeBytes { Glibc.write(2, $0.baseAddress, $0.count) }
    }

    /// `2026-11-23 20:33:35.123`, UTC.
    static func timestamp() -> String {
        let (seconds, nanoseconds) = Clock.wallTime()
        var time = time_t(seconds)
        var parts = tm()
        gmtime_r(&time, &parts)
        func two(_ number: Int32) -> String { number < 10 ? "0\(number)" : "\(number)" }
        let milliseconds = String(1_000 + nanoseconds / 1_000_000).dropFirst()
        return "\(parts.tm_year + 1900)-\(two(parts.tm_mon + 1))-\(two(parts.tm_mday)) "
            + "\(two(parts.tm_hour)):\(two(parts.tm_min)):\(two(parts.tm_sec)).\(milliseconds)"
    }
}

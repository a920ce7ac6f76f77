// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import Logging
internal import Mesh

/// `--log-dir`: a file of its own for each connection, which editors show when something is wrong.
enum SSHLog {
    static func logger(_ invocation: Invocation, _ plan: SSHPlan) throws -> Logger? {
        let directory = invocation.values.string("log-dir")
        guard !directory.isEmpty else { return nil }
        try makeDirectories(directory, mode: 0o700)
        var generator = SystemRandomNumberGenerator()
        let letters = String(
            (0..<5).map { _ in "abcdefghijklmnopqrstuvwxyz".randomElement(using: &generator) ?? "a" })
        let parent = plan.isStdio ? "-\(parentProcess())" : ""
        let name = plan.logName ?? "coder-ssh-\(Timestamp.now.fileStamp)-\(letters)\(parent).log"
        let path = "\(directory)/\(name)"
        let flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | (plan.logName == nil ? O_EXCL : 0)
        let number = open(path, flags, 0o600)
        guard number >= 0 else {
            throw CommandError("cannot write \(path): \(String(cString: strerror(errno)))")
        }
        let level: Logger.Level = invocation.values.bool("verbose") ? .debug : .info
        return Logger(label: "coder") { _ in FileLog(number: number, logLevel: level) }
    }
}

extension SSHLog {
    /// Notes how packets reach the agent: each change for everybody, every probe for developers.
    static func follow(_ link: AgentLink, _ logger: Logger) -> Task<Void, Never> {
        Task {
            for await event in link.node.pathEvents() where event.peer == link.peer {
                switch event.event.kind {
                case .chosen, .lost, .relayChanged, .peerRestarted, .directBlocked:
                    logger.info("path", metadata: ["event": "\(event.event.kind)"])
                default: logger.debug("path", metadata: ["event": "\(event.event.kind)"])
                }
            }
        }
    }
}

/// Lines for people, appended to a file that stays open until the program ends.
private struct FileLog: LogHandler {
    let number: Int32
    var logLevel: Logger.Level
    var metadata: Logger.Metadata = [:]

    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    func log(event: LogEvent) {
        let fields = metadata.merging(event.metadata ?? [:]) { _, new in new }
        let details = fields.sorted { $0.key < $1.key }.map { " \($0.key)=\($0.value)" }.joined()
        let line = Array("\(Timestamp.now.text()) [\(event.level)] \(event.message)\(details)\n".utf8)
        _ = line.withUnsafeBytes { write(number, $0.baseAddress, $0.count) }
    }
}

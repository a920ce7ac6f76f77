// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc
internal import LinuxIO
internal import SSH

// Escapes that change how the session goes on: `~&`, `~v`, `~V`.
extension SSHSession {
    /// 500 ms: within it a shell notices that its job has stopped.
    private static let stopMilliseconds: Int32 = 500
    /// What a terminal takes as the end of the input (`VEOF`).
    private static let endOfInput: UInt8 = 4

    /// `~&`: the program is told that no more input comes, nothing new is forwarded, and the connections that are open
    /// go on until they end. A process with threads cannot leave a copy of itself behind, as OpenSSH does: it stops
    /// like `~^Z`, so that the shell asks for the next command, and a timer of the kernel continues it.
    mutating func goToBackground(_ channel: ChannelID) {
        tell("~& [backgrounded]\n")
        listeners = []
        // One that cannot be stopped now finds nobody behind it.
        for forward in forwards { _ = stop(forward) }
        forwards = []
        typed.append(Self.endOfInput)
        sendTyped()
        _ = connection.writeSocket(socket.number)
        hasInputEnded = true
        isInBackground = true
        raw?.restore()
        raw = nil
        guard clinux_continue_later(Self.stopMilliseconds) == 0 else { return }
        kill(getpid(), SIGTSTP)
    }

    mutating func setLogLevel(_ level: SessionLogLevel, _ key: String) {
        logLevel = level
        tell("~\(key) [LogLevel \(level.name)]\n")
    }

    /// Tells of an event, if that is wanted.
    mutating func log(_ event: SSHEvent) {
        // The usual level shows none of them.
        guard logLevel > .info, raw != nil, let line = SessionLog.line(for: event), line.level <= logLevel
        else { return }
        error.appendOwn(Array("\(line.level.prefix)\(line.text)\r\n".utf8))
    }
}

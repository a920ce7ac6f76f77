// SPDX-License-Identifier: Apache-2.0

internal import CPQ
internal import Glibc
internal import LinuxIO
internal import Synchronization

/// A program that we started: its own process group, so that Ctrl-C in our terminal does not reach it; standard
/// input empty, both outputs appended to a log file, no other descriptor of ours.
final class ChildProcess: Sendable {
    private let pid: pid_t
    /// Status of `waitpid` once it has ended.
    private let status = Mutex<Int32?>(nil)

    private static let environment: [String] = [
        "PATH=/usr/local/bin:/usr/bin:/bin", "LC_ALL=C.UTF-8", "TZ=UTC",
    ]

    /// Starts `command[0]` with the whole of `command` as arguments.
    init(_ command: [String], directory: String, log: String) throws(SystemError) {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_addopen(&actions, 1, log, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW, 0o600)
        posix_spawn_file_actions_adddup2(&actions, 1, 2)
        posix_spawn_file_actions_addchdir_np(&actions, directory)
        posix_spawn_file_actions_addclosefrom_np(&actions, 3)

        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var none = sigset_t()
        sigemptyset(&none)
        var all = sigset_t()
        sigfillset(&all)
        posix_spawnattr_setsigmask(&attributes, &none)
        posix_spawnattr_setsigdefault(&attributes, &all)
        posix_spawnattr_setpgroup(&attributes, 0)
        let flags = POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF
        posix_spawnattr_setflags(&attributes, Int16(flags))

        let arguments: [UnsafeMutablePointer<CChar>?] = command.map { strdup($0) } + [nil]
        let environment: [UnsafeMutablePointer<CChar>?] =
            Self.environment.map { strdup($0) } + [nil]
        defer { for text in arguments + environment { free(text) } }
        var pid: pid_t = 0
        let failure = DescriptorLimit.withOriginal {
            posix_spawn(&pid, command[0], &actions, &attributes, arguments, environment)
        }
        guard failure == 0 else { throw SystemError(call: "posix_spawn \(command[0])", code: failure) }
        self.pid = pid
    }

    /// Whether it has not ended yet.
    var isRunning: Bool {
        status.withLock { status in
            guard status == nil else { return false }
            var value: Int32 = 0
            guard waitpid(pid, &value, WNOHANG) != 0 else { return true }
            status = value
            return false
        }
    }

    /// Exit status; 128 plus the number of the signal that ended it; -1 while it runs.
    var exitStatus: Int32 {
        guard !isRunning, let value = status.withLock({ $0 }) else { return -1 }
        return value & 0x7F == 0 ? value >> 8 & 0xFF : 128 + value & 0x7F
    }

    /// Sends a signal unless it has ended.
    func signal(_ number: Int32) { if isRunning { kill(pid, number) } }

    /// Whether it ended within that time. Not cut short by cancellation: we are responsible for our children.
    func waitForEnd(seconds: Double) async -> Bool {
        for _ in 0..<Int(seconds * 50) {
            if !isRunning { return true }
            await Task.detached { try? await Task.sleep(for: .milliseconds(20)) }.value
        }
        return !isRunning
    }
}

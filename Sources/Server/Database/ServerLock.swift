// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO

/// Held by the one server that may use a config directory. The kernel lets go when the process ends, however it ends.
final class ServerLock: Sendable {
    /// Another server holds it.
    struct Taken: Error, CustomStringConvertible {
        var directory: String
        var holder: String

        var description: String {
            let who = holder.isEmpty ? "" : " (process \(holder))"
            return "another server is already running on \(directory)\(who)"
        }
    }

    private let descriptor: OwnedDescriptor

    init(directory: String) throws {
        let path = directory + "/server.lock"
        let number = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard number >= 0 else { throw SystemError(call: "open \(path)") }
        guard flock(number, LOCK_EX | LOCK_NB) == 0 else {
            close(number)
            throw Taken(directory: directory, holder: (FileReader.text(path) ?? "").trimmingLine())
        }
        ftruncate(number, 0)
        let text = Array("\(getpid())\n".utf8)
        _ = pwrite(number, text, text.count, 0)
        descriptor = OwnedDescriptor(taking: number)
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO

/// Files in directories like `/tmp`, where another user may have been first. agent.md §4.2 names them, so they cannot
/// be guessed names.
package enum PrivateFiles {
    /// The directory `path`, made if it is missing. When what is there is not this user's alone, a fresh one beside it;
    /// nil when there is none either.
    package static func directory(_ path: String) -> String? {
        mkdir(path, 0o700)
        var status = stat()
        if lstat(path, &status) == 0, status.st_mode & S_IFMT == S_IFDIR, status.st_uid == geteuid(),
            status.st_mode & 0o022 == 0
        {
            return path
        }
        do { return try PrivateName.directory("\(path)-") } catch { return nil }
    }

    /// Opens a log to append to, readable by its owner only; -1 for what is no file of this user.
    package static func openLog(_ path: String) -> Int32 {
        let flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK
        let number = open(path, flags, 0o600)
        guard number >= 0 else { return -1 }
        var status = stat()
        guard fstat(number, &status) == 0, status.st_mode & S_IFMT == S_IFREG, status.st_uid == geteuid()
        else {
            close(number)
            return -1
        }
        return number
    }
}

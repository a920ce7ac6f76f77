// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import SSH

extension DescriptorPair {
    /// Closes the second, keeps the first.
    consuming func takeFirst() -> OwnedDescriptor {
        let (first, second) = release()
        OwnedDescriptor(taking: second).close()
        return OwnedDescriptor(taking: first)
    }

    /// Closes the first, keeps the second.
    consuming func takeSecond() -> OwnedDescriptor {
        let (first, second) = release()
        OwnedDescriptor(taking: first).close()
        return OwnedDescriptor(taking: second)
    }
}

/// Commands that the file transfer policy blocks (`agent.md` §6).
enum FileTransfer {
    private static let names: Set<String> = ["nc", "rsync", "scp", "sftp"]

    static func isCommand(_ command: ByteString) -> Bool {
        let text = command.description
        guard let word = text.split(whereSeparator: \.isWhitespace).first,
            let name = word.split(separator: "/").last
        else { return false }
        return names.contains(String(name))
    }
}

/// Names of signals in SSH, RFC 4254 §6.10.
enum SignalName {
    private static let table: [(String, Int32)] = [
        ("ABRT", SIGABRT), ("ALRM", SIGALRM), ("FPE", SIGFPE), ("HUP", SIGHUP), ("ILL", SIGILL),
        ("INT", SIGINT),
        ("KILL", SIGKILL), ("PIPE", SIGPIPE), ("QUIT", SIGQUIT), ("SEGV", SIGSEGV), ("TERM", SIGTERM),
        ("USR1", SIGUSR1), ("USR2", SIGUSR2),
    ]

    /// Others become KILL (`agent.md` §6).
    static func number(_ name: String) -> Int32? { table.first { $0.0 == name }?.1 ?? SIGKILL }

    /// RFC 4254 §6.10: names of one's own carry an at-sign.
    static func name(_ number: Int32) -> String {
        table.first { $0.1 == number }?.0 ?? "\(number)@coder.com"
    }
}

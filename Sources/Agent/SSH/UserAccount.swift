// SPDX-License-Identifier: Apache-2.0

public import Glibc

/// The user that the agent runs as. Read from `/etc/passwd` itself: the name service of a static executable
/// cannot load its modules.
public struct UserAccount: Hashable, Sendable {
    /// Login name.
    public var name: String
    /// Home directory.
    public var home: String
    /// Login shell.
    public var shell: String

    /// An account as given.
    public init(name: String, home: String, shell: String) {
        self.name = name
        self.home = home
        self.shell = shell
    }

    /// The account of `user`. `$HOME` counts before the file, as with the original: images that run under another
    /// user than they were made for set it. What neither tells comes from convention.
    public static func current(
        user: uid_t = getuid(), environment: [String: String], passwd: String = "/etc/passwd"
    ) -> UserAccount {
        let found = entries(passwd).first { $0.user == user }
        func choose(_ value: String?, _ variable: String, _ fallback: String) -> String {
            if let value, !value.isEmpty { return value }
            if let value = environment[variable], !value.isEmpty { return value }
            return fallback
        }
        let ownHome = environment["HOME"].flatMap { $0.hasPrefix("/") ? $0 : nil }
        return UserAccount(
            name: choose(found?.account.name, "USER", "coder"),
            home: ownHome ?? choose(found?.account.home, "HOME", "/"),
            shell: choose(found?.account.shell, "SHELL", "/bin/sh"))
    }

    /// Home directory of a user by name.
    static func home(of name: String, passwd: String = "/etc/passwd") -> String? {
        entries(passwd).first { $0.account.name == name }?.account.home
    }

    /// Lines of seven fields: name, password, uid, gid, comment, home, shell (`passwd(5)`).
    private static func entries(_ path: String) -> [(user: uid_t, account: UserAccount)] {
        guard let text = FileBytes.read(path, limit: 4 << 20) else { return [] }
        return String(decoding: text, as: UTF8.self).split(separator: "\n").compactMap { line in
            let fields = line.split(separator: ":", omittingEmptySubsequences: false).map(String.init)
            guard fields.count >= 7, let user = uid_t(fields[2]) else { return nil }
            return (user, UserAccount(name: fields[0], home: fields[5], shell: fields[6]))
        }
    }
}

/// Whole small files.
enum FileBytes {
    /// The content of a regular file; nil when it cannot be read or is longer than `limit`.
    static func read(_ path: String, limit: Int) -> [UInt8]? {
        let number = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard number >= 0 else { return nil }
        defer { close(number) }
        var status = stat()
        guard fstat(number, &status) == 0, status.st_mode & S_IFMT == S_IFREG else { return nil }
        var content: [UInt8] = []
        var piece = [UInt8](repeating: 0, count: 64 * 1024)
        while true {
            let count = Glibc.read(number, &piece, piece.count)
            guard count >= 0 else { return nil }
            guard count > 0 else { return content }
            content += piece[..<count]
            guard content.count <= limit else { return nil }
        }
    }

    static func isDirectory(_ path: String) -> Bool {
        var status = stat()
        return stat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFDIR
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO

/// Finds the installed PostgreSQL programs.
enum PostgresPrograms {
    /// Directory of the newest `initdb` and `postgres`: Debian's versioned directories, then PATH.
    static func find() throws -> String {
        if let newest = debianDirectories().first { return newest.path }
        if let path = search("postgres"), search("initdb") != nil {
            return String(path.dropLast("/postgres".count))
        }
        throw PrivateCluster.StartError(
            description: "no PostgreSQL found: install it (apt install postgresql), or give --postgres-url")
    }

    /// Directory of the programs of one major version, if it is installed.
    static func find(major: String) -> String? {
        debianDirectories().first { $0.major == Int(major) }?.path
    }

    /// Major version of the programs in a Debian directory; nil elsewhere.
    static func majorVersion(_ directory: String) -> String? {
        debianDirectories().first { $0.path == directory }.map { String($0.major) }
    }

    /// Path of a program on PATH or in the usual places.
    static func require(_ name: String, package: String) throws -> String {
        guard let path = search(name) else {
            throw PrivateCluster.StartError(
                description: "\(name) not found: install it (apt install \(package))")
        }
        return path
    }

    private static func debianDirectories() -> [(major: Int, path: String)] {
        Directory.names("/usr/lib/postgresql").compactMap { name in
            let path = "/usr/lib/postgresql/\(name)/bin"
            guard let major = Int(name), access(path + "/postgres", X_OK) == 0,
                access(path + "/initdb", X_OK) == 0
            else { return nil }
            return (major, path)
        }.sorted { $0.major > $1.major }
    }

    private static func search(_ name: String) -> String? {
        let path = getenv("PATH").map { String(cString: $0) } ?? ""
        let places =
            path.split(separator: ":").map(String.init) + ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin"]
        return places.map { "\($0)/\(name)" }.first { access($0, X_OK) == 0 }
    }
}

/// The user that PostgreSQL runs as when we are root: it refuses to run as root itself.
struct Account: Sendable {
    var user: UInt32
    var group: UInt32

    /// The system's `postgres` user, or `nobody`.
    static func unprivileged() throws -> Account {
        for name in ["postgres", "nobody"] {
            if let entry = getpwnam(name) {
                return Account(user: entry.pointee.pw_uid, group: entry.pointee.pw_gid)
            }
        }
        throw PrivateCluster.StartError(
            description:
                "running as root, and there is no user postgres or nobody that PostgreSQL could run as")
    }

    /// Makes `path` belong to this user.
    func own(_ path: String) throws(SystemError) {
        guard chown(path, user, group) == 0 else { throw SystemError(call: "chown") }
    }

    /// Whether this user may pass through `path` and all directories above it.
    func canReach(_ path: String) -> Bool {
        var current = ""
        for part in path.split(separator: "/") {
            current += "/" + part
            var info = stat()
            guard stat(current, &info) == 0 else { return true }  // made by us later, open enough
            let bit: UInt32 = info.st_uid == user ? S_IXUSR : info.st_gid == group ? S_IXGRP : S_IXOTH
            if info.st_mode & bit == 0 { return false }
        }
        return true
    }
}

/// Directories.
enum Directory {
    /// Makes `path` and what is missing above it. If the last one is new it gets `mode`.
    static func make(_ path: String, mode: UInt32) throws(SystemError) {
        var current = ""
        var isNew = false
        for part in path.split(separator: "/") {
            current += "/" + part
            isNew = mkdir(current, 0o755) == 0
            if !isNew, errno != EEXIST { throw SystemError(call: "mkdir \(current)") }
        }
        guard !isNew || chmod(path, mode) == 0 else { throw SystemError(call: "chmod \(path)") }
    }

    /// A directory that nobody but us, or `account`, may write to. Below `/tmp` somebody else may have made it first:
    /// then it is refused.
    static func makeOwn(_ path: String, mode: UInt32, account: Account?) throws {
        try make(path, mode: mode)
        var info = stat()
        guard lstat(path, &info) == 0 else { throw SystemError(call: "lstat \(path)") }
        let isOurs = info.st_uid == getuid() || info.st_uid == account?.user
        guard info.st_mode & S_IFMT == S_IFDIR, isOurs else {
            throw PrivateCluster.StartError(description: "\(path) belongs to somebody else: remove it")
        }
        guard chmod(path, mode) == 0 else { throw SystemError(call: "chmod \(path)") }
        try account?.own(path)
    }

    /// Names in a directory; none when it cannot be read.
    static func names(_ path: String) -> [String] {
        guard let directory = opendir(path) else { return [] }
        defer { closedir(directory) }
        var names: [String] = []
        while let entry = readdir(directory) {
            // The field is an array that the kernel ends with a zero byte.
            let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
                pointer.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name != ".", name != ".." { names.append(name) }
        }
        return names
    }

    /// Removes a directory and everything in it; nothing when it is absent.
    static func removeTree(_ path: String) throws(SystemError) {
        var info = stat()
        guard lstat(path, &info) == 0 else { return }
        if info.st_mode & S_IFMT == S_IFDIR {
            for name in names(path) { try removeTree("\(path)/\(name)") }
        }
        guard remove(path) == 0 else { throw SystemError(call: "remove \(path)") }
    }
}

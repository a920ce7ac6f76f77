// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO

/// The directory that holds who is logged in where: `$CODER_CONFIG_DIR`, else `coderv2` in the user's
/// configuration directory. Files are small plain texts, as the original writes them.
struct ConfigDirectory: Sendable {
    enum File: String, CaseIterable, Sendable {
        case url
        case session
        /// Written by old releases; only deleted.
        case organization
    }

    let path: String

    init(path: String, environment: [String: String]) {
        if !path.isEmpty {
            self.path = path
        } else if let base = environment["XDG_CONFIG_HOME"], base.hasPrefix("/") {
            self.path = base + "/coderv2"
        } else {
            self.path = homeDirectory(environment) + "/.config/coderv2"
        }
    }

    /// The text without white space around it; nil when there is no such file.
    func read(_ file: File) throws -> String? {
        do {
            return try TextFile.read("\(path)/\(file.rawValue)").trimmed
        } catch let error as SystemError where error.code == ENOENT || error.code == ENOTDIR {
            return nil
        }
    }

    /// Replaces the file. Directory 0750, file 0600.
    func write(_ file: File, _ text: String) throws {
        try makeDirectories(path, mode: 0o750)
        try TextFile.replace("\(path)/\(file.rawValue)", with: text, mode: 0o600)
    }

    /// Deletes the file if it is there.
    func delete(_ file: File) throws {
        guard unlink("\(path)/\(file.rawValue)") != 0, errno != ENOENT else { return }
        throw CommandError("cannot delete \(path)/\(file.rawValue): \(String(cString: strerror(errno)))")
    }
}

/// `$HOME`, else what the password file says.
func homeDirectory(_ environment: [String: String]) -> String {
    if let home = environment["HOME"], !home.isEmpty { return home }
    guard let entry = getpwuid(getuid()), let home = entry.pointee.pw_dir else { return "/" }
    return String(cString: home)
}

/// Makes a directory and those above it.
func makeDirectories(_ path: String, mode: mode_t) throws {
    var partial = path.hasPrefix("/") ? "" : "."
    for part in path.split(separator: "/") {
        partial += "/\(part)"
        guard mkdir(partial, mode) != 0, errno != EEXIST else { continue }
        throw CommandError("cannot make the directory \(partial): \(String(cString: strerror(errno)))")
    }
}

/// Whole small files.
enum TextFile {
    /// Longer files are refused: nothing this program reads whole is that long.
    private static let limit = 16 << 20

    static func read(_ path: String) throws -> String {
        let number = open(path, O_RDONLY | O_CLOEXEC)
        guard number >= 0 else { throw SystemError(call: "open \(path)") }
        let descriptor = OwnedDescriptor(taking: number)
        var result: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 16_384)
        while true {
            let count = Glibc.read(descriptor.number, &buffer, buffer.count)
            if count < 0, errno == EINTR { continue }
            guard count >= 0 else { throw SystemError(call: "read \(path)") }
            guard count > 0 else { return String(decoding: result, as: UTF8.self) }
            result += buffer[..<count]
            guard result.count <= limit else { throw CommandError("\(path) is too long") }
        }
    }

    /// Writes beside the file, then renames, so that a crash leaves the old or the new text. A symbolic link stays
    /// one: the file that it names is replaced.
    static func replace(_ path: String, with text: String, mode: mode_t) throws {
        let path = resolved(path) ?? path
        let temporary = "\(path).\(getpid()).tmp"
        let number = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode)
        guard number >= 0 else {
            throw CommandError("cannot write \(path): \(String(cString: strerror(errno)))")
        }
        let descriptor = OwnedDescriptor(taking: number)
        try Array(text.utf8).withUnsafeBytes { try Descriptor.writeAll(descriptor.number, $0) }
        guard rename(temporary, path) == 0 else {
            let reason = String(cString: strerror(errno))
            unlink(temporary)
            throw CommandError("cannot write \(path): \(reason)")
        }
    }

    /// Removes a file, if it is there.
    static func remove(_ path: String) { unlink(path) }

    /// The file that a path leads to through symbolic links; nil when there is none.
    static func resolved(_ path: String) -> String? {
        guard let real = realpath(path, nil) else { return nil }
        defer { free(real) }
        return String(cString: real)
    }
}

/// Short-lived children.
enum ChildProcess {
    /// 16 MiB: a large keyring in ASCII.
    private static let outputLimit = 16 << 20

    /// Standard output of a program that gets no input; nil when it fails.
    static func output(of arguments: [String], environment: [String: String]) -> String? {
        guard let pipe = try? Descriptor.pipe() else { return nil }
        let (reading, writing) = pipe.release()
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_adddup2(&actions, writing, 1)
        posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0)
        var process: pid_t = 0
        let words = arguments.map { strdup($0) } + [nil]
        let variables = environment.map { strdup("\($0.key)=\($0.value)") } + [nil]
        defer { (words + variables).forEach { free($0) } }
        let failure = DescriptorLimit.withOriginal {
            posix_spawn(&process, arguments[0], &actions, nil, words, variables)
        }
        close(writing)
        let reader = OwnedDescriptor(taking: reading)
        guard failure == 0 else { return nil }
        var result: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 4_096)
        while result.count < outputLimit {
            let count = read(reader.number, &buffer, buffer.count)
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { break }
            result += buffer[..<count]
        }
        // Whoever still writes is told so.
        reader.close()
        var status: Int32 = 0
        waitpid(process, &status, 0)
        return status == 0 ? String(decoding: result, as: UTF8.self) : nil
    }
}

/// The running program.
enum ProgramFile {
    /// Its path, as the kernel knows it.
    static var path: String {
        var buffer = [CChar](repeating: 0, count: 4_096)
        let count = readlink("/proc/self/exe", &buffer, buffer.count)
        guard count > 0 else { return "coder" }
        return String(decoding: buffer[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }
}

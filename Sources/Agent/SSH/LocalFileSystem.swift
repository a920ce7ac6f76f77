// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import SSH

/// The files of this machine for the sftp server. Relative paths start at `directory`.
struct LocalFileSystem: SFTPFileSystem {
    /// An open file or directory; closes itself.
    final class Handle {
        let number: Int32
        let appends: Bool
        let stream: OpaquePointer?

        init(file number: Int32, appends: Bool) {
            self.number = number
            self.appends = appends
            stream = nil
        }

        init(directory: OpaquePointer) {
            number = dirfd(directory)
            appends = false
            stream = directory
        }

        deinit { if let stream { closedir(stream) } else { Glibc.close(number) } }
    }

    let directory: String
    let home: String

    // MARK: Paths and errors

    private func absolute(_ path: ByteString) -> [UInt8] {
        if path.bytes.first == UInt8(ascii: "/") { return path.bytes }
        if path.bytes.isEmpty { return Array(directory.utf8) }
        return Array(directory.utf8) + [UInt8(ascii: "/")] + path.bytes
    }

    /// Calls `body` with the path as a C string; a negative result is an error.
    @discardableResult
    private func call(_ path: ByteString, _ body: (UnsafePointer<CChar>) -> Int32) throws(SFTPStatus) -> Int32
    {
        let result = Self.withCString(absolute(path), body)
        guard result >= 0 else { throw Self.status(errno) }
        return result
    }

    static func withCString<Result>(_ bytes: [UInt8], _ body: (UnsafePointer<CChar>) -> Result) -> Result {
        (bytes + [0]).withUnsafeBytes { body($0.baseAddress!.assumingMemoryBound(to: CChar.self)) }
    }

    static func status(_ code: Int32) -> SFTPStatus {
        switch code {
        case ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG: .noSuchFile
        case EACCES, EPERM, EROFS, EFAULT: .permissionDenied
        case ENOSYS, EOPNOTSUPP: .unsupported
        default: .failure
        }
    }

    // MARK: Files

    mutating func open(
        _ path: ByteString, _ flags: SFTPOpenFlags, _ attributes: SFTPAttributes
    ) throws(SFTPStatus) -> Handle {
        // O_NONBLOCK: opening a pipe must not stop the connection.
        var mode = O_CLOEXEC | O_NONBLOCK
        switch (flags.contains(.read), flags.contains(.write)) {
        case (true, true): mode |= O_RDWR
        case (false, true): mode |= O_WRONLY
        default: mode |= O_RDONLY
        }
        if flags.contains(.create) { mode |= O_CREAT }
        if flags.contains(.truncate) { mode |= O_TRUNC }
        if flags.contains(.exclusive) { mode |= O_EXCL }
        if flags.contains(.append) { mode |= O_APPEND }
        let permissions = (attributes.permissions ?? 0o666) & 0o7777
        let number = try call(path) { Glibc.open($0, mode, permissions) }
        return Handle(file: number, appends: flags.contains(.append))
    }

    mutating func openDirectory(_ path: ByteString) throws(SFTPStatus) -> Handle {
        guard let stream = Self.withCString(absolute(path), { opendir($0) }) else { throw Self.status(errno) }
        return Handle(directory: stream)
    }

    // The handle closes itself when its last reference goes.
    mutating func close(_ handle: Handle) throws(SFTPStatus) {}

    mutating func read(
        _ handle: Handle, offset: UInt64, into buffer: UnsafeMutableRawBufferPointer
    ) throws(SFTPStatus) -> Int {
        guard let offset = Int(exactly: offset) else { return 0 }
        var total = 0
        while total < buffer.count {
            let count = pread(
                handle.number, buffer.baseAddress! + total, buffer.count - total, offset + total)
            if count < 0, errno == EINTR { continue }
            guard count >= 0 else {
                if total > 0 { break }
                throw Self.status(errno)
            }
            guard count > 0 else { break }
            total += count
        }
        return total
    }

    mutating func write(
        _ handle: Handle, offset: UInt64, _ bytes: UnsafeRawBufferPointer
    ) throws(SFTPStatus) {
        guard let offset = Int(exactly: offset), offset <= Int.max - bytes.count else { throw .failure }
        var total = 0
        while total < bytes.count {
            let start = bytes.baseAddress! + total
            let count =
                handle.appends
                ? Glibc.write(handle.number, start, bytes.count - total)
                : pwrite(handle.number, start, bytes.count - total, offset + total)
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { throw Self.status(errno) }
            total += count
        }
    }

    mutating func synchronize(_ handle: Handle) throws(SFTPStatus) {
        guard fsync(handle.number) == 0 else { throw Self.status(errno) }
    }

    // MARK: Attributes

    mutating func attributes(of path: ByteString, followLinks: Bool) throws(SFTPStatus) -> SFTPAttributes {
        var status = stat()
        try call(path) { followLinks ? stat($0, &status) : lstat($0, &status) }
        return SFTPAttributes(status)
    }

    mutating func attributes(of handle: Handle) throws(SFTPStatus) -> SFTPAttributes {
        var status = stat()
        guard fstat(handle.number, &status) == 0 else { throw Self.status(errno) }
        return SFTPAttributes(status)
    }

    mutating func setAttributes(
        of path: ByteString, _ attributes: SFTPAttributes, followLinks: Bool
    ) throws(SFTPStatus) {
        let flag = followLinks ? 0 : AT_SYMLINK_NOFOLLOW
        if let size = attributes.size, followLinks {
            guard let size = Int(exactly: size) else { throw .failure }
            try call(path) { truncate($0, size) }
        }
        if let permissions = attributes.permissions {
            try call(path) { fchmodat(AT_FDCWD, $0, permissions & 0o7777, flag) }
        }
        if var times = attributes.times { try call(path) { utimensat(AT_FDCWD, $0, &times, flag) } }
        if let user = attributes.user, let group = attributes.group {
            try call(path) { fchownat(AT_FDCWD, $0, user, group, flag) }
        }
    }

    mutating func setAttributes(of handle: Handle, _ attributes: SFTPAttributes) throws(SFTPStatus) {
        let number = handle.number
        func check(_ result: Int32) throws(SFTPStatus) {
            guard result == 0 else { throw Self.status(errno) }
        }
        if let size = attributes.size {
            guard let size = Int(exactly: size) else { throw .failure }
            try check(ftruncate(number, size))
        }
        if let permissions = attributes.permissions { try check(fchmod(number, permissions & 0o7777)) }
        if var times = attributes.times { try check(futimens(number, &times)) }
        if let user = attributes.user, let group = attributes.group { try check(fchown(number, user, group)) }
    }

    // MARK: Names

    mutating func remove(_ path: ByteString) throws(SFTPStatus) { try call(path) { unlink($0) } }

    mutating func makeDirectory(_ path: ByteString, _ attributes: SFTPAttributes) throws(SFTPStatus) {
        try call(path) { mkdir($0, (attributes.permissions ?? 0o777) & 0o7777) }
    }

    mutating func removeDirectory(_ path: ByteString) throws(SFTPStatus) { try call(path) { rmdir($0) } }

    mutating func rename(_ old: ByteString, to new: ByteString, replaces: Bool) throws(SFTPStatus) {
        let target = absolute(new)
        guard !replaces else {
            try call(old) { source in Self.withCString(target) { Glibc.rename(source, $0) } }
            return
        }
        // draft §6.5: an existing target is an error. A link cannot replace one, where files can be linked at
        // all.
        var status = stat()
        try call(old) { lstat($0, &status) }
        if status.st_mode & S_IFMT == S_IFREG {
            do {
                try call(old) { source in Self.withCString(target) { link(source, $0) } }
                try call(old) { unlink($0) }
                return
            } catch  where [EPERM, EOPNOTSUPP, EMLINK, EXDEV].contains(errno) {
                // No links here: the check below has to do.
            }
        }
        guard Self.withCString(target, { lstat($0, &status) }) != 0 else { throw .failure }
        try call(old) { source in Self.withCString(target) { Glibc.rename(source, $0) } }
    }

    mutating func readLink(_ path: ByteString) throws(SFTPStatus) -> ByteString {
        var buffer = [CChar](repeating: 0, count: 4096)
        let count = try call(path) { Int32(clamping: readlink($0, &buffer, 4096)) }
        return ByteString(buffer[..<Int(count)].map { UInt8(bitPattern: $0) })
    }

    mutating func makeSymbolicLink(at path: ByteString, target: ByteString) throws(SFTPStatus) {
        try call(path) { place in Self.withCString(target.bytes) { symlink($0, place) } }
    }

    mutating func makeHardLink(at path: ByteString, target: ByteString) throws(SFTPStatus) {
        let old = absolute(target)
        try call(path) { place in Self.withCString(old) { link($0, place) } }
    }

    mutating func realPath(_ path: ByteString) throws(SFTPStatus) -> ByteString {
        let full = absolute(path)
        if let real = Self.resolve(full) { return ByteString(real) }
        guard errno == ENOENT, let slash = full.lastIndex(of: UInt8(ascii: "/")) else {
            throw Self.status(errno)
        }
        // The last part may be missing: a client asks before it makes it.
        let parent = slash == 0 ? [UInt8(ascii: "/")] : Array(full[..<slash])
        guard let real = Self.resolve(parent) else { throw Self.status(errno) }
        return ByteString((real.count == 1 ? [] : real) + full[slash...])
    }

    private static func resolve(_ path: [UInt8]) -> [UInt8]? {
        guard let real = withCString(path, { realpath($0, nil) }) else { return nil }
        defer { free(real) }
        return Array(UnsafeRawBufferPointer(start: real, count: strlen(real)))
    }

    mutating func expandPath(_ path: ByteString) throws(SFTPStatus) -> ByteString {
        guard path.bytes.first == UInt8(ascii: "~") else { return try realPath(path) }
        let end = path.bytes.firstIndex(of: UInt8(ascii: "/")) ?? path.bytes.count
        let name = String(decoding: path.bytes[1..<end], as: UTF8.self)
        guard let base = name.isEmpty ? home : UserAccount.home(of: name) else { throw .noSuchFile }
        return try realPath(ByteString(Array(base.utf8) + path.bytes[end...]))
    }

    // MARK: Directories and file systems

    mutating func readDirectory(_ handle: Handle, limit: Int) throws(SFTPStatus) -> [SFTPEntry] {
        guard let stream = handle.stream else { throw .failure }
        var entries: [SFTPEntry] = []
        while entries.count < limit {
            guard let entry = readdir(stream) else { break }
            let name = withUnsafeBytes(of: &entry.pointee.d_name) { Array($0.prefix { $0 != 0 }) }
            var status = stat()
            let found =
                Self.withCString(name) { fstatat(handle.number, $0, &status, AT_SYMLINK_NOFOLLOW) } == 0
            let attributes = found ? SFTPAttributes(status) : SFTPAttributes()
            let line = found ? LongName.line(name, status) : name
            entries.append(
                SFTPEntry(name: ByteString(name), longName: ByteString(line), attributes: attributes))
        }
        return entries
    }

    mutating func statistics(of path: ByteString) throws(SFTPStatus) -> SFTPFileSystemStatistics {
        var status = statvfs()
        try call(path) { statvfs($0, &status) }
        return SFTPFileSystemStatistics(status)
    }

    mutating func statistics(of handle: Handle) throws(SFTPStatus) -> SFTPFileSystemStatistics {
        var status = statvfs()
        guard fstatvfs(handle.number, &status) == 0 else { throw Self.status(errno) }
        return SFTPFileSystemStatistics(status)
    }
}

extension SFTPFileSystemStatistics {
    init(_ status: statvfs) {
        self.init(values: [
            UInt64(status.f_bsize), UInt64(status.f_frsize), UInt64(status.f_blocks), UInt64(status.f_bfree),
            UInt64(status.f_bavail), UInt64(status.f_files), UInt64(status.f_ffree), UInt64(status.f_favail),
            UInt64(status.f_fsid),
            // OpenSSH PROTOCOL §4.4: 1 read-only, 2 no set-user-id; the same bits as here.
            UInt64(status.f_flag) & 3, UInt64(status.f_namemax),
        ])
    }
}

extension SFTPAttributes {
    init(_ status: stat) {
        self.init()
        size = UInt64(clamping: status.st_size)
        user = status.st_uid
        group = status.st_gid
        permissions = status.st_mode
        accessTime = UInt32(clamping: status.st_atim.tv_sec)
        modificationTime = UInt32(clamping: status.st_mtim.tv_sec)
    }

    /// As `utimensat(2)` takes them.
    fileprivate var times: [timespec]? {
        guard let accessTime, let modificationTime else { return nil }
        return [
            timespec(tv_sec: Int(accessTime), tv_nsec: 0),
            timespec(tv_sec: Int(modificationTime), tv_nsec: 0),
        ]
    }
}

/// Lines as of `ls -l`.
enum LongName {
    static func line(_ name: [UInt8], _ status: stat) -> [UInt8] {
        var local = tm()
        var seconds = status.st_mtim.tv_sec
        localtime_r(&seconds, &local)
        var date = [CChar](repeating: 0, count: 32)
        let length = strftime(&date, 32, "%b %e  %Y", &local)
        let text = String(decoding: date[..<length].map { UInt8(bitPattern: $0) }, as: UTF8.self)
        let fields = [
            mode(status.st_mode), pad(String(status.st_nlink), 4), pad(String(status.st_uid), 8),
            pad(String(status.st_gid), 8), pad(String(status.st_size), 12), text,
        ]
        return Array((fields.joined(separator: " ") + " ").utf8) + name
    }

    private static func pad(_ text: String, _ width: Int) -> String {
        String(repeating: " ", count: max(0, width - text.utf8.count)) + text
    }

    private static func mode(_ mode: mode_t) -> String {
        let kinds: [(mode_t, Character)] = [
            (S_IFDIR, "d"), (S_IFLNK, "l"), (S_IFCHR, "c"), (S_IFBLK, "b"), (S_IFIFO, "p"), (S_IFSOCK, "s"),
        ]
        var text = String(kinds.first { $0.0 == mode & S_IFMT }?.1 ?? "-")
        for (index, letter) in "rwxrwxrwx".enumerated() {
            text.append(mode & (0o400 >> index) != 0 ? letter : "-")
        }
        return text
    }
}

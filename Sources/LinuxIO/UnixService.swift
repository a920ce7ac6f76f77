// SPDX-License-Identifier: Apache-2.0

internal import Glibc

/// A unix socket with a name in the file system, of which there is one at a time.
public enum UnixService {
    /// Listens on `path`; the socket is for its owner only. A socket that somebody listens on is an error
    /// (EADDRINUSE); one that nobody answers on is left over from a program that died, and replaced.
    public static func listen(onPath path: String) throws(SystemError) -> OwnedDescriptor {
        let bytes = Array(path.utf8)
        do throws(SystemError) {
            return try StreamSocket.listen(onPath: bytes)
        } catch {
            guard error.code == EADDRINUSE else { throw error }
        }
        do throws(SystemError) {
            let other = try StreamSocket.connect(toPath: bytes)
            other.close()
        } catch {
            guard error.code == ECONNREFUSED else { throw error }
            guard unlink(path) == 0 || errno == ENOENT else { throw SystemError(call: "unlink") }
            return try StreamSocket.listen(onPath: bytes)
        }
        throw SystemError(call: "bind", code: EADDRINUSE)
    }

    /// Makes a directory that everybody may read, unless it exists.
    public static func makeDirectory(_ path: String) throws(SystemError) {
        guard mkdir(path, 0o755) == 0 || errno == EEXIST else { throw SystemError(call: "mkdir") }
    }

    /// Which file has this name now; nil when none has.
    public static func file(_ path: String) -> FileIdentity? {
        var status = stat()
        guard lstat(path, &status) == 0 else { return nil }
        return FileIdentity(device: UInt64(status.st_dev), number: UInt64(status.st_ino))
    }

    /// Removes the name if it is still that of this file.
    public static func remove(_ path: String, ifStill file: FileIdentity?) {
        if file != nil, self.file(path) == file { _ = unlink(path) }
    }
}

/// A file, whatever its name.
public struct FileIdentity: Hashable, Sendable {
    let device: UInt64
    let number: UInt64
}

/// Hears of it when a file is removed (`inotify(7)`).
public struct RemovalWatch: ~Copyable, Sendable {
    private let descriptor: OwnedDescriptor

    /// Watches an existing file.
    public init(path: String) throws(SystemError) {
        let number = inotify_init1(Int32(IN_CLOEXEC | IN_NONBLOCK))
        guard number >= 0 else { throw SystemError(call: "inotify_init1") }
        let owned = OwnedDescriptor(taking: number)
        // IN_ATTRIB: the count of links changes although a descriptor keeps the file alive.
        let mask = UInt32(IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF)
        guard inotify_add_watch(number, path, mask) >= 0 else { throw SystemError(call: "inotify_add_watch") }
        descriptor = owned
    }

    /// The descriptor to watch for reading.
    public var number: Int32 { descriptor.number }

    /// Reads what was reported; look then whether the file is still there.
    public func drain() {
        var buffer = [UInt8](repeating: 0, count: 4_096)
        while read(number, &buffer, buffer.count) > 0 {}
    }
}

/// Numbers and names of network interfaces.
public enum InterfaceName {
    /// The number of an interface by its name, or by its number in text; nil when there is none.
    public static func number(_ name: String) -> UInt32? {
        let number = if_nametoindex(name)
        if number != 0 { return number }
        return UInt32(name).flatMap { $0 == 0 ? nil : $0 }
    }

    /// The name of an interface; its number in text when it is gone.
    public static func name(_ number: UInt32) -> String {
        var bytes = [CChar](repeating: 0, count: Int(IF_NAMESIZE))
        guard if_indextoname(number, &bytes) != nil else { return String(number) }
        return String(decoding: bytes.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }
}

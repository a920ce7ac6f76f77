// SPDX-License-Identifier: Apache-2.0

internal import Glibc

/// A TCP port on which somebody in the workspace listens.
package struct ListeningPort: Hashable, Sendable {
    package var port: UInt16
    package var process: String

    /// All of them, one entry per port, ascending, without ports below 9 and those of process `own`.
    /// Reads `/proc`: some milliseconds. agent.md §5.3.
    package static func all(except own: Int32? = nil) -> [ListeningPort] {
        let own = own ?? getpid()
        let inodes = listening()
        let owners = owners(of: Set(inodes.keys))
        var byPort: [UInt16: ListeningPort] = [:]
        for (inode, port) in inodes where port >= 9 {
            let owner = owners[inode]
            guard owner?.process != own else { continue }
            let known = byPort[port]?.process ?? ""
            byPort[port] = ListeningPort(port: port, process: known.isEmpty ? owner?.name ?? "" : known)
        }
        return byPort.values.sorted { $0.port < $1.port }
    }

    /// The command line of the process that listens on a port, as `/proc` gives it.
    static func commandLine(of port: UInt16) -> [UInt8]? {
        let sockets = listening().filter { $0.value == port }
        guard let owner = owners(of: Set(sockets.keys)).values.first else { return nil }
        return FileBytes.read("/proc/\(owner.process)/cmdline", limit: 1 << 20)
    }

    /// Inode to port of everything that listens.
    private static func listening() -> [String: UInt16] {
        var inodes: [String: UInt16] = [:]
        for path in ["/proc/net/tcp", "/proc/net/tcp6"] {
            guard let text = FileBytes.read(path, limit: 16 << 20) else { continue }
            inodes.merge(parse(String(decoding: text, as: UTF8.self))) { first, _ in first }
        }
        return inodes
    }

    /// Inode to port of the sockets in state LISTEN (`0A`).
    package static func parse(_ table: String) -> [String: UInt16] {
        var result: [String: UInt16] = [:]
        for line in table.split(separator: "\n").dropFirst() {
            let fields = line.split(separator: " ", omittingEmptySubsequences: true)
            guard fields.count > 9, fields[3] == "0A", let colon = fields[1].lastIndex(of: ":"),
                let port = UInt16(fields[1][fields[1].index(after: colon)...], radix: 16)
            else { continue }
            result[String(fields[9])] = port
        }
        return result
    }

    private static func owners(of inodes: Set<String>) -> [String: (process: Int32, name: String)] {
        var result: [String: (process: Int32, name: String)] = [:]
        for entry in names(in: "/proc") {
            guard let process = Int32(entry) else { continue }
            for file in names(in: "/proc/\(entry)/fd") {
                var target = [UInt8](repeating: 0, count: 64)
                let count = target.withUnsafeMutableBytes {
                    readlink(
                        "/proc/\(entry)/fd/\(file)", $0.assumingMemoryBound(to: CChar.self).baseAddress!, 64)
                }
                guard count > 9, String(decoding: target[..<8], as: UTF8.self) == "socket:[" else { continue }
                let inode = String(decoding: target[8..<count - 1], as: UTF8.self)
                guard inodes.contains(inode), result[inode] == nil else { continue }
                let name = FileBytes.read("/proc/\(entry)/comm", limit: 4_096) ?? []
                result[inode] = (process, String(decoding: name.prefix { $0 != 10 }, as: UTF8.self))
            }
        }
        return result
    }

    private static func names(in path: String) -> [String] {
        guard let directory = opendir(path) else { return [] }
        defer { closedir(directory) }
        var result: [String] = []
        while let entry = readdir(directory) {
            let name = withUnsafeBytes(of: entry.pointee.d_name) {
                String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
            }
            if name != ".", name != ".." { result.append(name) }
        }
        return result
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import SSH

extension LocalFileSystem {
    /// 8 MiB in one turn of the connection, whose other channels wait meanwhile: some milliseconds. The kernel shares
    /// blocks where the file system can.
    private static let copyChunk: UInt64 = 8 << 20

    mutating func copy(
        _ source: Handle, _ from: UInt64, limit: UInt64, to target: Handle, _ offset: UInt64
    ) throws(SFTPStatus) -> UInt64 {
        guard var reading = Int64(exactly: from), var writing = Int64(exactly: offset) else { throw .failure }
        // A file that is copied into itself grows while it is read; OpenSSH refuses it, too.
        guard try !Self.isSame(source, target) else { throw .failure }
        let size = min(limit, Self.copyChunk)
        do {
            let count = try Descriptor.copyRange(
                from: source.number, at: &reading, to: target.number, at: &writing, limit: Int(size))
            return UInt64(count)
        } catch  where [EXDEV, EINVAL, ENOSYS, EOPNOTSUPP, EBADF].contains(error.code) {
            return try copyByHand(source, from, size, to: target, offset)
        } catch {
            throw Self.status(error.code)
        }
    }

    private static func isSame(_ one: Handle, _ other: Handle) throws(SFTPStatus) -> Bool {
        var (first, second) = (stat(), stat())
        guard fstat(one.number, &first) == 0, fstat(other.number, &second) == 0 else { throw status(errno) }
        return first.st_dev == second.st_dev && first.st_ino == second.st_ino
    }

    /// For files that the kernel does not copy between.
    private mutating func copyByHand(
        _ source: Handle, _ from: UInt64, _ length: UInt64, to target: Handle, _ offset: UInt64
    ) throws(SFTPStatus) -> UInt64 {
        var buffer = [UInt8](repeating: 0, count: 1 << 20)
        var done: UInt64 = 0
        while done < length {
            let wanted = Int(min(length - done, UInt64(buffer.count)))
            var failure: SFTPStatus?
            var count = 0
            buffer.withUnsafeMutableBytes { space in
                do {
                    count = try read(
                        source, offset: from + done,
                        into: UnsafeMutableRawBufferPointer(rebasing: space[..<wanted]))
                    try write(
                        target, offset: offset + done, UnsafeRawBufferPointer(rebasing: space[..<count]))
                } catch {
                    failure = error as? SFTPStatus ?? .failure
                }
            }
            if let failure { throw failure }
            done += UInt64(count)
            if count < wanted { break }
        }
        return done
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import SSH

extension LocalFileSystem {
    /// 64 MiB in one call of the kernel, which shares blocks where the file system can.
    private static let copyChunk: UInt64 = 64 << 20

    // Other channels of the connection wait meanwhile, as they do for any file operation.
    mutating func copy(
        _ source: Handle, _ from: UInt64, _ length: UInt64, to target: Handle, _ offset: UInt64
    ) throws(SFTPStatus) {
        guard source !== target, let start = Int64(exactly: from), let end = Int64(exactly: offset) else {
            throw .failure
        }
        var (reading, writing) = (start, end)
        var left = length == 0 ? UInt64.max : length
        while left > 0 {
            let count: Int
            do {
                count = try Descriptor.copyRange(
                    from: source.number, at: &reading, to: target.number, at: &writing,
                    limit: Int(min(left, Self.copyChunk)))
            } catch  where [EXDEV, EINVAL, ENOSYS, EOPNOTSUPP].contains(error.code) {
                return try copyByHand(source, UInt64(reading), left, to: target, UInt64(writing))
            } catch {
                throw Self.status(error.code)
            }
            guard count > 0 else { break }
            left -= UInt64(count)
        }
    }

    /// For files that the kernel does not copy between.
    private mutating func copyByHand(
        _ source: Handle, _ from: UInt64, _ length: UInt64, to target: Handle, _ offset: UInt64
    ) throws(SFTPStatus) {
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
            guard count > 0 else { return }
            done += UInt64(count)
        }
    }
}

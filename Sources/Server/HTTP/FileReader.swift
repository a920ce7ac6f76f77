// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO

/// Reads a file piece by piece.
struct FileReader: ~Copyable {
    private let descriptor: OwnedDescriptor

    /// Opens `path` and moves to `offset`.
    init(path: String, offset: Int = 0) throws(SystemError) {
        let number = open(path, O_RDONLY | O_CLOEXEC)
        guard number >= 0 else { throw SystemError(call: "open") }
        guard lseek(number, off_t(offset), SEEK_SET) == off_t(offset) else {
            close(number)
            throw SystemError(call: "lseek")
        }
        descriptor = OwnedDescriptor(taking: number)
    }

    /// Up to `count` bytes; none at the end of the file.
    mutating func read(upTo count: Int) throws(SystemError) -> [UInt8] {
        let number = descriptor.number
        let bytes = [UInt8](unsafeUninitializedCapacity: count) { buffer, filled in
            filled = max(0, Glibc.read(number, buffer.baseAddress, count))
        }
        return bytes
    }

    /// Whole content of a small file, or nil when it cannot be read.
    static func text(_ path: String) -> String? {
        guard var reader = try? FileReader(path: path), let bytes = try? reader.read(upTo: 65_536) else {
            return nil
        }
        return String(decoding: bytes, as: UTF8.self)
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO

/// What the system says of this process.
enum MeshMemory {
    /// Resident bytes now; 0 where /proc is missing.
    static var residentBytes: Int {
        let number = open("/proc/self/statm", O_RDONLY | O_CLOEXEC)
        guard number >= 0 else { return 0 }
        defer { OwnedDescriptor(taking: number).close() }
        var text = [UInt8](repeating: 0, count: 200)
        let count = read(number, &text, text.count)
        let fields = String(decoding: text.prefix(max(0, count)), as: UTF8.self).split(separator: " ")
        return (fields.count > 1 ? Int(fields[1]) ?? 0 : 0) * Int(sysconf(Int32(_SC_PAGESIZE)))
    }
}

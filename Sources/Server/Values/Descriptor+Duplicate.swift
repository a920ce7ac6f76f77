// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO

extension Descriptor {
    /// A second, close-on-exec descriptor of the same open file, or -1.
    static func duplicate(_ number: Int32) -> Int32 { fcntl(number, F_DUPFD_CLOEXEC, 3) }
}

// SPDX-License-Identifier: Apache-2.0

import Glibc
import LinuxIO
import Testing

@Suite struct PrivateNameTests {
    private func mode(_ path: String) -> mode_t? {
        var status = stat()
        return lstat(path, &status) == 0 ? status.st_mode : nil
    }

    @Test func filesAndDirectoriesAreTheirOwners() throws {
        let directory = try PrivateName.directory("/tmp/coder-private-name.")
        defer { rmdir(directory) }
        #expect(mode(directory) == S_IFDIR | 0o700)
        let first = try PrivateName.file("\(directory)/f-"), second = try PrivateName.file("\(directory)/f-")
        let paths = [first.path, second.path]
        defer { for path in paths { unlink(path) } }
        #expect(paths[0] != paths[1] && paths.allSatisfy { $0.hasPrefix("\(directory)/f-") })
        for path in paths { #expect(mode(path) == S_IFREG | 0o600) }
        #expect(fcntl(first.descriptor.number, F_GETFD) == FD_CLOEXEC)
    }

    @Test func aMissingDirectoryIsAnError() {
        #expect(throws: SystemError.self) { _ = try PrivateName.directory("/nowhere/x-") }
        #expect(throws: SystemError.self) { _ = try PrivateName.file("/nowhere/x-").path }
    }
}

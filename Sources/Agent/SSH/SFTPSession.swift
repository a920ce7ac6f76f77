// SPDX-License-Identifier: Apache-2.0

internal import SSH

/// The sftp subsystem of one session.
final class SFTPSession {
    var server = SFTPServer<LocalFileSystem>()
    private var fileSystem: LocalFileSystem

    init(directory: String, home: String) { fileSystem = LocalFileSystem(directory: directory, home: home) }

    /// Serves what has come. False: the client broke the protocol.
    func serve() -> Bool {
        do {
            while try server.serve(&fileSystem) {}
            return true
        } catch {
            return false
        }
    }

    func close() { server.closeAll(&fileSystem) }
}

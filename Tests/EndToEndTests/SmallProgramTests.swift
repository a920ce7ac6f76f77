// SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc
import TestSupport
import Testing

/// The executable for other machines: one file, small, and in need of nothing.
@Suite struct SmallProgramTests {
    private static let program = URL(filePath: Deployment.binary).deletingLastPathComponent().appending(
        path: "coder-slim")

    /// Without symbols, in a folder of its own.
    private static func stripped() async throws -> URL {
        let folder = FileManager.default.temporaryDirectory.appending(
            path: "slim-\(UUID().uuidString.prefix(8))")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        let file = folder.appending(path: "coder-slim")
        let strip = try await Command.run(["strip", "-o", file.path, program.path])
        #expect(strip.status == 0, "\(strip)")
        return file
    }

    @Test func itIsSmall() async throws {
        let file = try await Self.stripped()
        defer { try? FileManager.default.removeItem(at: file.deletingLastPathComponent()) }
        let size = try #require(try file.resourceValues(forKeys: [.fileSizeKey]).fileSize)
        #expect(size <= 30 << 20, "30 MiB at most")
    }

    @Test func itNeedsNoLibrary() async throws {
        let headers = try await Command.run(["readelf", "--program-headers", "--dynamic", Self.program.path])
        #expect(headers.status == 0, "\(headers)")
        #expect(!headers.text.contains("INTERP") && !headers.text.contains("NEEDED"))
    }

    @Test(.enabled(if: getuid() == 0, "needs root")) func itRunsWhereNothingElseIs() async throws {
        let file = try await Self.stripped()
        let folder = file.deletingLastPathComponent()
        defer { try? FileManager.default.removeItem(at: folder) }
        // As in a container: an empty image, and /proc.
        try FileManager.default.createDirectory(
            at: folder.appending(path: "proc"), withIntermediateDirectories: false)
        let script = "mount -t proc proc \"$0/proc\" && exec chroot \"$0\" /coder-slim version"
        let version = try await Command.run(["unshare", "-m", "sh", "-c", script, folder.path])
        #expect(version.status == 0 && version.text.contains("v2.30."), "\(version)")
    }
}

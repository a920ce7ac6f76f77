// SPDX-License-Identifier: Apache-2.0

internal import Crypto
internal import Glibc
internal import Synchronization

/// Programs to download, and the scripts that fetch them.
struct DownloadRoutes {
    let services: Services
    private let programs = ProgramCache()

    init(services: Services) { self.services = services }

    func register(_ routes: RouteTable) {
        for method in [HTTPMethod.get, .head] {
            routes.root(method, "/bin/{name}", .anonymous) { try await binary($0) }
        }
        routes.api(.get, "init-script/{os}/{arch}", .anonymous) { call in
            let (system, architecture) = (call.parameter("os"), call.parameter("arch"))
            guard system == "linux", ["amd64", "arm64", "armv7"].contains(architecture) else {
                throw APIError(400, "Unknown os/arch: \(system)/\(architecture)")
            }
            let script = Scripts.agent(url: services.publicURL(for: call), architecture: architecture)
            var reply = Reply.text(script)
            reply.fields = [("Content-Digest", "sha256:" + Digest.hex(Digest.sha256(Array(script.utf8))))]
            return reply
        }
        routes.root(.get, "/install.sh", .anonymous) { call in
            .text(
                Scripts.install(url: services.publicURL(for: call)),
                type: "text/x-shellscript; charset=utf-8")
        }
    }

    // MARK: Programs

    private func binary(_ call: Call) async throws -> Reply {
        let name = call.parameter("name").replacing("_", with: "-")
        guard name == "coder-linux-" + Self.architecture else {
            return .text("404 page not found\n", status: 404)
        }
        let program = try await programs.program()
        let tag = "\"\(program.sha1)\""
        let wanted = call.head.tokens("if-none-match").map { $0.replacing("w/", with: "") }
        var fields = [
            (name: "ETag", value: tag), ("X-Original-Content-Length", String(program.size)),
            ("Accept-Ranges", "bytes"), ("Content-Disposition", "attachment; filename=\"coder\""),
        ]
        if wanted.contains(tag) || wanted.contains("*") {
            return Reply(status: 304, fields: fields, body: .none)
        }
        var (offset, count, status) = (0, program.size, 200)
        if let range = call.head.first("range"), let part = Self.range(range, size: program.size) {
            guard part.offset < program.size else {
                fields.append(("Content-Range", "bytes */\(program.size)"))
                return Reply(status: 416, fields: fields, body: .none)
            }
            (offset, count, status) = (part.offset, part.count, 206)
            fields.append(("Content-Range", "bytes \(offset)-\(offset + count - 1)/\(program.size)"))
        }
        return Reply(
            status: status, fields: fields,
            body: .file(path: program.path, offset: offset, count: count, type: "application/octet-stream"))
    }

    /// One range of bytes (RFC 9110 §14.1.2); nil for anything else, which is then ignored.
    static func range(_ text: String, size: Int) -> (offset: Int, count: Int)? {
        guard text.hasPrefix("bytes="), !text.contains(",") else { return nil }
        let parts = text.dropFirst(6).split(separator: "-", omittingEmptySubsequences: false)
        guard parts.count == 2 else { return nil }
        if parts[0].isEmpty {
            guard let last = Int(parts[1]), last > 0 else { return nil }
            return (max(0, size - last), min(size, last))
        }
        guard let first = Int(parts[0]), first >= 0 else { return nil }
        guard !parts[1].isEmpty else { return (first, max(0, size - first)) }
        guard let last = Int(parts[1]), last >= first else { return nil }
        return (first, min(last, size - 1) - first + 1)
    }

    /// In Go's words.
    static var architecture: String {
        #if arch(arm64)
            "arm64"
        #else
            "amd64"
        #endif
    }
}

/// The program that `/bin` serves: the first of `coder-slim.stripped` and `coder-slim` that is beside the running one,
/// else that one.
private final class ProgramCache: Sendable {
    struct Program: Sendable {
        var path: String
        var size: Int
        var modified: Int
        var sha1: String
    }

    private let known = Mutex<Program?>(nil)

    /// Reads the file for its hash the first time, and again when it has changed.
    func program() async throws -> Program {
        let path = Self.path()
        var info = stat()
        guard stat(path, &info) == 0 else { throw APIError(404, "This server has no program to offer.") }
        let (size, modified) = (Int(info.st_size), Int(info.st_mtim.tv_sec))
        if let program = known.withLock({ $0 }), program.path == path, program.size == size,
            program.modified == modified
        {
            return program
        }
        var hash = Insecure.SHA1()
        var reader = try FileReader(path: path)
        while true {
            let piece = try reader.read(upTo: 1 << 20)
            if piece.isEmpty { break }
            hash.update(data: piece)
            await Task.yield()
        }
        let program = Program(path: path, size: size, modified: modified, sha1: Digest.hex(hash.finalize()))
        known.withLock { $0 = program }
        return program
    }

    private static func path() -> String {
        var buffer = [CChar](repeating: 0, count: 4096)
        let count = readlink("/proc/self/exe", &buffer, buffer.count - 1)
        guard count > 0 else { return "/proc/self/exe" }
        let own = String(decoding: buffer.prefix(count).map { UInt8(bitPattern: $0) }, as: UTF8.self)
        let folder = own.split(separator: "/", omittingEmptySubsequences: false).dropLast().joined(
            separator: "/")
        let small = ["coder-slim.stripped", "coder-slim"].map { folder + "/" + $0 }
        return small.first { access($0, R_OK) == 0 } ?? own
    }
}

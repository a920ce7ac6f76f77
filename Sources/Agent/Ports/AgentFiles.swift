// SPDX-License-Identifier: Apache-2.0

internal import FoundationEssentials
internal import Glibc
internal import LinuxIO

/// Files of the workspace over HTTP, for file sync on desktops and for tools. agent.md §5.3. As whoever the agent runs
/// as, which is who its shells are.
struct AgentFiles {
    /// 16 MiB: a list of edits, and a file that is edited.
    private static let editLimit = 16 << 20
    /// Entries of one listing.
    private static let entryLimit = 100_000

    let home: String

    /// An error as the API tells it.
    private struct Failure: Error {
        var status: String
        var message: String

        init(_ status: String, _ message: String) { (self.status, self.message) = (status, message) }

        /// Of a system call about `path`.
        init(_ code: Int32, _ path: String) {
            let text = strerror(code).map { String(cString: $0) } ?? "error \(code)"
            message = "\(path): \(text)"
            switch code {
            case ENOENT, ENOTDIR: status = "404 Not Found"
            case EACCES, EPERM, EROFS: status = "403 Forbidden"
            default: status = "500 Internal Server Error"
            }
        }
    }

    /// Serves a request for files. False: it is about something else.
    func serve(_ exchange: HTTPExchange) -> Bool {
        do {
            switch (exchange.method, exchange.path) {
            case ("POST", "/api/v0/list-directory"): exchange.answer("200 OK", try list(exchange))
            case ("GET", "/api/v0/read-file"): try read(exchange)
            case ("POST", "/api/v0/write-file"): try write(exchange)
            case ("POST", "/api/v0/edit-files"): try edit(exchange)
            default: return false
            }
        } catch let failure as Failure {
            exchange.answer(failure.status, HTTPExchange.Message(message: failure.message))
        } catch {
            exchange.answer("500 Internal Server Error", HTTPExchange.Message(message: "\(error)"))
        }
        return true
    }

    private func absolute(_ path: String?) throws -> String {
        guard let path, path.hasPrefix("/"), !path.utf8.contains(0) else {
            throw Failure("400 Bad Request", "file path must be absolute: \"\(path ?? "")\"")
        }
        return path
    }

    // MARK: Listing

    private struct ListRequest: Decodable {
        var path: [String]?
        var relativity: String?
    }

    private struct Listing: Encodable {
        struct Entry: Encodable {
            var name: String
            var absolute_path_string: String
            var is_dir: Bool
        }
        var absolute_path: [String]
        var absolute_path_string: String
        var contents: [Entry]
    }

    private func list(_ exchange: HTTPExchange) throws -> Listing {
        var path = exchange.query["path"] ?? ""
        if path.isEmpty {
            guard let request = exchange.json(ListRequest.self, limit: 1 << 20) else {
                throw Failure("400 Bad Request", "the body is no list of names")
            }
            switch request.relativity ?? "" {
            case "home": path = ([home] + (request.path ?? [])).joined(separator: "/")
            case "root": path = "/" + (request.path ?? []).joined(separator: "/")
            default: throw Failure("400 Bad Request", "unsupported relativity")
            }
        }
        let parts = try absolute(path).split(separator: "/").map(String.init)
        let full = "/" + parts.joined(separator: "/")
        guard let directory = opendir(full) else { throw Failure(errno, full) }
        defer { closedir(directory) }
        var entries: [Listing.Entry] = []
        while entries.count < Self.entryLimit, let entry = readdir(directory) {
            let name = withUnsafeBytes(of: entry.pointee.d_name) {
                String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
            }
            guard name != ".", name != ".." else { continue }
            let place = parts.isEmpty ? "/\(name)" : "\(full)/\(name)"
            entries.append(
                .init(name: name, absolute_path_string: place, is_dir: FileBytes.isDirectory(place)))
        }
        entries.sort { $0.is_dir != $1.is_dir ? $0.is_dir : $0.name < $1.name }
        return Listing(absolute_path: parts, absolute_path_string: full, contents: entries)
    }

    // MARK: Reading and writing

    private func read(_ exchange: HTTPExchange) throws {
        let path = try absolute(exchange.query["path"])
        let file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard file >= 0 else { throw Failure(errno, path) }
        defer { close(file) }
        var status = stat()
        guard fstat(file, &status) == 0, status.st_mode & S_IFMT == S_IFREG else {
            throw Failure("400 Bad Request", "not a file: \(path)")
        }
        func number(_ name: String) throws -> Int? {
            guard let text = exchange.query[name], !text.isEmpty else { return nil }
            guard let value = Int(text), value >= 0 else {
                throw Failure("400 Bad Request", "\(name) is not a number")
            }
            return value
        }
        let size = Int(status.st_size)
        let offset = min(try number("offset") ?? 0, size)
        let limit = try number("limit") ?? 0
        let count = limit > 0 ? min(limit, size - offset) : size - offset
        exchange.answer(file: file, from: offset, count: count, type: Self.type(of: path))
    }

    private static func type(of path: String) -> String {
        let types = [
            "txt": "text/plain; charset=utf-8", "md": "text/markdown; charset=utf-8",
            "html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8",
            "js": "text/javascript; charset=utf-8", "json": "application/json",
            "xml": "text/xml; charset=utf-8",
            "png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "gif": "image/gif",
            "svg": "image/svg+xml", "webp": "image/webp", "pdf": "application/pdf",
        ]
        let name = path.split(separator: "/").last ?? ""
        guard let dot = name.lastIndex(of: ".") else { return "application/octet-stream" }
        return types[name[name.index(after: dot)...].lowercased()] ?? "application/octet-stream"
    }

    private func write(_ exchange: HTTPExchange) throws {
        let path = try absolute(exchange.query["path"])
        guard exchange.bodyBytes != nil else {
            throw Failure("411 Length Required", "the length of the content is not known")
        }
        for slash in path.indices.dropFirst() where path[slash] == "/" {
            mkdir(String(path[..<slash]), 0o755)
        }
        let file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NONBLOCK, 0o666)
        guard file >= 0 else { throw Failure(errno, path) }
        defer { close(file) }
        var code: Int32 = 0
        let isWhole = exchange.readBody { piece in
            code = Self.write(file, piece)
            return code == 0
        }
        guard code == 0 else { throw Failure(code, path) }
        guard isWhole else { throw Failure("400 Bad Request", "the content did not come whole") }
        exchange.answer("200 OK", HTTPExchange.Message(message: "Successfully wrote to \"\(path)\""))
    }

    /// errno, or 0.
    private static func write(_ file: Int32, _ bytes: UnsafeRawBufferPointer) -> Int32 {
        var done = 0
        while done < bytes.count {
            let count = Glibc.write(file, bytes.baseAddress! + done, bytes.count - done)
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { return errno }
            done += count
        }
        return 0
    }

    // MARK: Editing

    private struct EditRequest: Decodable {
        struct File: Decodable {
            struct Edit: Decodable {
                var search: String
                var replace: String
            }
            var path: String
            var edits: [Edit]
        }
        var files: [File]
    }

    private func edit(_ exchange: HTTPExchange) throws {
        guard let request = exchange.json(EditRequest.self, limit: Self.editLimit), !request.files.isEmpty
        else {
            throw Failure("400 Bad Request", "must specify at least one file")
        }
        for file in request.files {
            guard !file.edits.isEmpty else {
                throw Failure("400 Bad Request", "must specify at least one edit: \(file.path)")
            }
            try edit(try absolute(file.path), file.edits)
        }
        exchange.answer("200 OK", HTTPExchange.Message(message: "Successfully edited file(s)"))
    }

    private func edit(_ path: String, _ edits: [EditRequest.File.Edit]) throws {
        var status = stat()
        guard stat(path, &status) == 0 else { throw Failure(errno, path) }
        guard status.st_mode & S_IFMT == S_IFREG, let bytes = FileBytes.read(path, limit: Self.editLimit)
        else {
            throw Failure("400 Bad Request", "not a file that can be edited: \(path)")
        }
        var text = bytes[...]
        for edit in edits where !edit.search.isEmpty {
            text = text.replacing(Array(edit.search.utf8), with: Array(edit.replace.utf8))
        }
        // Beside it, so that nobody sees half of it.
        let temporary: PrivateName.File
        do { temporary = try PrivateName.file("\(path).") } catch { throw Failure(error.code, path) }
        let file = temporary.descriptor.number
        fchmod(file, status.st_mode & 0o7777)
        // Where it is not ours to give away, it stays ours.
        _ = fchown(file, status.st_uid, status.st_gid)
        let code = text.withUnsafeBytes { Self.write(file, $0) }
        guard code == 0, rename(temporary.path, path) == 0 else {
            let reason = code == 0 ? errno : code
            unlink(temporary.path)
            throw Failure(reason, path)
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

import SSH
import Testing

/// A file system in memory: paths to contents, one directory.
struct MemoryFileSystem: SFTPFileSystem {
    enum Handle { case file(String), directory(Int) }
    var files: [String: [UInt8]] = [:]
    var links: [String: String] = [:]
    var listed: [Int: Bool] = [:]
    var nextDirectory = 0
    var closed = 0

    private func name(_ path: ByteString) -> String { path.description }

    mutating func open(
        _ path: ByteString, _ flags: SFTPOpenFlags, _ attributes: SFTPAttributes
    ) throws(SFTPStatus) -> Handle {
        if files[name(path)] == nil {
            guard flags.contains(.create) else { throw .noSuchFile }
            files[name(path)] = []
        } else if flags.contains(.exclusive) {
            throw .failure
        }
        if flags.contains(.truncate) { files[name(path)] = [] }
        return .file(name(path))
    }
    mutating func openDirectory(_ path: ByteString) throws(SFTPStatus) -> Handle {
        guard name(path) == "/" else { throw .noSuchFile }
        nextDirectory += 1
        return .directory(nextDirectory)
    }
    mutating func close(_ handle: Handle) throws(SFTPStatus) { closed += 1 }
    mutating func read(
        _ handle: Handle, offset: UInt64, into buffer: UnsafeMutableRawBufferPointer
    ) throws(SFTPStatus) -> Int {
        guard case .file(let path) = handle, let content = files[path] else { throw .failure }
        guard offset < content.count else { return 0 }
        let part = content[Int(offset)..<min(content.count, Int(offset) + buffer.count)]
        buffer.copyBytes(from: part)
        return part.count
    }
    mutating func write(_ handle: Handle, offset: UInt64, _ bytes: UnsafeRawBufferPointer) throws(SFTPStatus)
    {
        guard case .file(let path) = handle, var content = files[path], offset < 10_000_000 else {
            throw .failure
        }
        let end = Int(offset) + bytes.count
        if content.count < end { content += [UInt8](repeating: 0, count: end - content.count) }
        content.replaceSubrange(Int(offset)..<end, with: bytes)
        files[path] = content
    }
    mutating func readDirectory(_ handle: Handle, limit: Int) throws(SFTPStatus) -> [SFTPEntry] {
        guard case .directory(let number) = handle else { throw .failure }
        guard listed[number] == nil else { return [] }
        listed[number] = true
        return files.keys.sorted().map {
            SFTPEntry(name: ByteString($0), longName: ByteString("- \($0)"), attributes: SFTPAttributes())
        }
    }
    mutating func attributes(of path: ByteString, followLinks: Bool) throws(SFTPStatus) -> SFTPAttributes {
        guard let content = files[name(path)] else { throw .noSuchFile }
        var attributes = SFTPAttributes()
        attributes.size = UInt64(content.count)
        attributes.permissions = 0o100644
        return attributes
    }
    mutating func attributes(of handle: Handle) throws(SFTPStatus) -> SFTPAttributes {
        guard case .file(let path) = handle else { throw .failure }
        return try attributes(of: ByteString(path), followLinks: true)
    }
    mutating func setAttributes(
        of path: ByteString, _ attributes: SFTPAttributes, followLinks: Bool
    ) throws(SFTPStatus) {
        guard files[name(path)] != nil else { throw .noSuchFile }
    }
    mutating func setAttributes(of handle: Handle, _ attributes: SFTPAttributes) throws(SFTPStatus) {}
    mutating func remove(_ path: ByteString) throws(SFTPStatus) {
        guard files.removeValue(forKey: name(path)) != nil else { throw .noSuchFile }
    }
    mutating func makeDirectory(_ path: ByteString, _ attributes: SFTPAttributes) throws(SFTPStatus) {
        throw .permissionDenied
    }
    mutating func removeDirectory(_ path: ByteString) throws(SFTPStatus) { throw .permissionDenied }
    mutating func realPath(_ path: ByteString) throws(SFTPStatus) -> ByteString {
        ByteString("/" + name(path))
    }
    mutating func expandPath(_ path: ByteString) throws(SFTPStatus) -> ByteString { "/home/x" }
    mutating func rename(_ old: ByteString, to new: ByteString, replaces: Bool) throws(SFTPStatus) {
        guard replaces || files[name(new)] == nil else { throw .failure }
        guard let content = files.removeValue(forKey: name(old)) else { throw .noSuchFile }
        files[name(new)] = content
    }
    mutating func readLink(_ path: ByteString) throws(SFTPStatus) -> ByteString {
        guard let target = links[name(path)] else { throw .noSuchFile }
        return ByteString(target)
    }
    mutating func makeSymbolicLink(at path: ByteString, target: ByteString) throws(SFTPStatus) {
        links[name(path)] = name(target)
    }
    mutating func makeHardLink(at path: ByteString, target: ByteString) throws(SFTPStatus) {
        files[name(path)] = files[name(target)]
    }
    mutating func synchronize(_ handle: Handle) throws(SFTPStatus) {}
    mutating func statistics(of path: ByteString) throws(SFTPStatus) -> SFTPFileSystemStatistics {
        SFTPFileSystemStatistics(values: Array(1...11))
    }
    mutating func statistics(of handle: Handle) throws(SFTPStatus) -> SFTPFileSystemStatistics {
        SFTPFileSystemStatistics(values: Array(1...11))
    }
}

@Suite struct SFTPTests {
    typealias Packet = [UInt8]
    static func string(_ text: String) -> [UInt8] { HostilePeerTests.string(text) }
    static func number(_ value: UInt32) -> [UInt8] { HostilePeerTests.number(value) }
    static func long(_ value: UInt64) -> [UInt8] {
        number(UInt32(truncatingIfNeeded: value >> 32)) + number(UInt32(truncatingIfNeeded: value))
    }
    static func packet(_ body: [UInt8]) -> [UInt8] { number(UInt32(body.count)) + body }
    static let start = packet([1] + number(3))
    static let handle = number(4) + number(0)
    static func status(_ code: UInt32, _ text: String) -> [UInt8] {
        [101] + number(7) + number(code) + string(text) + string("")
    }

    /// Feeds packets, returns the bodies of all answers but VERSION.
    private func run(
        _ packets: [[UInt8]], _ system: inout MemoryFileSystem, piece: Int = .max
    ) throws -> [[UInt8]] {
        var server = SFTPServer<MemoryFileSystem>()
        let bytes = ([Self.start] + packets.map(Self.packet)).flatMap(\.self)
        var answers: [UInt8] = []
        var at = 0
        while at < bytes.count {
            let end = piece == .max ? bytes.count : min(bytes.count, at + piece)
            bytes[at..<end].withUnsafeBytes { server.receive($0) }
            at = end
            while true {
                let went = try server.serve(&system)
                answers += server.outgoing
                server.consumeOutgoing(server.outgoingCount)
                if !went { break }
            }
        }
        server.closeAll(&system)
        var bodies: [[UInt8]] = []
        while answers.count >= 4 {
            let length = answers[..<4].reduce(0) { $0 << 8 | Int($1) }
            bodies.append(Array(answers[4..<4 + length]))
            answers.removeFirst(4 + length)
        }
        return Array(bodies.dropFirst())
    }

    struct Case: CustomTestStringConvertible, Sendable {
        var name: String
        var requests: [[UInt8]]
        var last: [UInt8]
        var testDescription: String { name }
    }

    static let open: [UInt8] = [3] + number(7) + string("/a") + number(1) + number(0)
    static let create: [UInt8] = [3] + number(7) + string("/new") + number(2 | 8 | 16) + number(0)
    static let attributes: [UInt8] = [105] + number(7) + number(5) + long(5) + number(0o100644)
    static let cases: [Case] = [
        Case(name: "open", requests: [open], last: [102] + number(7) + handle),
        Case(
            name: "open missing", requests: [[3] + number(7) + string("/no") + number(1) + number(0)],
            last: status(2, "No such file")),
        Case(
            name: "read", requests: [open, [5] + number(7) + handle + long(1) + number(100)],
            last: [103] + number(7) + string("ello")),
        Case(
            name: "read at end", requests: [open, [5] + number(7) + handle + long(5) + number(100)],
            last: status(1, "End of file")),
        Case(
            name: "read of huge count", requests: [open, [5] + number(7) + handle + long(0) + number(.max)],
            last: [103] + number(7) + string("hello")),
        Case(
            name: "write and fstat",
            requests: [create, [6] + number(7) + handle + long(2) + string("abc"), [8] + number(7) + handle],
            last: attributes),
        Case(name: "close", requests: [open, [4] + number(7) + handle], last: status(0, "Success")),
        Case(
            name: "closed handle", requests: [open, [4] + number(7) + handle, [4] + number(7) + handle],
            last: status(4, "Failure")),
        Case(name: "stat", requests: [[17] + number(7) + string("/a")], last: attributes),
        Case(name: "lstat", requests: [[7] + number(7) + string("/a")], last: attributes),
        Case(
            name: "setstat", requests: [[9] + number(7) + string("/a") + number(0)],
            last: status(0, "Success")),
        Case(
            name: "readdir", requests: [[11] + number(7) + string("/"), [12] + number(7) + handle],
            last: [104] + number(7) + number(1) + string("/a") + string("- /a") + number(0)),
        Case(
            name: "readdir end",
            requests: [[11] + number(7) + string("/"), [12] + number(7) + handle, [12] + number(7) + handle],
            last: status(1, "End of file")),
        Case(
            name: "readdir of a file", requests: [open, [12] + number(7) + handle], last: status(4, "Failure")
        ),
        Case(name: "remove", requests: [[13] + number(7) + string("/a")], last: status(0, "Success")),
        Case(
            name: "mkdir", requests: [[14] + number(7) + string("/d") + number(0)],
            last: status(3, "Permission denied")),
        Case(
            name: "rmdir", requests: [[15] + number(7) + string("/d")], last: status(3, "Permission denied")),
        Case(
            name: "realpath", requests: [[16] + number(7) + string("x")],
            last: [104] + number(7) + number(1) + string("/x") + string("/x") + number(0)),
        Case(
            name: "rename", requests: [[18] + number(7) + string("/a") + string("/b")],
            last: status(0, "Success")),
        Case(
            name: "rename onto a file", requests: [create, [18] + number(7) + string("/a") + string("/new")],
            last: status(4, "Failure")),
        Case(
            name: "posix-rename onto a file",
            requests: [
                create,
                [200] + number(7) + string("posix-rename@openssh.com") + string("/a") + string("/new"),
            ],
            last: status(0, "Success")),
        Case(
            name: "symlink and readlink",
            requests: [[20] + number(7) + string("target") + string("/l"), [19] + number(7) + string("/l")],
            last: [104] + number(7) + number(1) + string("target") + string("target") + number(0)),
        Case(
            name: "hardlink",
            requests: [
                [200] + number(7) + string("hardlink@openssh.com") + string("/a") + string("/h"),
                [17] + number(7) + string("/h"),
            ], last: attributes),
        Case(
            name: "fsync", requests: [open, [200] + number(7) + string("fsync@openssh.com") + handle],
            last: status(0, "Success")),
        Case(
            name: "expand-path",
            requests: [[200] + number(7) + string("expand-path@openssh.com") + string("~x")],
            last: [104] + number(7) + number(1) + string("/home/x") + string("/home/x") + number(0)),
        Case(
            name: "limits", requests: [[200] + number(7) + string("limits@openssh.com")],
            last: [201] + number(7) + long(262144) + long(261120) + long(261120) + long(512)),
        Case(
            name: "statvfs", requests: [[200] + number(7) + string("statvfs@openssh.com") + string("/")],
            last: [201] + number(7) + (1...11).flatMap { long($0) }),
        Case(
            name: "unknown extension", requests: [[200] + number(7) + string("x@y")],
            last: status(8, "Operation unsupported")),
        Case(name: "unknown type", requests: [[99] + number(7)], last: status(8, "Operation unsupported")),
        Case(name: "short fields", requests: [[3] + number(7) + number(90)], last: status(5, "Bad message")),
        Case(
            name: "path with NUL", requests: [[17] + number(7) + string("/a\0b")],
            last: status(2, "No such file")),
    ]

    @Test(arguments: cases, [1, 3, Int.max]) func table(test: Case, piece: Int) throws {
        var system = MemoryFileSystem(files: ["/a": Array("hello".utf8)])
        let answers = try run(test.requests, &system, piece: piece)
        expect(answers.count == test.requests.count)
        expect(answers.last == test.last)
    }

    @Test(arguments: cases) func truncationsAndChangesAreAnswered(test: Case) throws {
        var generator = TestGenerator(9)
        for request in test.requests {
            for length in 5..<max(5, request.count) {
                var system = MemoryFileSystem(files: ["/a": [1, 2, 3]])
                expect(try run([Array(request[..<length])], &system).count == 1)
            }
            for _ in 0..<(request.count > 5 ? 30 : 0) {
                var changed = request
                changed[Int.random(in: 5..<request.count, using: &generator)] =
                    UInt8.random(in: 0...255, using: &generator)
                var system = MemoryFileSystem(files: ["/a": [1, 2, 3]])
                expect(try run([Self.open, changed], &system).count == 2)
            }
        }
    }

    @Test func requestsBeforeInitAreRefusedAndLengthsAreBounded() throws {
        var system = MemoryFileSystem()
        var server = SFTPServer<MemoryFileSystem>()
        Self.packet(Self.open).withUnsafeBytes { server.receive($0) }
        expect(try server.serve(&system))
        expect(Array(server.outgoing)[4...].first == 101)
        var other = SFTPServer<MemoryFileSystem>()
        Self.number(300_000).withUnsafeBytes { other.receive($0) }
        #expect(throws: WireError.tooLong(length: 300_000, limit: 262_144)) { try other.serve(&system) }
    }

    @Test func handlesAreLimitedAndClosedAtTheEnd() throws {
        var system = MemoryFileSystem(files: ["/a": []])
        let answers = try run([[UInt8]](repeating: Self.open, count: 600), &system)
        expect(answers.filter { $0.first == 102 }.count == 512)
        expect(answers.filter { $0.first == 101 }.count == 88)
        expect(system.closed == 512)
    }

    @Test func answersWaitWhileNobodyReadsThem() throws {
        var system = MemoryFileSystem(files: ["/a": [UInt8](repeating: 1, count: 300_000)])
        var server = SFTPServer<MemoryFileSystem>()
        let read: [UInt8] = [5] + Self.number(7) + Self.handle + Self.long(0) + Self.number(255 * 1024)
        let bytes =
            Self.start + Self.packet(Self.open)
            + [[UInt8]](repeating: Self.packet(read), count: 50).flatMap(\.self)
        bytes.withUnsafeBytes { server.receive($0) }
        while try server.serve(&system) {}
        expect(server.outgoingCount < 2 * 1024 * 1024)
        let before = server.requests
        server.consumeOutgoing(server.outgoingCount)
        expect(try server.serve(&system))
        expect(server.requests == before + 1)
    }
}

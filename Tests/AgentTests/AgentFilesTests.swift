// SPDX-License-Identifier: Apache-2.0

import Agent
import Glibc
import LinuxIO
import Testing

/// Files over the agent's HTTP API. agent.md §5.3.
@Suite(.timeLimit(.minutes(1))) struct AgentFilesTests {
    private let folder: String

    init() {
        var template = Array("/tmp/files-test.XXXXXX".utf8CString)
        folder = template.withUnsafeMutableBufferPointer { String(cString: mkdtemp($0.baseAddress!)) }
    }

    /// Status and body.
    private func ask(_ method: String, _ target: String, _ body: String = "") throws -> (Int, String) {
        let (mine, theirs) = try Descriptor.socketPair().release()
        let home = folder
        let thread = try DedicatedThread(name: "serve") {
            AgentHTTP(home: home, own: { nil }).serve(OwnedDescriptor(taking: theirs))
        }
        defer { thread.join() }
        let socket = OwnedDescriptor(taking: mine)
        let request =
            "\(method) \(target) HTTP/1.1\r\nHost: x\r\nContent-Length: \(body.utf8.count)\r\n\r\n\(body)"
        try Array(request.utf8).withUnsafeBytes { try Descriptor.writeAll(socket.number, $0) }
        var answer: [UInt8] = []
        var piece = [UInt8](repeating: 0, count: 65_536)
        while true {
            let count = Glibc.read(socket.number, &piece, piece.count)
            guard count > 0 else { break }
            answer += piece[..<count]
        }
        let text = String(decoding: answer, as: UTF8.self)
        let status = try #require(Int(text.split(separator: " ")[1]))
        let parts = text.split(separator: "\r\n\r\n", maxSplits: 1)
        return (status, parts.count > 1 ? String(parts[1]) : "")
    }

    @Test func aFileIsWrittenReadAndEdited() throws {
        let path = "\(folder)/new/deep/f%20%C3%BC.txt"
        #expect(try ask("POST", "/api/v0/write-file?path=\(path)", "one two one").0 == 200)
        #expect(try ask("GET", "/api/v0/read-file?path=\(path)") == (200, "one two one"))
        #expect(try ask("GET", "/api/v0/read-file?path=\(path)&offset=4&limit=3") == (200, "two"))
        #expect(try ask("GET", "/api/v0/read-file?path=\(path)&offset=99") == (200, ""))
        let plain = "\(folder)/new/deep/f ü.txt"
        chmod(plain, 0o640)
        let edits =
            #"{"files":[{"path":"\#(plain)","edits":[{"search":"one","replace":"1"},"#
            + #"{"search":"two","replace":"é"}]}]}"#
        #expect(try ask("POST", "/api/v0/edit-files", edits).0 == 200)
        #expect(try ask("GET", "/api/v0/read-file?path=\(path)") == (200, "1 é 1"))
        var status = stat()
        #expect(stat(plain, &status) == 0 && status.st_mode & 0o777 == 0o640)
    }

    @Test func aDirectoryIsListed() throws {
        mkdir("\(folder)/sub", 0o755)
        close(open("\(folder)/a", O_WRONLY | O_CREAT, 0o600))
        let expected =
            #""contents":[{"absolute_path_string":"\#(folder)/sub","is_dir":true,"name":"sub"},"#
            + #"{"absolute_path_string":"\#(folder)/a","is_dir":false,"name":"a"}]}"#
        let byHome = try ask("POST", "/api/v0/list-directory", #"{"path":[],"relativity":"home"}"#)
        #expect(byHome.0 == 200 && byHome.1.hasSuffix(expected), "\(byHome)")
        let byPath = try ask("POST", "/api/v0/list-directory?path=\(folder)")
        #expect(byPath == byHome)
        let root = try ask(
            "POST", "/api/v0/list-directory", #"{"path":["missing-\#(getpid())"],"relativity":"root"}"#)
        #expect(root.0 == 404)
    }

    @Test(arguments: [
        ("GET", "/api/v0/read-file?path=relative", "", 400),
        ("GET", "/api/v0/read-file?path=/no/such", "", 404),
        ("GET", "/api/v0/read-file?path=/tmp", "", 400), ("GET", "/api/v0/read-file", "", 400),
        ("POST", "/api/v0/write-file?path=x", "y", 400), ("POST", "/api/v0/edit-files", "{}", 400),
        (
            "POST", "/api/v0/edit-files",
            #"{"files":[{"path":"/no/such","edits":[{"search":"a","replace":"b"}]}]}"#, 404
        ),
        ("POST", "/api/v0/list-directory", "nonsense", 400), ("POST", "/", "", 405), ("GET", "/no", "", 404),
    ])
    func isRefused(method: String, target: String, body: String, status: Int) throws {
        #expect(try ask(method, target, body).0 == status)
    }
}

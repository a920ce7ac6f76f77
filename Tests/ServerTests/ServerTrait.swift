// SPDX-License-Identifier: Apache-2.0

import Dispatch
import Foundation
import Glibc
import HTTPTransport
import Server
import Testing

/// One real server for all tests of a suite, on a private PostgreSQL in a temporary directory; stopped at the end.
/// Its first user is `ann`, an owner.
struct ServerTrait: SuiteTrait, TestScoping {
    func provideScope(
        for test: Test, testCase: Test.Case?,
        performing function: @concurrent @Sendable () async throws -> Void
    ) async throws {
        let server = try await TestServer.start()
        do {
            try await TestServer.$current.withValue(server) { try await function() }
        } catch {
            await server.stop()
            throw error
        }
        await server.stop()
    }
}

extension Trait where Self == ServerTrait {
    static var server: Self { ServerTrait() }
}

/// A running server and a client for it.
final class TestServer: Sendable {
    @TaskLocal static var current: TestServer?

    let directory: String
    let hosted: HostedServer
    let client: HTTPClient
    let token: String

    static let password = "correct horse battery 7"

    /// The suite's server.
    static func shared() throws -> TestServer { try #require(current) }

    /// A directory that PostgreSQL's own user can reach, too.
    static func temporaryDirectory() throws -> String {
        let path = "/tmp/coder-test-\(UUID().uuidString.prefix(8))"
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        chmod(path, 0o755)
        return path
    }

    static func options(_ directory: String) -> ServerOptions {
        var options = ServerOptions(configDirectory: directory)
        options.httpAddress = "127.0.0.1:0"
        options.stunListenAddress = "127.0.0.1:0"
        options.apiRateLimit = -1
        return options
    }

    static func start(_ change: (inout ServerOptions) -> Void = { _ in }) async throws -> TestServer {
        let directory = try temporaryDirectory()
        var settings = options(directory)
        change(&settings)
        let hosted = try await HostedServer(settings)
        let client = HTTPClient()
        let url = try #require(HTTPURL("http://127.0.0.1:\(hosted.ports[0])"))
        func post(_ path: String, _ body: [String: Any]) async throws -> [String: Any] {
            let bytes = Array(try JSONSerialization.data(withJSONObject: body))
            let answer = try await client.request("POST", url.appending("api/v2/\(path)"), body: bytes)
            #expect(answer.status == 201, "\(path): \(answer.text)")
            return try #require(try JSONSerialization.jsonObject(with: Data(answer.body)) as? [String: Any])
        }
        _ = try await post(
            "users/first",
            ["email": "ann@example.org", "username": "ann", "name": "Ann", "password": password])
        let login = try await post("users/login", ["email": "ann@example.org", "password": password])
        return TestServer(
            directory, hosted, settings, client: client,
            token: try #require(login["session_token"] as? String))
    }

    private let options: ServerOptions

    private init(
        _ directory: String, _ hosted: HostedServer, _ options: ServerOptions, client: HTTPClient,
        token: String
    ) {
        self.directory = directory
        self.hosted = hosted
        self.options = options
        self.client = client
        self.token = token
    }

    /// The same server once more at the same address, after it was stopped.
    func restarted() async throws -> TestServer {
        var options = options
        options.httpAddress = "127.0.0.1:\(port)"
        return TestServer(
            directory, try await HostedServer(options), options, client: client, token: token)
    }

    func stop() async {
        await client.shutDown()
        await hosted.stop()
        try? FileManager.default.removeItem(atPath: directory)
    }

    var port: Int { hosted.ports[0] }

    func url(_ path: String) throws -> HTTPURL {
        try #require(HTTPURL("http://127.0.0.1:\(port)\(path)"))
    }

    /// Sends a request below `/api/v2` and returns status, JSON and headers.
    func call(
        _ method: String, _ path: String, _ body: [String: Any]? = nil, token: String? = nil,
        headers: HeaderFields = HeaderFields()
    ) async throws -> Answer {
        var fields = headers
        let key = token ?? self.token
        if !key.isEmpty { fields.add("Coder-Session-Token", key) }
        let bytes = try body.map { Array(try JSONSerialization.data(withJSONObject: $0)) }
        let answer = try await client.request(method, url("/api/v2/\(path)"), headers: fields, body: bytes)
        return Answer(response: answer)
    }

    /// What came back.
    struct Answer {
        let response: HTTPResponse
        var status: Int { response.status }
        var json: Any? {
            try? JSONSerialization.jsonObject(with: Data(response.body), options: [.fragmentsAllowed])
        }
        var object: [String: Any] { json as? [String: Any] ?? [:] }
        var list: [[String: Any]] { json as? [[String: Any]] ?? [] }
        func text(_ key: String) -> String { object[key] as? String ?? "" }
    }

    /// Makes a workspace from the built-in template and returns it.
    func makeWorkspace(_ name: String) async throws -> [String: Any] {
        let template = try #require(try await call("GET", "templates").list.first)
        let made = try await call(
            "POST", "users/me/workspaces", ["template_id": template["id"] as? String ?? "", "name": name])
        #expect(made.status == 201, "\(made.response.text)")
        return made.object
    }

    /// Id of the one agent of a workspace's latest build.
    static func agent(of workspace: [String: Any]) -> [String: Any] {
        let build = workspace["latest_build"] as? [String: Any]
        let resources = build?["resources"] as? [[String: Any]]
        return (resources?.first?["agents"] as? [[String: Any]])?.first ?? [:]
    }
}

/// A plain TCP connection, for bytes that no HTTP client would send. Blocking calls run on a queue of its own: the
/// server under test needs the shared threads.
final class RawConnection: Sendable {
    private let number: Int32
    private let queue = DispatchQueue(label: "raw")

    init(port: Int) throws {
        number = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = UInt16(port).bigEndian
        address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
        let result = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(number, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        try #require(result == 0)
        var limit = timeval(tv_sec: 10, tv_usec: 0)
        setsockopt(number, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    }

    deinit { close(number) }

    func send(_ text: String) async { await send(Array(text.utf8)) }

    func send(_ bytes: [UInt8]) async {
        await onQueue { _ = Glibc.send(self.number, bytes, bytes.count, Int32(MSG_NOSIGNAL)) }
    }

    /// Bytes until `count` have come or the server closed.
    func read(_ count: Int) async -> [UInt8] {
        await onQueue { self.readNow(count) }
    }

    /// One response: head, and a body as long as Content-Length says.
    func readResponse() async -> (head: String, body: String) {
        await onQueue {
            var head: [UInt8] = []
            while !head.suffix(4).elementsEqual([13, 10, 13, 10]) {
                let byte = self.readNow(1)
                if byte.isEmpty { break }
                head += byte
            }
            let text = String(decoding: head, as: UTF8.self)
            let length = text.lowercased().split(separator: "\r\n").first { $0.hasPrefix("content-length:") }
            let count = length.flatMap { Int($0.dropFirst("content-length:".count).drop { $0 == " " }) } ?? 0
            return (text, String(decoding: self.readNow(count), as: UTF8.self))
        }
    }

    /// Whether the server has closed the connection.
    func isClosed() async -> Bool { await read(1).isEmpty }

    private func readNow(_ count: Int) -> [UInt8] {
        var result: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 65_536)
        while result.count < count {
            let got = recv(number, &buffer, min(buffer.count, count - result.count), 0)
            guard got > 0 else { break }
            result += buffer[..<got]
        }
        return result
    }

    private func onQueue<R: Sendable>(_ body: @escaping @Sendable () -> R) async -> R {
        await withCheckedContinuation { continuation in
            queue.async { continuation.resume(returning: body()) }
        }
    }
}

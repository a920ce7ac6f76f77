// SPDX-License-Identifier: Apache-2.0

import Agent
import Glibc
import LinuxIO
import Mesh
import RPC
import Synchronization
import Testing

@Suite(.timeLimit(.minutes(1))) struct ServicesTests {
    @Test func `listening ports are read from the kernel's table`() {
        let table = """
              sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
               0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4242 1 x
               1: 0100007F:1F91 0100007F:0016 01 00000000:00000000 00:00000000 00000000  1000        0 4243 1 x
               2: garbage
            """
        #expect(ListeningPort.parse(table) == ["4242": 8_080])
    }

    @Test func `the log file is rotated and keeps a number of old ones`() {
        let directory = temporaryDirectory()
        let file = RotatingFile(path: "\(directory)/agent.log", limit: 100, backups: 2)
        for index in 0..<10 { file.write("line \(index) " + String(repeating: "x", count: 40) + "\n") }
        #expect(content("\(directory)/agent.log").hasPrefix("line 8"))
        #expect(content("\(directory)/agent.log.1").hasPrefix("line 6"))
        #expect(content("\(directory)/agent.log.2").hasPrefix("line 4"))
        #expect(access("\(directory)/agent.log.3", F_OK) != 0)
        var status = stat()
        #expect(stat("\(directory)/agent.log", &status) == 0 && status.st_mode & 0o777 == 0o600)
    }

    @Test func `HTTP answers one request`() throws {
        let response = try exchange("GET / HTTP/1.1\r\nHost: x\r\n\r\n") { AgentHTTP(own: { nil }).serve($0) }
        #expect(response.hasPrefix("HTTP/1.1 200 OK\r\n"))
        #expect(response.hasSuffix(#"{"message":"Hello from the agent!"}"#))
        let ports = try exchange("GET /api/v0/listening-ports HTTP/1.1\r\n\r\n") {
            AgentHTTP(own: { nil }).serve($0)
        }
        #expect(ports.contains(#"{"ports":["#))
        #expect(
            try exchange("GET /no HTTP/1.1\r\n\r\n") { AgentHTTP(own: { nil }).serve($0) }.contains(" 404 "))
        #expect(try exchange("what\r\n\r\n") { AgentHTTP(own: { nil }).serve($0) }.contains(" 400 "))
    }

    /// Users of a shared workspace must not learn from where the others connect.
    @Test func `a peer gets its own records only`() async throws {
        var generator = SystemRandomNumberGenerator()
        let own = IPAddress("fd7a:115c:a1e0::1")!
        var configuration = NodeConfiguration(
            privateKey: PrivateKey(using: &generator), discoKey: PrivateKey(using: &generator),
            addresses: [own])
        configuration.binding = .loopback
        let node = try Node(configuration)
        let others = (1...2).map { IPAddress("fd7a:115c:a1e0::\($0 + 1)")! }
        for (place, address) in others.enumerated() {
            node.updatePeer(
                MeshPeer(
                    id: MeshPeerID(low: UInt64(place + 1)),
                    key: PrivateKey(using: &generator).nodePublicKey,
                    discoKey: PrivateKey(using: &generator).discoPublicKey, homeRegion: 0,
                    addresses: [address], allowedIPs: [IPPrefix(host: address)],
                    endpoints: [SocketAddress("192.0.2.\(place + 1):4")!]))
        }
        let recordings = try await node.recordings()
        #expect(recordings.count == 2)
        let http = AgentHTTP(own: { nil }, recordings: { recordings })
        let request = "GET /api/v0/path-recordings HTTP/1.1\r\n\r\n"
        let answer = try exchange(request) { http.serve($0, from: others[0]) }
        #expect(answer.contains("192.0.2.1:4") && !answer.contains("192.0.2.2:4"))
        let nobody = try exchange(request) { http.serve($0) }
        #expect(nobody.hasSuffix(#"{"recordings":[]}"#))
        await node.close()
    }

    @Test func `the speed test checks its request`() throws {
        for request in [
            "{}", #"{"version":1,"time":1,"direction":0}"#, #"{"version":2,"time":0,"direction":0}"#,
        ] {
            #expect(try exchange(request + "\n") { SpeedTest.serve($0) }.hasPrefix(#"{"error":"#))
        }
    }

    @Test func `the speed test sends for the time asked`() throws {
        let response = try exchangeBytes(Array(#"{"version":2,"time":50000000,"direction":0}"#.utf8) + [10]) {
            SpeedTest.serve($0)
        }
        #expect(response.starts(with: Array("{}\n".utf8)))
        #expect(response.count > 1 << 20)
    }

    @Test func `a script's output is split into lines, its exit code is kept`() throws {
        let (result, lines) = try run("printf 'one\\ntwo\\r\\n'; echo three >&2; printf last; exit 3")
        #expect(result == (.exitFailure, 3))
        #expect(Set(lines) == ["info one", "info two", "error three", "info last"])
    }

    @Test func `a script that takes too long is hung up`() throws {
        let (result, _) = try run("trap 'exit 7' HUP; while :; do sleep 0.05; done", timeout: 200_000_000)
        #expect(result == (.timedOut, 7))
    }

    @Test func `a script that cannot be run fails with 255`() throws {
        let (result, lines) = try run("", shell: "/nonexistent")
        #expect(result == (.exitFailure, 255))
        #expect(lines.count == 1)
    }
}

private func run(
    _ script: String, shell: String = "/bin/sh", timeout: UInt64? = nil
) throws -> ((AgentTiming.Status, Int32), [String]) {
    let plan = ScriptPlan(
        path: shell, arguments: [shell, "-c", script], environment: [Array("PATH=/usr/bin:/bin".utf8)],
        directory: "/", logPath: "\(temporaryDirectory())/script.log", timeoutNanoseconds: timeout)
    var lines: [String] = []
    let result = ScriptProcess(plan, cancelled: try WakeUp()) { lines.append("\($1) \($0)") }.run()
    return ((result.status, result.exitCode), lines)
}

private func == (a: (AgentTiming.Status, Int32), b: (AgentTiming.Status, Int32)) -> Bool {
    a.0 == b.0 && a.1 == b.1
}

private func temporaryDirectory() -> String {
    var template = Array("/tmp/agent-test-XXXXXX".utf8CString)
    return template.withUnsafeMutableBufferPointer { String(cString: mkdtemp($0.baseAddress!)) }
}

private func content(_ path: String) -> String {
    let number = open(path, O_RDONLY)
    guard number >= 0 else { return "" }
    defer { close(number) }
    var bytes = [UInt8](repeating: 0, count: 65_536)
    let count = read(number, &bytes, bytes.count)
    return String(decoding: bytes.prefix(max(0, count)), as: UTF8.self)
}

private func exchange(
    _ request: String, _ serve: @escaping @Sendable (consuming OwnedDescriptor) -> Void
) throws -> String {
    String(decoding: try exchangeBytes(Array(request.utf8), serve), as: UTF8.self)
}

/// Sends a request over a socket pair and reads everything that comes back.
private func exchangeBytes(
    _ request: [UInt8], _ serve: @escaping @Sendable (consuming OwnedDescriptor) -> Void
) throws -> [UInt8] {
    let (mine, theirs) = try Descriptor.socketPair().release()
    let thread = try DedicatedThread(name: "serve") { serve(OwnedDescriptor(taking: theirs)) }
    defer { thread.join() }
    let socket = OwnedDescriptor(taking: mine)
    try request.withUnsafeBytes { try Descriptor.writeAll(socket.number, $0) }
    var response: [UInt8] = []
    var piece = [UInt8](repeating: 0, count: 65_536)
    while true {
        let count = read(socket.number, &piece, piece.count)
        guard count > 0 else { return response }
        response += piece[..<count]
    }
}

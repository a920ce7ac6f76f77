// SPDX-License-Identifier: Apache-2.0

import Foundation
import LinuxIO
import Mesh
import Synchronization
import Testing

/// A device behind a lock in the place of a tunnel.
final class PaperTunnel: ConfigurableTunnel {
    let interface = Mutex(Box(PaperInterface()))
    let hasEnded: Bool
    init(hasEnded: Bool = false) { self.hasEnded = hasEnded }

    struct Box: @unchecked Sendable {  // guarded by the lock around it
        let interface: PaperInterface
        init(_ interface: PaperInterface) { self.interface = interface }
    }

    func apply(_ settings: [UAPI.Setting], _ cursor: UAPI.Cursor) -> (UAPI.Cursor, UAPI.Failure?) {
        interface.withLock { box in
            var cursor = cursor
            do throws(UAPI.Failure) {
                try UAPI.apply(
                    settings, &cursor, to: &box.interface.state, now: box.interface.now)
                return (cursor, nil)
            } catch {
                return (cursor, error)
            }
        }
    }
    func finish(_ cursor: UAPI.Cursor) {
        interface.withLock { box in
            var cursor = cursor
            UAPI.finish(&cursor, on: &box.interface.state, now: box.interface.now)
        }
    }
    func status() -> UAPI.Status? { hasEnded ? nil : interface.withLock { $0.interface.status } }
}

/// The listener with real sockets, and Debian's `wg` where it is installed.
@Suite struct ConfigurationServerTests {
    private let directory =
        "\(NSTemporaryDirectory())/coder-uapi-\(getpid())-\(UInt32.random(in: 0 ... .max))"

    private func serve(
        _ tunnel: PaperTunnel, limits: ConfigurationServer.Limits = .init(),
        onRemoved: @escaping @Sendable () -> Void = {},
        _ body: (ConfigurationServer) throws -> Void
    ) throws {
        let server = try ConfigurationServer(
            name: "test0", tunnel: tunnel, directory: directory, limits: limits, onRemoved: onRemoved)
        defer {
            server.close()
            _ = try? FileManager.default.removeItem(atPath: directory)
        }
        try body(server)
    }

    @Test func setAndGet() throws {
        let tunnel = PaperTunnel()
        try serve(tunnel) { server in
            let mode =
                try FileManager.default.attributesOfItem(atPath: server.path)[.posixPermissions] as? Int
            #expect(mode == 0o600)
            let client = try UAPIClient(server.path)
            #expect(try client.talk("set=1\nfwmark=7\nlisten_port=5\n\n") == "errno=0\n\n")
            #expect(try client.talk("get=1\n\n") == "listen_port=5\nfwmark=7\nerrno=0\n\n")
            #expect(try client.talk("set=1\nlisten_port=7\n\n") == "errno=-98\n\n")
            // A probe connection that says nothing, as wg makes them.
            _ = try UAPIClient(server.path)
            #expect(try UAPIClient(server.path).talk("get=1\n\n").hasSuffix("errno=0\n\n"))
            #expect(try client.talk("what\n") == "", "closed")
        }
        #expect(!FileManager.default.fileExists(atPath: "\(directory)/test0.sock"))
    }

    /// An empty device would be believed: `wg syncconf` would set everything anew.
    @Test func anInterfaceThatIsGoneIsAnError() throws {
        try serve(PaperTunnel(hasEnded: true)) { server in
            let client = try UAPIClient(server.path)
            #expect(try client.talk("get=1\n\n") == "errno=-19\n\n")
        }
    }

    @Test func theSocketIsTakenOverOnlyWhenNobodyListens() throws {
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
        // Left behind by a program that died.
        try StreamSocket.listen(onPath: Array("\(directory)/test0.sock".utf8)).close()
        let tunnel = PaperTunnel()
        try serve(tunnel) { _ in
            #expect(throws: SystemError.self) {
                _ = try ConfigurationServer(
                    name: "test0", tunnel: tunnel, directory: directory, onRemoved: {})
            }
        }
    }

    @Test func removingTheSocketEndsTheInterface() throws {
        let ended = Mutex(false)
        try serve(PaperTunnel(), onRemoved: { ended.withLock { $0 = true } }) { server in
            unlink(server.path)
            for _ in 0..<200 where !ended.withLock({ $0 }) { usleep(20_000) }
            #expect(ended.withLock { $0 })
        }
    }

    /// A client that never reads its answers, one that stops in the middle, and more clients than are allowed:
    /// the next one is served at once.
    @Test func slowClientsHoldUpNobody() throws {
        let tunnel = PaperTunnel()
        var generator = SeededGenerator(seed: 8)
        let peers = (0..<400).map { _ in "public_key=\(PrivateKey(using: &generator).nodePublicKey.hex)\n" }
        var limits = ConfigurationServer.Limits()
        limits.clients = 8
        try serve(tunnel, limits: limits) { server in
            #expect(try UAPIClient(server.path).talk("set=1\n\(peers.joined())\n") == "errno=0\n\n")
            let greedy = try UAPIClient(server.path)
            try greedy.write(String(repeating: "get=1\n\n", count: 500))
            let half = try UAPIClient(server.path)
            try half.write("set=1\nfwmark=")
            #expect(try UAPIClient(server.path).talk("get=1\n\n").utf8.count > 100_000)
            let idle = try (0..<20).map { _ in try UAPIClient(server.path) }
            for _ in 0..<4 { #expect(try UAPIClient(server.path).talk("get=1\n\n").hasSuffix("errno=0\n\n")) }
            withExtendedLifetime((greedy, half, idle)) {}
        }
    }

    /// W15: half a request and then nothing; ten million bytes.
    @Test func brokenClients() throws {
        let tunnel = PaperTunnel()
        try serve(tunnel) { server in
            do {
                let client = try UAPIClient(server.path)
                try client.write("set=1\nfwmark=3\nlisten_port=4")
            }
            let flood = try UAPIClient(server.path)
            #expect(throws: SystemError.self) {
                for _ in 0..<1_000 { try flood.write(String(repeating: "x", count: 10_000)) }
            }
            #expect(try UAPIClient(server.path).talk("get=1\n\n") == "fwmark=3\nerrno=0\n\n")
        }
    }
}

/// A blocking client.
final class UAPIClient {
    private let number: Int32

    init(_ path: String) throws {
        number = try StreamSocket.connect(toPath: Array(path.utf8)).release()
        try Descriptor.setNonBlocking(number, false)
        var limit = timeval(tv_sec: 20, tv_usec: 0)
        setsockopt(number, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    }

    deinit { OwnedDescriptor(taking: number).close() }

    func write(_ text: String) throws {
        var rest = Array(text.utf8)[...]
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes { send(number, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
            guard count > 0 else { throw SystemError(call: "send") }
            rest = rest.dropFirst(count)
        }
    }

    /// Writes an operation and reads its answer; what came when the connection ends.
    func talk(_ text: String) throws -> String {
        try write(text)
        var answer: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 65_536)
        while !answer.suffix(2).elementsEqual([10, 10]) {
            let count = read(number, &chunk, chunk.count)
            guard count > 0 else { break }
            answer += chunk[..<count]
        }
        return String(decoding: answer, as: UTF8.self)
    }
}

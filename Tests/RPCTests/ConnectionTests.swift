// SPDX-License-Identifier: Apache-2.0

import RPC
import Synchronization
import Testing

@Suite(.timeLimit(.minutes(1))) struct ConnectionTests {
    @Test(arguments: [1, 5, 100_000])
    func `unary calls over any split`(piece: Int) async throws {
        var handlers = RPCHandlers()
        handlers.unary(AgentMethods.updateStartup) { request in request.startup }
        handlers.unary(AgentMethods.getManifest) { _ in throw RPCError.failed(code: 3, message: "no manifest")
        }
        handlers.unary(AgentMethods.updateStats) { _ in throw Secret() }
        try await withPair(handlers, piece: piece) { client in
            var request = AgentUpdateStartupRequest()
            request.startup.version = "v2.30.0"
            let answer = try await client.unary(AgentMethods.updateStartup, request)
            #expect(answer == request.startup)
            await #expect(throws: RPCError.failed(code: 3, message: "no manifest")) {
                try await client.unary(AgentMethods.getManifest)
            }
            await #expect(throws: RPCError.failed(code: 0, message: "internal error")) {
                try await client.unary(AgentMethods.updateStats)
            }
            let unknown = await #expect(throws: RPCError.self) {
                try await client.unary(TailnetMethods.refreshResumeToken)
            }
            #expect(unknown?.isUnimplemented == true)
            for _ in 0..<200 { _ = try await client.ping() }
        }
    }

    @Test func `1,000 concurrent calls on one session`() async throws {
        var handlers = RPCHandlers()
        handlers.unary(AgentMethods.updateStartup) { request in
            await Task.yield()
            return request.startup
        }
        try await withPair(handlers) { client in
            try await withThrowingTaskGroup(of: Bool.self) { group in
                for index in 0..<1_000 {
                    group.addTask {
                        var request = AgentUpdateStartupRequest()
                        request.startup.version = "v\(index)"
                        return try await client.unary(AgentMethods.updateStartup, request) == request.startup
                    }
                }
                for try await isEqual in group { #expect(isEqual) }
            }
            try await eventually { client.streamCount == 0 }
        }
    }

    @Test func `large messages pass, larger ones are refused`() async throws {
        var handlers = RPCHandlers()
        handlers.unary(AgentMethods.updateStartup) { request in request.startup }
        try await withPair(handlers) { client in
            var request = AgentUpdateStartupRequest()
            request.startup.version = String(repeating: "x", count: 4_000_000)
            let answer = try await client.unary(AgentMethods.updateStartup, request)
            #expect(answer == request.startup)
            request.startup.version = String(repeating: "x", count: 4_200_000)
            await #expect(throws: RPCError.self) {
                try await client.unary(AgentMethods.updateStartup, request)
            }
        }
    }

    @Test func `a server stream ends with its handler, or with its client`() async throws {
        let cancelled = Flag()
        var handlers = RPCHandlers()
        handlers.serverStream(TailnetMethods.streamDERPMaps) { _, stream in
            for id in 1...3 {
                var map = TailnetDERPMap()
                map.regions[Int64(id)] = TailnetDERPMap.Region()
                try await stream.send(map)
            }
        }
        handlers.serverStream(TailnetMethods.workspaceUpdates) { _, stream in
            try await stream.send(TailnetWorkspaceUpdate())
            do { try await Task.sleep(for: .seconds(60)) } catch { cancelled.raise() }
        }
        try await withPair(handlers) { client in
            let keys = try await client.serverStream(TailnetMethods.streamDERPMaps) { stream in
                var keys: [Int64] = []
                while let map = try await stream.next() { keys += map.regions.keys }
                return keys
            }
            #expect(keys == [1, 2, 3])
            try await client.serverStream(TailnetMethods.workspaceUpdates) { stream in
                let first = try await stream.next()
                #expect(first != nil)
            }
            try await eventually { cancelled.isRaised && client.streamCount == 0 }
        }
    }

    @Test func `cancelling a call cancels its handler`() async throws {
        let (started, cancelled) = (Flag(), Flag())
        var handlers = RPCHandlers()
        handlers.unary(AgentMethods.getManifest) { _ in
            started.raise()
            do { try await Task.sleep(for: .seconds(60)) } catch { cancelled.raise() }
            return AgentManifest()
        }
        try await withPair(handlers) { client in
            try await withThrowingTaskGroup(of: Void.self) { group in
                group.addTask {
                    await #expect(throws: RPCError.cancelled) {
                        try await client.unary(AgentMethods.getManifest)
                    }
                }
                try await eventually { started.isRaised }
                group.cancelAll()
                try await group.waitForAll()
            }
            try await eventually { cancelled.isRaised }
        }
    }

    @Test func `losing the transport cancels handlers and fails calls`() async throws {
        let (started, cancelled) = (Flag(), Flag())
        var handlers = RPCHandlers()
        handlers.unary(AgentMethods.getManifest) { _ in
            started.raise()
            do { try await Task.sleep(for: .seconds(60)) } catch { cancelled.raise() }
            return AgentManifest()
        }
        try await withPair(handlers) { client in
            async let hasFailed = fails { _ = try await client.unary(AgentMethods.getManifest) }
            try await eventually { started.isRaised }
            client.close()
            let isFailure = await hasFailed
            #expect(isFailure)
            try await eventually { cancelled.isRaised }
        }
    }

    @Test func `both directions run at once, and slow readers hold senders back`() async throws {
        let sent = Counter()
        var handlers = RPCHandlers()
        handlers.bidirectional(TailnetMethods.coordinate) { stream in
            try await Task.sleep(for: .milliseconds(200))  // the sender must run into the window meanwhile
            while let request = try await stream.next() {
                var response = TailnetCoordinateResponse()
                response.error = String(request.readyForHandshake.count)
                try await stream.send(response)
            }
        }
        try await withPair(handlers) { client in
            try await client.bidirectional(TailnetMethods.coordinate) { stream in
                try await withThrowingTaskGroup(of: Void.self) { group in
                    group.addTask {
                        var big = TailnetCoordinateRequest()
                        big.readyForHandshake = .init(repeating: .init(), count: 20_000)
                        for _ in 0..<100 {
                            try await stream.send(big)
                            sent.increment()
                        }
                        stream.closeSend()
                    }
                    try await Task.sleep(for: .milliseconds(100))
                    #expect(sent.value < 20)
                    var count = 0
                    while let response = try await stream.next() {
                        #expect(response.error == "20000")
                        count += 1
                    }
                    #expect(count == 100)
                    try await group.waitForAll()
                }
            }
        }
    }

    @Test func `garbage ends the connection with a reason`() async {
        let server = RPCConnection(role: .server)
        let once = Flag()
        await #expect(throws: RPCError.self) {
            try await server.run(
                read: { once.raise() ? [UInt8](repeating: 0x41, count: 64) : nil }, write: { _ in })
        }
        #expect(server.isClosed)
    }
}

private struct Secret: Error {}

final class Flag: Sendable {
    private let value = Atomic<Bool>(false)
    /// True the first time.
    @discardableResult func raise() -> Bool { !value.exchange(true, ordering: .relaxed) }
    var isRaised: Bool { value.load(ordering: .relaxed) }
}

final class Counter: Sendable {
    private let count = Atomic<Int>(0)
    func increment() { count.add(1, ordering: .relaxed) }
    var value: Int { count.load(ordering: .relaxed) }
}

func fails(_ body: @Sendable () async throws -> Void) async -> Bool {
    do { try await body() } catch { return true }
    return false
}

func eventually(_ condition: () -> Bool) async throws {
    for _ in 0..<1_000 where !condition() { try await Task.sleep(for: .milliseconds(5)) }
    #expect(condition())
}

/// A client and a server joined by two in-memory pipes that cut everything into pieces.
func withPair(
    _ handlers: RPCHandlers, piece: Int = 1 << 20, _ body: (RPCConnection) async throws -> Void
) async throws {
    let client = RPCConnection(role: .client)
    let server = RPCConnection(role: .server, handlers: handlers)
    let (up, down) = (Pipe(piece: piece), Pipe(piece: piece))
    try await withThrowingTaskGroup(of: Void.self) { group in
        group.addTask {
            defer { down.close() }
            try await server.run(read: { try await up.read() }, write: { down.write($0) })
        }
        group.addTask {
            defer { up.close() }
            try await client.run(read: { try await down.read() }, write: { up.write($0) })
        }
        try await body(client)
        client.close()
        try await group.waitForAll()
    }
}

final class Pipe: Sendable {
    private let continuation: AsyncStream<[UInt8]>.Continuation
    private let source: AsyncStream<[UInt8]>
    private let piece: Int

    init(piece: Int) {
        self.piece = piece
        (source, continuation) = AsyncStream.makeStream()
    }

    func write(_ bytes: [UInt8]) {
        var rest = bytes[...]
        while !rest.isEmpty {
            continuation.yield(Array(rest.prefix(piece)))
            rest = rest.dropFirst(piece)
        }
    }

    func close() { continuation.finish() }

    func read() async throws -> [UInt8]? {
        for await bytes in source { return bytes }
        return nil
    }
}

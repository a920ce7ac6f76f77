// SPDX-License-Identifier: Apache-2.0

import Agent
import Foundation
import RPC
import SwiftProtobuf
import Synchronization
import Testing

/// What the agent tells about the workspace by itself.
@Suite(.timeLimit(.minutes(1))) struct ReporterTests {
    private final class Told: Sendable {
        let values = Mutex<[AgentMetadata]>([])
        let health = Mutex<[AgentAppHealth]>([])
    }

    /// A connection whose server keeps what it is told, until `isDone`.
    private func report(
        to told: Told, until isDone: @escaping @Sendable () -> Bool,
        _ body: @escaping @Sendable (RPCConnection) async throws -> Void
    ) async throws {
        var handlers = RPCHandlers()
        handlers.unary(AgentMethods.batchUpdateMetadata) { request in
            told.values.withLock { $0 += request.metadata }
            return AgentBatchUpdateMetadataResponse()
        }
        handlers.unary(AgentMethods.batchUpdateAppHealths) { request in
            told.health.withLock { $0 += request.updates.map(\.health) }
            return AgentBatchUpdateAppHealthResponse()
        }
        let client = RPCConnection(role: .client), server = RPCConnection(role: .server, handlers: handlers)
        let (up, goesUp) = AsyncStream.makeStream(of: [UInt8].self)
        let (down, goesDown) = AsyncStream.makeStream(of: [UInt8].self)
        let (upward, downward) = (Source(up), Source(down))
        await withTaskGroup(of: Void.self) { group in
            group.addTask {
                try? await server.run(read: { await upward.next() }, write: { goesDown.yield($0) })
            }
            group.addTask {
                try? await client.run(read: { await downward.next() }, write: { goesUp.yield($0) })
            }
            group.addTask { try? await body(client) }
            for _ in 0..<1_500 where !isDone() { try? await Task.sleep(for: .milliseconds(20)) }
            client.close()
            goesUp.finish()
            goesDown.finish()
            group.cancelAll()
        }
    }

    private actor Source {
        private var iterator: AsyncStream<[UInt8]>.Iterator
        init(_ stream: AsyncStream<[UInt8]>) { iterator = stream.makeAsyncIterator() }
        func next() async -> [UInt8]? {
            var copy = iterator
            let next = await copy.next(isolation: self)
            iterator = copy
            return next
        }
    }

    @Test func metadataComesAtItsInterval() async throws {
        let told = Told()
        let shared = Shared()
        let reporter = MetadataReporter { script, timeout in
            shared.note(script, timeout)
            return (output: "value of \(script)", error: script == "bad" ? "exit status 1" : "")
        }
        // Seconds are sent as nanoseconds.
        func description(
            _ key: String, interval: Int32, timeout: Int32
        ) -> AgentWorkspaceAgentMetadata.Description {
            var description = AgentWorkspaceAgentMetadata.Description()
            description.key = key
            description.script = key
            description.interval.nanos = interval
            description.timeout.nanos = timeout
            return description
        }
        let all = [
            description("often", interval: 1, timeout: 0), description("once", interval: 0, timeout: 7),
            description("bad", interval: 0, timeout: 0),
        ]
        func count(_ key: String) -> Int { told.values.withLock { $0.count { $0.key == key } } }
        try await report(to: told, until: { told.values.withLock { $0.count { $0.key == "often" } } >= 2 }) {
            try await reporter.run(all, on: $0)
        }
        #expect(count("often") >= 2)
        #expect(count("once") == 1 && count("bad") == 1)
        let bad = told.values.withLock { $0.first { $0.key == "bad" } }
        #expect(bad?.result.value == "value of bad" && bad?.result.error == "exit status 1")
        #expect(shared.all == ["often": 1, "once": 7, "bad": 3])
    }

    private final class Shared: Sendable {
        private let timeouts = Mutex<[String: Int64]>([:])
        func note(_ script: String, _ timeout: Int64) { timeouts.withLock { $0[script] = timeout } }
        var all: [String: Int64] { timeouts.withLock { $0 } }
    }

    @Test func healthFollowsItsThreshold() {
        var state = AppHealthReporter.State(threshold: 2)
        #expect(state.health == .initializing)
        state.record(isHealthy: false)
        state.record(isHealthy: false)
        #expect(state.health == .initializing)
        state.record(isHealthy: false)
        #expect(state.health == .unhealthy)
        state.record(isHealthy: true)
        #expect(state.health == .healthy)
        state.record(isHealthy: false)
        state.record(isHealthy: false)
        #expect(state.health == .healthy)
    }

    @Test func changesOfHealthAreTold() async throws {
        let told = Told()
        var app = AgentWorkspaceApp()
        app.id = RawUUID("11111111-2222-3333-4444-555555555555")?.bytes() ?? .init()
        app.healthcheck.url = "http://localhost:1/healthz"
        app.healthcheck.interval.seconds = 1
        app.healthcheck.threshold = 1
        let apps = [app, AgentWorkspaceApp()]
        let counter = Counter()
        let reporter = AppHealthReporter { _, _ in counter.next() <= 1 }
        try await report(to: told, until: { told.health.withLock { $0.count } >= 2 }) {
            try await reporter.run(apps, on: $0)
        }
        #expect(told.health.withLock { $0.prefix(2) } == [.healthy, .unhealthy])
    }

    private final class Counter: Sendable {
        private let count = Mutex(0)
        func next() -> Int {
            count.withLock { count in
                count += 1
                return count
            }
        }
    }
}

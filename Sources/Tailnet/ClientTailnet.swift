// SPDX-License-Identifier: Apache-2.0

public import HTTPTransport
internal import LinuxIO
public import Logging
public import Mesh
public import RPC
internal import Synchronization

/// A client's way to one agent: a tailnet with a tunnel to it, and a control connection that is dialled again for
/// ever once it has worked.
public final class ClientTailnet: Sendable {
    /// What a client must know: mostly from `GET /api/v2/workspaceagents/{agent}/connection`.
    public struct Configuration: Sendable {
        /// For the control connection and relays.
        public var client: HTTPClient
        /// The server.
        public var serverURL: HTTPURL
        /// The user's token.
        public var sessionToken: String
        /// Whom to reach.
        public var agentID: RawUUID
        /// Relays as the server publishes them.
        public var derpMap: DERPMap
        /// WebSocket for all relays.
        public var forcesWebSockets = false
        /// No direct paths: said by the server or the user.
        public var blocksDirect = false
        /// `NodeConfiguration.packetTap`.
        public var packetTap: (@Sendable (_ packet: RawSpan) -> Void)?
        /// Where to say what happens.
        public var logger: Logger

        /// The server's data, direct paths allowed.
        public init(
            client: HTTPClient, serverURL: HTTPURL, sessionToken: String, agentID: RawUUID, derpMap: DERPMap,
            logger: Logger
        ) {
            self.client = client
            self.serverURL = serverURL
            self.sessionToken = sessionToken
            self.agentID = agentID
            self.derpMap = derpMap
            self.logger = logger
        }
    }

    /// The version that clients ask for, for reach; newer calls are tried and may fail softly. rpc-transport §6.1.
    static let version = "2.0"
    /// Statuses that end the first dial. rpc-transport §5.1.
    static let finalStatuses: Set<Int> = [400, 401, 403, 404, 409, 500]

    /// The tailnet with the mesh node.
    public let tailnet: Tailnet
    /// The agent's address on the mesh.
    public let agentAddress: IPAddress
    /// The agent.
    public let agentID: RawUUID
    private let configuration: Configuration
    private let token = ResumeToken()
    private let work = Mutex<Task<Void, Never>?>(nil)

    /// The mesh node.
    public var node: Node { tailnet.node }

    private init(_ configuration: Configuration) throws(NodeError) {
        self.configuration = configuration
        agentID = configuration.agentID
        agentAddress = configuration.agentID.tailnetAddress
        var options = Tailnet.Configuration.client(
            configuration.client, serverURL: configuration.serverURL, logger: configuration.logger)
        options.derpMap = configuration.derpMap
        options.forcesWebSockets = configuration.forcesWebSockets
        options.blocksDirect = configuration.blocksDirect
        options.packetTap = configuration.packetTap
        tailnet = try Tailnet(options)
    }

    /// Joins the tailnet and asks for the tunnel. Returns when the server has accepted the control connection;
    /// throws `HTTPError` with the server's response when it refuses. While the server cannot be reached at all it
    /// goes on trying, until cancelled. Call `close` at the end.
    public static func open(_ configuration: Configuration) async throws -> ClientTailnet {
        let client = try ClientTailnet(configuration)
        await client.tailnet.addTunnel(configuration.agentID)
        let (outcomes, outcome) = AsyncStream.makeStream(
            of: Result<Void, any Error>.self, bufferingPolicy: .bufferingOldest(1))
        client.start(outcome)
        do {
            for await result in outcomes {
                try result.get()
                return client
            }
            throw CancellationError()
        } catch {
            await client.close()
            throw error
        }
    }

    /// `open`, `body`, `close`.
    public static func with<R>(
        _ configuration: Configuration, _ body: (ClientTailnet) async throws -> R
    ) async throws -> R {
        let client = try await open(configuration)
        do {
            let result = try await body(client)
            await client.close()
            return result
        } catch {
            await client.close()
            throw error
        }
    }

    /// Says goodbye to the coordinator, so that the agent forgets this client at once; waits at most 300 ms for the
    /// answer. Streams go on.
    public func leave() async { await tailnet.leave(within: .milliseconds(300)) }

    /// Says goodbye to the coordinator, and ends the node with all its streams.
    public func close() async {
        await leave()
        let task = work.withLock { work in
            defer { work = nil }
            return work
        }
        task?.cancel()
        await task?.value
        await tailnet.close()
    }

    /// The one task of this object; `close` cancels it and waits for it.
    private func start(_ outcome: AsyncStream<Result<Void, any Error>>.Continuation) {
        let task = Task {
            await withTaskGroup(of: Void.self) { group in
                group.addTask { await self.tailnet.run() }
                group.addTask {
                    do {
                        try await self.stayConnected { outcome.yield(.success(())) }
                    } catch {
                        outcome.yield(.failure(error))
                    }
                    outcome.finish()
                }
            }
        }
        work.withLock { $0 = task }
    }

    /// Waits until the agent answers inside the tunnel, and returns the round trip.
    @discardableResult
    public func reachAgent(within limit: Interval = .seconds(60)) async throws -> Interval {
        let start = Clock.monotonicNanoseconds()
        try await withThrowingTaskGroup(of: Void.self) { group in
            group.addTask { try await self.tailnet.waitForPeer(self.agentID) }
            group.addTask {
                try await Task.sleep(for: .nanoseconds(Int64(clamping: limit.nanoseconds)))
                throw NodeError.timedOut
            }
            defer { group.cancelAll() }
            try await group.next()
        }
        let spent = Clock.monotonicNanoseconds() - start
        let left = limit.nanoseconds > spent ? limit.nanoseconds - spent : 0
        return try await node.reachable(agentAddress, within: Interval(nanoseconds: left))
    }

    // MARK: - The control connection

    /// Connects for ever; throws only when the first attempt is refused, or when cancelled.
    private func stayConnected(_ onConnect: @escaping @Sendable () -> Void) async throws {
        var generator = SystemRandomNumberGenerator()
        var backoff = Backoff(from: .milliseconds(50), to: .seconds(10), seed: generator.next())
        let hasWorked = Once()
        while true {
            let isFirst = !hasWorked.isDone
            let connected = Once()
            do {
                try await runSession {
                    hasWorked.finish()
                    connected.finish()
                    onConnect()
                }
                return
            } catch let error as HTTPError where isFirst && error.isFinal(Self.finalStatuses) {
                if error.concernsResumeToken { token.drop() }
                throw error
            } catch {
                try Task.checkCancellation()
                if let error = error as? HTTPError, error.concernsResumeToken { token.drop() }
                configuration.logger.debug("control connection lost", metadata: ["error": "\(error)"])
            }
            if connected.isDone { backoff.reset() }
            try await Task.sleep(for: backoff.next())
        }
    }

    /// One control connection; returns after a goodbye.
    private func runSession(_ connected: @escaping @Sendable () -> Void) async throws {
        var query = [("version", Self.version)]
        if let value = token.current { query.append(("resume_token", value)) }
        let url = configuration.serverURL.appending(
            "/api/v2/workspaceagents/\(agentID)/coordinate", query: query)
        let headers: HeaderFields = ["Coder-Session-Token": configuration.sessionToken]
        try await RPCSession.with(configuration.client, url, headers: headers) { connection in
            connected()
            try await withThrowingTaskGroup(of: Void.self) { group in
                group.addTask { try await self.tailnet.coordinate(on: connection) }
                group.addTask {
                    try await self.tailnet.followDERPMaps(on: connection)
                }
                group.addTask {
                    await self.token.refresh(on: connection, logger: self.configuration.logger)
                    // Other calls go on without it.
                    try await Task.sleep(for: .seconds(1 << 30))
                }
                defer { group.cancelAll() }
                try await group.next()
            }
        }
    }
}

extension HTTPError {
    /// Whether the server answered with one of these statuses.
    func isFinal(_ statuses: Set<Int>) -> Bool {
        kind == .upgradeRefused && response.map { statuses.contains($0.status) } == true
            && !concernsResumeToken
    }

    /// Whether the server does not like our resume token: then a fresh dial without it helps.
    var concernsResumeToken: Bool {
        response?.status == 401 && response?.text.contains("resume_token") == true
    }
}

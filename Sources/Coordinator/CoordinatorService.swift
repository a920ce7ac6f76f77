// SPDX-License-Identifier: Apache-2.0

public import RPC

/// Decides whether a client may open a tunnel; returns nil to allow it or the cause of the refusal. Asked for
/// each tunnel of a `.clientOfUser`, while nothing else of the request has acted.
public typealias TunnelAuthorizer = @Sendable (_ target: RawUUID) async -> String?

/// The process' one coordinator: hosts the machine, and gives each connection its ordered, bounded queue of
/// responses. A peer that lets 512 of them pile up is cut without holding anybody else up.
public actor CoordinatorService {
    /// 512 responses. coordinator.md §4.
    public static let queueLimit = 512

    /// One Coordinate call: what to send to the peer, until the coordinator hangs up.
    public struct Connection: Sendable {
        /// For `handle` and `disconnect`.
        public let id: Coordinator.ConnectionID
        /// Responses in order. Its end means: hang up.
        public let responses: AsyncStream<TailnetCoordinateResponse>
        let role: PeerRole
        let authorize: TunnelAuthorizer
    }

    private struct Queue {
        let continuation: AsyncStream<TailnetCoordinateResponse>.Continuation
    }

    private var machine: Coordinator
    private var queues: [Coordinator.ConnectionID: Queue] = [:]

    /// An empty coordinator.
    public init(limits: Coordinator.Limits = Coordinator.Limits()) {
        machine = Coordinator(limits: limits)
    }

    /// Peers that are connected.
    public var peerCount: Int { machine.peerCount }

    /// The latest node of a connected peer: also says that it is there.
    public func node(of id: RawUUID) -> TailnetNode? { machine.node(of: id) }

    /// Whether the peer is connected.
    public func isConnected(_ id: RawUUID) -> Bool { machine.isConnected(id) }

    /// Takes a peer in. `name` is for people.
    public func connect(
        _ id: RawUUID, role: PeerRole, name: String = "", authorize: @escaping TunnelAuthorizer = { _ in nil }
    ) throws(Refusal) -> Connection {
        let connection = try machine.connect(id, role: role, name: name)
        let (stream, continuation) = AsyncStream.makeStream(
            of: TailnetCoordinateResponse.self, bufferingPolicy: .bufferingOldest(Self.queueLimit))
        queues[connection] = Queue(continuation: continuation)
        deliver()
        return Connection(id: connection, responses: stream, role: role, authorize: authorize)
    }

    /// Acts on one request of the peer. Requests of one connection must come one after the other. A refusal
    /// needs nothing more: its text is in the queue, and the queue ends.
    public func handle(_ request: TailnetCoordinateRequest, from connection: Connection) async {
        if request.hasAddTunnel, connection.role.asksForTunnels, let target = RawUUID(request.addTunnel.id),
            let cause = await connection.authorize(target)
        {
            machine.refuseTunnel(connection.id, cause: cause)
            refusals += 1
        } else {
            // The refusal is for callers without a queue.
            do throws(Refusal) { try machine.handle(request, from: connection.id) } catch { refusals += 1 }
        }
        deliver()
    }

    /// Requests that ended their connection, since the start.
    public private(set) var refusals = 0
    /// Peers that were cut because they did not read.
    public private(set) var slowPeers = 0

    /// The peer's stream is gone. Harmless when it was cut before.
    public func lose(_ connection: Connection) {
        machine.lose(connection.id)
        queues.removeValue(forKey: connection.id)?.continuation.finish()
        deliver()
    }

    /// Cuts everybody and takes nobody in any more.
    public func close() {
        machine.close()
        deliver()
    }

    /// Runs a whole Coordinate call on an RPC stream: the body of the server's handler.
    public func serve(
        _ stream: RPCStream<TailnetCoordinateResponse, TailnetCoordinateRequest>, id: RawUUID, role: PeerRole,
        name: String = "", authorize: @escaping TunnelAuthorizer = { _ in nil }
    ) async throws {
        let connection: Connection
        do throws(Refusal) {
            connection = try connect(id, role: role, name: name, authorize: authorize)
        } catch {
            throw RPCError.failed(code: 0, message: error.text)
        }
        defer { lose(connection) }
        try await withThrowingTaskGroup(of: Void.self) { group in
            group.addTask {
                // Ends with the queue: the coordinator hung up.
                for await response in connection.responses { try await stream.send(response) }
            }
            group.addTask {
                while let request = try await stream.next() { await self.handle(request, from: connection) }
            }
            try await group.next()
            group.cancelAll()
        }
    }

    private func deliver() {
        while true {
            let outputs = machine.takeOutputs()
            guard !outputs.isEmpty else { return }
            for output in outputs {
                switch output {
                case .close(let id): queues.removeValue(forKey: id)?.continuation.finish()
                case .send(let id, let response):
                    guard case .dropped = queues[id]?.continuation.yield(response) else { continue }
                    queues.removeValue(forKey: id)?.continuation.finish()
                    slowPeers += 1
                    machine.drop(id)
                }
            }
        }
    }
}

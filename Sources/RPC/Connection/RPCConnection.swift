// SPDX-License-Identifier: Apache-2.0

internal import Synchronization

/// A dRPC-over-yamux connection: client of the peer's calls, and server of those in its `RPCHandlers`.
///
/// It owns the protocol machines and nothing else: `run` moves bytes between them and a transport until either
/// ends, and is the parent of every handler's task. Any task may make calls while `run` runs; calls made before
/// wait for it. All state sits behind one lock that is never held across a call out.
public final class RPCConnection: Sendable {
    /// Bounds and timing.
    public struct Limits: Sendable {
        /// Of the yamux session.
        public var session = YamuxSession.Limits()
        /// Bytes of unfinished packets over all calls: one call may have 4 MiB, but not all of them.
        public var unfinishedBytes = 32 << 20
        public init() {}
    }

    enum WaitKey: Hashable {
        case output
        case open
        case read(YamuxStreamID)
        case send(YamuxStreamID)
        case end(YamuxStreamID)
        case pong(UInt32)
        case closed
    }

    private let state: Mutex<RPCState>
    private let start: ContinuousClock.Instant
    let handlers: RPCHandlers
    private let accepted: AsyncStream<YamuxStreamID>

    /// A connection that has not started yet. The HTTP client is the yamux client.
    public init(role: YamuxSession.Role, handlers: RPCHandlers = RPCHandlers(), limits: Limits = Limits()) {
        self.handlers = handlers
        start = .now
        let (stream, continuation) = AsyncStream.makeStream(
            of: YamuxStreamID.self, bufferingPolicy: .bufferingOldest(limits.session.liveStreams))
        accepted = stream
        state = Mutex(RPCState(role: role, limits: limits, accepted: continuation))
    }

    // MARK: - Life

    /// Runs the connection until the transport ends, `close` is called, or the task is cancelled. Call it once.
    ///
    /// `read` returns the next bytes, nil at the orderly end; it must return early when its task is cancelled.
    /// `write` sends all bytes. Throws unless the end was orderly.
    public func run(
        read: @escaping @Sendable () async throws -> [UInt8]?,
        write: @escaping @Sendable ([UInt8]) async throws -> Void
    ) async throws(RPCError) {
        await withDiscardingTaskGroup { group in
            group.addTask { await self.readAll(read) }
            group.addTask { await self.writeAll(write) }
            group.addTask { await self.watchTime() }
            for await id in accepted {
                group.addTask { await self.serve(id) }
            }
            close(because: .cancelled)  // does nothing when something else has closed it before
            group.cancelAll()
        }
        if let error = change({ $0.closedBecause }), error != Self.orderlyEnd { throw error }
    }

    /// Ends the connection: calls fail, handlers are cancelled, `run` returns.
    public func close() { close(because: Self.orderlyEnd) }

    /// Waits until the connection is closed.
    public func waitUntilClosed() async { await wait(.closed) { $0.closedBecause != nil } }

    /// Whether the connection has ended.
    public var isClosed: Bool { change { $0.closedBecause != nil } }

    /// Measures the round trip to the peer's yamux end: liveness. Combine it with a time limit of your own.
    public func ping() async throws(RPCError) -> Duration {
        let sent = ContinuousClock.now
        let value: UInt32? = change { $0.sendPing() }
        if let value {
            await wait(.pong(value)) { $0.hasAnswered(value) }
            change { $0.forgetPing(value) }
        }
        if Task.isCancelled { throw .cancelled }
        if let error = change({ $0.closedBecause }) { throw error }
        return .now - sent
    }

    /// Streams in the yamux table, for limits and tests.
    public var streamCount: Int { change { $0.session.streamCount } }

    static let orderlyEnd = RPCError.connectionClosed("end of stream")

    func close(because error: RPCError) { change { $0.close(because: error) } }

    private func readAll(_ read: @Sendable () async throws -> [UInt8]?) async {
        do {
            while let bytes = try await read() {
                let now = ContinuousClock.now - start
                let goesOn = change { state in
                    state.receive(bytes, now: now)
                    return state.closedBecause == nil
                }
                guard goesOn else { return }
            }
            close()
        } catch {
            close(because: .connectionClosed("read: \(error)"))
        }
    }

    private func writeAll(_ write: @Sendable ([UInt8]) async throws -> Void) async {
        do {
            while true {
                let bytes = change { $0.takeOutput() }
                if !bytes.isEmpty {
                    try await write(bytes)
                    continue
                }
                guard !isClosed else { return }
                await wait(.output) { $0.session.hasOutput || $0.closedBecause != nil }
                guard !Task.isCancelled else { return }
            }
        } catch {
            close(because: .connectionClosed("write: \(error)"))
        }
    }

    /// Keep-alive and time limits. Deadlines that appear during a nap are at least as far away as the nap is long.
    private func watchTime() async {
        while !isClosed {
            let now = ContinuousClock.now - start
            let nap: Duration = change { state in
                state.handleTimeout(now: now)
                return min(
                    max((state.session.nextDeadline ?? .seconds(60)) - now, .milliseconds(1)), .seconds(10))
            }
            do { try await Task.sleep(for: nap, clock: .continuous) } catch { return }
        }
    }

    // MARK: - The lock and those who wait

    /// Changes the state, sends what that produced on its way, and wakes whom it concerns.
    @discardableResult
    func change<R: Sendable>(_ body: (inout RPCState) -> R) -> R {
        let now = ContinuousClock.now - start
        let (result, awake) = state.withLock { state -> (R, [CheckedContinuation<Void, Never>]) in
            state.now = now
            let result = body(&state)
            state.settle()
            return (result, state.takeAwake())
        }
        for continuation in awake { continuation.resume() }
        return result
    }

    /// Suspends until `key` was woken, unless `ready` holds already or the task is cancelled. Check again afterwards.
    func wait(_ key: WaitKey, unless ready: @Sendable (inout RPCState) -> Bool) async {
        let token = change { $0.makeToken() }
        await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                let goesOn = change { state in
                    if Task.isCancelled || ready(&state) { return true }
                    state.waiters[key, default: [:]][token] = continuation
                    return false
                }
                if goesOn { continuation.resume() }
            }
        } onCancel: {
            change { $0.wake(key, token: token) }
        }
    }
}

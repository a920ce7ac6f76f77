// SPDX-License-Identifier: Apache-2.0

internal import Synchronization

/// An answer of the engine to a command with a token.
enum Reply: Sendable {
    case done
    case connected(local: SocketAddress)
    case ping(PingResult)
    case reached(Interval)
    case status(NodeStatus)
    case explanation(PathExplanation)
    case recordings([NodeRecording])
    case failed(NodeError)
}

/// What the engine tells without being asked. Called from the engine's thread; must return at once.
enum EngineNotice: Sendable {
    case reply(token: UInt64, Reply)
    case accepted(listener: UInt64, token: UInt64, local: SocketAddress, remote: SocketAddress, isUDP: Bool)
    case ended(token: UInt64, StreamEnd)
    case ownNode(OwnNode)
    case pathEvent(PathEvent, peer: MeshPeerID?)
    case dialRelay(region: Int, attempt: UInt64)
    case cancelRelay(region: Int)
    case measureLatencies
    case networkChanged
    case resolveStunServers
    case askGateway(id: UInt64, SocketAddress, [UInt8])
    case stopped
}

/// Tasks that wait for the engine: tokens to continuations. One lock, held for table look-ups only.
final class Replies: Sendable {
    private struct State {
        var nextToken: UInt64 = 1
        var waiting: [UInt64: CheckedContinuation<Reply, Never>] = [:]
        /// Streams that have a token but have not ended, with those who wait for their end.
        var streams: [UInt64: [CheckedContinuation<StreamEnd, Never>]] = [:]
        /// How the latest streams ended, for those who ask late; bounded.
        var ends: [UInt64: StreamEnd] = [:]
        var endOrder: [UInt64] = []
        var isClosed = false
    }

    private static let rememberedEnds = 1_024
    private let state = Mutex(State())

    /// A number that was not used before.
    func makeToken() -> UInt64 {
        state.withLock { state in
            state.nextToken += 1
            return state.nextToken
        }
    }

    /// Waits for the answer to `token`. `start` posts the command; when it returns false the node is closed.
    func reply(to token: UInt64, _ start: () -> Bool) async -> Reply {
        await withCheckedContinuation { continuation in
            let isOpen = state.withLock { state in
                guard !state.isClosed else { return false }
                state.waiting[token] = continuation
                return true
            }
            guard isOpen else { return continuation.resume(returning: .failed(.closed)) }
            if !start() { resolve(token, .failed(.closed)) }
        }
    }

    /// Hands the answer to the one who waits, if still there.
    func resolve(_ token: UInt64, _ reply: Reply) {
        state.withLock { $0.waiting.removeValue(forKey: token) }?.resume(returning: reply)
    }

    /// A stream begins; its end will be reported.
    func streamBegan(_ token: UInt64) { state.withLock { $0.streams[token] = $0.streams[token] ?? [] } }

    /// A stream is over.
    func streamEnded(_ token: UInt64, _ end: StreamEnd) {
        let waiting = state.withLock { state in
            let waiting = state.streams.removeValue(forKey: token)
            guard waiting != nil else { return [CheckedContinuation<StreamEnd, Never>]() }
            state.ends[token] = end
            state.endOrder.append(token)
            if state.endOrder.count > 2 * Self.rememberedEnds {
                for old in state.endOrder.prefix(Self.rememberedEnds) { state.ends[old] = nil }
                state.endOrder.removeFirst(Self.rememberedEnds)
            }
            return waiting ?? []
        }
        for continuation in waiting { continuation.resume(returning: end) }
    }

    /// Waits for the end of a stream.
    func ended(_ token: UInt64) async -> StreamEnd {
        await withCheckedContinuation { continuation in
            let known: StreamEnd? = state.withLock { state in
                if state.streams[token] != nil {
                    state.streams[token]?.append(continuation)
                    return nil
                }
                return state.ends[token] ?? .closed
            }
            if let known { continuation.resume(returning: known) }
        }
    }

    /// The engine is gone: everything that waits fails.
    func close() {
        let (waiting, streams) = state.withLock { state in
            state.isClosed = true
            let result = (state.waiting, state.streams)
            state.waiting = [:]
            state.streams = [:]
            return result
        }
        for continuation in waiting.values { continuation.resume(returning: .failed(.closed)) }
        for continuation in streams.values.joined() { continuation.resume(returning: .closed) }
    }
}

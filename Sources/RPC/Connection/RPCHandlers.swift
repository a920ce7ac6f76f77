// SPDX-License-Identifier: Apache-2.0

internal import SwiftProtobuf

/// The calls that a connection answers, by name. Others are answered with code 12.
///
/// A handler runs in a child task of `RPCConnection.run` and is cancelled as soon as its caller is gone. What it
/// throws reaches the caller as `RPCError.failed` says; other errors only as "internal error".
public struct RPCHandlers: Sendable {
    typealias Handler = @Sendable (RPCCall) async throws -> Void

    var byName: [String: Handler] = [:]

    public init() {}

    /// One request, one answer.
    public mutating func unary<Request, Response>(
        _ method: RPCMethod<Request, Response>, _ body: @escaping @Sendable (Request) async throws -> Response
    ) {
        byName[method.name] = { call in
            guard let bytes = try await call.receive() else { throw RPCError.streamClosed }
            let answer = try await body(try decode(bytes))
            try await call.send(try encode(answer))
        }
    }

    /// One request, many answers.
    public mutating func serverStream<Request, Response>(
        _ method: RPCMethod<Request, Response>,
        _ body: @escaping @Sendable (Request, RPCStream<Response, Request>) async throws -> Void
    ) {
        byName[method.name] = { call in
            guard let bytes = try await call.receive() else { throw RPCError.streamClosed }
            try await body(try decode(bytes), RPCStream(call: call))
        }
    }

    /// Both sides stream. The call ends when `body` returns.
    public mutating func bidirectional<Request, Response>(
        _ method: RPCMethod<Request, Response>,
        _ body: @escaping @Sendable (RPCStream<Response, Request>) async throws -> Void
    ) {
        byName[method.name] = { call in try await body(RPCStream(call: call)) }
    }
}

extension RPCConnection {
    /// Answers the calls on one stream, one after the other, until the peer closes it.
    func serve(_ id: YamuxStreamID) async {
        while let (name, generation) = await nextInvocation(id) {
            let call = RPCCall(connection: self, id: id, generation: generation)
            await withDiscardingTaskGroup { group in
                group.addTask { await self.answer(call, name) }
                await call.waitForEnd()
                group.cancelAll()
            }
        }
        change { $0.release(id) }
    }

    private func nextInvocation(_ id: YamuxStreamID) async -> (String, Int)? {
        while true {
            let next: (String, Int)? = change { state in
                guard let call = state.calls[id], let name = call.invoked, !call.isStreamOver else {
                    return nil
                }
                let generation = call.generation
                state.calls[id]?.invoked = nil
                state.calls[id]?.inbox = []
                state.calls[id]?.isReadClosed = false
                state.calls[id]?.end = nil
                state.calls[id]?.generation = generation + 1
                state.pump(id)
                return (name, generation + 1)
            }
            if let next { return next }
            let isOver = change { $0.calls[id]?.isStreamOver ?? true }
            if isOver || Task.isCancelled { return nil }
            await wait(.end(id)) { $0.calls[id]?.invoked != nil || $0.calls[id]?.isStreamOver ?? true }
        }
    }

    private func answer(_ call: RPCCall, _ name: String) async {
        do {
            guard let handler = handlers.byName[name] else { throw RPCError.unimplemented(name) }
            try await handler(call)
            call.closeSend()
        } catch RPCError.failed(let code, let message) {
            call.fail(code: code, text: message)
        } catch RPCError.undecodable(let what) {
            call.fail(code: 0, text: "undecodable message: \(what)")
        } catch {
            call.fail(code: 0, text: "internal error")
        }
        finish(call)
    }

    /// The handler is done: what the peer still says about this call is ignored, its end is no news.
    private func finish(_ call: RPCCall) {
        change { state in
            guard state.calls[call.id]?.generation == call.generation else { return }
            state.calls[call.id]?.transport.abandon()
            state.calls[call.id]?.inbox = []
            if state.calls[call.id]?.end == nil { state.calls[call.id]?.end = .streamClosed }
            state.wake(.end(call.id))
            state.pump(call.id)
        }
    }
}

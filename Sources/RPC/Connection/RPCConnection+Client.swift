// SPDX-License-Identifier: Apache-2.0

public import SwiftProtobuf

extension RPCConnection {
    /// Calls and waits for the one answer.
    public func unary<Request, Response>(
        _ method: RPCMethod<Request, Response>, _ request: Request = Request()
    ) async throws(RPCError) -> Response {
        let body = try encode(request)
        guard body.count <= DRPCPacketReader.maximumPacketSize else { throw .messageTooLarge(body.count) }
        let call = try await open(method.name, only: body)
        defer { release(call) }
        guard let answer = try await call.receive() else { throw .streamClosed }
        return try decode(answer)
    }

    /// Calls, and hands the stream of answers to `body`; the call ends when `body` returns or throws.
    public func serverStream<Request, Response, R>(
        _ method: RPCMethod<Request, Response>, _ request: Request = Request(),
        _ body: (RPCStream<Request, Response>) async throws -> R
    ) async throws -> R {
        let call = try await open(method.name, only: try encode(request))
        defer { release(call) }
        return try await body(RPCStream(call: call))
    }

    /// Starts a call in which both sides stream; it ends when `body` returns or throws.
    public func bidirectional<Request, Response, R>(
        _ method: RPCMethod<Request, Response>, _ body: (RPCStream<Request, Response>) async throws -> R
    ) async throws -> R {
        let call = try await open(method.name, only: nil)
        defer { release(call) }
        return try await body(RPCStream(call: call))
    }

    private func open(_ name: String, only message: [UInt8]?) async throws(RPCError) -> RPCCall {
        while true {
            let result: Result<YamuxStreamID, YamuxError> = change { state in
                do throws(YamuxError) {
                    let id = try state.session.open(now: state.now)
                    var call = RPCState.Call(transport: DRPCTransport(role: .client))
                    call.transport.invoke(name)
                    if let message {
                        call.transport.sendMessage(message)
                        call.transport.closeSend()
                    }
                    state.calls[id] = call
                    state.flush(id)
                    return .success(id)
                } catch {
                    return .failure(error)
                }
            }
            switch result {
            case .success(let id): return RPCCall(connection: self, id: id, generation: 0)
            case .failure(.tooManyUnacknowledged), .failure(.tooManyStreams):
                if Task.isCancelled { throw .cancelled }
                await wait(.open) { $0.session.canTryOpen }
            case .failure(let error):
                throw change { $0.closedBecause } ?? .connectionClosed("yamux: \(error)")
            }
        }
    }

    /// Says goodbye if the call is still going, and closes its stream. rpc-transport §4.4: clients never reuse it.
    private func release(_ call: RPCCall) {
        call.close()
        change { $0.release(call.id) }
    }
}

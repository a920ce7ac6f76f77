// SPDX-License-Identifier: Apache-2.0

public import SwiftProtobuf

/// One end of a running call in raw bytes. Sends may come from several tasks; only one task should receive.
struct RPCCall: Sendable {
    let connection: RPCConnection
    let id: YamuxStreamID
    let generation: Int

    private enum Step: Sendable {
        case message([UInt8])
        case end
        case failed(RPCError)
        case wait
    }

    /// The next message; nil when the peer has sent its last.
    func receive() async throws(RPCError) -> [UInt8]? {
        let (id, generation) = (id, generation)
        while true {
            let step: Step = connection.change { state in
                guard let call = state.calls[id], call.generation == generation else {
                    return .failed(.streamClosed)
                }
                if !call.inbox.isEmpty {
                    let message = state.calls[id]?.inbox.removeFirst() ?? []
                    state.pump(id)
                    return .message(message)
                }
                if call.isReadClosed { return .end }
                return call.end.map { .failed($0) } ?? .wait
            }
            switch step {
            case .message(let bytes): return bytes
            case .end: return nil
            case .failed(let error): throw error
            case .wait: break
            }
            if Task.isCancelled { throw .cancelled }
            await connection.wait(.read(id)) { state in
                guard let call = state.calls[id], call.generation == generation else { return true }
                return !call.inbox.isEmpty || call.isReadClosed || call.end != nil
            }
        }
    }

    /// Sends one message and waits until the window has taken it.
    func send(_ bytes: [UInt8]) async throws(RPCError) {
        guard bytes.count <= DRPCPacketReader.maximumPacketSize else { throw .messageTooLarge(bytes.count) }
        let (id, generation) = (id, generation)
        let failure: RPCError? = connection.change { state in
            guard let call = state.calls[id], call.generation == generation else { return .streamClosed }
            if let end = call.end { return end }
            guard state.calls[id]?.transport.sendMessage(bytes) == true else { return .streamClosed }
            state.flush(id)
            return nil
        }
        if let failure { throw failure }
        await connection.wait(.send(id)) { state in
            guard let call = state.calls[id], call.generation == generation else { return true }
            return call.pending.isEmpty || call.end != nil
        }
        if Task.isCancelled { throw .cancelled }
    }

    func closeSend() { step { $0.closeSend() } }
    func close() { step { $0.close() } }
    func fail(code: UInt64, text: String) { step { $0.sendError(code: code, text: text) } }

    private func step(_ body: (inout DRPCTransport) -> Void) {
        connection.change { state in
            guard state.calls[id]?.generation == generation, var transport = state.calls[id]?.transport else {
                return
            }
            body(&transport)
            state.calls[id]?.transport = transport
            state.flush(id)
        }
    }

    /// Waits until the peer has ended the call or is gone.
    func waitForEnd() async {
        let (id, generation) = (id, generation)
        await connection.wait(.end(id)) { state in
            guard let call = state.calls[id], call.generation == generation else { return true }
            return call.end != nil
        }
    }
}

/// A call whose messages flow both ways, or towards us only. Use it inside the closure that was given it.
public struct RPCStream<Outgoing: Message, Incoming: Message>: Sendable {
    let call: RPCCall

    /// Sends one message; waits while the peer does not read.
    public func send(_ message: Outgoing) async throws(RPCError) {
        try await call.send(try encode(message))
    }

    /// The next message; nil when the peer has sent its last. One task at a time.
    public func next() async throws(RPCError) -> Incoming? {
        guard let bytes = try await call.receive() else { return nil }
        return try decode(bytes)
    }

    /// We send no more; the peer may go on.
    public func closeSend() { call.closeSend() }
}

func encode(_ message: some Message) throws(RPCError) -> [UInt8] {
    do { return try message.serializedBytes() } catch { throw .undecodable("\(error)") }
}

func decode<M: Message>(_ bytes: [UInt8]) throws(RPCError) -> M {
    do { return try M(serializedBytes: bytes) } catch {
        throw .undecodable("\(M.protoMessageName): \(error)")
    }
}

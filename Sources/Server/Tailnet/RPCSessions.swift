// SPDX-License-Identifier: Apache-2.0

internal import RPC
internal import Synchronization

/// The RPC sessions that are open, so that they can be ended in an orderly way.
final class RPCSessions: Sendable {
    private struct State {
        var next: UInt64 = 0
        var open: [UInt64: (connection: RPCConnection, socket: WebSocketSession)] = [:]
        var isClosed = false
        var failures = 0
    }

    private let state = Mutex(State())

    /// Messages of other WebSocket libraries are limited to 32 KiB unless told otherwise.
    private static let maximumMessageBytes = 32_768

    /// Serves one session over a WebSocket until either side ends it, or `guardian` returns. The guardian watches over
    /// the session's life: pings, permissions.
    func serve(
        _ socket: WebSocketSession, handlers: RPCHandlers,
        guardian: @escaping @Sendable (RPCConnection) async -> Void
    ) async {
        let connection = RPCConnection(role: .server, handlers: handlers)
        guard let number = enter(connection, socket) else { return await socket.close(code: 1001) }
        defer { leave(number) }
        await withTaskGroup(of: (code: UInt16, reason: String).self) { group in
            group.addTask { await self.run(connection, socket) }
            group.addTask {
                await guardian(connection)
                return (1001, "")
            }
            let end = await group.next() ?? (1000, "")
            connection.close()
            await socket.close(code: end.code, reason: end.reason)
            group.cancelAll()
        }
    }

    /// Ends all sessions and takes no new ones.
    func closeAll() async {
        let open = state.withLock { state in
            state.isClosed = true
            return Array(state.open.values)
        }
        await withTaskGroup(of: Void.self) { group in
            for session in open {
                group.addTask { await session.socket.close(code: 1001, reason: "server is shutting down") }
            }
        }
    }

    /// How many are open.
    var count: Int { state.withLock { $0.open.count } }

    /// Sessions that did not end in order: connections lost, and peers that broke the protocol.
    var failures: Int { state.withLock { $0.failures } }

    private func enter(_ connection: RPCConnection, _ socket: WebSocketSession) -> UInt64? {
        state.withLock { state in
            guard !state.isClosed else { return nil }
            state.next += 1
            state.open[state.next] = (connection, socket)
            return state.next
        }
    }

    private func leave(_ number: UInt64) { state.withLock { $0.open[number] = nil } }

    private func run(_ connection: RPCConnection, _ socket: WebSocketSession) async -> (UInt16, String) {
        do {
            try await connection.run(
                read: {
                    switch try await socket.receive() {
                    case .bytes(let bytes): return bytes
                    case .text: throw WebSocketError.notBinary
                    case nil: return nil
                    }
                },
                write: { bytes in
                    for start in stride(from: 0, to: bytes.count, by: Self.maximumMessageBytes) {
                        let end = min(start + Self.maximumMessageBytes, bytes.count)
                        try await socket.send(bytes[start..<end])
                    }
                })
            return (1000, "")
        } catch {
            if error != .cancelled { state.withLock { $0.failures += 1 } }
            let isText = "\(error)".contains("notBinary")
            return isText ? (1003, "unexpected text message") : (1011, "session ended by an error")
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

public import HTTPTransport
public import RPC

/// A control-plane connection: a WebSocket with RPC on it, for as long as a closure runs.
public enum RPCSession {
    /// Opens the WebSocket, runs `body`, and closes. When the connection ends first, `body` is cancelled and the
    /// connection's error is thrown. A server that refuses throws `HTTPError` with its response.
    public static func with<R: Sendable>(
        _ client: HTTPClient, _ url: HTTPURL, headers: HeaderFields = HeaderFields(),
        _ body: @escaping @Sendable (RPCConnection) async throws -> R
    ) async throws -> R {
        let socket = try await client.webSocket(url, headers: headers)
        let connection = RPCConnection(role: .client)
        let result = await Result(catching: {
            try await withThrowingTaskGroup(of: R?.self) { group in
                group.addTask {
                    try await connection.run(
                        read: { try await socket.receive() }, write: { try await socket.send($0) })
                    return nil
                }
                group.addTask {
                    let result = try await body(connection)
                    connection.close()
                    return result
                }
                defer {
                    connection.close()
                    group.cancelAll()
                }
                // Either the body's result, or nil when the connection ended before.
                guard let first = try await group.next(), let result = first else {
                    throw RPCError.connectionClosed("the server closed the connection")
                }
                return result
            }
        })
        await socket.close()
        return try result.get()
    }
}

extension Result where Failure == any Error, Success: Sendable {
    fileprivate init(catching body: () async throws -> Success) async {
        do { self = .success(try await body()) } catch { self = .failure(error) }
    }
}

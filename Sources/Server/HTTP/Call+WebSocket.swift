// SPDX-License-Identifier: Apache-2.0

extension Call {
    /// The answer that turns the connection into a WebSocket, or 400 when the client did not ask for one properly.
    /// `serve` runs until the socket is closed.
    func webSocket(
        _ serve: @escaping @Sendable (WebSocketSession) async -> Void
    ) throws(APIError) -> Reply {
        let upgrade = Upgrade(fields: try webSocketFields()) { stream, leftOver in
            await serve(WebSocketSession(stream: stream, leftOver: leftOver))
        }
        return Reply(status: 101, body: .upgrade(upgrade))
    }

    /// Fields of the 101 that makes the connection a WebSocket, or 400 when the client did not ask for one properly.
    func webSocketFields(subprotocol: String? = nil) throws(APIError) -> [(name: String, value: String)] {
        let key = head.first("sec-websocket-key") ?? ""
        guard wantsWebSocket, head.first("sec-websocket-version") == "13", Base64.decode(key)?.count == 16
        else {
            throw APIError(
                400, "Failed to accept websocket.", detail: "the request is not a WebSocket upgrade")
        }
        // A page of another site must not speak with the user's cookie. Programs send no Origin.
        if let origin = head.first("origin"), let host = head.first("host"), subprotocol != "derp",
            origin.split(separator: "/").last.map(String.init) != host
        {
            throw APIError(
                403, "Failed to accept websocket.", detail: "request Origin is not authorized for Host")
        }
        // RFC 6455 §4.2.2: the key's text and this UUID.
        let accept = Digest.sha1(Array((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").utf8))
        var fields = [
            (name: "Upgrade", value: "websocket"), ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", Base64.encode(accept)),
        ]
        if let subprotocol { fields.append(("Sec-WebSocket-Protocol", subprotocol)) }
        return fields
    }
}

extension WebSocketSession {
    /// Runs `produce`, which only sends, until it ends, the peer goes, or `call` would be refused by now; pings in
    /// between. A message from the peer is against the rules of such a route.
    func sendOnly(for call: Call, _ produce: @escaping @Sendable () async throws -> Void) async {
        expectNothing()
        await withTaskGroup(of: UInt16.self) { group in
            group.addTask {
                do {
                    try await produce()
                    return 1000
                } catch {
                    return 1011
                }
            }
            group.addTask {
                do {
                    return try await self.receive() == nil ? 1000 : 1002
                } catch {
                    return 1006
                }
            }
            group.addTask {
                // Ends by cancellation, or closes the socket itself.
                try? await self.keepAlive(while: { await call.isStillAllowed() })
                return 1001
            }
            await close(code: await group.next() ?? 1011)
            group.cancelAll()
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import DERPRelay
internal import LinuxIO
internal import Logging
internal import Mesh
internal import NIOCore
internal import NIOPosix

/// `/derp`: gives upgraded connections to the relay. `derp.md` §4 and §5.
struct RelayRoutes {
    let services: Services

    func register(_ routes: RouteTable) {
        guard let relay = services.mesh.relay else { return }
        routes.root(.get, "/derp", .anonymous) { try derp($0, relay) }
        routes.root(.get, "/derp/latency-check", .anonymous) { _ in
            var reply = Reply.text("")
            reply.fields = [("Access-Control-Allow-Origin", "*"), ("Timing-Allow-Origin", "*")]
            return reply
        }
    }

    private func derp(_ call: Call, _ relay: Relay) throws(APIError) -> Reply {
        let (group, logger) = (services.mesh.group, services.logger)
        let wanted = call.head.tokens("upgrade")
        if wanted.contains("websocket"), call.head.tokens("sec-websocket-protocol").contains("derp") {
            return try call.webSocket(subprotocol: "derp") { socket in
                do {
                    try await Bridge.run(socket, relay, group)
                } catch {
                    logger.debug("relayed WebSocket ended", metadata: ["error": "\(error)"])
                }
                await socket.close(code: 1011)
            }
        }
        guard wanted.contains("derp") || wanted.contains("websocket") else {
            return .text("DERP requires connection upgrade\n", status: 426)
        }
        let fields = [
            (name: "Upgrade", value: "DERP"), ("Connection", "Upgrade"), ("Derp-Version", "2"),
            ("Derp-Public-Key", relay.publicKey.hex),
        ]
        let isFast = call.head.first("derp-fast-start") == "1"
        let upgrade = Upgrade(fields: isFast ? nil : fields) { stream, leftOver in
            do {
                if let taken = try await stream.detach() {
                    relay.adopt(OwnedDescriptor(taking: taken.number), leftover: leftOver + taken.leftOver)
                } else {
                    try await Bridge.run(stream, leftOver: leftOver, relay, group)
                }
            } catch {
                logger.debug("relayed connection ended", metadata: ["error": "\(error)"])
            }
        }
        return Reply(status: 101, body: .upgrade(upgrade))
    }
}

/// Carries the bytes of a TLS or WebSocket connection to the relay, which wants a bare descriptor.
private enum Bridge {
    static func run(
        _ socket: WebSocketSession, _ relay: Relay, _ group: MultiThreadedEventLoopGroup
    ) async throws {
        try await run(
            relay, group,
            read: {
                guard case .bytes(let bytes) = try await socket.receive() else { return nil }
                return ByteBuffer(bytes: bytes)
            },
            write: { try await socket.send($0.readableBytesView) })
    }

    static func run(
        _ stream: ByteStream, leftOver: [UInt8], _ relay: Relay, _ group: MultiThreadedEventLoopGroup
    ) async throws {
        let early = EarlyBytes(leftOver)
        try await run(
            relay, group,
            read: {
                if let bytes = early.take() { return ByteBuffer(bytes: bytes) }
                return try await stream.read()
            },
            write: { try await stream.write($0) })
    }

    private static func run(
        _ relay: Relay, _ group: MultiThreadedEventLoopGroup,
        read: @escaping @Sendable () async throws -> ByteBuffer?,
        write: @escaping @Sendable (ByteBuffer) async throws -> Void
    ) async throws {
        let (inner, outer) = try Descriptor.socketPair(nonBlocking: true).release()
        let end: ByteStream
        do {
            end = try await ClientBootstrap(group: group).channelOption(.autoRead, value: false)
                .withConnectedSocket(outer) { channel in
                    channel.eventLoop.makeCompletedFuture {
                        try ByteStream(wrapping: channel, isEncrypted: false)
                    }
                }
        } catch {
            OwnedDescriptor(taking: inner).close()
            throw error
        }
        relay.adopt(OwnedDescriptor(taking: inner))
        defer { end.close() }
        try await withThrowingTaskGroup(of: Void.self) { tasks in
            tasks.addTask { while let bytes = try await read() { try await end.write(bytes) } }
            tasks.addTask { while let bytes = try await end.read() { try await write(bytes) } }
            defer { tasks.cancelAll() }
            try await tasks.next()
        }
    }
}

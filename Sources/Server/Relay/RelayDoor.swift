// SPDX-License-Identifier: Apache-2.0

internal import DERPRelay
internal import LinuxIO
internal import Logging
internal import Mesh
internal import NIOPosix

/// The relay inside the server: `/derp` on every listener.
struct RelayRoutes {
    let services: Services

    func register(_ routes: RouteTable) {
        guard let relay = services.mesh.relay else { return }
        let door = RelayDoor(relay: relay, group: services.mesh.group, logger: services.logger)
        routes.root(.get, "/derp", .anonymous) { try door.answer($0) }
        routes.root(.get, "/derp/latency-check", .anonymous) { _ in RelayDoor.latencyCheck }
    }
}

/// Turns `/derp` requests into connections of a relay. `derp.md` §4 and §5.
struct RelayDoor: Sendable {
    let relay: Relay
    let group: MultiThreadedEventLoopGroup
    let logger: Logger

    /// `GET /derp/latency-check`: clients measure how long it takes.
    static var latencyCheck: Reply {
        var reply = Reply.text("")
        reply.fields = [("Access-Control-Allow-Origin", "*"), ("Timing-Allow-Origin", "*")]
        return reply
    }

    /// `GET /derp`.
    func answer(_ call: Call) throws(APIError) -> Reply {
        let wanted = call.head.tokens("upgrade")
        let (relay, group, logger) = (relay, group, logger)
        let source = call.peerAddress
        if wanted.contains("websocket"), call.head.tokens("sec-websocket-protocol").contains("derp") {
            return try call.webSocket(subprotocol: "derp") { socket in
                do {
                    try await RelayBridge.run(socket, relay, group, source: source)
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
                    relay.adopt(
                        OwnedDescriptor(taking: taken.number), leftover: leftOver + taken.leftOver,
                        source: source)
                } else {
                    let end = try await stream.bridge(leftOver: leftOver)
                    relay.adopt(OwnedDescriptor(taking: end), source: source)
                    await withTaskCancellationHandler {
                        await stream.closed()
                    } onCancel: {
                        stream.close()
                    }
                }
            } catch {
                logger.debug("relayed connection ended", metadata: ["error": "\(error)"])
            }
        }
        return Reply(status: 101, body: .upgrade(upgrade))
    }
}

// SPDX-License-Identifier: Apache-2.0

public import DERPRelay
internal import LinuxIO
internal import Logging
internal import Mesh
public import TLS

/// The relay inside the server: `/derp` on every listener.
struct RelayRoutes {
    let services: Services

    func register(_ routes: RouteTable) {
        guard let relay = services.mesh.relay else { return }
        let door = RelayDoor(relay: relay, logger: services.logger)
        routes.root(.get, "/derp", .anonymous) { try door.answer($0) }
        routes.root(.get, "/derp/latency-check", .anonymous) { _ in RelayDoor.latencyCheck }
    }
}

/// Turns `/derp` requests into connections of a relay. `derp.md` §4 and §5.
struct RelayDoor: Sendable {
    let relay: Relay
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
        if wanted.contains("websocket"), call.head.tokens("sec-websocket-protocol").contains("derp") {
            let fields = try call.webSocketFields(subprotocol: "derp")
            return upgrade(call, fields: fields, isWebSocket: true)
        }
        guard wanted.contains("derp") || wanted.contains("websocket") else {
            return .text("DERP requires connection upgrade\n", status: 426)
        }
        let fields = [
            (name: "Upgrade", value: "DERP"), ("Connection", "Upgrade"), ("Derp-Version", "2"),
            ("Derp-Public-Key", relay.publicKey.hex),
        ]
        let isFast = call.head.first("derp-fast-start") == "1"
        return upgrade(call, fields: isFast ? nil : fields, isWebSocket: false)
    }

    /// Gives the connection to the relay: the socket itself, with its encryption, or one end of a bridge.
    private func upgrade(_ call: Call, fields: [(name: String, value: String)]?, isWebSocket: Bool) -> Reply {
        let (relay, logger) = (relay, logger)
        let source = call.peerAddress
        let upgrade = Upgrade(fields: fields) { stream, leftOver in
            do {
                if !isWebSocket {
                    let taken = try await stream.detach()
                    relay.adopt(
                        OwnedDescriptor(taking: taken.number), leftover: leftOver + taken.leftOver,
                        source: source, cipher: taken.session)
                    return
                }
                let end = try await stream.bridge(webSocket: leftOver)
                relay.adopt(OwnedDescriptor(taking: end), source: source)
                await withTaskCancellationHandler {
                    await stream.closed()
                } onCancel: {
                    stream.close()
                }
            } catch {
                logger.debug("relayed connection ended", metadata: ["error": "\(error)"])
            }
        }
        return Reply(status: 101, body: .upgrade(upgrade))
    }
}

extension TLSSession: RelayCipher {}

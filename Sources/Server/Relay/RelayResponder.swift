// SPDX-License-Identifier: Apache-2.0

internal import DERPRelay
internal import Mesh
internal import Synchronization

/// What a relay of its own answers: the relay's door, and the pages around it. `derp.md` §6.8.
final class RelayResponder: Connection.Responder {
    private let door: RelayDoor
    private let stun: STUNListener?
    /// What its listeners did not serve.
    let http: HTTPCounters
    private let certificates: Certificates?
    private let verifier: RelayVerifier?
    private let version: String
    private let isDraining = Atomic<Bool>(false)
    private let trouble = Mutex<[String]>([])

    private let doors = Mutex<[FrontDoor]>([])

    init(
        door: RelayDoor, stun: STUNListener?, http: HTTPCounters, certificates: Certificates?,
        verifier: RelayVerifier?, version: String
    ) {
        self.door = door
        self.stun = stun
        self.http = http
        self.certificates = certificates
        self.verifier = verifier
        self.version = version
    }

    /// From now on nobody new is taken, and health checks fail.
    func drain() { isDraining.store(true, ordering: .releasing) }

    /// What `healthz-report` warns of.
    func report(_ warnings: [String]) { trouble.withLock { $0 = warnings } }

    /// Shows what these doors count, too.
    func watch(_ doors: [FrontDoor]) { self.doors.withLock { $0 = doors } }

    func respond(to call: Call) async -> Reply {
        let path = call.head.target.prefix { $0 != "?" }
        guard call.head.method == "GET" || call.head.method == "HEAD" else {
            return .text("Method Not Allowed\n", status: 405)
        }
        let isLeaving = isDraining.load(ordering: .acquiring)
        switch path {
        case "/derp", "/derp/":
            // Clients try the region's next relay at any status but 101; 503 does not make them use WebSockets.
            if isLeaving { return .text("This relay is about to stop.\n", status: 503) }
            do { return try door.answer(call) } catch { return .error(error) }
        case "/derp/latency-check", "/latency-check": return RelayDoor.latencyCheck
        case "/derp/probe":
            var reply = Reply.text("")
            reply.fields = [("Access-Control-Allow-Origin", "*")]
            return reply
        case "/generate_204": return portalCheck(call)
        case "/healthz": return isLeaving ? .text("draining", status: 503) : .text("OK")
        case "/healthz-report":
            let warnings = trouble.withLock { $0 }
            return .json(["errors": isLeaving ? ["draining"] : [], "warnings": JSON(warnings)])
        case "/metrics": return .text(metrics, type: MetricsResponder.type)
        case "/robots.txt": return .text("User-agent: *\nDisallow: /\n")
        case "/": return .text(index, type: "text/html; charset=utf-8")
        default: return .text("404 page not found\n", status: 404)
        }
    }

    /// The question of a node whether a portal stands between it and the net.
    private func portalCheck(_ call: Call) -> Reply {
        var reply = Reply.noContent
        reply.fields = [
            ("Cache-Control", "no-cache, no-store, must-revalidate, no-transform, max-age=0")
        ]
        if let challenge = call.head.first("x-tailscale-challenge"), (1...64).contains(challenge.utf8.count),
            challenge.utf8.allSatisfy({ byte in
                switch byte {
                case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                    UInt8(ascii: "0")...UInt8(ascii: "9"):
                    true
                default: "._-:".utf8.contains(byte)
                }
            })
        {
            reply.fields.append(("X-Tailscale-Response", "response \(challenge)"))
        }
        return reply
    }

    private var metrics: String {
        var text = door.relay.counters.prometheusText
        if let counters = stun?.counters { text += Metrics.text(counters) }
        let counters = doors.withLock { $0 }.map(\.counters)
        for (name, member) in [
            ("evicted", \FrontDoor.Counters.evicted), ("silent", \.silent), ("exhausted", \.exhausted),
            ("failed_handshakes", \.failedHandshakes),
        ] where !counters.isEmpty {
            let sum = counters.reduce(0) { $0 + $1[keyPath: member] }
            text += Metrics.sample("coder_relay_door_\(name)_total", "counter", sum)
        }
        if let verifier { text += verifier.prometheusText }
        text += http.prometheusText
        if let certificates { text += Metrics.text(certificates) }
        return text + Metrics.process
    }

    private var index: String {
        """
        <!doctype html><html lang="en"><meta charset="utf-8"><title>Relay</title>
        <h1>Relay</h1>
        <p>This is a DERP relay. It forwards encrypted packets between nodes that cannot reach each other directly.
        It cannot read them.</p>
        <p>Key: <code>\(door.relay.publicKey.hex)</code><br>
        Version: <code>\(version)</code>\(stun == nil ? "" : "<br>STUN answers on UDP port \(stun?.port ?? 0).")</p>
        <p><a href="/metrics">Metrics</a>, <a href="/healthz">health</a></p></html>

        """
    }
}

// SPDX-License-Identifier: Apache-2.0

import Foundation
import TestSupport

/// How a host is attached to the lab's internet. RFC 4787 words: mapping and filtering.
struct NATKind: Hashable, Sendable {
    enum Translation: Sendable {
        /// On the switch itself, with a public address.
        case none
        /// On the relay's own host.
        case relayHost
        /// Endpoint-independent mapping, port-restricted filter: the usual home router.
        case easy
        /// Endpoint-independent mapping, no filter.
        case fullCone
        /// Another mapping for each destination, port-restricted filter.
        case hard
        /// IPv6 alone, no translation, a firewall that lets answers in.
        case v6
    }

    enum PortProtocol: String, Sendable {
        case pcp = "PCP"
        case upnp = "UPnP"
    }

    var translation: Translation
    /// UDP does not pass.
    var blocksUDP = false
    /// Only an HTTP proxy on the router passes anything.
    var onlyProxy = false
    /// The router opens ports when it is asked by this protocol (miniupnpd).
    var opensPorts: PortProtocol?
    /// The router forwards no larger packets, and says so.
    var mtu = 1_500
}

/// A host with a mesh node, behind a router of its own where it has one.
final class NATHome: Sendable {
    let world: NATWorld
    let kind: NATKind
    /// Namespaces. Without a router both are the same.
    let host: String
    let router: String
    /// The host's address, and its gateway.
    let address: String
    private let gateway: String
    private let number: Int

    /// `number` is unique in the world: it chooses all addresses. 0...199.
    init(_ world: NATWorld, _ kind: NATKind, number: Int) async throws {
        self.world = world
        self.kind = kind
        self.number = number
        let hasRouter = ![.none, .relayHost].contains(kind.translation)
        host = kind.translation == .relayHost ? world.core : "\(world.prefix)-h\(number)"
        router = hasRouter ? "\(world.prefix)-r\(number)" : host
        address = hasRouter ? "10.99.\(number).2" : "5.5.5.\(10 + number)"
        gateway = "10.99.\(number).1"
        guard kind.translation != .relayHost else { return }
        for name in Set([host, router]) { try await NATWorld.must(["ip", "netns", "add", name]) }
        try await attachToSwitch()
        if hasRouter { try await attachHost() }
        try await setRules()
    }

    private var public4: String { "5.5.5.\(10 + number)" }
    private var public6: String { "2001:db8::\(String(10 + number, radix: 16))" }
    private var inner6: String { "2001:db8:\(String(10 + number, radix: 16)):" }

    private func attachToSwitch() async throws {
        try await NATWorld.must([
            "ip", "link", "add", "wan", "netns", router, "type", "veth", "peer", "name", "p\(number)",
            "netns",
            world.core,
        ])
        try await NATWorld.batch(world.core, ["link set p\(number) master br0 up"])
        try await NATWorld.setForwarding(router)
        var lines = ["link set lo up", "link set wan up"]
        if kind.translation == .v6 {
            lines += [
                "-6 address add \(public6)/64 dev wan nodad", "-6 route add default via \(NATWorld.relay.v6)",
            ]
            try await NATWorld.batch(world.core, ["-6 route add \(inner6):/64 via \(public6)"])
        } else {
            lines += ["address add \(public4)/24 dev wan"]
        }
        try await NATWorld.batch(router, lines)
    }

    private func attachHost() async throws {
        try await NATWorld.must([
            "ip", "link", "add", "eth0", "netns", host, "type", "veth", "peer", "name", "lan", "netns",
            router,
        ])
        try await NATWorld.must([
            "ip", "netns", "exec", host, "sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/all/accept_dad",
        ])
        if kind.translation == .v6 {
            try await NATWorld.batch(
                router, ["link set lan up", "-6 address add \(inner6):1/64 dev lan nodad"])
        } else {
            try await NATWorld.batch(router, ["link set lan up", "address add \(gateway)/24 dev lan"])
        }
        try await NATWorld.batch(host, ["link set lo up"])
        try await bringUp(address: address)
        guard kind.mtu < 1_500 else { return }
        try await NATWorld.batch(
            router,
            [
                "route change 5.5.5.0/24 dev wan src \(public4) mtu lock \(kind.mtu)",
                "route change 10.99.\(number).0/24 dev lan src \(gateway) mtu lock \(kind.mtu)",
            ])
    }

    /// The host's side of its only link, as after plugging it in.
    func bringUp(address: String) async throws {
        if kind.translation == .v6 {
            try await NATWorld.batch(
                host,
                [
                    "link set eth0 up", "-6 address add \(inner6):2/64 dev eth0 nodad",
                    "-6 route add default via \(inner6):1",
                ])
        } else {
            try await NATWorld.batch(
                host,
                [
                    "link set eth0 up", "address replace \(address)/24 dev eth0",
                    "route replace default via \(gateway)",
                ])
        }
    }

    func takeDown() async throws { try await NATWorld.batch(host, ["link set eth0 down"]) }

    /// Another address on the same link, as after a new lease.
    func changeAddress() async throws {
        try await NATWorld.batch(host, ["address del \(address)/24 dev eth0"])
        try await bringUp(address: "10.99.\(number).77")
    }

    private func setRules() async throws {
        // A router must not let strangers' packets reach itself: such a packet would leave an entry in its
        // table, and the port of the answer from inside would be taken.
        var text = ""
        switch kind.translation {
        case .easy, .fullCone, .hard:
            let how = kind.translation == .hard ? "masquerade fully-random" : "masquerade persistent"
            let open =
                kind.translation == .fullCone
                ? "chain p { type nat hook prerouting priority -100; iifname wan ip protocol udp dnat to \(address); }"
                : ""
            let pass = kind.translation == .fullCone ? "meta l4proto udp accept;" : ""
            text = """
                table ip translation {
                    \(open)
                    chain post { type nat hook postrouting priority 100; oifname wan \(how); }
                }
                table ip wall {
                    chain i { type filter hook input priority 0; iifname wan ct state new drop; }
                    chain f {
                        type filter hook forward priority 0;
                        \(pass) ct status dnat accept; iifname wan ct state new drop;
                    }
                }
                """
        case .v6:
            text = """
                table ip6 wall {
                    chain f {
                        type filter hook forward priority 0;
                        meta l4proto ipv6-icmp accept; iifname wan ct state new drop;
                    }
                }
                """
        case .none, .relayHost: return
        }
        for (name, what) in [
            ("noudp", kind.blocksUDP ? "meta l4proto udp drop" : nil),
            ("nothing", kind.onlyProxy ? "drop" : nil),
        ] {
            guard let what else { continue }
            text += """

                table inet \(name) {
                    chain f { type filter hook forward priority -5; \(what); }
                }
                """
        }
        try await NATWorld.rules(router, text)
    }

    /// Stops (or lets through again) all UDP of this home.
    func setUDPCut(_ isCut: Bool) async throws {
        guard isCut else { return try await NATWorld.rules(router, "delete table inet cut") }
        try await NATWorld.rules(
            router,
            """
            table inet cut {
                chain i { type filter hook input priority -10; meta l4proto udp drop; }
                chain o { type filter hook output priority -10; meta l4proto udp drop; }
                chain f { type filter hook forward priority -10; meta l4proto udp drop; }
            }
            """)
    }

    /// Stops WireGuard's data for good; discovery, whose packets begin otherwise, goes on.
    func cutData() async throws {
        try await NATWorld.rules(
            router,
            """
            table inet nodata {
                chain f { type filter hook forward priority -10; meta l4proto udp @th,64,8 0x04 drop; }
            }
            """)
    }

    /// An interface such as those of containers: with an address of its own and no way to anywhere.
    func setContainer(_ isThere: Bool) async throws {
        try await NATWorld.batch(
            host,
            isThere
                ? [
                    "link add docker0 type bridge", "address add 172.17.0.1/16 dev docker0",
                    "link set docker0 up",
                ]
                : ["link del docker0"])
    }

    /// The daemon of most home routers. Its chains are its own; the wall lets through what it forwards.
    func startPortMapper() async throws -> Command {
        try await NATWorld.rules(
            router,
            """
            table inet miniupnpd {
                chain forwards {}
                chain outer {}
                chain inner {}
                chain pre { type nat hook prerouting priority -100; iifname wan jump outer; }
            }
            """)
        let isPCP = kind.opensPorts == .pcp
        let file = world.folder.appending(path: "miniupnpd-\(number).conf")
        try Data(
            """
            ext_ifname=wan
            listening_ip=lan
            port=5555
            enable_natpmp=\(isPCP ? "yes" : "no")
            enable_upnp=\(isPCP ? "no" : "yes")
            secure_mode=yes
            system_uptime=no
            ipv6_disable=yes
            uuid=00000000-0000-0000-0000-00000000000\(number % 10)
            upnp_table_name=miniupnpd
            upnp_nat_table_name=miniupnpd
            upnp_forward_chain=forwards
            upnp_nat_chain=outer
            upnp_nat_postrouting_chain=inner
            allow 1024-65535 10.99.0.0/16 1024-65535
            deny 0-65535 0.0.0.0/0 0-65535

            """.utf8
        ).write(to: file)
        return try Command(
            ["ip", "netns", "exec", router, "miniupnpd", "-d", "-f", file.path, "-P", "\(file.path).pid"])
    }

    // MARK: Programs

    func start(_ arguments: [String], environment: [String: String] = [:]) throws -> Command {
        try Command(["ip", "netns", "exec", host] + arguments, environment: environment)
    }

    /// An HTTP proxy on the router: CONNECT, and whole requests.
    func startProxy() throws -> Command {
        let script = """
            import socket, threading, urllib.parse as u
            def pump(a, b):
                try:
                    while True:
                        d = a.recv(65536)
                        if not d: break
                        b.sendall(d)
                except OSError: pass
                for s in (a, b):
                    try: s.shutdown(socket.SHUT_RDWR)
                    except OSError: pass
            def serve(c):
                try:
                    head = b''
                    while b'\\r\\n\\r\\n' not in head: 
                        d = c.recv(4096)
                        if not d: return
                        head += d
                    line, rest = head.split(b'\\r\\n', 1)
                    method, target, version = line.decode().split(' ')
                    if method == 'CONNECT':
                        host, port = target.rsplit(':', 1)
                        s = socket.create_connection((host.strip('[]'), int(port)), 5)
                        body = head.split(b'\\r\\n\\r\\n', 1)[1]
                        c.sendall(b'HTTP/1.1 200 OK\\r\\n\\r\\n'); s.sendall(body)
                    else:
                        p = u.urlsplit(target)
                        s = socket.create_connection((p.hostname, p.port or 80), 5)
                        s.sendall(f'{method} {p.path or "/"} {version}\\r\\n'.encode() + rest)
                    s.settimeout(None)
                    threading.Thread(target=pump, args=(s, c), daemon=True).start(); pump(c, s)
                except (OSError, ValueError): c.close()
            l = socket.create_server(('\(gateway)', 3128))
            while True:
                c, _ = l.accept(); c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=serve, args=(c,), daemon=True).start()
            """
        return try Command(["ip", "netns", "exec", router, "python3", "-c", script])
    }

    var proxyURL: String { "http://\(gateway):3128" }
}

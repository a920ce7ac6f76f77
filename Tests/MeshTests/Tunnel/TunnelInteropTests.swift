// SPDX-License-Identifier: Apache-2.0

import Foundation
import LinuxIO
import Mesh
import TestSupport
import Testing

/// Our interface against Debian's wireguard-go and against itself, configured with Debian's `wg`. Needs root.
@Suite(
    .serialized, .timeLimit(.minutes(5)),
    .enabled(if: TunnelLab.isPossible, "needs root, ip, ping, iperf3, wg, wireguard-go and /dev/net/tun"))
struct TunnelInteropTests {
    typealias Kind = TunnelLab.Kind
    static let pairs: [[Kind]] = [[.ours, .wireguardGo], [.wireguardGo, .ours], [.ours, .ours]]

    /// The same commands lead to the same `wg showconf`, ours and Debian's.
    @Test func configurationAsDebiansPeerShowsIt() async throws {
        try await TunnelLab.with(.ours, .wireguardGo, isConfigured: false) { lab in
            var shown: [String] = []
            let first = """
                [Interface]
                PrivateKey = \(lab.a.privateKey.withUnsafeBytes { Data($0).base64EncodedString() })
                ListenPort = 4321
                FwMark = 0x20
                [Peer]
                PublicKey = \(lab.b.key)
                PresharedKey = \(Data(repeating: 0x33, count: 32).base64EncodedString())
                AllowedIPs = 10.0.0.0/8, fd00::/8
                Endpoint = [2001:db8::1]:5
                PersistentKeepalive = 25
                """
            let second = first.replacing("4321", with: "4322").replacing("0x20", with: "0")
                .replacing("PersistentKeepalive = 25", with: "").replacing("10.0.0.0/8", with: "10.1.0.0/16")
            let other = Data(repeating: 0x44, count: 32).base64EncodedString()
            for side in [lab.a, lab.b] {
                try side.run("ip", "link", "set", side.interface, "up")
                let (key, one, two) = (lab.b.key, first, second)
                var text = ""
                func show() throws {
                    let lines = try side.run("wg", "showconf", side.interface).split(separator: "\n")
                    // Peers come in no certain order from wireguard-go.
                    let sorted = lines.map { line -> String in
                        guard line.hasPrefix("AllowedIPs = ") else {
                            return String(line).replacing(key, with: "K")
                        }
                        return line.dropFirst(13).split(separator: ", ").sorted().joined(separator: ", ")
                    }.sorted()
                    text += sorted.joined(separator: "\n") + "\n--\n"
                }
                let name = side.interface
                try side.run("wg", "setconf", name, "/dev/stdin", input: one)
                try show()
                try side.run("wg", "addconf", name, "/dev/stdin", input: "[Peer]\nPublicKey = \(other)\n")
                try show()
                try side.run("wg", "syncconf", name, "/dev/stdin", input: two)
                try show()
                try side.wg("fwmark", "7", "listen-port", "4444", "peer", key, "remove")
                try side.wg("peer", other, "allowed-ips", "0.0.0.0/0,::/0", "persistent-keepalive", "3")
                try side.wg("peer", other, "preshared-key", "/dev/null", "endpoint", "192.0.2.1:7")
                try show()
                try side.wg("private-key", "/dev/null", "fwmark", "off")
                try side.wg("peer", other, "allowed-ips", "", "persistent-keepalive", "off")
                try show()
                shown.append(text)
            }
            #expect(shown[0] == shown[1])
            #expect(shown[0].contains("FwMark = 0x20") && shown[0].contains("10.1.0.0/16"))
        }
    }

    /// Pings of both families and both ways over both kinds of endpoint, and iperf3 both ways.
    @Test(arguments: pairs) func trafficBothWays(pair: [Kind]) async throws {
        try await TunnelLab.with(pair[0], pair[1]) { lab in
            let (a, b) = (lab.a, lab.b)
            #expect(try a.pings(b.inner4) && b.pings(a.inner4) && a.pings(b.inner6) && b.pings(a.inner6))
            #expect(try a.pings(b.inner4, options: "-s", "1392", "-M", "do"))
            #expect(try a.latestHandshake() > 0 && b.latestHandshake() > 0)
            #expect(try b.wgShow("endpoints").last?.contains("\(a.outer4):51820") == true)
            try iperf(lab)
            // By IPv6 outside.
            try a.wg("peer", b.key, "endpoint", "[\(b.outer6)]:51820")
            #expect(try a.pings(b.inner6) && b.pings(a.inner4))
            #expect(try b.wgShow("endpoints").last?.contains("[\(a.outer6)]:51820") == true)
            let transfer = try a.wgShow("transfer").last?.split(separator: "\t").compactMap { Int($0) } ?? []
            #expect(transfer.count == 2 && transfer.allSatisfy { $0 > 1_000_000 }, "\(transfer)")
        }
    }

    private func iperf(
        _ lab: TunnelLab, _ kinds: [[String]] = [[], ["-R"], ["-u", "-b", "20M"]]
    ) throws {
        let server = try Command(
            ["ip", "netns", "exec", lab.b.namespace, "iperf3", "-s", "-B", lab.b.inner4])
        defer { server.signal(SIGKILL) }
        for options in kinds {
            var text = ""
            for _ in 0..<20 where !text.contains("\"end\"") || text.contains("\"error\"") {
                usleep(100_000)
                text = try SystemCommand.run(
                    ["ip", "netns", "exec", lab.a.namespace, "iperf3", "-J", "-t", "1", "-c", lab.b.inner4]
                        + options, mayFail: true)
            }
            #expect(
                text.contains("\"end\"") && !text.contains("\"error\""), "\(options): \(text.suffix(300))")
        }
    }

    /// End points that are link-local: they mean nothing without the interface, which answers must name too.
    @Test func linkLocalEndpoints() async throws {
        try await TunnelLab.with(.ours, .ours) { lab in
            let (a, b) = (lab.a, lab.b)
            let text = try b.run("ip", "-6", "-o", "address", "show", "dev", "eth0", "scope", "link")
            let address = try #require(text.firstMatch(of: /inet6 (fe80[0-9a-f:]+)/)).1
            // The address is usable once its uniqueness was checked.
            var isThrough = false
            for _ in 0..<8 where !isThrough {
                try a.wg("peer", b.key, "endpoint", "[\(address)%eth0]:51820")
                isThrough = try a.pings(b.inner4, count: 1, options: "-w", "1")
            }
            #expect(isThrough)
            #expect(try b.pings(a.inner4))
            let shown = try (a.wgShow("endpoints").last ?? "", b.wgShow("endpoints").last ?? "")
            #expect(shown.0.hasSuffix("[\(address)%eth0]:51820"), "\(shown.0)")
            #expect(shown.1.contains("[fe80") && shown.1.hasSuffix("%eth0]:51820"), "\(shown.1)")
        }
    }

    /// Answers leave from the address that was asked, on a machine with several of each family; and when it is
    /// gone, from another.
    @Test func answersLeaveFromTheAddressThatWasAsked() async throws {
        try await TunnelLab.with(.ours, .wireguardGo) { lab in
            let (a, b) = (lab.a, lab.b)
            let (second4, second6) = ("10.98.0.55", "fd00:98::55")
            try a.run("ip", "address", "add", "\(second4)/24", "dev", "eth0")
            try a.run("ip", "address", "add", "\(second6)/64", "dev", "eth0", "nodad")
            for address in [a.outer4, second4, a.outer6, second6] {
                let endpoint = address.contains(":") ? "[\(address)]:51820" : "\(address):51820"
                try b.wg("peer", a.key, "endpoint", endpoint)
                #expect(try b.pings(a.inner4, lost: 4) && a.pings(b.inner4, lost: 4))
                #expect(try b.wgShow("endpoints").last?.hasSuffix("\t\(endpoint)") == true, "\(endpoint)")
                try iperf(lab, [[]])
                #expect(try b.wgShow("endpoints").last?.hasSuffix("\t\(endpoint)") == true, "\(endpoint)")
            }
            try a.run("ip", "address", "del", "\(second6)/64", "dev", "eth0")
            #expect(try a.pings(b.inner4, lost: 4), "sent from another address at once")
            #expect(try b.wgShow("endpoints").last?.hasSuffix("\t[\(a.outer6)]:51820") == true)
        }
    }

    /// Everything that may change while packets flow: each time pings get through afterwards.
    @Test(arguments: [[Kind.ours, .wireguardGo], [.ours, .ours]]) func changesWhileRunning(
        pair: [Kind]
    ) async throws {
        try await TunnelLab.with(pair[0], pair[1]) { lab in
            let (a, b) = (lab.a, lab.b)
            #expect(try a.pings(b.inner4))
            // Roaming: a sends from another port, and b follows.
            try a.wg("listen-port", "40001")
            #expect(try a.wgShow("listen-port") == ["40001"])
            #expect(try a.pings(b.inner4), "another port")
            #expect(try b.wgShow("endpoints").last?.contains("\(a.outer4):40001") == true)
            // Another address: of the cable this time. (wireguard-go goes on with the old one for a while.)
            if a.kind == .ours {
                try a.run("ip", "address", "del", "\(a.outer4)/24", "dev", "eth0")
                try a.run("ip", "address", "add", "10.98.0.77/24", "dev", "eth0")
                #expect(try a.pings(b.inner4, lost: 1) && b.pings(a.inner4), "another address")
                #expect(try b.wgShow("endpoints").last?.contains("10.98.0.77:40001") == true)
            }
            // Mark: a rule that drops what is not marked proves it.
            try a.wg("fwmark", "0x99")
            try a.run(
                "nft", "-f", "-",
                input: """
                    table inet t {
                        chain o {
                            type filter hook output priority 0;
                            udp dport 51820 meta mark != 0x99 drop;
                        }
                    }
                    """)
            #expect(try a.pings(b.inner4), "marked")
            try a.wg("fwmark", "0")
            #expect(try !a.pings(b.inner4, count: 2, options: "-w", "2"), "not marked")
            try a.run("nft", "delete", "table", "inet", "t")
            #expect(try a.pings(b.inner4), "no rule")
            // MTU, down and up.
            try a.run("ip", "link", "set", a.interface, "mtu", "1280")
            #expect(try a.pings(b.inner4, options: "-s", "1252", "-M", "do"), "smaller packets")
            try a.run("ip", "link", "set", a.interface, "mtu", "1420")
            #expect(try a.pings(b.inner4, options: "-s", "1392", "-M", "do"), "larger packets")
            try a.run("ip", "link", "set", a.interface, "down")
            #expect(try !b.pings(a.inner4, count: 1, options: "-w", "1"), "down")
            try a.run("ip", "link", "set", a.interface, "up")
            #expect(try a.pings(b.inner4, lost: 1), "up again")
            // A preshared key on both sides, and a wrong one.
            let secret = Data(repeating: 7, count: 32).base64EncodedString()
            for (side, other) in [(a, b), (b, a)] {
                try side.wg("peer", other.key, "preshared-key", "/dev/stdin", input: secret)
            }
            try renew(lab)
            #expect(try a.pings(b.inner4), "preshared key")
            #expect(try a.wgShow("preshared-keys").last?.hasSuffix(secret) == true)
            try await replaceKey(lab)
        }
    }

    /// Both sides forget their session by removing and adding the peer.
    private func renew(_ lab: TunnelLab) throws {
        let (a, b) = (lab.a, lab.b)
        let keys = try [a, b].map { try $0.wgShow("preshared-keys").last?.split(separator: "\t").last ?? "" }
        for (index, (side, other)) in [(a, b), (b, a)].enumerated() {
            try side.wg("peer", other.key, "remove")
            try lab.addPeer(other, to: side)
            guard keys[index] != "(none)" else { continue }
            try side.wg("peer", other.key, "preshared-key", "/dev/stdin", input: String(keys[index]))
        }
        try a.wg("peer", b.key, "endpoint", "\(b.outer4):51820")
    }

    /// a takes a new key while running; b learns it; then traffic goes on.
    private func replaceKey(_ lab: TunnelLab) async throws {
        let (a, b) = (lab.a, lab.b)
        var generator = SystemRandomNumberGenerator()
        let new = PrivateKey(using: &generator)
        let text = new.withUnsafeBytes { Data($0).base64EncodedString() }
        try b.wg("peer", a.key, "remove")
        try a.wg("private-key", "/dev/stdin", input: text)
        let newKey = Data(new.nodePublicKey.bytes).base64EncodedString()
        try b.wg("peer", newKey, "allowed-ips", "\(a.inner4)/32,\(a.inner6)/128")
        try a.wg("peer", b.key, "preshared-key", "/dev/null")
        #expect(try a.pings(b.inner4, lost: 1), "new key")
        #expect(try b.pings(a.inner4), "new key, the other way")
    }

    /// Peers come and go under traffic, others stay, and nothing stalls.
    @Test(arguments: [[Kind.ours, .wireguardGo], [.ours, .ours]]) func peersComeAndGo(
        pair: [Kind]
    ) async throws {
        try await TunnelLab.with(pair[0], pair[1]) { lab in
            let (a, b) = (lab.a, lab.b)
            #expect(try a.pings(b.inner4))
            let flood = try Command([
                "ip", "netns", "exec", b.namespace, "ping", "-i", "0.002", "-c", "1500", "-q", a.inner4,
            ])
            var generator = SystemRandomNumberGenerator()
            for round in 0..<30 {
                let key = Data(PrivateKey(using: &generator).nodePublicKey.bytes).base64EncodedString()
                try a.wg("peer", key, "allowed-ips", "10.200.\(round).0/24", "endpoint", "10.98.0.200:9")
                try a.wg("peer", key, "persistent-keepalive", "1")
                if round % 2 == 0 { try a.wg("peer", key, "remove") }
            }
            let text = try await flood.finish().text
            let received = text.firstMatch(of: /(\d+) received/).flatMap { Int($0.1) } ?? 0
            #expect(received >= 1_490, "\(text.suffix(200))")
            #expect(try a.wgShow("peers").count == 16)
            // The peer itself goes and comes: traffic goes on without it being asked for again.
            try a.wg("peer", b.key, "remove")
            try lab.addPeer(b, to: a)
            #expect(try b.pings(a.inner4, count: 1, options: "-w", "1") == false, "no session, no endpoint")
            try a.wg("peer", b.key, "endpoint", "\(b.outer4):51820", "persistent-keepalive", "1")
            #expect(try b.pings(a.inner4, lost: 1), "the keepalive began a session")
        }
    }

    /// Nothing is sent, but the session is kept alive, and begun without any packet.
    @Test func persistentKeepalive() async throws {
        try await TunnelLab.with(.ours, .wireguardGo) { lab in
            try lab.a.wg("peer", lab.b.key, "persistent-keepalive", "1")
            for _ in 0..<60 where try lab.b.latestHandshake() == 0 {
                try await Task.sleep(for: .milliseconds(50))
            }
            #expect(try lab.b.latestHandshake() > 0)
            func received() throws -> Int {
                try lab.b.wgShow("transfer").last?.split(separator: "\t").dropFirst().first.flatMap {
                    Int($0)
                } ?? 0
            }
            let before = try received()
            try await Task.sleep(for: .milliseconds(3_300))
            let kept = try received() - before
            #expect(kept >= 64 && kept <= 160 && kept % 32 == 0, "\(kept) bytes of empty packets")
        }
    }

    /// A session is renewed under traffic and no ping is lost (times shortened for us; we begin).
    @Test(arguments: [Kind.wireguardGo, .ours]) func renewal(other: Kind) async throws {
        var limits = WireGuard.Limits()
        limits.rekeyAfterTime = .seconds(2)
        limits.rekeyTimeout = .milliseconds(500)
        try await TunnelLab.with(.ours, other, limits: limits) { lab in
            #expect(try lab.a.pings(lab.b.inner4))
            let first = try lab.a.latestHandshake()
            #expect(try lab.a.pings(lab.b.inner4, count: 130), "6.5 s of pings over several renewals")
            #expect(try lab.a.latestHandshake() >= first + 4)
            #expect(try lab.b.latestHandshake() >= first + 4)
            #expect((lab.a.counters()?.responsesAccepted ?? 0) >= 3)
        }
    }

    /// Both begin at once, 30 times: no start waits for the retransmission after 5 s. Both sides are held while
    /// a packet for the other comes up, and released at the same moment.
    @Test(arguments: [Kind.ours, .wireguardGo]) func simultaneousStarts(other: Kind) async throws {
        try await TunnelLab.with(.ours, other) { lab in
            let (a, b) = (lab.a, lab.b)
            var slow: [Double] = []
            for _ in 0..<30 {
                for (side, peer) in [(a, b), (b, a)] {
                    try side.wg("peer", peer.key, "remove")
                    try lab.addPeer(peer, to: side)
                    try side.wg("peer", peer.key, "endpoint", "\(peer.outer4):51820")
                }
                let start = ContinuousClock.now
                let release = Clock.monotonicNanoseconds() + 120_000_000
                for side in [a, b] { try side.hold(until: release) }
                async let one = Task.detached { try a.pings(b.inner4, count: 1) }.value
                async let two = Task.detached { try b.pings(a.inner4, count: 1) }.value
                let isThrough = try await (one, two)
                let seconds = (ContinuousClock.now - start) / .seconds(1)
                if !isThrough.0 || !isThrough.1 || seconds > 3 { slow.append(seconds) }
            }
            // wireguard-go now and then loses the packet that waited for the session; two of its own kind wait
            // 5 s in nearly every such start.
            #expect(slow.count <= (other == .ours ? 0 : 3), "\(slow.count) of 30: \(slow)")
            let glares = a.counters()?.glares ?? 0
            if other == .ours { #expect(glares > 0, "none of the starts was simultaneous") }
            Issue.recordNothing("glares seen: \(glares)")
        }
    }
}

extension Issue {
    /// A figure for whoever reads the log of a campaign.
    fileprivate static func recordNothing(_ text: String) {
        if Seeds.isCampaign { FileHandle.standardError.write(Data((text + "\n").utf8)) }
    }
}

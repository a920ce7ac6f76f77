// SPDX-License-Identifier: Apache-2.0

import FoundationEssentials
import Mesh
import Testing

@Suite struct UAPITests {
    static let zeros = String(repeating: "0", count: 64)
    static let peer = "a2373fed3790c0b97e11e9b38452ab2530ca14a4032fcf94cae37e247aca4344"

    /// W8: everything that Debian's `wg` was seen to write is understood, also byte by byte.
    @Test(arguments: [1, 7, Int.max]) func transcripts(chunk: Int) throws {
        let vectors = try UAPIVectors.load()
        for run in vectors.runs {
            let interface = PaperInterface()
            for connection in run.connections {
                let (answer, isRefused) = interface.talk(Array(connection.utf8), chunk: chunk)
                let text = String(decoding: answer, as: UTF8.self)
                #expect(!isRefused, "\(run.command)")
                if !connection.isEmpty { #expect(text.hasSuffix("errno=0\n\n"), "\(run.command): \(text)") }
            }
        }
    }

    /// The answer that `wg show`, `dump` and `showconf` were seen to read, made from a status.
    @Test func answerToGet() throws {
        let vectors = try UAPIVectors.load()
        // The line of the future is what `wg` must pass over; the private key was not clamped in the capture.
        let ones = String(repeating: "11", count: 32)
        let expected = vectors.get_reply_used
            .replacing("some_future_key=1\n", with: "")
            .replacing(ones, with: "10" + String(repeating: "11", count: 30) + "51")
        let status = UAPI.Status(
            privateKey: try PrivateKey(bytes: Array(repeating: 0x11, count: 32)), listenPort: 51_820,
            firewallMark: 16,
            peers: [
                UAPI.PeerStatus(
                    publicKey: try NodePublicKey(bytes: Array(repeating: 0x22, count: 32)),
                    endpoint: UAPI.Endpoint(SocketAddress("[2001:db8::1]:51820")!),
                    lastHandshake: WireGuard.WallTime(seconds: 1_700_000_000, nanoseconds: 5), sentBytes: 10,
                    receivedBytes: 20, persistentKeepalive: 25,
                    allowedIPs: [IPPrefix("10.0.0.0/24")!, IPPrefix("fd00::1/128")!])
            ])
        #expect(String(decoding: status.answer, as: UTF8.self) == expected)
    }

    /// What is set is what `get` tells.
    @Test func setAndGet() throws {
        let interface = PaperInterface()
        let request = """
            set=1
            private_key=9\(String(repeating: "3", count: 61))7a
            listen_port=1234
            fwmark=4294967295
            replace_peers=true
            public_key=\(Self.peer)
            preshared_key=\(String(repeating: "33", count: 32))
            endpoint=[fe80::1%eth0]:51820
            persistent_keepalive_interval=25
            replace_allowed_ips=true
            allowed_ip=10.1.2.3/8
            allowed_ip=::/0
            allowed_ip=10.9.0.0/16
            allowed_ip=-10.9.0.0/16
            protocol_version=1


            """
        #expect(interface.talk(request) == "errno=0\n\n")
        let text = interface.talk("get=1\n\n")
        #expect(
            text.split(separator: "\n") == [
                "private_key=90\(String(repeating: "3", count: 60))7a", "listen_port=1234",
                "fwmark=4294967295", "public_key=\(Self.peer)",
                "preshared_key=\(String(repeating: "33", count: 32))", "protocol_version=1",
                "endpoint=[fe80::1%eth0]:51820", "last_handshake_time_sec=0", "last_handshake_time_nsec=0",
                "tx_bytes=0", "rx_bytes=0", "persistent_keepalive_interval=25", "allowed_ip=10.0.0.0/8",
                "allowed_ip=::/0", "errno=0",
            ])
        #expect(text.hasSuffix("errno=0\n\n"))
        #expect(
            interface.output().map(\.count) == [WireGuard.initiationSize], "the keepalive begins a session")
        // The same again is no change, and no new handshake.
        #expect(interface.talk(request) == "errno=0\n\n")
        #expect(interface.talk("set=1\npublic_key=\(Self.peer)\nremove=true\n\n") == "errno=0\n\n")
        #expect(interface.peerCount == 0 && interface.endpointCount == 0)
        #expect(interface.talk("set=1\nprivate_key=\(Self.zeros)\nfwmark=0\n\n") == "errno=0\n\n")
        #expect(interface.talk("get=1\n\n") == "listen_port=1234\nerrno=0\n\n")
    }

    /// An error stops the operation at its line; what came before stays; the next operation works.
    @Test(arguments: [
        ("listen_port=65536", -22), ("listen_port=", -22), ("listen_port=+1", -22), ("listen_port=1 ", -22),
        ("listen_port=7", -98), ("fwmark=0x10", -22), ("fwmark=4294967296", -22), ("private_key=12", -22),
        ("replace_peers=false", -22), ("listen_port", -71), ("nonsense=1", -22), ("endpoint=1.2.3.4:5", -22),
        ("remove=true", -22), ("public_key=", -22), ("public_key=\(zeros)", -22),
        ("public_key=\(peer)\nlisten_port=5", -22), ("public_key=\(peer)\nendpoint=1.2.3.4", -22),
        ("public_key=\(peer)\nendpoint=1.2.3.4:-5", -22), ("public_key=\(peer)\nendpoint=::1:5", -22),
        ("public_key=\(peer)\nendpoint=[1.2.3.4]:5", -22), ("public_key=\(peer)\nendpoint=[::1%]:5", -22),
        ("public_key=\(peer)\nendpoint=[::1%aaaaaaaaaaaaaaaa]:5", -22),
        ("public_key=\(peer)\nallowed_ip=10.0.0.0/33", -22), ("public_key=\(peer)\nallowed_ip=10.0.0.0", -22),
        ("public_key=\(peer)\nallowed_ip=--10.0.0.0/8", -22),
        ("public_key=\(peer)\nallowed_ip=::/0129", -22),
        ("public_key=\(peer)\npersistent_keepalive_interval=70000", -22),
        ("public_key=\(peer)\npersistent_keepalive_interval=off", -22),
        ("public_key=\(peer)\nprotocol_version=2", -22), ("public_key=\(peer)\nupdate_only=1", -22),
        ("public_key=\(peer)\nrx_bytes=1", -22), ("public_key=\(peer)\npreshared_key=zz", -22),
    ]) func refusedLines(lines: String, number: Int) {
        let interface = PaperInterface()
        let answer = interface.talk("set=1\nfwmark=9\n\(lines)\nlisten_port=99\n\nget=1\n\n")
        #expect(answer.hasPrefix("errno=\(number)\n\nfwmark=9\n"), "\(lines): \(answer)")
        #expect(!answer.contains("listen_port"))
    }

    @Test func whatEndsTheConnection() {
        for text in ["hello\n", "get=2\n", "set=2\n\n", "get=1\nmore=1\n\n", "\n", "GET / HTTP/1.1\r\n"] {
            let (answer, isRefused) = PaperInterface().talk(Array(text.utf8))
            #expect(isRefused && answer.isEmpty, "\(text)")
        }
        // W15: ten million bytes without an end, in an operation or not, take no memory.
        for start in ["", "set=1\n", "set=1\nlisten_port="] {
            let flood = Array(start.utf8) + Array(repeating: 0x31, count: 10_000_000)
            #expect(PaperInterface().talk(flood, chunk: 65_536).isRefused)
        }
        var limits = UAPI.Limits()
        limits.linesPerOperation = 10
        let many = Array(("set=1\n" + String(repeating: "fwmark=1\n", count: 11) + "\n").utf8)
        #expect(PaperInterface().talk(many, limits: limits).isRefused)
        let failing = Array(("set=1\nx=1\n" + String(repeating: "fwmark=1\n", count: 11) + "\n").utf8)
        #expect(PaperInterface().talk(failing, limits: limits).isRefused)
        // Half a request: the lines that are complete are in force.
        let interface = PaperInterface()
        #expect(interface.talk(Array("set=1\nfwmark=5\nlisten_port=8".utf8)).answer.isEmpty)
        #expect(interface.mark == 5 && interface.port == 0)
    }

    @Test func updateOnlyAndOwnKey() throws {
        var generator = SeededGenerator(seed: 3)
        let key = PrivateKey(using: &generator)
        let interface = PaperInterface(key: key)
        let lines = "allowed_ip=10.0.0.0/8\nendpoint=1.2.3.4:5\npersistent_keepalive_interval=1\n\n"
        #expect(interface.talk("set=1\npublic_key=\(Self.peer)\nupdate_only=true\n\(lines)") == "errno=0\n\n")
        #expect(interface.peerCount == 0)
        #expect(interface.talk("set=1\npublic_key=\(key.nodePublicKey.hex)\n\(lines)") == "errno=0\n\n")
        #expect(interface.peerCount == 0 && interface.output().isEmpty)
        #expect(interface.talk("set=1\npublic_key=\(Self.peer)\n\n") == "errno=0\n\n")
        #expect(interface.talk("set=1\npublic_key=\(Self.peer)\nupdate_only=true\n\(lines)") == "errno=0\n\n")
        let peer = try #require(interface.status.peers.first)
        #expect(peer.allowedIPs == [IPPrefix("10.0.0.0/8")!] && peer.endpoint?.description == "1.2.3.4:5")
        // Our key becomes a peer's key: that peer goes.
        let hex = key.withUnsafeBytes { Hex.text($0) }
        let other = PaperInterface()
        #expect(other.talk("set=1\npublic_key=\(key.nodePublicKey.hex)\n\(lines)") == "errno=0\n\n")
        #expect(other.peerCount == 1 && other.output().isEmpty, "without a key nothing is begun")
        #expect(other.talk("set=1\nprivate_key=\(hex)\n\n") == "errno=0\n\n")
        #expect(other.peerCount == 0 && other.endpointCount == 0)
    }

    @Test func allowedIPsMove() throws {
        let interface = PaperInterface()
        var generator = SeededGenerator(seed: 4)
        let keys = (0..<2).map { _ in PrivateKey(using: &generator).nodePublicKey.hex }
        let both = keys.map { "public_key=\($0)\nallowed_ip=10.0.0.0/8\nallowed_ip=fd00::/8\n" }.joined()
        #expect(interface.talk("set=1\n\(both)\n") == "errno=0\n\n")
        #expect(interface.status.peers.map(\.allowedIPs.count) == [0, 2])
        // Only the owner gives a prefix up.
        #expect(interface.talk("set=1\npublic_key=\(keys[0])\nallowed_ip=-10.0.0.0/8\n\n") == "errno=0\n\n")
        #expect(interface.status.peers.map(\.allowedIPs.count) == [0, 2])
        #expect(interface.talk("set=1\npublic_key=\(keys[1])\nallowed_ip=-10.0.0.0/8\n\n") == "errno=0\n\n")
        #expect(interface.status.peers.map(\.allowedIPs.count) == [0, 1])
        #expect(interface.talk("set=1\npublic_key=\(keys[1])\nreplace_allowed_ips=true\n\n") == "errno=0\n\n")
        #expect(interface.status.peers.map(\.allowedIPs.count) == [0, 0])
    }

    @Test func limitsOfTheDevice() {
        var limits = WireGuard.Limits()
        limits.peers = 1
        limits.allowedIPs = 2
        let interface = PaperInterface(limits: limits)
        let prefixes = (0..<3).map { "allowed_ip=10.\($0).0.0/16\n" }.joined()
        #expect(interface.talk("set=1\npublic_key=\(Self.peer)\n\(prefixes)\n") == "errno=-28\n\n")
        #expect(interface.status.peers.map(\.allowedIPs.count) == [2])
        let other = String(repeating: "22", count: 32)
        #expect(interface.talk("set=1\npublic_key=\(other)\n\n") == "errno=-28\n\n")
    }

    /// 2,000 peers in one operation, and told again in one answer; in pieces, so that nothing else waits long.
    @Test func manyPeers() {
        let interface = PaperInterface()
        var generator = SeededGenerator(seed: 5)
        var request = "set=1\nreplace_peers=true\n"
        for number in 0..<2_000 {
            request += "public_key=\(PrivateKey(using: &generator).nodePublicKey.hex)\n"
            request += "allowed_ip=10.\(number >> 8).\(number & 255).0/24\n"
        }
        #expect(interface.talk(request + "\n") == "errno=0\n\n")
        #expect(interface.peerCount == 2_000)
        #expect(interface.talk("get=1\n\n").split(separator: "\n").count == 1 + 2_000 * 9)
        #expect(interface.talk("set=1\nreplace_peers=true\n\n") == "errno=0\n\n")
        #expect(interface.peerCount == 0)
    }
}

// SPDX-License-Identifier: Apache-2.0

import Glibc
import LinuxIO
import Mesh
import Testing

/// Against Debian's wireguard-go and the kernel's TCP, in network namespaces. Needs root, /dev/net/tun and the
/// packages wireguard-go, wireguard-tools, socat, iproute2.
@Suite(
    .serialized, .enabled(if: Shell.canInterop, "needs root, wireguard-go, wg, ip, socat"),
    .timeLimit(.minutes(2)))
struct NodeInteropTests {
    private static let ours = IPAddress("10.78.0.1")!
    private static let theirs = IPAddress("10.78.0.2")!

    /// Two namespaces with a cable: 10.77.0.1 on our side, 10.77.0.2 there, and an echo server on TCP 7777 there.
    private struct Laboratory {
        /// The other side.
        let name = "mesh\(getpid())b"
        private let own = "mesh\(getpid())a"

        init() throws {
            let setUp = """
                set -e
                ip netns add \(own)
                ip netns add \(name)
                ip link add eth0 netns \(own) type veth peer name eth0 netns \(name)
                ip -n \(own) addr add 10.77.0.1/24 dev eth0
                ip -n \(own) link set eth0 up
                ip -n \(name) addr add 10.77.0.2/24 dev eth0
                ip -n \(name) link set eth0 up
                ip -n \(name) link set lo up
                ip netns exec \(name) sh -c 'socat TCP-LISTEN:7777,fork,reuseaddr EXEC:cat >/dev/null 2>&1 &'
                """
            let (status, output) = Shell.run(setUp)
            try #require(status == 0, "\(output)")
        }

        func tearDown() {
            _ = Shell.run(
                """
                for pid in $(ip netns pids \(name)); do kill $pid; done
                ip netns del \(name); ip netns del \(own); rm -f /tmp/\(name).*
                """)
        }

        /// A node on our side. Sockets and devices belong to the namespace of the thread that opens them.
        func node(_ configuration: NodeConfiguration) async throws -> Node {
            try await Self.node(configuration, in: own)
        }

        /// A node on the other side.
        func farNode(_ configuration: NodeConfiguration) async throws -> Node {
            try await Self.node(configuration, in: name)
        }

        private static func node(_ configuration: NodeConfiguration, in name: String) async throws -> Node {
            let node = await Blocking.run { () -> Node? in
                guard (try? NetworkNamespace.enter("/run/netns/\(name)")) != nil else { return nil }
                return try? Node(configuration)
            }
            return try #require(node)
        }

        /// Starts wireguard-go there as 10.78.0.2, listening on 51999. Returns its key.
        func startWireGuard(peer: NodePublicKey, endpoint: String?) throws -> NodePublicKey {
            let base64 = Shell.base64(peer.bytes)
            let setEndpoint = endpoint.map { "endpoint \($0)" } ?? ""
            let (status, output) = Shell.run(
                """
                set -e
                umask 077
                wg genkey > /tmp/\(name).key
                ip netns exec \(name) wireguard-go wgt0 >/dev/null 2>&1
                ip netns exec \(name) wg set wgt0 private-key /tmp/\(name).key listen-port 51999 \
                    peer '\(base64)' allowed-ips 10.78.0.1/32 \(setEndpoint)
                ip -n \(name) addr add 10.78.0.2/24 dev wgt0
                ip -n \(name) link set wgt0 mtu 1280 up
                wg pubkey < /tmp/\(name).key | base64 -d | od -An -v -tx1 | tr -d ' \\n'
                """)
            try #require(status == 0, "\(output)")
            return try NodePublicKey(hex: output.suffix(64))
        }
    }

    private static func configuration(_ address: IPAddress) -> NodeConfiguration {
        var generator = SystemRandomNumberGenerator()
        return NodeConfiguration(
            privateKey: PrivateKey(using: &generator), discoKey: PrivateKey(using: &generator),
            addresses: [address])
    }

    private static func peer(_ key: NodePublicKey, _ address: IPAddress, _ endpoint: String?) -> MeshPeer {
        MeshPeer(
            id: MeshPeerID(low: 1), key: key, addresses: [address], allowedIPs: [IPPrefix(host: address)],
            endpoints: endpoint.flatMap { SocketAddress($0) }.map { [$0] } ?? [], isStatic: true)
    }

    /// Sends bytes to the echo server there and expects them back.
    private static func echo(_ node: Node, bytes count: Int) async throws -> Bool {
        let descriptor = try await node.dial(SocketAddress(theirs, port: 7777))
        let number = descriptor.number
        async let sent = Blocking.run { () -> UInt64 in
            var digest = Digest()
            var left = count
            while left > 0 {
                let chunk = (0..<min(left, 65_000)).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ left) }
                guard Blocking.write(number, chunk) else { break }
                digest.take(chunk)
                left -= chunk.count
            }
            Descriptor.finishWriting(number)
            return digest.value
        }
        let received = await Blocking.run { Blocking.digest(number) }
        descriptor.close()
        return await sent == received.0 && received.1 == count
    }

    @Test func weInitiateToWireGuardGo() async throws {
        let laboratory = try Laboratory()
        defer { laboratory.tearDown() }
        let node = try await laboratory.node(Self.configuration(Self.ours))
        let key = try laboratory.startWireGuard(peer: node.publicKey, endpoint: nil)
        node.updatePeer(Self.peer(key, Self.theirs, "10.77.0.2:51999"))
        #expect(try await Self.echo(node, bytes: 4 << 20))
        let status = try await node.status()
        #expect(status.peers.first?.path == .direct(SocketAddress("10.77.0.2:51999")!))
        #expect(status.peers.first?.sinceHandshake != nil)
        await node.close()
    }

    @Test func wireGuardGoInitiatesToUs() async throws {
        let laboratory = try Laboratory()
        defer { laboratory.tearDown() }
        let node = try await laboratory.node(Self.configuration(Self.ours))
        let port = try await node.status().ports.v4
        let key = try laboratory.startWireGuard(peer: node.publicKey, endpoint: "10.77.0.1:\(port)")
        // No endpoint on our side: it is learnt from the first authenticated packet.
        node.updatePeer(Self.peer(key, Self.theirs, nil))
        let incoming = try await node.listen(port: 80)
        let name = laboratory.name
        async let shell = Blocking.run {
            Shell.run("head -c 1000000 /dev/zero | ip netns exec \(name) socat - TCP:10.78.0.1:80,shut-down")
        }
        var iterator = incoming.makeAsyncIterator()
        let descriptor = try #require(await iterator.next()).descriptor()
        let number = descriptor.number
        let received = await Blocking.run { Blocking.readAll(number).count }
        #expect(received == 1_000_000)
        descriptor.close()
        _ = await shell
        await node.close()
    }

    @Test func theKernelsTCPBehindOurOwnTUN() async throws {
        let laboratory = try Laboratory()
        defer { laboratory.tearDown() }
        let node = try await laboratory.node(Self.configuration(Self.ours))
        let name = laboratory.name
        var configuration = Self.configuration(Self.theirs)
        configuration.tunName = "wgt1"
        configuration.listenPort = 51998
        let gateway = try await laboratory.farNode(configuration)
        let (status, output) = Shell.run(
            "ip -n \(name) addr add 10.78.0.2/24 dev wgt1 && ip -n \(name) link set wgt1 mtu 1280 up")
        try #require(status == 0, "\(output)")
        node.updatePeer(Self.peer(gateway.publicKey, Self.theirs, "10.77.0.2:51998"))
        gateway.updatePeer(Self.peer(node.publicKey, Self.ours, nil))
        #expect(try await Self.echo(node, bytes: 16 << 20))
        await #expect(throws: NodeError.refused) {
            _ = try await node.dial(SocketAddress(Self.theirs, port: 7778))
        }
        await node.close()
        await gateway.close()
    }
}

/// Shell commands for tests.
enum Shell {
    /// Whether the interoperation tests can run here.
    static let canInterop =
        geteuid() == 0
        && run(
            "command -v wireguard-go && command -v wg && command -v ip && command -v socat && test -c /dev/net/tun"
        )
        .status == 0

    /// Runs a script with `sh`; its exit status and all its output.
    static func run(_ script: String) -> (status: Int32, output: String) {
        guard let pipe = popen("( \(script)\n) 2>&1", "r") else { return (-1, "popen") }
        var output: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 4_096)
        while true {
            let count = fread(&chunk, 1, chunk.count, pipe)
            guard count > 0 else { break }
            output += chunk[..<count]
        }
        let status = pclose(pipe)
        return (status, String(decoding: output, as: UTF8.self))
    }

    /// Base64 with padding, as `wg` writes keys.
    static func base64(_ bytes: [UInt8]) -> String {
        let digits = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
        var result = ""
        for start in stride(from: 0, to: bytes.count, by: 3) {
            let part = bytes[start..<min(start + 3, bytes.count)]
            let word = part.reduce(0) { $0 << 8 | UInt32($1) } << UInt32(8 * (3 - part.count))
            for place in 0..<4 {
                result.append(
                    place <= part.count ? digits[Int(word >> UInt32(18 - 6 * place) & 63)] : "=")
            }
        }
        return result
    }
}

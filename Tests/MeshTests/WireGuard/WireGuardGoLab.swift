// SPDX-License-Identifier: Apache-2.0

import Foundation
import LinuxIO
import Mesh
import Synchronization
import TestSupport

/// Two network namespaces joined by one cable: ours (`a`), and one (`b`) with Debian's wireguard-go. No
/// traffic leaves them.
final class WireGuardGoLab: Sendable {
    /// Outer addresses.
    static let ours = "10.99.0.1"
    static let theirs = "10.99.0.2"
    static let port: UInt16 = 51_820
    /// Inner addresses.
    static let ourInner = IPAddress("10.88.0.1")!
    static let theirInner = IPAddress("10.88.0.2")!

    static var isPossible: Bool {
        geteuid() == 0
            && ["/usr/sbin/ip", "/usr/bin/wg", "/usr/bin/wireguard-go", "/usr/bin/ping", "/dev/net/tun"]
                .allSatisfy {
                    FileManager.default.fileExists(atPath: $0)
                }
    }

    /// Suites run side by side: each lab has names of its own.
    private static let labs = Atomic(0)
    let a: String
    let b: String
    let interface: String
    /// wireguard-go's key.
    let privateKey: PrivateKey
    private let daemon = Mutex<Command?>(nil)

    init() async throws {
        var generator = SystemRandomNumberGenerator()
        privateKey = PrivateKey(using: &generator)
        let lab = "\(getpid() % 1_000_000)\(Self.labs.add(1, ordering: .relaxed).newValue)"
        a = "cdrwg\(lab)a"
        b = "cdrwg\(lab)b"
        interface = "cwg\(lab)"
        do {
            try await build()
        } catch {
            close()
            throw error
        }
    }

    private func build() async throws {
        for name in [a, b] {
            try run(["ip", "netns", "add", name])
            try run(["ip", "-n", name, "link", "set", "lo", "up"])
        }
        try run(["ip", "link", "add", "eth0", "netns", a, "type", "veth", "peer", "name", "eth0", "netns", b])
        for (name, address) in [(a, Self.ours), (b, Self.theirs)] {
            try run(["ip", "-n", name, "address", "add", "\(address)/24", "dev", "eth0"])
            try run(["ip", "-n", name, "link", "set", "eth0", "up"])
        }
        let started = try Command(["ip", "netns", "exec", b, "wireguard-go", "-f", interface])
        daemon.withLock { $0 = started }
        let socket = "/var/run/wireguard/\(interface).sock"
        for _ in 0..<100 where access(socket, F_OK) != 0 { try await Task.sleep(for: .milliseconds(50)) }
        let key = privateKey.withUnsafeBytes { Data($0).base64EncodedString() }
        try onB(
            ["wg", "set", interface, "listen-port", "\(Self.port)", "private-key", "/dev/stdin"], input: key)
        try onB(["ip", "address", "add", "\(Self.theirInner)/24", "dev", interface])
        try onB(["ip", "link", "set", interface, "mtu", "1280", "up"])
    }

    /// Takes everything down; harmless when nothing is there.
    func close() {
        daemon.withLock { $0?.signal(SIGKILL) }
        for name in [a, b] where access("/run/netns/\(name)", F_OK) == 0 {
            _ = try? run(["ip", "netns", "delete", name])
        }
        unlink("/var/run/wireguard/\(interface).sock")
    }

    /// Makes our node a peer of wireguard-go.
    func addPeer(_ key: NodePublicKey, endpoint: UInt16? = nil, keepalive: Int = 0) throws {
        var arguments = [
            "wg", "set", interface, "peer", Data(key.bytes).base64EncodedString(), "allowed-ips",
            "\(Self.ourInner)/32", "persistent-keepalive", "\(keepalive)",
        ]
        if let endpoint { arguments += ["endpoint", "\(Self.ours):\(endpoint)"] }
        try onB(arguments)
    }

    func removePeer(_ key: NodePublicKey) throws {
        try onB(["wg", "set", interface, "peer", Data(key.bytes).base64EncodedString(), "remove"])
    }

    /// When wireguard-go last completed a handshake, in Unix seconds; 0 for never.
    func latestHandshake() throws -> Int {
        let text = try onB(["wg", "show", interface, "latest-handshakes"])
        return text.split(separator: "\t").last.flatMap {
            Int($0.trimmingCharacters(in: .whitespacesAndNewlines))
        } ?? 0
    }

    /// A node in namespace `a` with wireguard-go as its only peer.
    func makeNode(
        listenPort: UInt16 = 0, knowsEndpoint: Bool, limits: WireGuard.Limits = .init()
    ) async throws -> Node {
        var generator = SystemRandomNumberGenerator()
        var configuration = NodeConfiguration(
            privateKey: PrivateKey(using: &generator), discoKey: PrivateKey(using: &generator),
            addresses: [Self.ourInner])
        configuration.listenPort = listenPort
        configuration.wireGuardLimits = limits
        let settled = configuration
        let node = try await on(a) { try Node(settled) }
        node.updatePeer(
            MeshPeer(
                id: MeshPeerID(low: 1), key: privateKey.nodePublicKey, addresses: [Self.theirInner],
                allowedIPs: [IPPrefix(host: Self.theirInner)],
                endpoints: knowsEndpoint ? [SocketAddress("\(Self.theirs):\(Self.port)")!] : [],
                isStatic: true))
        return node
    }

    /// Runs `body` on a thread of a namespace. Sockets opened there stay there.
    func on<R: Sendable>(_ namespace: String, _ body: @escaping @Sendable () throws -> R) async throws -> R {
        try await SystemCommand.inNamespace(namespace, body)
    }

    @discardableResult
    func onB(_ arguments: [String], input: String = "") throws -> String {
        try run(["ip", "netns", "exec", b] + arguments, input: input)
    }

    /// Runs a command to its end and gives its output.
    @discardableResult
    func run(_ arguments: [String], input: String = "") throws -> String {
        try SystemCommand.run(arguments, input: input)
    }
}

/// Blocking TCP for the kernel's side of the tunnel; call within `WireGuardGoLab.on`.
enum KernelTCP {
    private static func address(_ address: SocketAddress) -> sockaddr_in {
        var result = sockaddr_in()
        result.sin_family = sa_family_t(AF_INET)
        result.sin_port = address.port.bigEndian
        result.sin_addr.s_addr = address.ip.v4.bigEndian
        return result
    }

    private static func withSocket(
        _ target: SocketAddress, _ call: (Int32, UnsafePointer<sockaddr>, socklen_t) -> Int32
    ) throws -> OwnedDescriptor {
        let number = socket(AF_INET, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        let owned = OwnedDescriptor(taking: number)
        var limit = timeval(tv_sec: 15, tv_usec: 0)
        for option in [SO_RCVTIMEO, SO_SNDTIMEO] {
            setsockopt(number, SOL_SOCKET, option, &limit, socklen_t(MemoryLayout<timeval>.size))
        }
        var address = address(target)
        let status = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                call(number, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        guard status == 0 else { throw SystemError(call: "connect or bind", code: errno) }
        return owned
    }

    static func connect(to target: SocketAddress) throws -> Int32 {
        try withSocket(target) { Glibc.connect($0, $1, $2) }.release()
    }

    /// Listens and echoes one connection after the other until the descriptor is shut down.
    static func serveEcho(on address: SocketAddress) throws -> Int32 {
        let listener = try withSocket(address) { Glibc.bind($0, $1, $2) }.release()
        guard Glibc.listen(listener, 16) == 0 else { throw SystemError(call: "listen", code: errno) }
        let thread = try DedicatedThread(name: "test-echo") {
            while true {
                let number = accept(listener, nil, nil)
                guard number >= 0 || errno == EAGAIN else { return }
                if number >= 0 { echo(number) }
            }
        }
        thread.detach()
        return listener
    }

    /// Sends back what comes, until end of file; then closes.
    static func echo(_ number: Int32) {
        var chunk = [UInt8](repeating: 0, count: 65_536)
        while true {
            let count = read(number, &chunk, chunk.count)
            guard count > 0, writeAll(number, chunk[..<count]) else { break }
        }
        OwnedDescriptor(taking: number).close()
    }

    static func writeAll(_ number: Int32, _ bytes: ArraySlice<UInt8>) -> Bool {
        var rest = bytes
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes { send(number, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
            guard count > 0 else { return false }
            rest = rest.dropFirst(count)
        }
        return true
    }

    /// Sends a pattern and reads it back. False when something else came, or nothing.
    static func roundTrip(_ number: Int32, seed: Int, count: Int) -> Bool {
        let pattern = (0..<count).map { UInt8(truncatingIfNeeded: seed &+ $0 &* 31) }
        guard writeAll(number, pattern[...]) else { return false }
        var received: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 65_536)
        while received.count < count {
            let size = read(number, &chunk, chunk.count)
            guard size > 0 else { return false }
            received += chunk[..<size]
        }
        return received == pattern
    }
}

// SPDX-License-Identifier: Apache-2.0

import Foundation
import LinuxIO
import Mesh
import Synchronization
import TestSupport

/// Two network namespaces joined by one cable, with a WireGuard interface in each: ours, or Debian's wireguard-go.
/// Both are configured with Debian's `wg`. No traffic leaves them.
final class TunnelLab: Sendable {
    enum Kind: String, Sendable, CaseIterable {
        case ours
        case wireguardGo
    }

    /// One namespace.
    final class Side: Sendable {
        let kind: Kind
        let namespace: String
        let interface: String
        let outer4: String
        let outer6: String
        let inner4: String
        let inner6: String
        let privateKey: PrivateKey
        private let running = Mutex<Running>(.nothing)

        private enum Running: Sendable {
            case nothing
            case ours(WireGuardTunnel, ConfigurationServer)
            case process(Command)
        }

        init(_ kind: Kind, letter: String, number: Int) {
            self.kind = kind
            let id = "\(getpid() % 100_000)"
            namespace = "cdrtun\(id)\(letter)"
            interface = "ct\(id)\(letter)"
            outer4 = "10.98.0.\(number)"
            outer6 = "fd00:98::\(number)"
            inner4 = "10.87.0.\(number)"
            inner6 = "fd00:87::\(number)"
            var generator = SystemRandomNumberGenerator()
            privateKey = PrivateKey(using: &generator)
        }

        var key: String { Data(privateKey.nodePublicKey.bytes).base64EncodedString() }
        var socket: String { "\(ConfigurationServer.directory)/\(interface).sock" }

        func start(limits: WireGuard.Limits) async throws {
            switch kind {
            case .ours:
                let name = interface
                let (tunnel, server) = try await SystemCommand.inNamespace(namespace) {
                    var options = WireGuardTunnel.Options()
                    options.limits = limits
                    let tunnel = try WireGuardTunnel(name: name, options: options)
                    return (tunnel, try ConfigurationServer(name: name, tunnel: tunnel, onRemoved: {}))
                }
                running.withLock { $0 = .ours(tunnel, server) }
            case .wireguardGo:
                let process = try Command(["ip", "netns", "exec", namespace, "wireguard-go", "-f", interface])
                running.withLock { $0 = .process(process) }
                for _ in 0..<200 where access(socket, F_OK) != 0 {
                    try await Task.sleep(for: .milliseconds(25))
                }
            }
        }

        func stop() {
            let last = running.withLock { running in
                defer { running = .nothing }
                return running
            }
            switch last {
            case .nothing: break
            case .ours(let tunnel, let server):
                server.close()
                tunnel.close()
            case .process(let process):
                process.signal(SIGKILL)
                unlink(socket)
            }
        }

        /// Keeps the interface from doing anything until a moment (of the monotonic clock), so that what waits
        /// on both sides begins at once.
        func hold(until end: UInt64) throws {
            @Sendable func wait() {
                while true {
                    let now = Clock.monotonicNanoseconds()
                    guard now < end else { return }
                    usleep(UInt32(clamping: min((end - now) / 1_000, 20_000)))
                }
            }
            let running = running.withLock { $0 }
            if case .process(let process) = running { process.signal(SIGSTOP) }
            let thread = try DedicatedThread(name: "test-hold") {
                switch running {
                case .nothing: break
                case .ours(let tunnel, _): _ = tunnel.perform { _ in wait() }
                case .process(let process):
                    wait()
                    process.signal(SIGCONT)
                }
            }
            thread.detach()
        }

        /// Counters of our device.
        func counters() -> WireGuard.Counters? {
            guard case .ours(let tunnel, _) = running.withLock({ $0 }) else { return nil }
            return tunnel.perform { $0.device.counters }
        }

        @discardableResult
        func run(_ arguments: String..., input: String = "") throws -> String {
            try SystemCommand.run(["ip", "netns", "exec", namespace] + arguments, input: input)
        }

        /// `wg set` with this interface.
        @discardableResult
        func wg(_ arguments: String..., input: String = "") throws -> String {
            try SystemCommand.run(
                ["ip", "netns", "exec", namespace, "wg", "set", interface] + arguments, input: input)
        }

        func wgShow(_ what: String) throws -> [String] {
            try run("wg", "show", interface, what).split(separator: "\n").map(String.init)
        }

        /// Seconds of the last handshake with the only peer.
        func latestHandshake() throws -> Int {
            try wgShow("latest-handshakes").last?.split(separator: "\t").last.flatMap { Int($0) } ?? 0
        }

        /// Whether so many pings get through; no more than `lost` may be missing.
        func pings(_ address: String, count: Int = 5, lost: Int = 0, options: String...) throws -> Bool {
            let text = try SystemCommand.run(
                ["ip", "netns", "exec", namespace, "ping", "-c", "\(count)", "-i", "0.05", "-W", "4"]
                    + options
                    + [address], mayFail: true)
            guard let match = text.firstMatch(of: /(\d+) received/), let received = Int(match.1) else {
                return false
            }
            return received >= count - lost
        }
    }

    let a: Side
    let b: Side

    static var isPossible: Bool {
        geteuid() == 0
            && [
                "/usr/sbin/ip", "/usr/bin/wg", "/usr/bin/wireguard-go", "/usr/bin/ping", "/usr/bin/iperf3",
                "/dev/net/tun",
            ].allSatisfy { FileManager.default.fileExists(atPath: $0) }
    }

    /// Both interfaces are up, know each other, and a knows where b is.
    init(_ a: Kind, _ b: Kind, limits: WireGuard.Limits = .init(), isConfigured: Bool = true) async throws {
        self.a = Side(a, letter: "a", number: 1)
        self.b = Side(b, letter: "b", number: 2)
        close()
        do {
            try await build(limits)
            if isConfigured { try configure() }
        } catch {
            close()
            throw error
        }
    }

    /// Runs a test in a lab that is taken down in any case.
    static func with(
        _ a: Kind, _ b: Kind, limits: WireGuard.Limits = .init(), isConfigured: Bool = true,
        _ body: (TunnelLab) async throws -> Void
    ) async throws {
        let lab = try await TunnelLab(a, b, limits: limits, isConfigured: isConfigured)
        defer { lab.close() }
        try await body(lab)
    }

    private func build(_ limits: WireGuard.Limits) async throws {
        for side in [a, b] {
            try SystemCommand.run(["ip", "netns", "add", side.namespace])
            try SystemCommand.run(["ip", "-n", side.namespace, "link", "set", "lo", "up"])
            // Link-local addresses are usable at once.
            for name in ["all", "default"] {
                try side.run("sysctl", "-qw", "net.ipv6.conf.\(name).accept_dad=0")
            }
        }
        try SystemCommand.run(
            ["ip", "link", "add", "eth0", "netns", a.namespace, "type", "veth", "peer", "name", "eth0"]
                + ["netns", b.namespace])
        for side in [a, b] {
            try SystemCommand.run([
                "ip", "-n", side.namespace, "address", "add", "\(side.outer4)/24", "dev", "eth0",
            ])
            try SystemCommand.run(
                ["ip", "-n", side.namespace, "address", "add", "\(side.outer6)/64", "dev", "eth0", "nodad"])
            try SystemCommand.run(["ip", "-n", side.namespace, "link", "set", "eth0", "up"])
        }
        for side in [a, b] { try await side.start(limits: limits) }
    }

    private func configure() throws {
        for (side, other) in [(a, b), (b, a)] {
            let key = side.privateKey.withUnsafeBytes { Data($0).base64EncodedString() }
            try side.wg("listen-port", "51820", "private-key", "/dev/stdin", input: key)
            try addPeer(other, to: side)
            try SystemCommand.run(
                ["ip", "-n", side.namespace, "address", "add", "\(side.inner4)/24", "dev", side.interface])
            try SystemCommand.run(
                ["ip", "-n", side.namespace, "address", "add", "\(side.inner6)/64", "dev", side.interface]
                    + ["nodad"])
            try SystemCommand.run(
                ["ip", "-n", side.namespace, "link", "set", side.interface, "mtu", "1420", "up"])
        }
        try a.wg("peer", b.key, "endpoint", "\(b.outer4):51820")
    }

    func addPeer(_ other: Side, to side: Side) throws {
        try side.wg("peer", other.key, "allowed-ips", "\(other.inner4)/32,\(other.inner6)/128")
    }

    /// Takes everything down; harmless when nothing is there.
    func close() {
        for side in [a, b] {
            side.stop()
            if access("/run/netns/\(side.namespace)", F_OK) == 0 {
                _ = try? SystemCommand.run(["ip", "netns", "delete", side.namespace])
            }
        }
    }
}

/// Commands of the system.
enum SystemCommand {
    struct Failure: Error {
        let command: String
        let status: Int32
        let errors: String
    }

    /// Runs a command to its end and gives its output.
    @discardableResult
    static func run(_ arguments: [String], input: String = "", mayFail: Bool = false) throws -> String {
        let outcome = try Command.runNow(arguments, input: Data(input.utf8))
        guard mayFail || outcome.status == 0 else {
            throw Failure(
                command: arguments.joined(separator: " "), status: outcome.status, errors: outcome.errorText)
        }
        return outcome.text
    }

    /// Runs `body` on a thread of a namespace. What it opens stays there, and so do the threads that it starts.
    static func inNamespace<R: Sendable>(
        _ namespace: String, _ body: @escaping @Sendable () throws -> R
    ) async throws -> R {
        try await DedicatedThread.run(name: "test-netns") {
            try NetworkNamespace.enter("/run/netns/\(namespace)")
            return try body()
        }
    }
}

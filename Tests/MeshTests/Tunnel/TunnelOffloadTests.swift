// SPDX-License-Identifier: Apache-2.0

import Glibc
import LinuxIO
import Mesh
import Synchronization
import Testing

/// The tunnel with its TUN device against Debian's wireguard-go, with every set of features. Needs root.
@Suite(
    .serialized, .timeLimit(.minutes(2)),
    .enabled(if: WireGuardGoLab.isPossible, "needs root, ip, ping, wg, wireguard-go and /dev/net/tun"))
struct TunnelOffloadTests {
    /// What a kernel may lack.
    enum Kernel: CaseIterable {
        case modern, withoutUDPOffload, withoutTCPOffload, withoutHeader, withoutSegmentation,
            withoutCoalescing

        /// What the log must say.
        var notice: String? {
            switch self {
            case .modern: nil
            case .withoutUDPOffload: "TUN: no UDP offload"
            case .withoutTCPOffload: "TUN: no TCP offload"
            case .withoutHeader: "TUN: no virtio header"
            case .withoutSegmentation: "UDP: no UDP_SEGMENT"
            case .withoutCoalescing: "UDP: no UDP_GRO"
            }
        }

        var options: WireGuardTunnel.Options {
            var options = WireGuardTunnel.Options()
            options.mtuBytes = 1_280
            switch self {
            case .modern: break
            case .withoutUDPOffload: options.deviceOffload = [.header, .tcp]
            case .withoutTCPOffload: options.deviceOffload = .header
            case .withoutHeader: options.deviceOffload = []
            case .withoutSegmentation: options.usesSegmentation = false
            case .withoutCoalescing: options.usesCoalescing = false
            }
            return options
        }
    }

    private func makeTunnel(
        _ lab: WireGuardGoLab, _ options: WireGuardTunnel.Options
    ) async throws -> WireGuardTunnel {
        var generator = SystemRandomNumberGenerator()
        let key = PrivateKey(using: &generator)
        let theirs = lab.privateKey.nodePublicKey
        let tunnel = try await lab.on(lab.a) { try WireGuardTunnel(name: "wgt%d", options: options) }
        let failure = tunnel.perform { loop -> String? in
            do {
                loop.device.setPrivateKey(key, now: loop.now)
                let peer = try loop.device.addPeer(
                    .init(publicKey: theirs, allowedIPs: [IPPrefix(host: WireGuardGoLab.theirInner)]),
                    now: loop.now)
                loop.setEndpoint(
                    SocketAddress("\(WireGuardGoLab.theirs):\(WireGuardGoLab.port)"), of: peer)
                return nil
            } catch {
                return "\(error)"
            }
        }
        #expect(failure == .some(nil))
        try lab.run([
            "ip", "-n", lab.a, "address", "add", "\(WireGuardGoLab.ourInner)/24", "dev", tunnel.name,
        ])
        try lab.run(["ip", "-n", lab.a, "link", "set", tunnel.name, "up"])
        try lab.addPeer(key.nodePublicKey)
        return tunnel
    }

    @Test(arguments: Kernel.allCases) func bytesArriveBothWays(_ kernel: Kernel) async throws {
        let lab = try await WireGuardGoLab()
        defer { lab.close() }
        let notices = Notices()
        var options = kernel.options
        options.log = { if $0 == .notice { notices.add($1) } }
        let tunnel = try await makeTunnel(lab, options)
        defer { tunnel.close() }
        let target = SocketAddress(WireGuardGoLab.theirInner, port: 7)
        let listener = try await lab.on(lab.b) { try KernelTCP.serveEcho(on: target) }
        let isRight = try await lab.on(lab.a) {
            let number = try KernelTCP.connect(to: target)
            defer { OwnedDescriptor(taking: number).close() }
            return (0..<8).allSatisfy { KernelTCP.roundTrip(number, seed: $0, count: 1 << 20) }
        }
        #expect(isRight)
        let counters = try #require(tunnel.perform { $0.counters })
        #expect(counters.deviceRefused == 0 && counters.malformed == 0)
        if kernel == .modern {
            #expect(counters.devicePackets > counters.deviceReads * 2, "super-packets were cut: \(counters)")
            #expect(counters.deviceWrittenPackets > counters.deviceWrites, "packets were joined: \(counters)")
        }
        if let notice = kernel.notice {
            #expect(notices.lines.contains { $0.hasPrefix(notice) }, "\(notices.lines)")
        }
        if kernel == .withoutCoalescing { #expect(counters.receivedDatagrams == counters.receivedMessages) }
        if kernel == .withoutHeader { #expect(counters.devicePackets == counters.deviceReads) }
        shutdown(listener, Int32(SHUT_RDWR))
    }

    /// Down and up, another MTU, another port; the peer hears of the new one by the next packet.
    @Test func theLinkIsFollowed() async throws {
        let lab = try await WireGuardGoLab()
        defer { lab.close() }
        let tunnel = try await makeTunnel(lab, Kernel.modern.options)
        defer { tunnel.close() }
        /// Fails when nothing comes back: a busy kernel leaves many echoes unanswered, also its own.
        func ping(_ size: Int) throws {
            try lab.run([
                "ip", "netns", "exec", lab.a, "ping", "-c", "12", "-i", "0.1", "-W", "3", "-s", "\(size)",
                "\(WireGuardGoLab.theirInner)",
            ])
        }
        try ping(56)
        try lab.run(["ip", "-n", lab.a, "link", "set", tunnel.name, "down"])
        while tunnel.perform({ $0.isUp }) == true { try await Task.sleep(for: .milliseconds(20)) }
        try lab.run(["ip", "-n", lab.a, "link", "set", tunnel.name, "up", "mtu", "1300"])
        try ping(1_200)
        #expect(tunnel.perform { $0.device.mtu } == 1_300)
        let port = tunnel.perform { loop -> UInt16 in
            try? loop.setListenPort(0)
            return loop.listenPort
        }
        #expect(port != 0 && port != nil)
        try ping(56)
        // Taken by somebody else: an error, and all stays as it was.
        let other = try await lab.on(lab.a) { try BoundPort() }
        let taken = other.socket.localAddress.port
        let code = tunnel.perform { loop -> Int32 in
            do throws(SystemError) {
                try loop.setListenPort(taken)
                return 0
            } catch {
                return error.code
            }
        }
        #expect(code == EADDRINUSE)
        #expect(tunnel.perform { $0.listenPort } == port)
        try ping(56)
    }

    /// Any port means any that is free in both families, also when the kernel's first choice is not.
    @Test func aPortOfTheKernelsChoiceIsFreeInBothFamilies() async throws {
        let lab = try await WireGuardGoLab()
        defer { lab.close() }
        let tunnel = try await makeTunnel(lab, Kernel.modern.options)
        defer { tunnel.close() }
        try lab.run([
            "ip", "netns", "exec", lab.a, "sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40003",
        ])
        let others = try await lab.on(lab.a) { [try BoundPort(40_000), try BoundPort(40_001)] }
        let ports = tunnel.perform { loop -> [UInt16] in
            var ports: [UInt16] = []
            for _ in 0..<12 {
                do {
                    try loop.setListenPort(0)
                    ports.append(loop.listenPort)
                } catch {
                    ports.append(0)
                }
            }
            return ports
        }
        #expect(ports?.allSatisfy { $0 == 40_002 || $0 == 40_003 } == true, "\(ports ?? [])")
        #expect(others.count == 2)
    }

    /// As for a container: made here, moved to a namespace without any other network, renamed, brought up
    /// there. The sockets stay here.
    @Test func theDeviceMayMove() async throws {
        let lab = try await WireGuardGoLab()
        let inside = lab.a + "c"
        defer {
            _ = try? lab.run(["ip", "netns", "delete", inside])
            lab.close()
        }
        let (stream, continuation) = AsyncStream.makeStream(
            of: Void.self, bufferingPolicy: .bufferingOldest(1))
        var options = Kernel.modern.options
        options.ended = { continuation.finish() }
        let tunnel = try await makeTunnel(lab, options)
        defer { tunnel.close() }
        try lab.run(["ip", "netns", "add", inside])
        try lab.run(["ip", "-n", lab.a, "link", "set", tunnel.name, "netns", inside])
        try lab.run(["ip", "-n", inside, "link", "set", tunnel.name, "name", "moved0"])
        try lab.run(["ip", "-n", inside, "address", "add", "\(WireGuardGoLab.ourInner)/24", "dev", "moved0"])
        /// Fails when nothing comes back.
        func ping() throws {
            try lab.run([
                "ip", "netns", "exec", inside, "ping", "-c", "12", "-i", "0.1", "-W", "3",
                "\(WireGuardGoLab.theirInner)",
            ])
        }
        try lab.run(["ip", "-n", inside, "link", "set", "moved0", "mtu", "1300", "up"])
        try ping()
        #expect(tunnel.perform { $0.device.mtu } == 1_300)
        // Followed there too.
        try lab.run(["ip", "-n", inside, "link", "set", "moved0", "down"])
        while tunnel.perform({ $0.isUp }) == true { try await Task.sleep(for: .milliseconds(20)) }
        try lab.run(["ip", "-n", inside, "link", "set", "moved0", "up"])
        try ping()
        try lab.run(["ip", "-n", inside, "link", "delete", "moved0"])
        for await _ in stream {}
    }

    /// Deleting the device ends the tunnel.
    @Test func deletionEndsTheTunnel() async throws {
        let lab = try await WireGuardGoLab()
        defer { lab.close() }
        let (stream, continuation) = AsyncStream.makeStream(
            of: Void.self, bufferingPolicy: .bufferingOldest(1))
        var options = Kernel.modern.options
        options.ended = { continuation.finish() }
        let tunnel = try await makeTunnel(lab, options)
        try lab.run(["ip", "-n", lab.a, "link", "delete", tunnel.name])
        for await _ in stream {}
        tunnel.close()
        #expect(tunnel.perform { $0.isUp } == nil)
    }
}

/// What was logged.
private final class Notices: Sendable {
    private let list = Mutex<[String]>([])
    var lines: [String] { list.withLock { $0 } }
    func add(_ line: String) { list.withLock { $0.append(line) } }
}

/// A port that somebody has.
private final class BoundPort: Sendable {
    let socket: UDPSocket

    init(_ port: UInt16 = 0) throws { socket = try UDPSocket(bindingTo: .any(v4: true, port: port)) }
}

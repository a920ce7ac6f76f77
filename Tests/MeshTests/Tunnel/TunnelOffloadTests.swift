// SPDX-License-Identifier: Apache-2.0

import Glibc
import LinuxIO
import Mesh
import Testing

/// The tunnel with its TUN device against Debian's wireguard-go, with every set of features. Needs root.
@Suite(
    .serialized, .timeLimit(.minutes(2)),
    .enabled(if: WireGuardGoLab.isPossible, "needs root, ip, ping, wg, wireguard-go and /dev/net/tun"))
struct TunnelOffloadTests {
    /// What a kernel may lack.
    enum Kernel: CaseIterable {
        case modern, withoutUDPOffload, withoutTCPOffload, withoutHeader, withoutSegmentation

        var options: WireGuardTunnel.Options {
            var options = WireGuardTunnel.Options()
            options.mtuBytes = 1_280
            switch self {
            case .modern: break
            case .withoutUDPOffload: options.deviceOffload = [.header, .tcp]
            case .withoutTCPOffload: options.deviceOffload = .header
            case .withoutHeader: options.deviceOffload = []
            case .withoutSegmentation: options.usesSegmentation = false
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
        let tunnel = try await makeTunnel(lab, kernel.options)
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
        if kernel == .withoutHeader { #expect(counters.devicePackets == counters.deviceReads) }
        shutdown(listener, Int32(SHUT_RDWR))
    }

    /// Down and up, another MTU, another port; the peer hears of the new one by the next packet.
    @Test func theLinkIsFollowed() async throws {
        let lab = try await WireGuardGoLab()
        defer { lab.close() }
        let tunnel = try await makeTunnel(lab, Kernel.modern.options)
        defer { tunnel.close() }
        func ping(_ size: Int) throws -> String {
            try lab.run([
                "ip", "netns", "exec", lab.a, "ping", "-c", "3", "-i", "0.2", "-W", "3", "-s", "\(size)",
                "\(WireGuardGoLab.theirInner)",
            ])
        }
        #expect(try ping(56).contains(" 0% packet loss"))
        try lab.run(["ip", "-n", lab.a, "link", "set", tunnel.name, "down"])
        while tunnel.perform({ $0.isUp }) == true { try await Task.sleep(for: .milliseconds(20)) }
        try lab.run(["ip", "-n", lab.a, "link", "set", tunnel.name, "up", "mtu", "1300"])
        #expect(try ping(1_200).contains(" 0% packet loss"))
        #expect(tunnel.perform { $0.device.mtu } == 1_300)
        let port = tunnel.perform { loop -> UInt16 in
            try? loop.setListenPort(0)
            return loop.listenPort
        }
        #expect(port != 0 && port != nil)
        #expect(try ping(56).contains(" 0% packet loss"))
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
        #expect(try ping(56).contains(" 0% packet loss"))
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
        let ports = tunnel.perform { loop in
            (0..<12).map { _ -> UInt16 in
                do throws(SystemError) {
                    try loop.setListenPort(0)
                    return loop.listenPort
                } catch {
                    return 0
                }
            }
        }
        #expect(ports?.allSatisfy { $0 == 40_002 || $0 == 40_003 } == true, "\(ports ?? [])")
        #expect(others.count == 2)
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

/// A port that somebody has.
private final class BoundPort: Sendable {
    let socket: UDPSocket

    init(_ port: UInt16 = 0) throws { socket = try UDPSocket(bindingTo: .any(v4: true, port: port)) }
}

// SPDX-License-Identifier: Apache-2.0

import Glibc
import LinuxIO
import Mesh
import Testing

/// Against Debian's wireguard-go (W9, and W12's cookies, which no vector covers). Needs root.
@Suite(
    .serialized, .timeLimit(.minutes(3)),
    .enabled(if: WireGuardGoLab.isPossible, "needs root, ip, ping, wg, wireguard-go and /dev/net/tun"))
struct WireGuardInteropTests {
    /// Runs a test in a lab of its own, which is taken down in any case.
    private func inLab(_ body: (WireGuardGoLab) async throws -> Void) async throws {
        let lab = try await WireGuardGoLab()
        defer { lab.close() }
        try await body(lab)
    }

    private func serveEcho(_ node: Node, port: UInt16) async throws -> Task<Void, Never> {
        let incoming = try await node.listen(port: port)
        return Task {
            for await stream in incoming {
                guard let number = try? stream.descriptor().release() else { continue }
                let thread = try? DedicatedThread(name: "test-echo") { KernelTCP.echo(number) }
                thread?.detach()
            }
        }
    }

    /// We begin and renew every two seconds; a stream runs through all renewals.
    @Test func weInitiateAndRenew() async throws {
        try await inLab { lab in
            var limits = WireGuard.Limits()
            limits.rekeyAfterTime = .seconds(2)
            limits.rekeyTimeout = .milliseconds(500)
            let node = try await lab.makeNode(knowsEndpoint: true, limits: limits)
            try lab.addPeer(node.publicKey)
            let target = SocketAddress(WireGuardGoLab.theirInner, port: 7)
            let listener = try await lab.on(lab.b) { try KernelTCP.serveEcho(on: target) }
            let stream = try await node.dial(target)
            var handshakes: Set<Int> = []
            let number = stream.number
            for step in 0..<40 {
                let isRight = try await lab.on(lab.a) {
                    KernelTCP.roundTrip(number, seed: step, count: 40_000)
                }
                try #require(isRight, "step \(step)")
                handshakes.insert(try lab.latestHandshake())
                try await Task.sleep(for: .milliseconds(200))
            }
            #expect(handshakes.count >= 4, "renewals within eight seconds: \(handshakes.sorted())")
            // The other way through the same session.
            let echo = try await serveEcho(node, port: 8)
            let isRight = try await lab.on(lab.b) {
                let client = try KernelTCP.connect(to: SocketAddress(WireGuardGoLab.ourInner, port: 8))
                defer { OwnedDescriptor(taking: client).close() }
                return KernelTCP.roundTrip(client, seed: 1, count: 1 << 20)
            }
            #expect(isRight)
            echo.cancel()
            stream.close()
            shutdown(listener, Int32(SHUT_RDWR))
            await node.close()
        }
    }

    /// wireguard-go begins; it is removed and added again while a stream runs, which goes on.
    @Test func weRespondAndThePeerComesAgain() async throws {
        try await inLab { lab in
            let node = try await lab.makeNode(listenPort: 41_641, knowsEndpoint: false)
            try lab.addPeer(node.publicKey, endpoint: 41_641)
            let echo = try await serveEcho(node, port: 7)
            let text = try lab.onB([
                "ping", "-c", "10", "-i", "0.1", "-W", "3", "-s", "1200", "\(WireGuardGoLab.ourInner)",
            ])
            #expect(text.contains(" 0% packet loss"), "\(text)")
            let first = try lab.latestHandshake()
            #expect(first > 0)
            let client = try await lab.on(lab.b) {
                try KernelTCP.connect(to: SocketAddress(WireGuardGoLab.ourInner, port: 7))
            }
            for step in 0..<10 {
                if step == 5 {
                    try await Task.sleep(for: .milliseconds(1_100))
                    try lab.removePeer(node.publicKey)
                    try lab.addPeer(node.publicKey, endpoint: 41_641, keepalive: 1)
                }
                let isRight = try await lab.on(lab.b) {
                    KernelTCP.roundTrip(client, seed: step, count: 200_000)
                }
                try #require(isRight, "step \(step)")
            }
            #expect(try lab.latestHandshake() > first, "a new session")
            let status = try await node.status()
            #expect(status.peers.first?.path == .direct(SocketAddress("\(WireGuardGoLab.theirs):51820")!))
            OwnedDescriptor(taking: client).close()
            echo.cancel()
            await node.close()
        }
    }

    /// Both begin at once. wireguard-go forgets its own initiation when ours comes; we must not, and need no
    /// retry.
    @Test func bothBeginAtOnce() async throws {
        try await inLab { lab in
            let target = SocketAddress(WireGuardGoLab.theirInner, port: 7)
            let listener = try await lab.on(lab.b) { try KernelTCP.serveEcho(on: target) }
            for round in UInt16(0)..<5 {
                let node = try await lab.makeNode(listenPort: 42_000 + round, knowsEndpoint: true)
                let echo = try await serveEcho(node, port: 7)
                try lab.addPeer(node.publicKey, endpoint: 42_000 + round)
                let start = ContinuousClock.now
                async let theirs = lab.on(lab.b) {
                    let client = try KernelTCP.connect(to: SocketAddress(WireGuardGoLab.ourInner, port: 7))
                    defer { OwnedDescriptor(taking: client).close() }
                    return KernelTCP.roundTrip(client, seed: 2, count: 100_000)
                }
                let stream = try await node.dial(target)
                let number = stream.number
                let ours = try await lab.on(lab.a) { KernelTCP.roundTrip(number, seed: 3, count: 100_000) }
                #expect(try await theirs && ours)
                #expect(
                    ContinuousClock.now - start < .seconds(3), "no initiation had to be repeated after 5 s")
                stream.close()
                echo.cancel()
                try lab.removePeer(node.publicKey)
                await node.close()
            }
            shutdown(listener, Int32(SHUT_RDWR))
        }
    }

    /// We are under load all the time: wireguard-go takes our cookie and comes back with MAC2 after its 5 s.
    @Test func theyUseOurCookies() async throws {
        try await inLab { lab in
            var limits = WireGuard.Limits()
            limits.handshakeBurst = 0
            let node = try await lab.makeNode(listenPort: 41_642, knowsEndpoint: false, limits: limits)
            let start = ContinuousClock.now
            try lab.addPeer(node.publicKey, endpoint: 41_642, keepalive: 1)
            while try lab.latestHandshake() == 0, ContinuousClock.now - start < .seconds(15) {
                try await Task.sleep(for: .milliseconds(100))
            }
            let time = ContinuousClock.now - start
            #expect(try lab.latestHandshake() > 0)
            #expect(time > .seconds(4), "the first initiation was answered with a cookie only")
            await node.close()
        }
    }

    /// wireguard-go is under load: we take its cookie and get through with MAC2 while the flood goes on.
    @Test func weUseTheirCookies() async throws {
        try await inLab { lab in
            var limits = WireGuard.Limits()
            limits.rekeyTimeout = .milliseconds(200)
            limits.jitter = .zero
            let settled = limits
            let go = lab.privateKey.nodePublicKey
            var generator = SystemRandomNumberGenerator()
            let key = PrivateKey(using: &generator)
            try lab.addPeer(key.nodePublicKey)
            let counters = try await lab.on(lab.a) { try Self.flood(go, as: key, limits: settled) }
            #expect(counters.cookieRepliesAccepted > 0)
            #expect(counters.responsesAccepted > 0)
            #expect(try lab.latestHandshake() > 0, "and it took our confirmation")
        }
    }

    /// Floods with initiations of a stranger and does handshakes of our own in between, until a cookie was
    /// used.
    private static func flood(
        _ go: NodePublicKey, as key: PrivateKey, limits: WireGuard.Limits
    ) throws -> WireGuard.Counters {
        let socket = try KernelUDP(to: SocketAddress("\(WireGuardGoLab.theirs):\(WireGuardGoLab.port)")!)
        let stranger = WireGuardNode(seed: 1, address: "10.88.0.3")
        let index = try stranger.device.addPeer(.init(publicKey: go), now: .start)
        stranger.device.initiateHandshake(index, now: .start)
        let attack = stranger.output(.start)[0]
        var device = WireGuard.Device(privateKey: key, limits: limits)
        let peer = try device.addPeer(
            .init(publicKey: go, allowedIPs: [IPPrefix(host: WireGuardGoLab.theirInner)]), now: .start)
        var buffer = [UInt8](repeating: 0, count: 2_048)
        let began = Clock.monotonicNanoseconds()
        while Clock.monotonicNanoseconds() - began < 20_000_000_000 {
            for _ in 0..<400 { socket.send(attack) }
            let now = Instant(nanoseconds: Clock.monotonicNanoseconds())
            device.handleTimeout(now: now)
            device.initiateHandshake(peer, now: now)
            let wall = Clock.wallTime()
            while device.hasOutput {
                let output = buffer.withUnsafeMutableBytes {
                    device.nextOutput(
                        into: $0, now: now,
                        wallTime: .init(seconds: UInt64(wall.seconds), nanoseconds: wall.nanoseconds))
                }
                if let output { socket.send(Array(buffer[..<output.length])) }
            }
            while let count = socket.receive(into: &buffer) {
                _ = buffer[..<count].withUnsafeMutableBytes {
                    device.receive($0, from: .address(SocketAddress("10.99.0.2:51820")!), now: now)
                }
            }
            let counters = device.counters
            if counters.cookieRepliesAccepted > 0, counters.responsesAccepted > 0 { break }
        }
        // The flood is over: confirm the session, more than once since queues may still be full.
        for _ in 0..<10 {
            usleep(50_000)
            let now = Instant(nanoseconds: Clock.monotonicNanoseconds())
            let outcome = buffer.withUnsafeMutableBytes {
                device.seal(peer, in: $0, payloadLength: 0, now: now)
            }
            if case .sealed(let length) = outcome { socket.send(Array(buffer[..<length])) }
        }
        return device.counters
    }
}

/// A connected UDP socket that does not wait.
private final class KernelUDP {
    private let descriptor: Int32

    init(to target: SocketAddress) throws {
        descriptor = socket(AF_INET, Int32(SOCK_DGRAM.rawValue) | Int32(SOCK_NONBLOCK.rawValue), 0)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = target.port.bigEndian
        address.sin_addr.s_addr = target.ip.v4.bigEndian
        let status = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        guard status == 0 else { throw SystemError(call: "connect", code: errno) }
    }

    deinit { OwnedDescriptor(taking: descriptor).close() }

    func send(_ bytes: [UInt8]) {
        _ = bytes.withUnsafeBytes { Glibc.send(descriptor, $0.baseAddress, $0.count, 0) }
    }

    func receive(into buffer: inout [UInt8]) -> Int? {
        let count = recv(descriptor, &buffer, buffer.count, 0)
        return count > 0 ? count : nil
    }
}

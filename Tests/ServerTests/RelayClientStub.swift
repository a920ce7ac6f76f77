// SPDX-License-Identifier: Apache-2.0

import Foundation
import LinuxIO
import Mesh
import Testing

/// A client of a relay on a descriptor; blocking calls run aside.
final class RelayClientStub: @unchecked Sendable {
    // Used by one task at a time.
    private let descriptor: Int32
    private var machine: DERPClient
    private let privateKey: PrivateKey
    private var packets: [(from: NodePublicKey, bytes: [UInt8])] = []

    struct Ended: Error {}

    var key: NodePublicKey { privateKey.nodePublicKey }

    init(_ descriptor: Int32) throws {
        self.descriptor = descriptor
        try Descriptor.setNonBlocking(descriptor, false)
        var generator = SystemRandomNumberGenerator()
        privateKey = PrivateKey(using: &generator)
        machine = DERPClient(
            privateKey: privateKey, random: SecureGenerator(seededBy: &generator), now: Self.now)
    }

    private static var now: Instant { Instant(nanoseconds: Clock.monotonicNanoseconds()) }

    func logIn() async throws {
        try await aside { while try !self.step().contains(.ready(DERPServerInfo())) { try self.fill() } }
    }

    func send(_ bytes: [UInt8], to key: NodePublicKey) async throws {
        try await aside {
            _ = bytes.withUnsafeBytes { self.machine.send($0.bytes, to: key, now: Self.now) }
            try self.flush()
        }
    }

    func packet() async throws -> (from: NodePublicKey, bytes: [UInt8]) {
        try await aside {
            while true {
                _ = try self.step()
                if !self.packets.isEmpty { return self.packets.removeFirst() }
                try self.fill()
            }
        }
    }

    /// Until the relay says that it stops.
    func waitForRestart() async throws {
        try await aside {
            while true {
                for event in try self.step() {
                    if case .restarting = event { return }
                }
                try self.fill()
            }
        }
    }

    func close() { OwnedDescriptor(taking: descriptor).close() }

    private func step() throws -> [DERPClient.Event] {
        var events: [DERPClient.Event] = []
        while let event = try machine.nextEvent(now: Self.now) {
            events.append(event)
            guard case .packet(let source, let range) = event else { continue }
            packets.append((source, machine.withPayload(range) { Array($0) }))
        }
        try flush()
        return events
    }

    private func flush() throws {
        let bytes = machine.withOutput { span in span.withUnsafeBytes { Array($0) } }
        machine.consumeOutput(bytes.count)
        try bytes.withUnsafeBytes { try Descriptor.writeAll(descriptor, $0) }
    }

    private func fill() throws {
        var wait = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        guard poll(&wait, 1, 10_000) == 1 else { throw Ended() }
        var buffer = [UInt8](repeating: 0, count: 65_536)
        let count = read(descriptor, &buffer, buffer.count)
        guard count > 0 else { throw Ended() }
        buffer.withUnsafeBytes { machine.receive(UnsafeRawBufferPointer(rebasing: $0[..<count]).bytes) }
    }

    /// Learns the relay's key by an ordinary upgrade on `plain`, then begins a new connection with everything at once.
    static func fastStart(at port: Int, after plain: RawConnection) async throws {
        let request = "GET /derp HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n"
        await plain.send(request + "\r\n")
        let head = await plain.readResponse().head
        let line = try #require(head.split(separator: "\r\n").first { $0.hasPrefix("Derp-Public-Key: ") })
        let relayKey = try NodePublicKey(hex: line.suffix(64))
        let hello = DERPServerSession.serverKeyFrame(relayKey)
        #expect(await plain.read(hello.count) == hello)

        let (login, key) = try login(after: hello)
        let payload = [UInt8](repeating: 7, count: 2_000)
        let packet = DERP.frame(.sendPacket, key.bytes, payload)
        let fast = try RawConnection(port: port)
        await fast.send(Array((request + "Derp-Fast-Start: 1\r\n\r\n").utf8) + login + packet)
        #expect(await fast.read(hello.count) == hello)
        let info = await fast.read(5)
        try #require(info.count == 5 && info[0] == DERPFrameType.serverInfo.rawValue)
        _ = await fast.read(Int(info[3]) << 8 | Int(info[4]))
        #expect(await fast.read(packet.count) == DERP.frame(.receivePacket, key.bytes, payload))
    }

    /// What a new client says to the relay that says `hello`, and the client's key.
    static func login(after hello: [UInt8]) throws -> ([UInt8], NodePublicKey) {
        var generator = SystemRandomNumberGenerator()
        let key = PrivateKey(using: &generator)
        var machine = DERPClient(privateKey: key, random: SecureGenerator(seededBy: &generator), now: now)
        hello.withUnsafeBytes { machine.receive($0.bytes) }
        _ = try machine.nextEvent(now: now)
        return (machine.withOutput { span in span.withUnsafeBytes { Array($0) } }, key.nodePublicKey)
    }

    private func aside<R: Sendable>(_ body: @escaping @Sendable () throws -> R) async throws -> R {
        try await DedicatedThread.run(body)
    }
}

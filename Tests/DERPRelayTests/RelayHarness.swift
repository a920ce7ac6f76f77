// SPDX-License-Identifier: Apache-2.0

import DERPRelay
import Glibc
import LinuxIO
import Mesh
import Testing

/// A relay with clients over socket pairs or loopback TCP.
final class RelayHarness {
    let relay: Relay
    let usesTCP: Bool
    let key: PrivateKey
    private let listener: Int32
    private let port: UInt16

    init(
        usesTCP: Bool = false, meshKey: String = "", adjust: (inout Relay.Limits) -> Void = { _ in },
        verify: Relay.Configuration.Verify? = nil
    ) throws {
        signal(SIGPIPE, SIG_IGN)  // Tests write to connections that the relay closed.
        var generator = SystemRandomNumberGenerator()
        key = PrivateKey(using: &generator)
        var configuration = Relay.Configuration(privateKey: key)
        configuration.meshKey = meshKey
        configuration.verify = verify
        adjust(&configuration.limits)
        relay = try Relay(configuration, generator: &generator)
        self.usesTCP = usesTCP
        (listener, port) = Self.listen()
    }

    deinit {
        relay.close()
        Glibc.close(listener)
    }

    private static func listen() -> (Int32, UInt16) {
        let listener = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        withUnsafeMutablePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { raw in
                _ = bind(listener, raw, length)
                _ = Glibc.listen(listener, 128)
                _ = getsockname(listener, raw, &length)
            }
        }
        return (listener, UInt16(bigEndian: address.sin_port))
    }

    /// The client's end of a connection that the relay just took.
    func connect(leftover: [UInt8] = [], cipher: TestCipher? = nil) throws -> Int32 {
        if usesTCP {
            let client = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
            var address = sockaddr_in()
            address.sin_family = sa_family_t(AF_INET)
            address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
            address.sin_port = port.bigEndian
            let status = withUnsafePointer(to: &address) { pointer in
                pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    Glibc.connect(client, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
                }
            }
            try #require(status == 0)
            relay.adopt(
                OwnedDescriptor(taking: accept(listener, nil, nil)), leftover: leftover, cipher: cipher)
            return client
        }
        let (client, server) = try Descriptor.socketPair().release()
        relay.adopt(OwnedDescriptor(taking: server), leftover: leftover, cipher: cipher)
        return client
    }

    func client(
        _ key: PrivateKey? = nil, info: DERPClientInfo = DERPClientInfo(), isSealed: Bool = false
    ) throws -> TestClient {
        var generator = SystemRandomNumberGenerator()
        let client = TestClient(
            try connect(cipher: isSealed ? TestCipher() : nil), key: key ?? PrivateKey(using: &generator),
            info: info, cipher: isSealed ? TestCipher() : nil)
        try client.wait { if case .ready = $0 { true } else { false } }
        return client
    }

    /// Waits until the counters say so.
    func eventually(_ condition: (Relay.Counters) -> Bool) -> Bool {
        for _ in 0..<400 {
            if condition(relay.counters) { return true }
            usleep(10_000)
        }
        return false
    }
}

/// A blocking client around the machine.
final class TestClient {
    let descriptor: Int32
    let key: PrivateKey
    private var machine: DERPClient
    private let cipher: TestCipher?
    /// Everything that happened, packets with their bytes.
    private(set) var packets: [(from: NodePublicKey, bytes: [UInt8])] = []
    private(set) var events: [DERPClient.Event] = []

    struct Closed: Error {}

    init(_ descriptor: Int32, key: PrivateKey, info: DERPClientInfo, cipher: TestCipher? = nil) {
        self.cipher = cipher
        self.descriptor = descriptor
        self.key = key
        var generator = SystemRandomNumberGenerator()
        machine = DERPClient(
            privateKey: key, info: info, random: SecureGenerator(seededBy: &generator),
            now: Instant(nanoseconds: Clock.monotonicNanoseconds()))
    }

    deinit { close() }

    private var isClosed = false
    func close() {
        if !isClosed { Glibc.close(descriptor) }
        isClosed = true
    }

    var publicKey: NodePublicKey { key.nodePublicKey }

    func send(_ bytes: [UInt8], to peer: TestClient) throws { try send(bytes, to: peer.publicKey) }

    func send(_ bytes: [UInt8], to peer: NodePublicKey) throws {
        let now = Instant(nanoseconds: Clock.monotonicNanoseconds())
        let isTaken = machine.send(bytes.span.bytes, to: peer, now: now)
        try #require(isTaken)
        try flush()
    }

    func ping(_ number: UInt64) throws {
        machine.ping(number)
        try flush()
    }

    func setPreferred(_ isPreferred: Bool) throws {
        machine.setPreferred(isPreferred)
        try flush()
    }

    /// What goes over the descriptor for these bytes, once.
    func sealed(_ bytes: [UInt8]) -> [UInt8] { cipher?.sealed(bytes) ?? bytes }

    func write(_ bytes: [UInt8]) throws {
        try sealed(bytes).withUnsafeBytes { try Descriptor.writeAll(descriptor, $0) }
    }

    private func flush() throws {
        let bytes = machine.withOutput { $0.wireBytes(0..<$0.byteCount) }
        machine.consumeOutput(bytes.count)
        try write(bytes)
    }

    /// Reads until an event fits; throws when the relay closes or 5 s pass.
    @discardableResult
    func wait(_ condition: (DERPClient.Event) -> Bool) throws -> DERPClient.Event {
        while true {
            while let event = try next() {
                if condition(event) { return event }
            }
            try #require(isReadable(5_000), "nothing came within 5 s")
            try fill()
        }
    }

    func waitForPacket() throws -> (from: NodePublicKey, bytes: [UInt8]) {
        try wait { if case .packet = $0 { true } else { false } }
        return packets[packets.count - 1]
    }

    /// Reads everything that comes within the time.
    func drain(_ milliseconds: Int32 = 200) throws {
        repeat { while try next() != nil {} } while try isReadable(milliseconds) && fillOrEnd()
    }

    private func fillOrEnd() throws -> Bool {
        try fill()
        return true
    }

    private func next() throws -> DERPClient.Event? {
        guard let event = try machine.nextEvent(now: Instant(nanoseconds: Clock.monotonicNanoseconds()))
        else {
            try flush()
            return nil
        }
        if case .packet(let source, let payload) = event {
            packets.append((source, machine.withPayload(payload) { Array($0) }))
        } else {
            events.append(event)
        }
        return event
    }

    private func fill() throws {
        let (descriptor, cipher) = (descriptor, cipher)
        var isEnd = false
        machine.withInputSpace { (space: UnsafeMutableRawBufferPointer) throws(Never) in
            let count = read(descriptor, space.baseAddress, space.count)
            isEnd = count <= 0
            cipher?.open(UnsafeMutableRawBufferPointer(rebasing: space[..<max(0, count)]))
            return max(0, count)
        }
        if isEnd { throw Closed() }
    }

    func isReadable(_ milliseconds: Int32) -> Bool { RelayTests.isReadable(descriptor, milliseconds) }
}

// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import HTTPTransport
internal import LinuxIO
internal import Mesh
internal import Synchronization
internal import TLS

/// Opens connections to a relay.
struct LoadDoor: Sendable {
    let url: HTTPURL
    let options: ConnectOptions
    /// One event loop each, so that the tool's own share of TLS finds more than one core.
    private let clients = [HTTPClient(), HTTPClient()]
    private let turn = Turn()
    private let context = Result { try TLSContext(believingAnyoneBy: "X25519") }

    private final class Turn: Sendable {
        let count = Atomic<Int>(0)
    }

    init(url: HTTPURL, options: ConnectOptions) {
        self.url = url
        self.options = options
    }

    /// A connection that is logged in. Without TLS and with an address as host the upgrade is made on a bare socket,
    /// so that the tool costs little beside the relay. `isIdle`: nothing will pass; then that goes for TLS, too, if any
    /// certificate will do.
    func open(isIdle: Bool = false) async throws -> LoadConnection {
        if let ip = IPAddress(url.host), url.scheme == .http || isIdle && options.acceptsAnyCertificate {
            let address = SocketAddress(ip, port: UInt16(clamping: url.port))
            let (url, context) = (url, url.scheme == .http ? nil : context)
            return try await RelayLoadCommand.blocking {
                try LoadConnection.dial(address, url, try context?.get())
            }
        }
        let turn = turn.count.wrappingAdd(1, ordering: .relaxed).oldValue
        let number = try await clients[turn % clients.count].upgrade(
            url, protocol: "DERP", options: options
        ).release()
        return try await RelayLoadCommand.blocking { try LoadConnection(number) }
    }
}

/// One client of a relay, logged in; what follows are bare frames.
final class LoadConnection: Sendable {
    struct Failed: Error, CustomStringConvertible {
        var description: String
    }

    let descriptor: Int32
    let key: NodePublicKey
    /// What seals the bytes, if they are not those of the descriptor.
    private let session: TLSSession?

    static func dial(
        _ address: SocketAddress, _ url: HTTPURL, _ context: TLSContext?
    ) throws -> LoadConnection {
        let kernel = KernelAddress(
            high: address.ip.high, low: address.ip.low, port: address.port, isV4: address.ip.isV4)
        let socket = try StreamSocket.connect(to: kernel)
        var wait = pollfd(fd: socket.number, events: Int16(POLLOUT), revents: 0)
        guard poll(&wait, 1, 10_000) == 1 else { throw Failed(description: "the relay does not answer") }
        try StreamSocket.outcome(socket.number)
        try Descriptor.setNonBlocking(socket.number, false)
        Descriptor.setNoDelay(socket.number)
        let session = try context.map { context in
            guard let session = TLSSession(context) else { throw Failed(description: "no memory for TLS") }
            return session
        }
        var stream = LoadStream(socket.number, session: session)
        try stream.write(
            "GET \(url.path) HTTP/1.1\r\nHost: \(url.authority)\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n"
                .utf8)
        let head = try stream.readHead()
        guard head.starts(with: Array("HTTP/1.1 101".utf8)) else {
            throw Failed(description: String(decoding: head.prefix { $0 != 13 }, as: UTF8.self))
        }
        let key = try logIn(&stream)
        return LoadConnection(socket.release(), key, stream.session)
    }

    private init(_ descriptor: Int32, _ key: NodePublicKey, _ session: TLSSession?) {
        (self.descriptor, self.key, self.session) = (descriptor, key, session)
    }

    /// Logs in on an upgraded connection; takes the descriptor over.
    convenience init(_ descriptor: Int32) throws {
        var stream = LoadStream(descriptor, session: nil)
        self.init(descriptor, try Self.logIn(&stream), nil)
    }

    private static func logIn(_ stream: inout LoadStream) throws -> NodePublicKey {
        var generator = SystemRandomNumberGenerator()
        let privateKey = PrivateKey(using: &generator)
        var machine = DERPClient(
            privateKey: privateKey, random: SecureGenerator(seededBy: &generator), now: Self.now)
        while true {
            try stream.read().withUnsafeBytes { machine.receive($0.bytes) }
            while let event = try machine.nextEvent(now: Self.now) {
                if case .ready = event { return privateKey.nodePublicKey }
            }
            let output = machine.withOutput { bytes in bytes.withUnsafeBytes { Array($0) } }
            machine.consumeOutput(output.count)
            try stream.write(output)
        }
    }

    /// Once.
    func close() { Glibc.close(descriptor) }

    private static var now: Instant { Instant(nanoseconds: Clock.monotonicNanoseconds()) }
}

/// Ping-pong of one small packet between two clients.
struct RoundTrips: Sendable {
    var microseconds: [Double] = []

    static func run(
        _ a: LoadConnection, _ b: LoadConnection, seconds: Double, pauseMilliseconds: Int32 = 0
    ) throws -> RoundTrips {
        let payload = [UInt8](repeating: 0x11, count: 64)
        let there = DERP.frame(.sendPacket, b.key.bytes, payload)
        let back = DERP.frame(.sendPacket, a.key.bytes, payload)
        var result = RoundTrips()
        let end = Clock.monotonicNanoseconds() + UInt64(seconds * 1e9)
        while true {
            let begin = Clock.monotonicNanoseconds()
            guard begin < end else { break }
            try there.withUnsafeBytes { try Descriptor.writeAll(a.descriptor, $0) }
            guard try readFrame(b.descriptor, there.count, until: end) else { break }
            try back.withUnsafeBytes { try Descriptor.writeAll(b.descriptor, $0) }
            guard try readFrame(a.descriptor, there.count, until: end) else { break }
            result.microseconds.append(Double(Clock.monotonicNanoseconds() - begin) / 1e3)
            if pauseMilliseconds > 0 { poll(nil, 0, pauseMilliseconds) }
        }
        result.microseconds.sort()
        return result
    }

    /// False when it did not come by then: lost.
    private static func readFrame(_ descriptor: Int32, _ length: Int, until: UInt64) throws -> Bool {
        var buffer = [UInt8](repeating: 0, count: length)
        var count = 0
        while count < length {
            var wait = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
            let now = Clock.monotonicNanoseconds()
            guard now < until, poll(&wait, 1, Int32((until - now) / 1_000_000 + 1)) == 1 else { return false }
            let step = buffer.withUnsafeMutableBytes {
                read(descriptor, $0.baseAddress! + count, length - count)
            }
            guard step > 0 else { throw LoadConnection.Failed(description: "the relay closed a connection") }
            count += step
        }
        return true
    }

    func percentile(_ share: Double) -> Double {
        microseconds.isEmpty
            ? .nan : microseconds[min(microseconds.count - 1, Int(Double(microseconds.count) * share))]
    }

    var json: JSON {
        .record([
            "round_trips": .int(microseconds.count), "p50_us": .double(percentile(0.5), digits: 1),
            "p90_us": .double(percentile(0.9), digits: 1), "p99_us": .double(percentile(0.99), digits: 1),
            "max_us": .double(microseconds.last ?? .nan, digits: 1),
        ])
    }
}

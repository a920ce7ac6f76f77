// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import HTTPTransport
internal import LinuxIO
internal import Mesh

/// Opens connections to a relay.
struct LoadDoor: Sendable {
    let url: HTTPURL
    let options: ConnectOptions
    private let http = HTTPClient()

    init(url: HTTPURL, options: ConnectOptions) {
        self.url = url
        self.options = options
    }

    /// A connection that is logged in. Without TLS and with an address as host the upgrade is made on a bare socket,
    /// so that the tool costs little beside the relay.
    func open() async throws -> LoadConnection {
        if url.scheme == .http, let ip = IPAddress(url.host) {
            let address = SocketAddress(ip, port: UInt16(clamping: url.port))
            let authority = url.authority
            let path = url.path
            return try await RelayLoadCommand.blocking {
                try LoadConnection.dial(address, authority: authority, path: path)
            }
        }
        let number = try await http.upgrade(url, protocol: "DERP", options: options).release()
        return try await RelayLoadCommand.blocking { try LoadConnection(loggingInOn: number) }
    }
}

/// One client of a relay, logged in; what follows are bare frames.
final class LoadConnection: Sendable {
    struct Failed: Error, CustomStringConvertible {
        var description: String
    }

    let descriptor: Int32
    let key: NodePublicKey

    static func dial(_ address: SocketAddress, authority: String, path: String) throws -> LoadConnection {
        let kernel = KernelAddress(
            high: address.ip.high, low: address.ip.low, port: address.port, isV4: address.ip.isV4)
        let socket = try StreamSocket.connect(to: kernel)
        var wait = pollfd(fd: socket.number, events: Int16(POLLOUT), revents: 0)
        guard poll(&wait, 1, 10_000) == 1 else { throw Failed(description: "the relay does not answer") }
        try StreamSocket.outcome(socket.number)
        try Descriptor.setNonBlocking(socket.number, false)
        Descriptor.setNoDelay(socket.number)
        let request =
            "GET \(path) HTTP/1.1\r\nHost: \(authority)\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n"
        try Array(request.utf8).withUnsafeBytes { try Descriptor.writeAll(socket.number, $0) }
        var head: [UInt8] = []
        while !head.suffix(4).elementsEqual([13, 10, 13, 10]) {
            // The head is peeked at, so that nothing behind it is taken.
            var bytes = [UInt8](repeating: 0, count: 1_024)
            let seen = recv(socket.number, &bytes, bytes.count, 2)
            guard seen > 0, head.count < 8_192 else { throw Failed(description: "no answer to the upgrade") }
            let end = (0..<seen).first { index in
                let tail = (head + bytes[...index]).suffix(4)
                return tail.elementsEqual([13, 10, 13, 10])
            }
            let taken = recv(socket.number, &bytes, (end ?? seen - 1) + 1, 0)
            head += bytes[..<max(0, taken)]
        }
        guard head.starts(with: Array("HTTP/1.1 101".utf8)) else {
            throw Failed(description: String(decoding: head.prefix { $0 != 13 }, as: UTF8.self))
        }
        return try LoadConnection(loggingInOn: socket.release())
    }

    /// Logs in; takes the descriptor over.
    init(loggingInOn descriptor: Int32) throws {
        self.descriptor = descriptor
        var generator = SystemRandomNumberGenerator()
        let privateKey = PrivateKey(using: &generator)
        key = privateKey.nodePublicKey
        var machine = DERPClient(
            privateKey: privateKey, random: SecureGenerator(seededBy: &generator), now: Self.now)
        var buffer = [UInt8](repeating: 0, count: 4_096)
        while true {
            let count = read(descriptor, &buffer, buffer.count)
            guard count > 0 else { throw Failed(description: "the relay closed the connection at login") }
            buffer.withUnsafeBytes { machine.receive(UnsafeRawBufferPointer(rebasing: $0[..<count]).bytes) }
            while let event = try machine.nextEvent(now: Self.now) {
                if case .ready = event { return }
            }
            let output = machine.withOutput { bytes in bytes.withUnsafeBytes { Array($0) } }
            machine.consumeOutput(output.count)
            try output.withUnsafeBytes { try Descriptor.writeAll(descriptor, $0) }
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

// SPDX-License-Identifier: Apache-2.0

import Glibc
import LinuxIO
import Mesh
import Testing

/// A sender and the kernel as receiver over the same emulated link: 25 ms each way, random loss of data, 100 Mbit/s.
/// The sender is our stack or the kernel's CUBIC in another namespace.
struct RateRun: ~Copyable {
    struct Held {
        var due: Instant
        var toReceiver: Bool
        var bytes: [UInt8]
    }

    static let sender = IPAddress("10.88.0.1")!
    static let receiver = IPAddress("10.88.0.2")!
    static let delay = Interval.milliseconds(25)

    let loss: Double
    let senderDevice: TUNDevice?
    let receiverDevice: TUNDevice
    let listener: Int32
    let socketNumber: Int32
    let senderNumber: Int32
    var accepted: Int32 = -1
    var stack: Stack
    var id: ConnectionID?
    var generator: SeededGenerator
    /// Two queues, each in order of time because the delay is the same for all.
    var held: [[Held]] = [[], []]
    var heads = [0, 0]
    var received = 0
    var buffer = [UInt8](repeating: 0, count: 256 << 10)

    static var now: Instant { Instant(nanoseconds: Clock.monotonicNanoseconds()) }

    /// `sender` is the kernel's device when the kernel sends.
    private init(
        loss: Double, seed: UInt64, sender: consuming TUNDevice?, senderNumber: Int32,
        receiver: consuming TUNDevice, socketNumber: Int32, listener: Int32
    ) {
        self.loss = loss
        self.listener = listener
        self.socketNumber = socketNumber
        self.senderNumber = senderNumber
        generator = SeededGenerator(seed: seed)
        stack = Stack(addresses: [Self.sender], mtu: 1_280, seed: seed)
        senderDevice = sender
        receiverDevice = receiver
    }

    /// Our stack as the sender.
    static func byStack(loss: Double, seed: UInt64) throws -> RateRun {
        let device = try makeDevice(receiver)
        let listener = try makeListener()
        var run = RateRun(
            loss: loss, seed: seed, sender: nil, senderNumber: -1, receiver: device, socketNumber: -1,
            listener: listener)
        run.id = try run.stack.connect(to: SocketAddress(receiver, port: 80), now: now)
        return run
    }

    /// The kernel as the sender.
    static func byKernel(loss: Double, seed: UInt64) throws -> RateRun {
        let sending = try makeDevice(sender)
        let number = sending.number
        let socket = makeSocket()
        let device = try makeDevice(receiver)
        let listener = try makeListener()
        _ = KernelHarness.withSocketAddress(SocketAddress(receiver, port: 80)) { connect(socket, $0, $1) }
        return RateRun(
            loss: loss, seed: seed, sender: sending, senderNumber: number, receiver: device,
            socketNumber: socket, listener: listener)
    }

    private static func makeListener() throws -> Int32 {
        let listener = makeSocket()
        let bound = KernelHarness.withSocketAddress(SocketAddress(receiver, port: 80)) {
            bind(listener, $0, $1)
        }
        guard bound == 0, listen(listener, 1) == 0 else { throw SystemError(call: "listen") }
        return listener
    }

    private static func makeSocket() -> Int32 {
        let number = socket(AF_INET, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_NONBLOCK.rawValue), 0)
        _ = setsockopt(number, Int32(IPPROTO_TCP), 13, "cubic", 5)
        return number
    }

    private static func makeDevice(_ address: IPAddress) throws -> TUNDevice {
        try NetworkNamespace.enterNew()
        let device = try TUNDevice(name: "tun%d")
        let kernel = KernelAddress(high: address.high, low: address.low, port: 0, isV4: true)
        try device.configure(address: kernel, prefixBits: 24, mtuBytes: 1_280)
        _ = Glibc.poll(nil, 0, 50)
        return device
    }

    private mutating func carry(_ length: Int, toReceiver: Bool) {
        if toReceiver, length > 200, Double.random(in: 0..<1, using: &generator) < loss { return }
        held[toReceiver ? 0 : 1].append(
            Held(due: Self.now + Self.delay, toReceiver: toReceiver, bytes: Array(buffer[..<length])))
    }

    private mutating func release() {
        let now = Self.now
        for lane in 0..<2 {
            while heads[lane] < held[lane].count, held[lane][heads[lane]].due <= now {
                held[lane][heads[lane]].bytes.withUnsafeBytes { bytes in
                    if lane == 0 {
                        _ = receiverDevice.write(bytes)
                    } else if senderDevice != nil {
                        _ = senderDevice?.write(bytes)
                    } else {
                        stack.receive(bytes, now: now)
                    }
                }
                heads[lane] += 1
            }
            if heads[lane] > 1_000 {
                held[lane].removeFirst(heads[lane])
                heads[lane] = 0
            }
        }
    }

    private mutating func turn() throws {
        var numbers = [pollfd(fd: receiverDevice.number, events: Int16(POLLIN), revents: 0)]
        if senderNumber >= 0 {
            numbers.append(pollfd(fd: senderNumber, events: Int16(POLLIN), revents: 0))
        }
        _ = Glibc.poll(&numbers, nfds_t(numbers.count), 1)
        release()
        while let length = try buffer.withUnsafeMutableBytes({ try receiverDevice.read(into: $0) }) {
            carry(length, toReceiver: false)
        }
        if senderDevice != nil {
            while let length = try buffer.withUnsafeMutableBytes({ try senderDevice?.read(into: $0) }) {
                carry(length, toReceiver: true)
            }
        }
        let now = Self.now
        if stack.nextDeadline <= now { stack.handleTimeout(now) }
        while stack.nextEvent() != nil {}
        if let id { while stack.write(id, { $0.count }) > 0 {} }
        while let packet = buffer.withUnsafeMutableBytes({ stack.nextPacket(into: $0, now: now) }) {
            carry(packet.length, toReceiver: true)
        }
        if accepted < 0 {
            accepted = accept(listener, nil, nil)
            if accepted >= 0 { try Descriptor.setNonBlocking(accepted) }
        }
        let number = socketNumber
        if number >= 0 {
            buffer.withUnsafeBytes { while send(number, $0.baseAddress!, 65_536, Int32(MSG_NOSIGNAL)) > 0 {} }
        }
        guard accepted >= 0 else { return }
        let reading = accepted
        while true {
            let count = buffer.withUnsafeMutableBytes { recv(reading, $0.baseAddress!, $0.count, 0) }
            guard count > 0 else { return }
            received += count
        }
    }

    /// Bytes per second after the first two seconds.
    mutating func run(seconds: UInt64) throws -> Double {
        let begin = Self.now + .seconds(2)
        while Self.now < begin { try turn() }
        let before = received
        let end = begin + .seconds(seconds)
        while Self.now < end { try turn() }
        for number in [listener, socketNumber, accepted] where number >= 0 { close(number) }
        return Double(received - before) / Double(seconds)
    }
}

/// Minutes of real time: `NETSTACK_RATES=60 swift test --filter NetstackKernelRates` runs that many seconds each.
@Suite(
    .serialized,
    .enabled(if: getuid() == 0 && getenv("NETSTACK_RATES") != nil, "set NETSTACK_RATES to seconds, as root"))
struct NetstackKernelRates {
    @Test(arguments: [0.001, 0.01]) func cubicKeepsUpWithTheKernels(loss: Double) async throws {
        let seconds = getenv("NETSTACK_RATES").flatMap { UInt64(String(cString: $0)) } ?? 30
        let rates = try await withThrowingTaskGroup(of: (Bool, Double).self) { group in
            for seed in UInt64(1)...4 {
                for byKernel in [false, true] {
                    group.addTask {
                        (byKernel, try await Self.measure(loss, seed, byKernel, seconds))
                    }
                }
            }
            return try await group.reduce(into: [(Bool, Double)]()) { $0.append($1) }
        }
        let ours = rates.filter { !$0.0 }.map(\.1).sorted()
        let kernels = rates.filter(\.0).map(\.1).sorted()
        func mean(_ values: [Double]) -> Double { values.reduce(0, +) / Double(values.count) }
        let ratio = mean(ours) / mean(kernels)
        print(
            """
            rate at 50 ms, loss \(loss): ours \(ours.map { Int($0) }) kernel \(kernels.map { Int($0) }) B/s, \
            ratio \(ratio)
            """
        )
        #expect(ratio >= 0.9)
    }

    private static func measure(
        _ loss: Double, _ seed: UInt64, _ byKernel: Bool, _ seconds: UInt64
    ) async throws -> Double {
        try await withCheckedThrowingContinuation { continuation in
            do {
                let thread = try DedicatedThread(name: "rate") {
                    do {
                        var run =
                            byKernel
                            ? try RateRun.byKernel(loss: loss, seed: seed)
                            : try RateRun.byStack(loss: loss, seed: seed)
                        continuation.resume(returning: try run.run(seconds: seconds))
                    } catch {
                        continuation.resume(throwing: error)
                    }
                }
                thread.detach()
            } catch {
                continuation.resume(throwing: error)
            }
        }
    }
}

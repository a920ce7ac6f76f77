// SPDX-License-Identifier: Apache-2.0

import Glibc
import LinuxIO
import Mesh

/// A stream's bytes as one long repetition of a block whose length is no power of two, so that slipped or swapped
/// segments show, and comparing is one `memcmp` per piece.
enum PatternBlock {
    static let period = 64_507
    static let bytes: [UInt8] = {
        var generator = SeededGenerator(seed: 99)
        let block = (0..<period).map { _ in UInt8(truncatingIfNeeded: generator.next()) }
        return block + block
    }()

    /// Longest piece that `withBytes` gives.
    static func length(_ wanted: Int) -> Int { min(wanted, period) }

    static func withBytes<R>(_ position: Int, _ body: (UnsafeRawPointer) -> R) -> R {
        bytes.withUnsafeBytes { body($0.baseAddress! + position % period) }
    }

    static func matches(_ position: Int, _ piece: UnsafeRawBufferPointer) -> Bool {
        var done = 0
        while done < piece.count {
            let count = length(piece.count - done)
            let equal = withBytes(position + done) { memcmp($0, piece.baseAddress! + done, count) == 0 }
            guard equal else { return false }
            done += count
        }
        return true
    }
}

/// What one side of a stream has done so far.
struct Progress {
    var total: Int
    var written = 0
    var read = 0
    var isWrong = false
    var sawEnd = false
    var hasShutDown = false
}

/// One case of the interoperability matrix.
struct KernelCase: Sendable, CustomStringConvertible {
    enum Reset: Sendable { case none, byStack, byKernel }
    var name: String
    var isV6 = false
    var stackOpens = true
    var mtu = 1_280
    var loss = 0.0
    var reordering = 0.0
    /// One-way delay in the pump.
    var delay = Interval.zero
    var bytesFromStack = 4 << 20
    var bytesFromKernel = 4 << 20
    /// The side does not read for this long.
    var stackSleeps = Interval.zero
    var kernelSleeps = Interval.zero
    /// SO_RCVBUF of the kernel's socket; nil lets it grow by itself.
    var kernelReceiveBuffer: Int32?
    /// Bytes that the kernel's reader takes per turn.
    var kernelAppetite = Int.max
    /// Largest receive buffer of the stack.
    var stackReceiveBuffer: Int?
    var reset = Reset.none
    var seed: UInt64 = 1

    var description: String { name }
}

/// What a run showed.
struct KernelOutcome: Sendable {
    var stackRead = 0
    var kernelRead = 0
    var isWrong = false
    var stackSawEnd = false
    var kernelSawEnd = false
    var closed: CloseReason?
    var kernelError: Int32 = 0
    var counters = StackCounters()
    var seconds = 0.0
    var failure: String?
    var connectionsLeft = 0
}

/// The stack behind a TUN device against the kernel's own sockets, in a network namespace that belongs to one
/// thread, which does everything.
struct KernelHarness: ~Copyable {
    private struct Held {
        var due: Instant
        var toStack: Bool
        var bytes: [UInt8]
    }

    let scenario: KernelCase
    let device: TUNDevice
    var stack: Stack
    var generator: SeededGenerator
    private var held: [Held] = []
    var listener: Int32 = -1
    var socketNumber: Int32 = -1
    var isConnected = false
    var id: ConnectionID?
    var outcome = KernelOutcome()
    var stackSide: Progress
    var kernelSide: Progress
    let start: Instant
    var buffer = [UInt8](repeating: 0, count: 65_536)
    private var burstMemory = [UInt8](repeating: 0, count: 128 << 10)

    static let kernel4 = IPAddress("10.77.0.1")!
    static let stack4 = IPAddress("10.77.0.2")!
    static let kernel6 = IPAddress("fd77::1")!
    static let stack6 = IPAddress("fd77::2")!

    static var now: Instant { Instant(nanoseconds: Clock.monotonicNanoseconds()) }

    init(_ scenario: KernelCase) throws {
        device = try Self.makeDevice(mtu: scenario.mtu)
        self.scenario = scenario
        var limits = StackLimits()
        if let size = scenario.stackReceiveBuffer { limits.receiveBuffer = size }
        stack = Stack(
            addresses: [Self.stack4, Self.stack6], mtu: scenario.mtu, limits: limits, seed: scenario.seed)
        generator = SeededGenerator(seed: scenario.seed)
        stackSide = Progress(total: scenario.bytesFromStack)
        kernelSide = Progress(total: scenario.bytesFromKernel)
        start = Self.now
    }

    /// A TUN device in a new network namespace, with the kernel's addresses on it.
    private static func makeDevice(mtu: Int) throws -> TUNDevice {
        try NetworkNamespace.enterNew()
        let device = try TUNDevice(name: "tun%d")
        let v4 = KernelAddress(high: kernel4.high, low: kernel4.low, port: 0, isV4: true)
        let v6 = KernelAddress(high: kernel6.high, low: kernel6.low, port: 0, isV4: false)
        try device.configure(address: v4, prefixBits: 24, mtuBytes: mtu)
        try device.configure(address: v6, prefixBits: 64, mtuBytes: mtu)
        // The link comes up a few milliseconds later; until then packets vanish.
        _ = Glibc.poll(nil, 0, 50)
        return device
    }

    deinit {
        if listener >= 0 { close(listener) }
        if socketNumber >= 0 { close(socketNumber) }
    }

    var stackAddress: IPAddress { scenario.isV6 ? Self.stack6 : Self.stack4 }
    var kernelAddress: IPAddress { scenario.isV6 ? Self.kernel6 : Self.kernel4 }

    // MARK: - The pump

    private mutating func chance(_ probability: Double) -> Bool {
        probability > 0 && Double.random(in: 0..<1, using: &generator) < probability
    }

    private mutating func carry(_ length: Int, toStack: Bool, _ now: Instant) {
        guard !chance(scenario.loss) else { return }
        var due = now + scenario.delay
        if chance(scenario.reordering) {
            due = due + Interval(nanoseconds: UInt64.random(in: 0..<8_000_000, using: &generator))
        }
        if due == now {
            deliver(toStack, now, length)
        } else {
            held.append(Held(due: due, toStack: toStack, bytes: Array(buffer[..<length])))
        }
    }

    private mutating func deliver(_ toStack: Bool, _ now: Instant, _ length: Int) {
        if toStack {
            buffer.withUnsafeBytes {
                stack.receive(UnsafeRawBufferPointer(rebasing: $0[..<length]), now: now)
            }
        } else {
            buffer.withUnsafeBytes { _ = device.write(UnsafeRawBufferPointer(rebasing: $0[..<length])) }
        }
    }

    private mutating func release(_ now: Instant) {
        guard !held.isEmpty else { return }
        let due = held.filter { $0.due <= now }
        guard !due.isEmpty else { return }
        held.removeAll { $0.due <= now }
        for packet in due.sorted(by: { $0.due < $1.due }) {
            buffer.replaceSubrange(0..<packet.bytes.count, with: packet.bytes)
            deliver(packet.toStack, now, packet.bytes.count)
        }
    }

    /// One turn: everything that can move moves, then it waits at most until something is due.
    mutating func turn() throws {
        wait()
        let now = Self.now
        for _ in 0..<64 {
            guard let length = try buffer.withUnsafeMutableBytes({ try device.read(into: $0) }) else { break }
            carry(length, toStack: true, now)
        }
        release(now)
        if stack.nextDeadline <= now { stack.handleTimeout(now) }
        while let event = stack.nextEvent() { take(event) }
        pumpStack(now)
        pumpKernel(now)
        drain(now)
    }

    /// In bursts, as the engine takes them: super-segments meet the kernel too.
    private mutating func drain(_ now: Instant) {
        while let burst = burstMemory.withUnsafeMutableBytes({
            stack.nextBurst(into: $0, layout: .plain, limit: 64, now: now)
        }) {
            var at = BurstLayout.plain.head
            for index in 0..<burst.count {
                let length = burst.length(of: index)
                buffer.replaceSubrange(0..<length, with: burstMemory[at..<at + length])
                carry(length, toStack: false, now)
                at += BurstLayout.plain.stride(length)
            }
        }
    }

    private mutating func wait() {
        var next = stack.nextDeadline
        for packet in held { next = min(next, packet.due) }
        let left = next.since(Self.now).nanoseconds / 1_000_000
        let busy = isStackBusy || isKernelBusy
        var poll = pollfd(fd: device.number, events: Int16(POLLIN), revents: 0)
        _ = Glibc.poll(&poll, 1, busy ? 0 : Int32(min(left, 2)))
    }

    private var isStackBusy: Bool { stack.hasOutput }
    private var isKernelBusy: Bool { false }

    mutating func take(_ event: StackEvent) {
        switch event {
        case .accepted(let id, _, let remote):
            self.id = id
            if remote.ip != kernelAddress { outcome.failure = "accepted from \(remote)" }
        case .peerClosed: stackSide.sawEnd = true
        case .closed(_, let reason): outcome.closed = reason
        default: break
        }
    }

    // MARK: - Both ends

    private mutating func pumpStack(_ now: Instant) {
        guard let id, outcome.closed == nil else { return }
        while stackSide.written < stackSide.total {
            let position = stackSide.written
            let wanted = PatternBlock.length(stackSide.total - position)
            let count = stack.write(id, limit: wanted) { room in
                PatternBlock.withBytes(position) {
                    room.baseAddress!.copyMemory(from: $0, byteCount: room.count)
                }
                return room.count
            }
            guard count > 0 else { break }
            stackSide.written += count
        }
        if stackSide.written == stackSide.total, !stackSide.hasShutDown, scenario.reset == .none {
            stackSide.hasShutDown = true
            stack.shutdownWrite(id)
        }
        guard now.since(start) >= scenario.stackSleeps else { return }
        while true {
            let position = stackSide.read
            var isWrong = false
            let count = stack.read(id, now: now) { bytes in
                isWrong = !PatternBlock.matches(position, bytes)
                return bytes.count
            }
            guard count > 0 else { break }
            if isWrong { outcome.isWrong = true }
            stackSide.read += count
        }
    }

    private mutating func pumpKernel(_ now: Instant) {
        if socketNumber < 0, listener >= 0 {
            socketNumber = accept(listener, nil, nil)
            if socketNumber >= 0 { try? Descriptor.setNonBlocking(socketNumber) }
            isConnected = socketNumber >= 0
        }
        guard socketNumber >= 0, outcome.kernelError == 0 else { return }
        while kernelSide.written < kernelSide.total {
            let position = kernelSide.written
            let wanted = PatternBlock.length(kernelSide.total - position)
            let count = PatternBlock.withBytes(position) {
                send(socketNumber, $0, wanted, Int32(MSG_NOSIGNAL))
            }
            guard count > 0 else {
                if count < 0, errno != EAGAIN, errno != EINPROGRESS, errno != ENOTCONN {
                    outcome.kernelError = errno
                }
                break
            }
            isConnected = true
            kernelSide.written += count
        }
        var peer = sockaddr_storage()
        var size = socklen_t(MemoryLayout<sockaddr_storage>.size)
        // Shutting down before the handshake is over would cancel it.
        isConnected =
            isConnected
            || withUnsafeMutablePointer(to: &peer) {
                $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    getpeername(socketNumber, $0, &size) == 0
                }
            }
        if kernelSide.written == kernelSide.total, isConnected, !kernelSide.hasShutDown,
            scenario.reset == .none
        {
            kernelSide.hasShutDown = true
            shutdown(socketNumber, Int32(SHUT_WR))
        }
        guard now.since(start) >= scenario.kernelSleeps else { return }
        readKernel()
    }

    private mutating func readKernel() {
        var hunger = scenario.kernelAppetite
        while !kernelSide.sawEnd, hunger > 0 {
            let wanted = min(hunger, buffer.count)
            let count = buffer.withUnsafeMutableBytes { recv(socketNumber, $0.baseAddress!, wanted, 0) }
            guard count > 0 else {
                if count == 0 {
                    kernelSide.sawEnd = true
                } else if errno != EAGAIN, errno != ENOTCONN, outcome.kernelError == 0 {
                    outcome.kernelError = errno
                }
                return
            }
            let position = kernelSide.read
            let isRight = buffer.withUnsafeBytes {
                PatternBlock.matches(position, UnsafeRawBufferPointer(rebasing: $0[..<count]))
            }
            if !isRight { outcome.isWrong = true }
            kernelSide.read += count
            hunger -= count
        }
    }
}

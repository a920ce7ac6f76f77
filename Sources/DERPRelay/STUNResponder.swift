// SPDX-License-Identifier: Apache-2.0

public import LinuxIO
public import Mesh
internal import Synchronization

/// Answers STUN binding requests on UDP ports, so that nodes learn how the net sees them. One thread, bursts of
/// datagrams, no state per asker, no answer larger than 1.1 times the question.
public final class STUNResponder: Sendable {
    /// What came in and went out.
    public struct Counters: Hashable, Sendable {
        /// Requests that were answered.
        public var answered: UInt64 = 0
        /// Datagrams that were no request of a node.
        public var ignored: UInt64 = 0
    }

    private final class State: Sendable {
        let wakeUp: WakeUp
        let counters = Mutex(Counters())
        let isStopping = Atomic<Bool>(false)

        init() throws(SystemError) { wakeUp = try WakeUp() }
    }

    /// Sockets and epoll set on their way into the thread, which alone uses them after.
    private final class Machinery: @unchecked Sendable {
        var v4: UDPSocket?
        var v6: UDPSocket?
        let epoll: Epoll
        let isStrict: Bool

        init(isStrict: Bool) throws(SystemError) {
            self.isStrict = isStrict
            epoll = try Epoll()
        }
    }

    /// Where it listens for IPv4, when it does.
    public let localV4: SocketAddress?
    /// Where it listens for IPv6, when it does.
    public let localV6: SocketAddress?
    private let state: State
    private let thread: DedicatedThread
    private let isJoined = Atomic<Bool>(false)

    /// Binds to `v4` and `v6` (either may be nil; port 0 lets the system choose) and starts to answer. A strict
    /// responder answers only nodes of this mesh, as `derper` does; an open one any RFC 8489 request.
    public init(v4: SocketAddress?, v6: SocketAddress?, isStrict: Bool = false) throws(SystemError) {
        let state = try State()
        let machinery = try Machinery(isStrict: isStrict)
        try machinery.epoll.add(state.wakeUp.number, .read, token: 0)
        if let v4 {
            let socket = try UDPSocket(bindingTo: Self.kernel(v4), reportsDestination: true)
            try machinery.epoll.add(socket.number, .read, token: 4)
            localV4 = Self.address(socket.localAddress)
            machinery.v4 = consume socket
        } else {
            localV4 = nil
        }
        if let v6 {
            let socket = try UDPSocket(bindingTo: Self.kernel(v6), reportsDestination: true)
            try machinery.epoll.add(socket.number, .read, token: 6)
            localV6 = Self.address(socket.localAddress)
            machinery.v6 = consume socket
        } else {
            localV6 = nil
        }
        self.state = state
        thread = try DedicatedThread(name: "stun") { Self.run(machinery, state) }
    }

    /// What happened so far.
    public var counters: Counters { state.counters.withLock { $0 } }

    /// Stops answering and ends the thread.
    public func close() {
        stop()
        if !isJoined.exchange(true, ordering: .acquiringAndReleasing) { thread.join() }
    }

    deinit {
        stop()
        if !isJoined.load(ordering: .acquiring) { thread.detach() }
    }

    private func stop() {
        state.isStopping.store(true, ordering: .releasing)
        state.wakeUp.signal()
    }

    private static func run(_ machinery: Machinery, _ state: State) {
        var received = ReceiveBurst()
        var answers = AnswerBurst(slotBytes: STUN.maximumReplyBytes)
        while !state.isStopping.load(ordering: .acquiring) {
            do {
                try machinery.epoll.wait(timeoutNanoseconds: nil) { _, _ in }
            } catch {
                return  // The set itself is broken: our fault, nothing can be served any more.
            }
            var counters = Counters()
            while (machinery.v4?.receive(into: &received) ?? 0) > 0 {
                answer(received, &answers, machinery.v4?.number ?? -1, machinery.isStrict, &counters)
            }
            while (machinery.v6?.receive(into: &received) ?? 0) > 0 {
                answer(received, &answers, machinery.v6?.number ?? -1, machinery.isStrict, &counters)
            }
            state.counters.withLock {
                $0.answered += counters.answered
                $0.ignored += counters.ignored
            }
        }
    }

    /// Answers leave from the address that was asked, whatever the route says: others would not be taken.
    private static func answer(
        _ received: borrowing ReceiveBurst, _ answers: inout AnswerBurst, _ number: Int32, _ isStrict: Bool,
        _ counters: inout Counters
    ) {
        for index in 0..<received.count {
            let message = received[index]
            let asked = received.localAddress(of: index)
            var offset = message.offset
            let end = message.offset + message.length
            while offset < end, message.segment > 0 {
                let length = min(message.segment, end - offset)
                let bytes = UnsafeRawBufferPointer(rebasing: received.memory[offset..<offset + length]).bytes
                offset += length
                guard let id = try? STUN.parseRequest(bytes, strict: isStrict) else {
                    counters.ignored += 1
                    continue
                }
                if answers.isFull { _ = answers.send(from: number) }
                let mapped = address(message.source)
                answers.append(to: message.source, from: asked) {
                    STUN.writeReply(id, mapped: mapped, into: $0)
                }
                counters.answered += 1
            }
        }
        _ = answers.send(from: number)
    }

    private static func kernel(_ address: SocketAddress) -> KernelAddress {
        KernelAddress(high: address.ip.high, low: address.ip.low, port: address.port, isV4: address.ip.isV4)
    }

    private static func address(_ kernel: KernelAddress) -> SocketAddress {
        let ip =
            kernel.isV4
            ? IPAddress(v4: UInt32(truncatingIfNeeded: kernel.low))
            : IPAddress(high: kernel.high, low: kernel.low)
        return SocketAddress(ip, port: kernel.port)
    }
}

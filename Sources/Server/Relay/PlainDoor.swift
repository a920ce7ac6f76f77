// SPDX-License-Identifier: Apache-2.0

internal import DERPRelay
internal import Glibc
internal import LinuxIO
internal import Logging
internal import Mesh
internal import Synchronization

/// The plain listener of a relay process: looks at the first bytes of each connection without taking them. Requests to
/// become a relay connection are answered here and go straight to the relay, at the cost of a few system calls; all
/// other connections go untouched to the HTTP server. One thread.
final class PlainDoor: Sendable {
    /// A listening socket; made first, because its port must be known before there is a relay.
    final class Listener: Sendable {
        let descriptor: OwnedDescriptor
        let port: Int

        /// Nil when `host` is a name and no address.
        init?(host: String, port: Int) throws(SystemError) {
            guard let ip = IPAddress(host), let number = UInt16(exactly: port) else { return nil }
            let address = KernelAddress(high: ip.high, low: ip.low, port: number, isV4: ip.isV4)
            let socket = try StreamSocket.listen(on: address, bothFamilies: true)
            self.port = Int(try StreamSocket.localAddress(socket.number).port)
            descriptor = socket
        }
    }

    /// What the thread needs; everything but flags and counters is its own.
    private final class State: @unchecked Sendable {  // only the atomic members are used by others
        let listener: Listener
        let epoll: Epoll
        let wakeUp: WakeUp
        let relay: Relay
        let other: @Sendable (Int32) -> Void
        let isStopping = Atomic<Bool>(false)
        let isDraining = Atomic<Bool>(false)
        /// Connections that gave way to later ones, and times at which the system had no room for one more.
        let evicted = Atomic<UInt64>(0)
        let exhausted = Atomic<UInt64>(0)
        let logger: Logger
        /// Connections whose request is not complete: when they came, and from where.
        var begun: [Int32: (since: UInt64, source: String)] = [:]
        /// The same in the order in which they came; some are not begun any more.
        var order: [(number: Int32, since: UInt64)] = []
        /// Of `order`, what was looked at.
        var orderStart = 0
        /// Until then nothing is accepted; 0: something is.
        var isDeafUntil: UInt64 = 0
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: headLimit, alignment: 16)

        init(
            _ listener: Listener, _ relay: Relay, _ logger: Logger, _ epoll: consuming Epoll,
            _ wakeUp: WakeUp,
            _ other: @escaping @Sendable (Int32) -> Void
        ) {
            self.listener = listener
            self.relay = relay
            self.logger = logger
            self.epoll = epoll
            self.wakeUp = wakeUp
            self.other = other
        }

        deinit { buffer.deallocate() }
    }

    /// Longest request that is handled here; clients send some 200 bytes.
    private static let headLimit = 4_096
    /// Connections that said nothing yet.
    private static let begunLimit = 8_192
    private static let patience: UInt64 = 10_000_000_000
    /// How long nothing is accepted when the system has no room: somebody may leave meanwhile.
    private static let deafness: UInt64 = 100_000_000
    /// `MSG_PEEK`, which Swift imports as an enumeration on some systems and as a number on others.
    private static let peek: Int32 = 2
    private static let start = Array("GET /derp HTTP/1.1\r\n".utf8)

    private let state: State
    private let thread: DedicatedThread

    /// Starts to accept. `other` takes over the descriptors of all other connections.
    init(
        _ listener: Listener, relay: Relay, logger: Logger, other: @escaping @Sendable (Int32) -> Void
    ) throws(SystemError) {
        let epoll = try Epoll()
        let wakeUp = try WakeUp()
        try epoll.add(wakeUp.number, .read, token: 0)
        try epoll.add(listener.descriptor.number, .read, token: 1)
        let state = State(listener, relay, logger, epoll, wakeUp, other)
        self.state = state
        thread = try DedicatedThread(name: "relay-door") { Self.run(state) }
    }

    /// From now on every connection goes to the HTTP server, which says why.
    func drain() { state.isDraining.store(true, ordering: .releasing) }

    /// Connections that gave way to later ones before they had said what they want; and times at which the system had
    /// no descriptor or memory for one more.
    var counters: (evicted: UInt64, exhausted: UInt64) {
        (state.evicted.load(ordering: .relaxed), state.exhausted.load(ordering: .relaxed))
    }

    /// Ends the thread; once.
    func stop() {
        state.isStopping.store(true, ordering: .releasing)
        state.wakeUp.signal()
        thread.join()
    }

    private static func run(_ state: State) {
        let events = EpollEvents()
        while !state.isStopping.load(ordering: .acquiring) {
            let wait: UInt64? =
                state.isDeafUntil != 0 ? deafness : state.begun.isEmpty ? nil : 1_000_000_000
            let count: Int
            do {
                count = try state.epoll.wait(timeoutNanoseconds: wait, into: events)
            } catch {
                break  // The set itself is broken: our fault, nobody can be let in any more.
            }
            for index in 0..<count {
                let token = events[index].token
                if token == 0 {
                    state.wakeUp.drain()
                } else if token == 1 {
                    accept(state)
                } else {
                    look(state, Int32(truncatingIfNeeded: token))
                }
            }
            expire(state)
            listenAgain(state)
        }
        for number in state.begun.keys { Glibc.close(number) }
        state.begun = [:]
    }

    private static func accept(_ state: State) {
        for _ in 0..<256 {
            guard let accepted = next(state) else { return }
            let peer = accepted.peer
            let source =
                peer.isV4
                ? IPAddress(v4: UInt32(truncatingIfNeeded: peer.low))
                : IPAddress(high: peer.high, low: peer.low)
            let number = accepted.take().release()
            // Those who come now may be honest; those who said nothing for longest are not.
            if state.begun.count >= begunLimit { evictOldest(state) }
            do {
                // On change only: bytes that are left in the socket must not wake us again and again.
                try state.epoll.add(number, [.read, .readHangUp, .edge], token: UInt64(number))
                let now = Clock.monotonicNanoseconds()
                state.begun[number] = (now, "\(source)")
                state.order.append((number, now))
            } catch {
                Glibc.close(number)
            }
        }
    }

    private static func next(_ state: State) -> AcceptedSocket? {
        do {
            return try StreamSocket.acceptOrExhausted(state.listener.descriptor.number)
        } catch {
            goDeaf(state, error)
            return nil
        }
    }

    /// The listener stays readable while there is no room: watching it would only burn time.
    private static func goDeaf(_ state: State, _ error: SystemError) {
        state.epoll.remove(state.listener.descriptor.number)
        if state.exhausted.wrappingAdd(1, ordering: .relaxed).oldValue % 600 == 0 {
            state.logger.error(
                "no room for more connections; is the limit of open files too low?",
                metadata: ["error": "\(error)"])
        }
        state.isDeafUntil = Clock.monotonicNanoseconds() + deafness
    }

    private static func listenAgain(_ state: State) {
        guard state.isDeafUntil != 0, Clock.monotonicNanoseconds() >= state.isDeafUntil else { return }
        do {
            try state.epoll.add(state.listener.descriptor.number, .read, token: 1)
            state.isDeafUntil = 0
        } catch {
            state.isDeafUntil += deafness  // The kernel has no memory for it: later.
        }
    }

    /// The connection that waits longest for the end of its request.
    private static func oldest(_ state: State) -> (number: Int32, since: UInt64)? {
        while state.orderStart < state.order.count {
            let first = state.order[state.orderStart]
            if state.begun[first.number]?.since == first.since { return first }
            state.orderStart += 1
            if state.orderStart >= begunLimit {
                state.order.removeFirst(state.orderStart)
                state.orderStart = 0
            }
        }
        state.order = []
        state.orderStart = 0
        return nil
    }

    private static func evictOldest(_ state: State) {
        guard let first = oldest(state) else { return }
        state.evicted.wrappingAdd(1, ordering: .relaxed)
        forget(state, first.number)
        Glibc.close(first.number)
    }

    private static func look(_ state: State, _ number: Int32) {
        guard let source = state.begun[number]?.source, let memory = state.buffer.baseAddress else { return }
        let count = recv(number, memory, headLimit, peek)
        guard count > 0 else {
            if count < 0, errno == EAGAIN || errno == EINTR { return }
            forget(state, number)
            Glibc.close(number)
            return
        }
        let bytes = UnsafeRawBufferPointer(rebasing: state.buffer[..<count])
        let known = min(count, start.count)
        guard bytes.prefix(known).elementsEqual(start.prefix(known)),
            !state.isDraining.load(ordering: .acquiring)
        else { return handOver(state, number) }
        var parser = RequestParser()
        parser.append(bytes)
        do {
            guard let head = try parser.nextHead() else {
                if count == headLimit { handOver(state, number) }
                return
            }
            let length = count - parser.leftOver.count
            guard head.tokens("upgrade").contains("derp"), head.framing == .none,
                recv(number, memory, length, 0) == length
            else { return handOver(state, number) }
            forget(state, number)
            upgrade(state, number, isFast: head.first("derp-fast-start") == "1", source)
        } catch {
            // What is wrong with it the HTTP server tells.
            handOver(state, number)
        }
    }

    private static func upgrade(_ state: State, _ number: Int32, isFast: Bool, _ source: String) {
        let answer =
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Version: 2\r\n"
            + "Derp-Public-Key: \(state.relay.publicKey.hex)\r\n\r\n"
        let bytes = Array(answer.utf8)
        // Nothing was sent on this connection: there is room.
        guard isFast || send(number, bytes, bytes.count, Int32(MSG_NOSIGNAL)) == bytes.count else {
            Glibc.close(number)
            return
        }
        state.relay.adopt(OwnedDescriptor(taking: number), source: source)
    }

    private static func handOver(_ state: State, _ number: Int32) {
        forget(state, number)
        state.other(number)
    }

    private static func forget(_ state: State, _ number: Int32) {
        state.begun[number] = nil
        state.epoll.remove(number)
    }

    private static func expire(_ state: State) {
        let now = Clock.monotonicNanoseconds()
        while let first = oldest(state), now - first.since > patience {
            forget(state, first.number)
            Glibc.close(first.number)
        }
    }
}

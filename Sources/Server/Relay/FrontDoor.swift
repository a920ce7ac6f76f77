// SPDX-License-Identifier: Apache-2.0

internal import DERPRelay
internal import Glibc
internal import LinuxIO
internal import Logging
internal import Mesh
internal import Synchronization
internal import TLS

/// A listener of a relay process. Requests to become a relay connection are answered here and go straight to the
/// relay, at the cost of a few system calls; all others go to the HTTP server. Without TLS it looks at the first bytes
/// without taking them; with TLS it makes the handshake (`FrontDoor+TLS.swift`), so that no handshake holds up the
/// relay's packets. One thread.
final class FrontDoor: Sendable {
    /// A listening socket; made first, because its port must be known before there is a relay.
    final class Listener: Sendable {
        let descriptor: OwnedDescriptor
        let port: Int
        /// Nil: without TLS.
        let certificates: Certificates?

        /// Nil when `host` is a name and no address.
        init?(host: String, port: Int, certificates: Certificates?) throws(SystemError) {
            guard let ip = IPAddress(host), let number = UInt16(exactly: port) else { return nil }
            let address = KernelAddress(high: ip.high, low: ip.low, port: number, isV4: ip.isV4)
            let socket = try StreamSocket.listen(on: address, bothFamilies: true)
            self.port = Int(try StreamSocket.localAddress(socket.number).port)
            self.certificates = certificates
            descriptor = socket
        }
    }

    /// A connection that wants something else than to be relayed.
    struct Stranger: Sendable {
        /// The receiver owns it.
        let number: Int32
        var session: TLSSession?
        /// What it said, if that was taken from its socket.
        var early: [UInt8] = []
    }

    /// What the door counted.
    struct Counters: Sendable {
        /// Connections that gave way to later ones before they had said what they want.
        var evicted: UInt64 = 0
        /// Connections that did not say it in time.
        var silent: UInt64 = 0
        /// Times at which the system had no descriptor or memory for one more.
        var exhausted: UInt64 = 0
        /// TLS handshakes that failed.
        var failedHandshakes: UInt64 = 0
    }

    /// A connection whose request is not complete.
    struct Begun {
        let since: UInt64
        let source: String
        /// Its handshake, once it said something.
        var opening: TLSOpening?
    }

    /// What the thread needs; everything but flags and counters is its own.
    final class State: @unchecked Sendable {  // only the atomic members and the counters are used by others
        let listener: Listener
        let epoll: Epoll
        let wakeUp: WakeUp
        let relay: Relay
        let other: @Sendable (Stranger) -> Void
        let isStopping = Atomic<Bool>(false)
        let isDraining = Atomic<Bool>(false)
        let counters = Mutex(Counters())
        let logger: Logger
        var begun: [Int32: Begun] = [:]
        /// The same in the order in which they came; some are not begun any more.
        var order: [(number: Int32, since: UInt64)] = []
        /// Of `order`, what was looked at.
        var orderStart = 0
        /// Until then nothing is accepted; 0: something is.
        var isDeafUntil: UInt64 = 0
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: readLimit, alignment: 16)
        /// What TLS made of the buffer, and what it answers.
        let plain = UnsafeMutableRawBufferPointer.allocate(
            byteCount: readLimit + TLSSession.heldBytes, alignment: 16)
        var sealed: [UInt8] = []

        init(
            _ listener: Listener, _ relay: Relay, _ logger: Logger, _ epoll: consuming Epoll,
            _ wakeUp: WakeUp, _ other: @escaping @Sendable (Stranger) -> Void
        ) {
            self.listener = listener
            self.relay = relay
            self.logger = logger
            self.epoll = epoll
            self.wakeUp = wakeUp
            self.other = other
        }

        deinit {
            buffer.deallocate()
            plain.deallocate()
        }
    }

    /// Longest request that is handled here; clients send some 200 bytes.
    static let headLimit = 4_096
    /// Most that is read of one connection before others have their turn.
    static let readLimit = 16 << 10
    /// Connections that said nothing yet, or not enough.
    private static let begunLimit = 8_192
    private static let patience: UInt64 = 10_000_000_000
    /// How long nothing is accepted when the system has no room: somebody may leave meanwhile.
    private static let deafness: UInt64 = 100_000_000
    /// `MSG_PEEK`, which Swift imports as an enumeration on some systems and as a number on others.
    private static let peek: Int32 = 2
    private static let start = Array("GET /derp HTTP/1.1\r\n".utf8)

    private let state: State
    private let thread: DedicatedThread

    /// Starts to accept. `other` takes over all other connections.
    init(
        _ listener: Listener, relay: Relay, logger: Logger, other: @escaping @Sendable (Stranger) -> Void
    ) throws(SystemError) {
        let epoll = try Epoll()
        let wakeUp = try WakeUp()
        try epoll.add(wakeUp.number, .read, token: 0)
        try epoll.add(listener.descriptor.number, .read, token: 1)
        let state = State(listener, relay, logger, epoll, wakeUp, other)
        self.state = state
        let name = listener.certificates == nil ? "relay-door" : "relay-tls-door"
        thread = try DedicatedThread(name: name) { Self.run(state) }
    }

    /// From now on every connection goes to the HTTP server, which says why.
    func drain() { state.isDraining.store(true, ordering: .releasing) }

    /// What happened so far.
    var counters: Counters { state.counters.withLock { $0 } }

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
                } else if state.listener.certificates == nil {
                    look(state, Int32(truncatingIfNeeded: token))
                } else {
                    advance(state, Int32(truncatingIfNeeded: token))
                }
            }
            expire(state)
            listenAgain(state)
        }
        for number in state.begun.keys { Glibc.close(number) }
        state.begun = [:]
    }

    private static func accept(_ state: State) {
        // What is peeked at stays in the socket and must not wake us again and again: on change only.
        let interest: Epoll.Interest =
            state.listener.certificates == nil ? [.read, .readHangUp, .edge] : .read
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
                try state.epoll.add(number, interest, token: UInt64(number))
                let now = Clock.monotonicNanoseconds()
                state.begun[number] = Begun(since: now, source: "\(source)")
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
        let times = state.counters.withLock { counters in
            counters.exhausted += 1
            return counters.exhausted
        }
        if times % 600 == 1 {
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
        state.counters.withLock { $0.evicted += 1 }
        drop(state, first.number)
    }

    private static func expire(_ state: State) {
        let now = Clock.monotonicNanoseconds()
        while let first = oldest(state), now - first.since > patience {
            state.counters.withLock { $0.silent += 1 }
            drop(state, first.number)
        }
    }
}

// MARK: Requests

extension FrontDoor {
    /// What the first bytes of a connection are.
    enum Request {
        /// Too little to say.
        case begun
        /// A request to be relayed, of so many bytes.
        case relay(length: Int, isFast: Bool)
        /// Something that the HTTP server answers, be it by saying what is wrong with it.
        case other

        init(_ bytes: UnsafeRawBufferPointer) {
            let known = min(bytes.count, FrontDoor.start.count)
            guard bytes.prefix(known).elementsEqual(FrontDoor.start.prefix(known)) else {
                self = .other
                return
            }
            var parser = RequestParser()
            parser.append(bytes)
            do {
                guard let head = try parser.nextHead() else {
                    self = bytes.count >= FrontDoor.headLimit ? .other : .begun
                    return
                }
                let isRelay = head.tokens("upgrade").contains("derp") && head.framing == .none
                self =
                    isRelay
                    ? .relay(
                        length: bytes.count - parser.leftOver.count,
                        isFast: head.first("derp-fast-start") == "1")
                    : .other
            } catch {
                self = .other
            }
        }
    }

    private static func look(_ state: State, _ number: Int32) {
        guard let source = state.begun[number]?.source, let memory = state.buffer.baseAddress else { return }
        let count = recv(number, memory, headLimit, peek)
        guard count > 0 else {
            if count == 0 || errno != EAGAIN && errno != EINTR { drop(state, number) }
            return
        }
        let isDraining = state.isDraining.load(ordering: .acquiring)
        switch isDraining ? .other : Request(UnsafeRawBufferPointer(rebasing: state.buffer[..<count])) {
        case .begun: return
        case .relay(let length, let isFast) where recv(number, memory, length, 0) == length:
            forget(state, number)
            // Nothing was sent on this connection: there is room.
            let answer = isFast ? [] : answer(state.relay)
            guard send(number, answer, answer.count, Int32(MSG_NOSIGNAL)) == answer.count else {
                Glibc.close(number)
                return
            }
            state.relay.adopt(OwnedDescriptor(taking: number), source: source)
        case .relay, .other:
            forget(state, number)
            state.other(Stranger(number: number))
        }
    }

    /// `derp.md` §4.
    static func answer(_ relay: Relay) -> [UInt8] {
        Array(
            ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Version: 2\r\n"
                + "Derp-Public-Key: \(relay.publicKey.hex)\r\n\r\n").utf8)
    }

    /// The connection is somebody else's now.
    static func forget(_ state: State, _ number: Int32) {
        state.begun[number] = nil
        state.epoll.remove(number)
    }

    static func drop(_ state: State, _ number: Int32) {
        forget(state, number)
        Glibc.close(number)
    }
}

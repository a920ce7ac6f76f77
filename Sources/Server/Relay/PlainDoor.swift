// SPDX-License-Identifier: Apache-2.0

internal import DERPRelay
internal import Glibc
internal import LinuxIO
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

    /// What the thread needs; everything but the flags is its own.
    private final class State: @unchecked Sendable {  // only the two flags are used by others
        let listener: Listener
        let epoll: Epoll
        let wakeUp: WakeUp
        let relay: Relay
        let other: @Sendable (Int32) -> Void
        let isStopping = Atomic<Bool>(false)
        let isDraining = Atomic<Bool>(false)
        /// Connections whose request is not complete: when they came, and from where.
        var begun: [Int32: (since: UInt64, source: String)] = [:]
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: headLimit, alignment: 16)

        init(
            _ listener: Listener, _ relay: Relay, _ other: @escaping @Sendable (Int32) -> Void
        ) throws(SystemError) {
            self.listener = listener
            self.relay = relay
            self.other = other
            epoll = try Epoll()
            wakeUp = try WakeUp()
            try epoll.add(wakeUp.number, .read, token: 0)
            try epoll.add(listener.descriptor.number, .read, token: 1)
        }

        deinit { buffer.deallocate() }
    }

    /// Longest request that is handled here; clients send some 200 bytes.
    private static let headLimit = 4_096
    /// Connections that said nothing yet.
    private static let begunLimit = 8_192
    private static let patience: UInt64 = 10_000_000_000
    /// `MSG_PEEK`, which Swift imports as an enumeration on some systems and as a number on others.
    private static let peek: Int32 = 2
    private static let start = Array("GET /derp HTTP/1.1\r\n".utf8)

    private let state: State
    private let thread: DedicatedThread

    /// Starts to accept. `other` takes over the descriptors of all other connections.
    init(_ listener: Listener, relay: Relay, other: @escaping @Sendable (Int32) -> Void) throws(SystemError) {
        let state = try State(listener, relay, other)
        self.state = state
        thread = try DedicatedThread(name: "relay-door") { Self.run(state) }
    }

    /// From now on every connection goes to the HTTP server, which says why.
    func drain() { state.isDraining.store(true, ordering: .releasing) }

    /// Ends the thread; once.
    func stop() {
        state.isStopping.store(true, ordering: .releasing)
        state.wakeUp.signal()
        thread.join()
    }

    private static func run(_ state: State) {
        let events = EpollEvents()
        while !state.isStopping.load(ordering: .acquiring) {
            let wait: UInt64? = state.begun.isEmpty ? nil : 1_000_000_000
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
        }
        for number in state.begun.keys { Glibc.close(number) }
        state.begun = [:]
    }

    private static func accept(_ state: State) {
        for _ in 0..<256 {
            guard let accepted = StreamSocket.accept(state.listener.descriptor.number) else { return }
            let peer = accepted.peer
            let source =
                peer.isV4
                ? IPAddress(v4: UInt32(truncatingIfNeeded: peer.low))
                : IPAddress(high: peer.high, low: peer.low)
            let number = accepted.take().release()
            guard state.begun.count < begunLimit else {
                Glibc.close(number)
                continue
            }
            do {
                // On change only: bytes that are left in the socket must not wake us again and again.
                try state.epoll.add(number, [.read, .readHangUp, .edge], token: UInt64(number))
                state.begun[number] = (Clock.monotonicNanoseconds(), "\(source)")
            } catch {
                Glibc.close(number)
            }
        }
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
        guard !state.begun.isEmpty else { return }
        let now = Clock.monotonicNanoseconds()
        for (number, begun) in state.begun where now - begun.since > patience {
            forget(state, number)
            Glibc.close(number)
        }
    }
}

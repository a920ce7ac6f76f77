// SPDX-License-Identifier: Apache-2.0

public import LinuxIO
public import Mesh
internal import Synchronization

/// A DERP relay: forwards packets between clients by their node keys (`derp.md`). One thread owns all connections,
/// reads large pieces, rewrites frames in place and writes them on; nothing is allocated per packet.
///
/// Any thread may call it. The HTTP server does the upgrade and hands the bare connection over with `adopt`; TLS and
/// WebSocket connections come as the other end of a socket pair.
public final class Relay: Sendable {
    enum Command: Sendable {
        case adopt(Int32, leftover: [UInt8])
        case drain(untilNanoseconds: UInt64)
        case stop
    }

    final class Mailbox: Sendable {
        let wakeUp: WakeUp
        let commands = Mutex<[Command]>([])
        let counters = Mutex(Counters())
        let isStopped = Atomic<Bool>(false)

        init() throws(SystemError) { wakeUp = try WakeUp() }
    }

    /// The key that clients seal their login for; also the `Derp-Public-Key` header of the upgrade.
    public let publicKey: NodePublicKey
    private let mailbox: Mailbox
    private let thread: DedicatedThread
    private let isJoined = Atomic<Bool>(false)

    /// Starts the relay's thread. `generator` gives the seed of nonces.
    public init(
        _ configuration: Configuration, generator: inout some RandomNumberGenerator
    ) throws(SystemError) {
        publicKey = configuration.privateKey.nodePublicKey
        let mailbox = try Mailbox()
        let epoll = try EpollBox()
        try epoll.epoll.add(mailbox.wakeUp.number, .read, token: 0)
        let random = SecureGenerator(seededBy: &generator)
        self.mailbox = mailbox
        thread = try DedicatedThread(name: "derp-relay") {
            let loop = RelayLoop(configuration, mailbox: mailbox, epoll: epoll, random: random)
            loop.run()
        }
    }

    /// Takes over an upgraded connection, a stream socket. `leftover`: bytes of the client that were read together
    /// with its HTTP request.
    public func adopt(_ descriptor: consuming OwnedDescriptor, leftover: [UInt8] = []) {
        let number = descriptor.release()
        let isTaken = mailbox.commands.withLock { commands in
            guard !mailbox.isStopped.load(ordering: .acquiring) else { return false }
            commands.append(.adopt(number, leftover: leftover))
            return true
        }
        if isTaken { mailbox.wakeUp.signal() } else { OwnedDescriptor(taking: number).close() }
    }

    /// What the relay did so far.
    public var counters: Counters { mailbox.counters.withLock { $0 } }

    /// Tells all clients to come back in a moment, gives what waits up to `nanoseconds` to leave, and ends.
    public func drain(nanoseconds: UInt64 = 500_000_000) {
        post(.drain(untilNanoseconds: Clock.monotonicNanoseconds() + nanoseconds))
        join()
    }

    /// Closes all connections and ends the thread.
    public func close() {
        post(.stop)
        join()
    }

    private func post(_ command: Command) {
        mailbox.commands.withLock { $0.append(command) }
        mailbox.wakeUp.signal()
    }

    private func join() {
        if !isJoined.exchange(true, ordering: .acquiringAndReleasing) { thread.join() }
    }

    deinit {
        mailbox.commands.withLock { $0.append(.stop) }
        mailbox.wakeUp.signal()
        if !isJoined.load(ordering: .acquiring) { thread.detach() }
    }
}

/// Carries the epoll set into the thread's closure, which cannot capture a value that has no copies.
final class EpollBox: @unchecked Sendable {  // handed to the thread once, used by it alone after
    let epoll: Epoll
    init() throws(SystemError) { epoll = try Epoll() }
}

// SPDX-License-Identifier: Apache-2.0

public import LinuxIO
public import Mesh
internal import Synchronization

/// A DERP relay: forwards packets between clients by their node keys (`derp.md`). One thread owns all connections,
/// reads large pieces, rewrites frames in place and writes them on; nothing is allocated per packet.
///
/// Any thread may call it. Whoever does the upgrade hands the bare connection over with `adopt`, and with it its
/// cipher if it has one; WebSockets come as the other end of a socket pair.
public final class Relay: Sendable {
    enum Command: Sendable {
        case adopt(Int32, leftover: [UInt8], source: String, cipher: (any RelayCipher)?)
        case link(Int32, leftover: [UInt8], ended: @Sendable (LinkEnd) -> Void)
        case admitted(UInt64, Bool)
        case health(String)
        case meshKey(String)
        case drain(untilNanoseconds: UInt64, waitsForClients: Bool)
        case stop
    }

    final class Mailbox: Sendable {
        let wakeUp: WakeUp
        let commands = Mutex<[Command]>([])
        let counters = Mutex(Counters())
        let isStopped = Atomic<Bool>(false)

        init() throws(SystemError) { wakeUp = try WakeUp() }

        func post(_ command: Command) {
            commands.withLock { $0.append(command) }
            wakeUp.signal()
        }
    }

    /// Why a connection to another relay is over.
    public enum LinkEnd: Hashable, Sendable {
        /// It leads to this relay itself: do not try again.
        case isSelf
        /// The other relay did not accept us.
        case closed
        /// It worked before.
        case lost
        /// This relay stopped, or has no mesh key.
        case stopped
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
    /// with its HTTP request, as they are without the cipher. `source`: its address, for `verify`. `cipher`: what all
    /// that follows is sealed with; nobody else uses it from now on.
    public func adopt(
        _ descriptor: consuming OwnedDescriptor, leftover: [UInt8] = [], source: String = "",
        cipher: (any RelayCipher)? = nil
    ) {
        let number = descriptor.release()
        if !postUnlessStopped(.adopt(number, leftover: leftover, source: source, cipher: cipher)) {
            OwnedDescriptor(taking: number).close()
        }
    }

    /// Takes over a connection that was opened to another relay of the mesh and upgraded there: logs in, hears who is
    /// connected there, and forwards packets to them. `ended` is called once, on the relay's thread: try again then,
    /// after a while.
    public func link(
        _ descriptor: consuming OwnedDescriptor, leftover: [UInt8] = [],
        ended: @escaping @Sendable (LinkEnd) -> Void
    ) {
        let number = descriptor.release()
        if !postUnlessStopped(.link(number, leftover: leftover, ended: ended)) {
            OwnedDescriptor(taking: number).close()
            ended(.stopped)
        }
    }

    /// What the relay did so far.
    public var counters: Counters { mailbox.counters.withLock { $0 } }

    /// Tells all clients, and those that come later, of a problem in words; nil: there is none any more. The first
    /// 1,000 bytes count.
    public func report(problem: String?) {
        var text = problem ?? ""
        while text.utf8.count > 1_000 { text.removeLast() }
        mailbox.post(.health(text))
    }

    /// The shared secret of the region's relays, for those that learn it after they began to serve. Connections that
    /// were open before stay what they are.
    public func setMeshKey(_ key: String) { mailbox.post(.meshKey(key)) }

    /// Tells all clients to connect again, and ends: as soon as that is said, or when they have left. Until then
    /// packets go on. Never later than after `nanoseconds`. Waits for the thread.
    public func drain(nanoseconds: UInt64 = 500_000_000, waitsForClients: Bool = false) {
        let until = Clock.monotonicNanoseconds() + nanoseconds
        mailbox.post(.drain(untilNanoseconds: until, waitsForClients: waitsForClients))
        join()
    }

    /// Closes all connections and ends the thread.
    public func close() {
        mailbox.post(.stop)
        join()
    }

    private func postUnlessStopped(_ command: Command) -> Bool {
        let isTaken = mailbox.commands.withLock { commands in
            guard !mailbox.isStopped.load(ordering: .acquiring) else { return false }
            commands.append(command)
            return true
        }
        if isTaken { mailbox.wakeUp.signal() }
        return isTaken
    }

    private func join() {
        if !isJoined.exchange(true, ordering: .acquiringAndReleasing) { thread.join() }
    }

    deinit {
        mailbox.post(.stop)
        if !isJoined.load(ordering: .acquiring) { thread.detach() }
    }
}

/// Carries the epoll set into the thread's closure, which cannot capture a value that has no copies.
final class EpollBox: @unchecked Sendable {  // handed to the thread once, used by it alone after
    let epoll: Epoll
    init() throws(SystemError) { epoll = try Epoll() }
}

// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc

/// An address of a network interface of this machine.
public struct InterfaceAddress: Hashable, Sendable {
    /// Name such as `eth0`.
    public let interface: String
    /// The address; the port is 0.
    public let address: KernelAddress
    /// Whether the interface is up.
    public let isUp: Bool
    /// Whether it is the loopback interface.
    public let isLoopback: Bool

    /// All IPv4 and IPv6 addresses, at most 256, in the kernel's order (`getifaddrs`).
    public static func all() throws(SystemError) -> [InterfaceAddress] {
        var list = [clinux_interface_address](repeating: clinux_interface_address(), count: 256)
        let count = clinux_interface_addresses(&list, 256)
        guard count >= 0 else { throw SystemError(call: "getifaddrs", code: -count) }
        return list.prefix(Int(count)).map { entry in
            let name = withUnsafeBytes(of: entry.name) {
                String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
            }
            return InterfaceAddress(
                interface: name, address: KernelAddress(entry.address), isUp: entry.is_up != 0,
                isLoopback: entry.is_loopback != 0)
        }
    }
}

/// Hears of changes of links, addresses and routes (rtnetlink). Readable when something changed.
public struct LinkMonitor: ~Copyable, Sendable {
    private let descriptor: OwnedDescriptor

    /// Opens the socket; needs no privileges.
    public init() throws(SystemError) {
        let number = clinux_link_monitor_open()
        guard number >= 0 else { throw SystemError(call: "socket(AF_NETLINK)", code: -number) }
        descriptor = OwnedDescriptor(taking: number)
    }

    init(taking number: Int32) { descriptor = OwnedDescriptor(taking: number) }

    /// The descriptor to watch for reading.
    public var number: Int32 { descriptor.number }

    /// Reads everything that waits; returns whether anything relevant changed.
    public func drain() -> Bool { clinux_link_monitor_drain(number) > 0 }
}

/// The network namespace of a thread.
public enum NetworkNamespace {
    /// Moves the calling thread (only) into a new, empty network namespace, which lives as long as a thread or
    /// descriptor refers to it. Needs CAP_SYS_ADMIN. For a `DedicatedThread`, never for a pool's.
    public static func enterNew() throws(SystemError) {
        let code = clinux_new_network_namespace()
        guard code == 0 else { throw SystemError(call: "unshare(CLONE_NEWNET)", code: -code) }
    }
}

/// A thread of its own, for work that must not run in the cooperative pool. `join` once when it is done.
public final class DedicatedThread: Sendable {
    private final class Body: Sendable {
        let run: @Sendable () -> Void
        init(_ run: @escaping @Sendable () -> Void) { self.run = run }
    }

    private let handle: UInt64

    /// Starts a thread called `name` (15 bytes are shown) that runs `body`.
    public init(name: String, _ body: @escaping @Sendable () -> Void) throws(SystemError) {
        let retained = Unmanaged.passRetained(Body(body))
        var handle: UInt64 = 0
        let code = clinux_thread_start(
            { argument in
                Unmanaged<Body>.fromOpaque(argument!).takeRetainedValue().run()
                return nil
            }, retained.toOpaque(), name, &handle)
        guard code == 0 else {
            retained.release()
            throw SystemError(call: "pthread_create", code: -code)
        }
        self.handle = handle
    }

    /// Asks the scheduler to serve the calling thread in short turns, and so sooner (Linux 6.12; without effect
    /// before), and with the given niceness if that is allowed; nil keeps it.
    public static func takeShortTurns(nanoseconds: UInt64, nice: Int32? = nil) {
        _ = clinux_thread_short_turns(nanoseconds, nice ?? .max)
    }

    /// Lets others have the processor first.
    public static func yield() { sched_yield() }

    /// Waits for the end of the thread. Call exactly once, from another thread.
    public func join() { clinux_thread_join(handle) }

    /// Lets the thread end by itself. Call at most once, and then never `join`.
    public func detach() { clinux_thread_detach(handle) }

    /// Runs what may block on a thread of its own, while the task waits: the threads that tasks share are few (on
    /// Linux those of Dispatch's global queues too), and a program whose shared threads all wait stands still.
    /// Throws what `body` throws, and `SystemError` when there is no thread.
    public static func run<R: Sendable>(
        name: String = "blocking", _ body: @escaping @Sendable () throws -> R
    ) async throws -> R {
        try await withCheckedThrowingContinuation { continuation in
            do {
                try DedicatedThread(name: name) { continuation.resume(with: Result { try body() }) }.detach()
            } catch {
                continuation.resume(throwing: error)
            }
        }
    }
}

/// Host names.
public enum Resolver {
    /// The addresses of `host` (a name, or an address in text) with `port`, at most 16. Blocks for up to many
    /// seconds: call on a thread of its own.
    public static func lookUp(_ host: String, port: UInt16) -> [KernelAddress] {
        var list = [clinux_address](repeating: clinux_address(), count: 16)
        let count = clinux_resolve(host, port, &list, 16)
        return list.prefix(max(0, Int(count))).map { KernelAddress($0) }
    }
}

extension NetworkNamespace {
    /// Moves the calling thread into the namespace at `path` (such as `/run/netns/a`). Sockets that it opens
    /// afterwards belong there, whoever uses them. Needs CAP_SYS_ADMIN.
    public static func enter(_ path: String) throws(SystemError) {
        let code = clinux_enter_network_namespace(path)
        guard code == 0 else { throw SystemError(call: "setns", code: -code) }
    }
}

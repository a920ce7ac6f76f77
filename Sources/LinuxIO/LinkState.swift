// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc

/// A default route: where packets to the rest of the world go.
public struct DefaultRoute: Hashable, Sendable {
    /// The router; nil on links without one.
    public let gateway: KernelAddress?
    /// Number of the interface.
    public let interfaceIndex: Int32

    /// The default route of one family with the lowest metric, in the calling thread's network namespace.
    public static func current(v4: Bool) -> DefaultRoute? {
        var raw = clinux_address()
        var index: Int32 = 0
        guard clinux_default_route(v4 ? 4 : 6, &raw, &index) == 1 else { return nil }
        let gateway = KernelAddress(raw)
        let hasGateway = v4 ? gateway.low & 0xffff_ffff != 0 : gateway.high | gateway.low != 0
        return DefaultRoute(gateway: hasGateway ? gateway : nil, interfaceIndex: index)
    }

    /// The own address from which packets to `remote` leave; nil when there is no way.
    public static func source(towards remote: KernelAddress) -> KernelAddress? {
        var raw = remote.raw
        var source = clinux_address()
        return clinux_route_source(&raw, &source) == 0 ? KernelAddress(source) : nil
    }
}

/// Hears when the wall clock jumps, and with it when the machine wakes up from sleep: a timer that the kernel cancels
/// then. Without it a sleeper is noticed at the next timer only, which may be half a minute later.
public struct ClockWatch: ~Copyable, Sendable {
    private let descriptor: OwnedDescriptor

    /// Opens the timer; needs no privileges.
    public init() throws(SystemError) {
        let number = clinux_clock_watch_open()
        guard number >= 0 else { throw SystemError(call: "timerfd_create", code: -number) }
        descriptor = OwnedDescriptor(taking: number)
    }

    /// The descriptor to watch for reading.
    public var number: Int32 { descriptor.number }

    /// Whether the clock jumped since the last call.
    public func drain() -> Bool { clinux_clock_watch_drain(number) > 0 }
}

/// A UDP socket for a few small datagrams: nothing is batched. Owned by one thread.
public struct SmallUDPSocket: ~Copyable, Sendable {
    private let descriptor: OwnedDescriptor

    /// An IPv4 or IPv6 socket on a port that the system chooses.
    public init(v4: Bool) throws(SystemError) {
        var local = KernelAddress.any(v4: v4).raw
        let number = clinux_udp_open(&local)
        guard number >= 0 else { throw SystemError(call: "bind", code: -number) }
        descriptor = OwnedDescriptor(taking: number)
    }

    /// The descriptor to watch for reading.
    public var number: Int32 { descriptor.number }

    /// Sends without waiting; what cannot be sent is lost.
    @discardableResult
    public func send(_ bytes: [UInt8], to address: KernelAddress) -> Bool {
        var raw = address.raw
        return bytes.withUnsafeBytes {
            clinux_udp_send_one(number, $0.baseAddress, Int32($0.count), &raw)
        } == Int32(bytes.count)
    }

    /// The next datagram, at most 4 KiB of it; nil when none waits.
    public func receive() -> (bytes: [UInt8], source: KernelAddress)? {
        var source = clinux_address()
        var count: Int32 = 0
        let bytes = [UInt8](unsafeUninitializedCapacity: 4_096) { memory, used in
            count = clinux_udp_receive_one(number, memory.baseAddress, 4_096, &source)
            used = max(0, Int(count))
        }
        return count < 0 ? nil : (bytes, KernelAddress(source))
    }
}

extension Clock {
    /// How long the machine has slept since it was started, nanoseconds: grows only by sleeping.
    public static func sleptNanoseconds() -> UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        let awake = UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
        let all = monotonicNanoseconds()
        return all > awake ? all - awake : 0
    }
}

extension OwnedDescriptor {
    /// Waits until the descriptor can be read (or written); false when the time is over first.
    public func waitReady(forWriting: Bool, nanoseconds: UInt64) -> Bool {
        var wait = pollfd(fd: number, events: Int16(forWriting ? POLLOUT : POLLIN), revents: 0)
        let milliseconds = Int32(clamping: nanoseconds / 1_000_000 + 1)
        while true {
            let count = poll(&wait, 1, milliseconds)
            if count >= 0 || errno != EINTR { return count == 1 }
        }
    }
}

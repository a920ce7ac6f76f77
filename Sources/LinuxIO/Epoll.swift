// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc

/// Readiness of many descriptors for one thread (`epoll(7)`).
public struct Epoll: ~Copyable {
    /// What to wait for, or what happened.
    public struct Interest: OptionSet, Sendable {
        public let rawValue: UInt32
        public init(rawValue: UInt32) { self.rawValue = rawValue }

        /// `EPOLLIN`
        public static let read = Interest(rawValue: 0x1)
        /// `EPOLLOUT`
        public static let write = Interest(rawValue: 0x4)
        /// `EPOLLERR`: always reported.
        public static let error = Interest(rawValue: 0x8)
        /// `EPOLLHUP`: always reported.
        public static let hangUp = Interest(rawValue: 0x10)
        /// `EPOLLRDHUP`: the peer closed its writing side.
        public static let readHangUp = Interest(rawValue: 0x2000)
        /// `EPOLLET`: report changes only.
        public static let edge = Interest(rawValue: 1 << 31)
    }

    private let descriptor: OwnedDescriptor

    /// Makes an empty set.
    public init() throws(SystemError) {
        let number = clinux_epoll_create()
        guard number >= 0 else { throw SystemError(call: "epoll_create1") }
        descriptor = OwnedDescriptor(taking: number)
    }

    /// Watches `number`; `token` comes back with each event.
    public func add(_ number: Int32, _ interest: Interest, token: UInt64) throws(SystemError) {
        try control(EPOLL_CTL_ADD, number, interest, token)
    }

    /// Changes what is waited for.
    public func modify(_ number: Int32, _ interest: Interest, token: UInt64) throws(SystemError) {
        try control(EPOLL_CTL_MOD, number, interest, token)
    }

    /// Stops watching. Must be called before the descriptor is closed or handed on.
    public func remove(_ number: Int32) {
        _ = epoll_ctl(descriptor.number, EPOLL_CTL_DEL, number, nil)
    }

    /// Waits until something is ready or `timeoutNanoseconds` passed (nil: for ever) and calls `body` for each
    /// event. Returns how many there were; 0 on time-out or signal.
    @discardableResult
    public func wait(
        timeoutNanoseconds: UInt64?, maxEvents: Int = 256, _ body: (UInt64, Interest) -> Void
    ) throws(SystemError) -> Int {
        // Rounded up: waking a little early would spin until the deadline is really due.
        let milliseconds = timeoutNanoseconds.map { Int32(clamping: ($0 + 999_999) / 1_000_000) } ?? -1
        let failure: Int32 = withUnsafeTemporaryAllocation(of: epoll_event.self, capacity: maxEvents) {
            events in
            let count = epoll_wait(descriptor.number, events.baseAddress, Int32(maxEvents), milliseconds)
            guard count >= 0 else { return errno == EINTR ? 0 : -errno }
            for event in events.prefix(Int(count)) {
                body(event.data.u64, Interest(rawValue: event.events))
            }
            return count
        }
        guard failure >= 0 else { throw SystemError(call: "epoll_wait", code: -failure) }
        return Int(failure)
    }

    /// Waits like the other form, to the nanosecond where the kernel can, and leaves the events in `events`.
    /// Returns how many there are.
    public func wait(
        timeoutNanoseconds: UInt64?, into events: borrowing EpollEvents
    ) throws(SystemError) -> Int {
        let limit = timeoutNanoseconds.map { Int64(clamping: $0) } ?? -1
        let count = clinux_epoll_wait(descriptor.number, events.memory, Int32(EpollEvents.capacity), limit)
        guard count >= 0 || count == -EINTR else { throw SystemError(call: "epoll_wait", code: -count) }
        return max(0, Int(count))
    }

    /// Waits like `wait(timeoutNanoseconds:into:)`, for the thread that owns the set. Only a closed descriptor makes
    /// that fail: a fault of this program, which ends it.
    public func next(timeoutNanoseconds: UInt64?, into events: borrowing EpollEvents) -> Int {
        do {
            return try wait(timeoutNanoseconds: timeoutNanoseconds, into: events)
        } catch {
            preconditionFailure("\(error)")
        }
    }

    private func control(
        _ operation: Int32, _ number: Int32, _ interest: Interest, _ token: UInt64
    ) throws(SystemError) {
        var event = epoll_event(events: interest.rawValue, data: epoll_data_t(u64: token))
        guard epoll_ctl(descriptor.number, operation, number, &event) == 0 else {
            throw SystemError(call: "epoll_ctl")
        }
    }
}

/// Memory for the events of one `Epoll.wait`.
public struct EpollEvents: ~Copyable {
    static let capacity = 256
    let memory: UnsafeMutablePointer<epoll_event>

    /// Room for 256 events.
    public init() {
        memory = .allocate(capacity: Self.capacity)
        memory.initialize(repeating: epoll_event(), count: Self.capacity)
    }

    deinit { memory.deallocate() }

    /// The event number `index` of the last wait: the token it was registered with, and what happened.
    public subscript(index: Int) -> (token: UInt64, interest: Epoll.Interest) {
        precondition(index < Self.capacity, "no such event")
        return (memory[index].data.u64, Epoll.Interest(rawValue: memory[index].events))
    }
}

/// Wakes a thread that sleeps in `Epoll.wait` (`eventfd(2)`). Any thread may signal; the owner drains.
public final class WakeUp: Sendable {
    private let descriptor: OwnedDescriptor

    /// Makes an unsignalled event.
    public init() throws(SystemError) {
        let number = clinux_eventfd()
        guard number >= 0 else { throw SystemError(call: "eventfd") }
        descriptor = OwnedDescriptor(taking: number)
    }

    /// The descriptor to watch for reading.
    public var number: Int32 { descriptor.number }

    /// Makes the descriptor readable.
    public func signal() {
        var one: UInt64 = 1
        _ = write(descriptor.number, &one, 8)
    }

    /// Blocks the calling thread until it is signalled.
    public func wait() { clinux_wait_readable(descriptor.number) }

    /// Makes it unreadable again.
    public func drain() {
        var value: UInt64 = 0
        _ = read(descriptor.number, &value, 8)
    }
}

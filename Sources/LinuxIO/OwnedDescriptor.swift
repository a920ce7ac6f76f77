// SPDX-License-Identifier: Apache-2.0

internal import CLinux
public import Glibc

/// A system call that failed: which one, and with which `errno`.
public struct SystemError: Error, Hashable, Sendable, CustomStringConvertible {
    /// Name of the system call, as in its manual page.
    public let call: String
    /// Value of `errno` right after the call.
    public let code: Int32

    /// Describes the failure of `call` with the current `errno` unless a code is given.
    public init(call: String, code: Int32 = errno) {
        self.call = call
        self.code = code
    }

    /// Whether epoll refused a descriptor that is always ready, such as a regular file (EPERM).
    public var isNotPollable: Bool { code == EPERM }

    /// Whether somebody else is bound to the address (EADDRINUSE).
    public var isAddressInUse: Bool { code == EADDRINUSE }

    /// Whether an error of a datagram socket concerns one datagram only (nobody listened, no route now).
    public var isPassing: Bool {
        [ECONNREFUSED, EHOSTUNREACH, ENETUNREACH, EMSGSIZE, ENOBUFS, EPERM].contains(code)
    }

    /// Nobody listens there.
    public var isRefusal: Bool { code == ECONNREFUSED }

    public var description: String { "\(call): \(String(cString: strerror(code)))" }
}

/// A file descriptor that is closed exactly once: by `close()`, or when its owner goes away.
public struct OwnedDescriptor: ~Copyable, Sendable {
    /// The number, valid while this value lives. Never close it directly.
    public let number: Int32

    /// Takes over an open descriptor.
    public init(taking number: Int32) {
        precondition(number >= 0, "not an open descriptor")
        self.number = number
    }

    deinit { _ = Glibc.close(number) }

    /// Closes now.
    public consuming func close() {}

    /// Gives the descriptor away; the caller now owns the number.
    public consuming func release() -> Int32 {
        let result = number
        discard self
        return result
    }

    /// A second descriptor of the same open file, close-on-exec.
    public borrowing func duplicate() throws(SystemError) -> OwnedDescriptor {
        let copy = fcntl(number, F_DUPFD_CLOEXEC, 3)
        guard copy >= 0 else { throw SystemError(call: "fcntl") }
        return OwnedDescriptor(taking: copy)
    }
}

/// Two descriptors that belong together. Take them apart with `consume`: `let first = pair.first`.
public struct DescriptorPair: ~Copyable, Sendable {
    /// The first of them.
    public var first: OwnedDescriptor
    /// The second of them.
    public var second: OwnedDescriptor

    /// Gives both away as numbers, which the caller now owns.
    public consuming func release() -> (Int32, Int32) { (first.release(), second.release()) }
}

/// A few calls on raw descriptor numbers that several shells share.
public enum Descriptor {
    /// Sets or clears `O_NONBLOCK`.
    public static func setNonBlocking(_ number: Int32, _ on: Bool = true) throws(SystemError) {
        let flags = fcntl(number, F_GETFL)
        guard flags >= 0 else { throw SystemError(call: "fcntl") }
        let wanted = on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK
        guard wanted == flags || fcntl(number, F_SETFL, wanted) == 0 else { throw SystemError(call: "fcntl") }
    }

    /// A connected pair of unix stream sockets, close-on-exec, blocking unless asked otherwise.
    public static func socketPair(nonBlocking: Bool = false) throws(SystemError) -> DescriptorPair {
        try unixPair(Int32(SOCK_STREAM.rawValue), nonBlocking: nonBlocking)
    }

    /// A connected pair of unix sockets that keeps the borders of messages (`SOCK_SEQPACKET`), close-on-exec.
    public static func packetPair(nonBlocking: Bool = false) throws(SystemError) -> DescriptorPair {
        try unixPair(Int32(SOCK_SEQPACKET.rawValue), nonBlocking: nonBlocking)
    }

    private static func unixPair(_ kind: Int32, nonBlocking: Bool) throws(SystemError) -> DescriptorPair {
        var pair: [Int32] = [-1, -1]
        let type = kind | Int32(SOCK_CLOEXEC.rawValue) | (nonBlocking ? Int32(SOCK_NONBLOCK.rawValue) : 0)
        guard socketpair(AF_UNIX, type, 0, &pair) == 0 else { throw SystemError(call: "socketpair") }
        return DescriptorPair(
            first: OwnedDescriptor(taking: pair[0]), second: OwnedDescriptor(taking: pair[1]))
    }

    /// A pipe, close-on-exec: `first` is the reading end, `second` the writing end.
    public static func pipe() throws(SystemError) -> DescriptorPair {
        var pair: [Int32] = [-1, -1]
        guard clinux_pipe2(&pair, O_CLOEXEC) == 0 else { throw SystemError(call: "pipe2") }
        return DescriptorPair(
            first: OwnedDescriptor(taking: pair[0]), second: OwnedDescriptor(taking: pair[1]))
    }

    /// Writes all of `bytes`, waiting as a blocking descriptor does (polls when it is non-blocking).
    public static func writeAll(_ number: Int32, _ bytes: UnsafeRawBufferPointer) throws(SystemError) {
        var rest = bytes
        while !rest.isEmpty {
            let count = Glibc.write(number, rest.baseAddress, rest.count)
            if count > 0 {
                rest = UnsafeRawBufferPointer(rebasing: rest.dropFirst(count))
            } else if errno == EAGAIN {
                var wait = pollfd(fd: number, events: Int16(POLLOUT), revents: 0)
                _ = Glibc.poll(&wait, 1, -1)
            } else if errno != EINTR {
                throw SystemError(call: "write")
            }
        }
    }
}

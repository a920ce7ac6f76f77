// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc

/// What a descriptor is, as far as moving bytes is concerned.
public enum DescriptorKind: Hashable, Sendable {
    /// A TCP socket: can be half-closed and reset.
    case tcp
    /// Another stream socket: can be half-closed.
    case streamSocket
    /// A socket that keeps the borders of messages, and of which an empty one is the end.
    case datagramSocket
    /// A UDP socket: empty messages are messages.
    case udp
    /// A pipe or FIFO.
    case pipe
    /// A terminal or another device.
    case other

    /// Whether `send` and `recv` work.
    public var isSocket: Bool { self != .pipe && self != .other }
}

/// Outcome of a read or write that never waits.
public enum TransferResult: Hashable, Sendable {
    /// So many bytes were moved, at least one.
    case moved(Int)
    /// Nothing now; readiness will be reported.
    case wouldBlock
    /// Reading: the other side is done. Writing: never.
    case end
    /// The descriptor is useless from now on: `errno`.
    case failed(Int32)
}

extension Descriptor {
    /// What `number` is; nil when it is not open.
    public static func kind(_ number: Int32) -> DescriptorKind? {
        switch clinux_descriptor_kind(number) {
        case 1: .tcp
        case 2: .streamSocket
        case 3: .datagramSocket
        case 6: .udp
        case 4: .pipe
        case 5: .other
        default: nil
        }
    }

    /// Whether `O_NONBLOCK` is set.
    public static func isNonBlocking(_ number: Int32) -> Bool { fcntl(number, F_GETFL) & O_NONBLOCK != 0 }

    /// Reads once without waiting; the descriptor must be non-blocking. Of sockets that keep borders an empty message
    /// is the `end` as well, because a closed `SOCK_SEQPACKET` looks the same.
    public static func read(_ number: Int32, into buffer: UnsafeMutableRawBufferPointer) -> TransferResult {
        while true {
            let count = Glibc.read(number, buffer.baseAddress, buffer.count)
            if count > 0 { return .moved(count) }
            if count == 0 { return .end }
            switch errno {
            case EINTR: continue
            case EAGAIN: return .wouldBlock
            case EIO: return .end  // a terminal whose other side was closed
            default: return .failed(errno)
            }
        }
    }

    /// Writes once without waiting and without `SIGPIPE` on sockets; the descriptor must be non-blocking.
    public static func write(
        _ number: Int32, _ bytes: UnsafeRawBufferPointer, isSocket: Bool
    ) -> TransferResult {
        while true {
            let count =
                isSocket
                ? Glibc.send(number, bytes.baseAddress, bytes.count, Int32(MSG_NOSIGNAL))
                : Glibc.write(number, bytes.baseAddress, bytes.count)
            if count > 0 { return .moved(count) }
            if count == 0 { return .wouldBlock }
            switch errno {
            case EINTR: continue
            case EAGAIN: return .wouldBlock
            default: return .failed(errno)
            }
        }
    }

    /// Copies between two files inside the kernel, and moves the offsets; 0 at the end of the source.
    public static func copyRange(
        from source: Int32, at from: inout Int64, to target: Int32, at offset: inout Int64, limit: Int
    ) throws(SystemError) -> Int {
        let count = clinux_copy_range(source, &from, target, &offset, UInt64(clamping: limit))
        guard count >= 0 else {
            throw SystemError(call: "copy_file_range", code: Int32(truncatingIfNeeded: -count))
        }
        return Int(count)
    }

    /// Waits until `number` can be read or has ended. False: not in this time.
    public static func waitReadable(_ number: Int32, nanoseconds: UInt64) -> Bool {
        var wait = pollfd(fd: number, events: Int16(POLLIN), revents: 0)
        return poll(&wait, 1, Int32(clamping: nanoseconds / 1_000_000 + 1)) > 0
    }

    /// Tells the other side that no more bytes come (`shutdown(SHUT_WR)`).
    public static func finishWriting(_ number: Int32) { _ = shutdown(number, Int32(SHUT_WR)) }

    /// Makes the coming `close` a reset for TCP sockets; nothing for others.
    public static func resetOnClose(_ number: Int32) { clinux_reset_on_close(number) }

    /// Switches Nagle's delay off where there is one.
    public static func setNoDelay(_ number: Int32) { clinux_no_delay(number) }

    /// Bytes that the kernel keeps of what is written; it counts its own overhead against twice as much.
    public static func setSendBuffer(_ number: Int32, bytes: Int) {
        var size = Int32(clamping: bytes)
        setsockopt(number, SOL_SOCKET, SO_SNDBUF, &size, socklen_t(MemoryLayout<Int32>.size))
    }

    /// TCP only: the socket counts as full while this many bytes were not sent yet.
    public static func setUnsentLowWater(_ number: Int32, bytes: Int) {
        clinux_unsent_low_water(number, Int32(clamping: bytes))
    }

    /// TCP only: the connection breaks when the peer acknowledges nothing, or has no room, for so long; a peer that is
    /// silent for `idleSeconds` is asked whether it is there.
    public static func setPatience(_ number: Int32, unacknowledgedMilliseconds: Int, idleSeconds: Int) {
        clinux_tcp_patience(
            number, Int32(clamping: unacknowledgedMilliseconds), Int32(clamping: idleSeconds))
    }
}

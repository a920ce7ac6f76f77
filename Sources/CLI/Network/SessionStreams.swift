// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO

/// Bytes on their way to standard output or error. Pipes and sockets are written without blocking, as OpenSSH does
/// it, and put back at the end; terminals and files are written in pieces when poll says so.
package struct OutputQueue: ~Copyable {
    package let number: Int32
    /// Whether the reader is gone.
    package private(set) var isBroken = false
    private var bytes: [UInt8] = []
    private var head = 0
    private var written = 0
    /// Bytes of ours that `takeWritten` has yet to leave out.
    private var own = 0
    private let isNonBlocking: Bool
    private let savedFlags: Int32

    package init(number: Int32) {
        self.number = number
        savedFlags = fcntl(number, F_GETFL)
        var information = stat()
        let isPipe =
            fstat(number, &information) == 0
            && (information.st_mode & S_IFMT == S_IFIFO || information.st_mode & S_IFMT == S_IFSOCK)
        isNonBlocking = isPipe && savedFlags >= 0 && fcntl(number, F_SETFL, savedFlags | O_NONBLOCK) == 0
    }

    package var isEmpty: Bool { head == bytes.count }

    /// Puts the descriptor's flags back.
    package func restore() {
        if isNonBlocking { _ = fcntl(number, F_SETFL, savedFlags) }
    }

    package mutating func append(_ new: [UInt8]) {
        guard !isBroken else {
            written += new.count
            return
        }
        if isEmpty {
            bytes = new
            head = 0
        } else {
            bytes += new
        }
        flush()
    }

    /// Writes what goes without waiting.
    package mutating func flush() {
        while !isEmpty {
            if !isNonBlocking {
                var wait = pollfd(fd: number, events: Int16(POLLOUT), revents: 0)
                guard poll(&wait, 1, 0) == 1 else { return }
            }
            let limit = isNonBlocking ? bytes.count - head : min(bytes.count - head, 4_096)
            let count = bytes.withUnsafeBytes { write(number, $0.baseAddress! + head, limit) }
            if count > 0 {
                head += count
                written += count
            } else if errno == EAGAIN {
                return
            } else if errno != EINTR {
                isBroken = true
                written += bytes.count - head
                bytes = []
                head = 0
            }
        }
    }

    /// Text that did not come from the peer.
    package mutating func appendOwn(_ text: [UInt8]) {
        own += text.count
        append(text)
    }

    /// How many of the peer's bytes left memory since the last call. Those of ours may be taken for the peer's until
    /// everything is written: only the sum counts, and it never exceeds what the peer sent.
    package mutating func takeWritten() -> Int {
        let ours = min(own, written)
        own -= ours
        defer { written = 0 }
        return written - ours
    }
}

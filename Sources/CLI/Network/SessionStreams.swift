// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO

/// Bytes on their way to standard output or error. Pipes and sockets are written without blocking, as OpenSSH does
/// it, and put back at the end; terminals and files are written in pieces when poll says so.
struct OutputQueue: ~Copyable {
    let number: Int32
    /// Whether the reader is gone.
    private(set) var isBroken = false
    private var bytes: [UInt8] = []
    private var head = 0
    private var written = 0
    private let isNonBlocking: Bool
    private let savedFlags: Int32

    init(number: Int32) {
        self.number = number
        savedFlags = fcntl(number, F_GETFL)
        var information = stat()
        let isPipe =
            fstat(number, &information) == 0
            && (information.st_mode & S_IFMT == S_IFIFO || information.st_mode & S_IFMT == S_IFSOCK)
        isNonBlocking = isPipe && savedFlags >= 0 && fcntl(number, F_SETFL, savedFlags | O_NONBLOCK) == 0
    }

    var isEmpty: Bool { head == bytes.count }

    /// Puts the descriptor's flags back.
    func restore() {
        if isNonBlocking { _ = fcntl(number, F_SETFL, savedFlags) }
    }

    mutating func append(_ new: [UInt8]) {
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
    mutating func flush() {
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

    /// How many bytes left memory since the last call.
    mutating func takeWritten() -> Int {
        defer { written = 0 }
        return written
    }
}

/// OpenSSH's `~.` at the start of a line ends the session; `~~` sends one tilde.
package struct EscapeFilter {
    package enum Result: Equatable {
        case pass([UInt8])
        case disconnect
    }

    private var isLineStart = true
    private var hasTilde = false

    package init() {}

    package mutating func filter(_ input: ArraySlice<UInt8>) -> Result {
        var result: [UInt8] = []
        for byte in input {
            if hasTilde {
                hasTilde = false
                if byte == UInt8(ascii: ".") { return .disconnect }
                if byte != UInt8(ascii: "~") { result.append(UInt8(ascii: "~")) }
                result.append(byte)
            } else if isLineStart, byte == UInt8(ascii: "~") {
                hasTilde = true
                continue
            } else {
                result.append(byte)
            }
            isLineStart = byte == 13 || byte == 10
        }
        return .pass(result)
    }
}

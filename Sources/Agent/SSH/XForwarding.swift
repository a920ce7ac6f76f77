// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import SSH

/// A display of a session whose windows appear at the client: a port of this machine, and the cookie that opens it.
struct XDisplay {
    /// Displays 10 to 200. agent.md §6.
    private static let displays: ClosedRange<UInt16> = 10...200

    let number: UInt16
    let screen: UInt32

    /// Value of DISPLAY.
    var name: String { "localhost:\(number).\(screen)" }

    /// Listens for the first display that is free.
    static func open(screen: UInt32, isSingle: Bool) throws(SystemError) -> (XDisplay, ForwardListener) {
        for number in displays {
            let address = KernelAddress.loopback(v4: true, port: 6_000 + number)
            do {
                let descriptor = try StreamSocket.listen(on: address, bothFamilies: false)
                return (
                    XDisplay(number: number, screen: screen),
                    ForwardListener(.x11(display: number, isSingle: isSingle), descriptor)
                )
            } catch  where error.code == EADDRINUSE {
                continue
            }
        }
        throw SystemError(call: "listen", code: EADDRINUSE)
    }
}

/// The file of X cookies, `~/.Xauthority`: entries of uint16 family, then address, display number, method and cookie,
/// each a uint16 length and bytes; big-endian.
enum XAuthority {
    /// 500 ms for another program to let go of the file; the connection waits meanwhile.
    private static let lockNanoseconds: UInt64 = 500_000_000
    /// 10 min: an older lock is of a program that died with it, as xauth takes it.
    private static let deadLockSeconds = 600
    private static let sizeLimit = 1 << 20
    /// FamilyLocal: the display of this host.
    private static let localFamily: UInt16 = 256

    /// Replaces the entry of a display. Locks as `XauLockAuth` does: by links named `-c` and `-l`.
    static func add(_ display: UInt16, method: String, cookie: [UInt8], file: String) throws(SystemError) {
        try lock(file)
        defer {
            unlink("\(file)-c")
            unlink("\(file)-l")
        }
        let number = Array("\(display)".utf8)
        let before = FileBytes.read(file, limit: sizeLimit)
        // What cannot be read must not be lost.
        guard before != nil || access(file, F_OK) != 0 else { throw SystemError(call: "read", code: EFBIG) }
        let kept = entries(before ?? []).filter {
            !($0.family == localFamily && $0.fields[0] == hostName && $0.fields[1] == number)
        }
        let own = Entry(family: localFamily, fields: [hostName, number, Array(method.utf8), cookie])
        let bytes = (kept + [own]).flatMap(\.bytes)
        let temporary = "\(file)-n"
        let descriptor = Glibc.open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0o600)
        guard descriptor >= 0 else { throw SystemError(call: "open") }
        let owned = OwnedDescriptor(taking: descriptor)
        var failure: SystemError?
        bytes.withUnsafeBytes {
            do { try Descriptor.writeAll(owned.number, $0) } catch { failure = error as? SystemError }
        }
        if let failure { throw failure }
        guard rename(temporary, file) == 0 else { throw SystemError(call: "rename") }
    }

    struct Entry: Equatable {
        var family: UInt16
        /// Address, display, method, cookie.
        var fields: [[UInt8]]

        var bytes: [UInt8] {
            var bytes = [UInt8(family >> 8), UInt8(family & 0xff)]
            for field in fields {
                bytes += [UInt8(field.count >> 8 & 0xff), UInt8(field.count & 0xff)] + field
            }
            return bytes
        }
    }

    /// What can be read of a file; the rest of a damaged one is given up.
    static func entries(_ bytes: [UInt8]) -> [Entry] {
        var entries: [Entry] = []
        var rest = bytes[...]
        func number() -> Int? {
            guard rest.count >= 2 else { return nil }
            defer { rest = rest.dropFirst(2) }
            return Int(rest[rest.startIndex]) << 8 | Int(rest[rest.startIndex + 1])
        }
        while let family = number() {
            var fields: [[UInt8]] = []
            for _ in 0..<4 {
                guard let count = number(), count <= rest.count else { return entries }
                fields.append(Array(rest.prefix(count)))
                rest = rest.dropFirst(count)
            }
            entries.append(Entry(family: UInt16(truncatingIfNeeded: family), fields: fields))
        }
        return entries
    }

    /// Digits to bytes; nil for anything else.
    static func cookie(_ text: String) -> [UInt8]? {
        let digits = Array(text.utf8)
        guard digits.count % 2 == 0, 2...512 ~= digits.count else { return nil }
        var bytes: [UInt8] = []
        for index in stride(from: 0, to: digits.count, by: 2) {
            guard let byte = UInt8(String(decoding: digits[index..<index + 2], as: UTF8.self), radix: 16)
            else {
                return nil
            }
            bytes.append(byte)
        }
        return bytes
    }

    private static var hostName: [UInt8] {
        var name = [CChar](repeating: 0, count: 256)
        gethostname(&name, 255)
        return name.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }
    }

    private static func breakDeadLock(_ file: String) {
        var status = stat()
        guard lstat("\(file)-c", &status) == 0 || lstat("\(file)-l", &status) == 0,
            Int(Clock.wallTime().seconds) - status.st_ctim.tv_sec > deadLockSeconds
        else { return }
        unlink("\(file)-c")
        unlink("\(file)-l")
    }

    private static func lock(_ file: String) throws(SystemError) {
        breakDeadLock(file)
        let deadline = Clock.monotonicNanoseconds() + lockNanoseconds
        while true {
            let number = Glibc.open("\(file)-c", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
            if number >= 0 {
                close(number)
                if link("\(file)-c", "\(file)-l") == 0 { return }
                unlink("\(file)-c")
            }
            guard errno == EEXIST, Clock.monotonicNanoseconds() < deadline else {
                throw SystemError(call: "lock")
            }
            _ = poll(nil, 0, 20)
        }
    }
}

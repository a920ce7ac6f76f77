// SPDX-License-Identifier: Apache-2.0

import Glibc
import LinuxIO
import Synchronization

/// A TCP server on 127.0.0.1 whose every connection runs a script with blocking reads and writes, so that a test
/// decides which bytes travel in which segment. Listens until the process ends, also when nobody refers to it.
final class ScriptedServer: Sendable {
    let port: Int
    private let counter = Counter()

    /// How many connections were accepted.
    var connectionCount: Int { counter.value.withLock { $0 } }

    init(_ script: @escaping @Sendable (borrowing Peer) -> Void) throws {
        let listener = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        port = Int(try bindToLoopback(listener))
        guard listen(listener, 16) == 0 else { throw SystemError(call: "listen") }
        try DedicatedThread(name: "scripted-server") { [counter] in
            while true {
                let accepted = accept(listener, nil, nil)
                guard accepted >= 0 else { return }
                counter.value.withLock { $0 += 1 }
                let connection = try? DedicatedThread(name: "scripted-peer") {
                    script(Peer(descriptor: OwnedDescriptor(taking: accepted)))
                }
                connection?.detach()
            }
        }.detach()
    }
}

/// Binds a socket to any free port of 127.0.0.1.
func bindToLoopback(_ socket: Int32) throws -> UInt16 {
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    var length = socklen_t(MemoryLayout<sockaddr_in>.size)
    let isBound = withUnsafeMutablePointer(to: &address) { pointer in
        pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { pointer in
            bind(socket, pointer, length) == 0 && getsockname(socket, pointer, &length) == 0
        }
    }
    guard isBound else { throw SystemError(call: "bind") }
    return UInt16(bigEndian: address.sin_port)
}

private final class Counter: Sendable {
    let value = Mutex(0)
}

/// The server's side of one connection.
struct Peer: ~Copyable, Sendable {
    let descriptor: OwnedDescriptor

    /// Reads one request head, nil at the end of the stream.
    func readHead() -> String? {
        var text: [UInt8] = []
        while !text.suffix(4).elementsEqual([13, 10, 13, 10]) {
            guard let byte = readBytes(1).first else { return nil }
            text.append(byte)
        }
        return String(decoding: text, as: UTF8.self)
    }

    /// Reads exactly `count` bytes, fewer at the end of the stream.
    func readBytes(_ count: Int) -> [UInt8] {
        var result: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: count)
        while result.count < count {
            let got = read(descriptor.number, &buffer, count - result.count)
            guard got > 0 else { break }
            result += buffer[..<got]
        }
        return result
    }

    func write(_ text: String) { write(Array(text.utf8)) }

    func write(_ bytes: [UInt8]) {
        bytes.withUnsafeBytes { bytes in
            do { try Descriptor.writeAll(descriptor.number, bytes) } catch { return }
        }
    }

    /// One segment per byte.
    func trickle(_ bytes: [UInt8]) {
        var on: Int32 = 1
        setsockopt(descriptor.number, Int32(IPPROTO_TCP), TCP_NODELAY, &on, 4)
        for byte in bytes { write([byte]) }
    }

    /// A masked client frame: opcode and payload.
    func readFrame() -> (opcode: UInt8, payload: [UInt8])? {
        let start = readBytes(2)
        guard start.count == 2, start[1] & 0x80 != 0 else { return nil }
        var length = Int(start[1] & 0x7f)
        if length == 126 { length = readBytes(2).reduce(0) { $0 << 8 | Int($1) } }
        if length == 127 { length = readBytes(8).reduce(0) { $0 << 8 | Int($1) } }
        let mask = readBytes(4)
        let payload = readBytes(length)
        return (start[0] & 0x0f, payload.enumerated().map { $0.element ^ mask[$0.offset % 4] })
    }
}

/// An unmasked frame of a server.
func frame(_ opcode: UInt8, _ payload: [UInt8], isFinal: Bool = true) -> [UInt8] {
    var result = [(isFinal ? 0x80 : 0) | opcode]
    if payload.count < 126 {
        result.append(UInt8(payload.count))
    } else {
        result += [126, UInt8(payload.count >> 8), UInt8(payload.count & 255)]
    }
    return result + payload
}

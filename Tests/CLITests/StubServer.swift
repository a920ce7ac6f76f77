// SPDX-License-Identifier: Apache-2.0

import Glibc
import LinuxIO
import Synchronization

/// An HTTP server on 127.0.0.1 that answers each request from a table, and remembers what it was asked. Listens until
/// the process ends.
final class StubServer: Sendable {
    struct Request: Sendable {
        var line: String
        var headers: [String]
        var body: String

        func header(_ name: String) -> String? {
            headers.first { $0.lowercased().hasPrefix(name.lowercased() + ":") }.map {
                String($0.drop { $0 != ":" }.dropFirst().drop { $0 == " " })
            }
        }
    }

    typealias Answer = (status: Int, body: String)

    let port: Int
    private let log = Log()

    private final class Log: Sendable {
        let requests = Mutex<[Request]>([])
    }

    var requests: [Request] { log.requests.withLock { $0 } }
    var url: String { "http://127.0.0.1:\(port)" }

    /// `answer` gets method and target: `GET /api/v2/users/me`.
    init(_ answer: @escaping @Sendable (Request) -> Answer) throws {
        let listener = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let bound = withUnsafeMutablePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { pointer in
                bind(listener, pointer, length) == 0 && listen(listener, 16) == 0
                    && getsockname(listener, pointer, &length) == 0
            }
        }
        guard bound else { throw SystemError(call: "bind") }
        port = Int(UInt16(bigEndian: address.sin_port))
        try DedicatedThread(name: "stub-server") { [log] in
            while true {
                let accepted = accept(listener, nil, nil)
                guard accepted >= 0 else { return }
                let connection = try? DedicatedThread(name: "stub-connection") {
                    let descriptor = OwnedDescriptor(taking: accepted)
                    while let request = Self.read(descriptor.number) {
                        log.requests.withLock { $0.append(request) }
                        let (status, body) = answer(request)
                        let text =
                            "HTTP/1.1 \(status) X\r\nContent-Length: \(body.utf8.count)\r\n"
                            + "X-Coder-Build-Version: v2.30.0-test\r\n\r\n\(body)"
                        Array(text.utf8).withUnsafeBytes { bytes in
                            do { try Descriptor.writeAll(descriptor.number, bytes) } catch { return }
                        }
                    }
                }
                connection?.detach()
            }
        }.detach()
    }

    private static func read(_ number: Int32) -> Request? {
        var bytes: [UInt8] = []
        var byte: UInt8 = 0
        while !bytes.suffix(4).elementsEqual([13, 10, 13, 10]) {
            guard Glibc.read(number, &byte, 1) == 1 else { return nil }
            bytes.append(byte)
        }
        let lines = String(decoding: bytes, as: UTF8.self).split(separator: "\r\n").map(String.init)
        var request = Request(
            line: String(lines[0].dropLast(9)), headers: Array(lines.dropFirst()), body: "")
        var rest = Int(request.header("Content-Length") ?? "0") ?? 0
        bytes = []
        while rest > 0, Glibc.read(number, &byte, 1) == 1 {
            bytes.append(byte)
            rest -= 1
        }
        request.body = String(decoding: bytes, as: UTF8.self)
        return request
    }
}

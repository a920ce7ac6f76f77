// SPDX-License-Identifier: Apache-2.0

import Glibc
import LinuxIO
import Testing

/// Listeners on loopback, and what else must stay open for them.
struct BlackHole {
    let port: UInt16
    private let numbers: [Int32]

    /// A listener whose queue is full: the system drops what else comes, as a dead host does. Nil when the port is
    /// taken.
    init?(v4: Bool = true, port wanted: UInt16 = 0) throws {
        let listener = socket(v4 ? AF_INET : AF_INET6, Int32(SOCK_STREAM.rawValue), 0)
        var on: Int32 = 1
        var bound: Int32
        if v4 {
            var address = sockaddr_in()
            address.sin_family = sa_family_t(AF_INET)
            address.sin_port = wanted.bigEndian
            address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
            bound = withUnsafePointer(to: &address) { pointer in
                pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    bind(listener, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
                }
            }
        } else {
            setsockopt(listener, Int32(IPPROTO_IPV6), IPV6_V6ONLY, &on, 4)
            var address = sockaddr_in6()
            address.sin6_family = sa_family_t(AF_INET6)
            address.sin6_port = wanted.bigEndian
            address.sin6_addr = in6addr_loopback
            bound = withUnsafePointer(to: &address) { pointer in
                pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    bind(listener, $0, socklen_t(MemoryLayout<sockaddr_in6>.size))
                }
            }
        }
        guard bound == 0, listen(listener, 0) == 0 else {
            Glibc.close(listener)
            return nil
        }
        let port = try StreamSocket.localAddress(listener).port
        let target = KernelAddress.loopback(v4: v4, port: port)
        self.port = port
        numbers = [listener] + (try (0..<4).map { _ in try StreamSocket.connect(to: target).release() })
    }

    func close() { for number in numbers { Glibc.close(number) } }
}

struct StubRelay: ~Copyable {
    let listener: OwnedDescriptor
    let port: UInt16
}

/// Accepts one connection, and answers what it says with one of these after the other.
func stubRelay(
    v4: Bool = true, port: UInt16 = 0, answers: [String] = [switchingToDERP]
) throws -> StubRelay {
    let listener = try StreamSocket.listen(on: .loopback(v4: v4, port: port), bothFamilies: false)
    let number = listener.number
    try DedicatedThread(name: "stub-relay") {
        var wait = pollfd(fd: number, events: Int16(POLLIN), revents: 0)
        guard poll(&wait, 1, 30_000) > 0, let accepted = StreamSocket.accept(number) else { return }
        let client = accepted.take()
        var buffer = [UInt8](repeating: 0, count: 4_096)
        for answer in answers {
            var wait = pollfd(fd: client.number, events: Int16(POLLIN), revents: 0)
            guard poll(&wait, 1, 30_000) > 0, recv(client.number, &buffer, buffer.count, 0) > 0 else {
                return
            }
            let bytes = Array(answer.utf8)
            _ = send(client.number, bytes, bytes.count, Int32(MSG_NOSIGNAL))
        }
        _ = poll(nil, 0, 1_000)
    }.detach()
    return StubRelay(listener: listener, port: try StreamSocket.localAddress(number).port)
}

let switchingToDERP = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n"

/// Whether there is ::1.
let hasV6Loopback: Bool = {
    guard let listener = try? StreamSocket.listen(on: .loopback(v4: false), bothFamilies: false) else {
        return false
    }
    listener.close()
    return true
}()

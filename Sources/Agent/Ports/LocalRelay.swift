// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO

/// Connects to services of the workspace itself, for ports that the agent does not serve. agent.md §5.
enum LocalRelay {
    /// 5 s: a listener on this machine that takes longer has a full backlog.
    private static let timeout = Duration.seconds(5)

    /// A connected socket to `127.0.0.1:port`, or else `[::1]:port`; nil when nobody listens on either.
    static func connect(port: UInt16) async -> OwnedDescriptor? {
        for v4 in [true, false] {
            if let socket = await connect(.loopback(v4: v4, port: port)) { return consume socket }
        }
        return nil
    }

    private static func connect(_ address: KernelAddress) async -> OwnedDescriptor? {
        guard let socket = try? StreamSocket.connect(to: address) else { return nil }
        let end = ContinuousClock.now + timeout
        while true {
            var wait = pollfd(fd: socket.number, events: Int16(POLLOUT), revents: 0)
            if poll(&wait, 1, 0) > 0 {
                // The reason does not matter: the caller tries the other address, then resets.
                guard (try? StreamSocket.outcome(socket.number)) != nil else { return nil }
                return consume socket
            }
            guard ContinuousClock.now < end else { return nil }
            do { try await Task.sleep(for: .milliseconds(2)) } catch { return nil }
        }
    }

    /// A datagram socket connected to `127.0.0.1:port`.
    static func datagrams(port: UInt16) -> OwnedDescriptor? {
        let number = socket(AF_INET, Int32(SOCK_DGRAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard number >= 0 else { return nil }
        let descriptor = OwnedDescriptor(taking: number)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = port.bigEndian
        address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
        let code = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {  // as the socket API wants it
                Glibc.connect(number, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        guard code == 0 else { return nil }
        return consume descriptor
    }
}

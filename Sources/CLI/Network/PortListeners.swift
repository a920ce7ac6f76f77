// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Mesh

/// Kernel sockets of this machine.
enum LocalSocket {
    /// A bound socket: listening for TCP, ready to receive for UDP. Non-blocking.
    static func listen(_ network: PortForward.Network, _ address: SocketAddress) throws(SystemError) -> Int32
    {
        let type = network == .tcp ? Int32(SOCK_STREAM.rawValue) : Int32(SOCK_DGRAM.rawValue)
        let flags = Int32(SOCK_CLOEXEC.rawValue) | Int32(SOCK_NONBLOCK.rawValue)
        let number = socket(address.ip.isV4 ? AF_INET : AF_INET6, type | flags, 0)
        guard number >= 0 else { throw SystemError(call: "socket") }
        var on: Int32 = 1
        if network == .tcp { setsockopt(number, SOL_SOCKET, SO_REUSEADDR, &on, 4) }
        if !address.ip.isV4 { setsockopt(number, Int32(IPPROTO_IPV6), IPV6_V6ONLY, &on, 4) }
        let isBound = withKernelAddress(address) { bind(number, $0, $1) == 0 }
        guard isBound, network == .udp || Glibc.listen(number, 128) == 0 else {
            let error = SystemError(call: "bind")
            close(number)
            throw error
        }
        return number
    }

    /// The address as system calls take it.
    static func withKernelAddress<R>(
        _ address: SocketAddress, _ body: (UnsafePointer<sockaddr>, socklen_t) -> R
    ) -> R {
        var storage = sockaddr_storage()
        return withUnsafeMutableBytes(of: &storage) { bytes in
            var length = MemoryLayout<sockaddr_in>.size
            if address.ip.isV4 {
                var v4 = sockaddr_in()
                v4.sin_family = sa_family_t(AF_INET)
                v4.sin_port = address.port.bigEndian
                v4.sin_addr.s_addr = address.ip.v4.bigEndian
                withUnsafeBytes(of: v4) { bytes.copyMemory(from: $0) }
            } else {
                length = MemoryLayout<sockaddr_in6>.size
                var v6 = sockaddr_in6()
                v6.sin6_family = sa_family_t(AF_INET6)
                v6.sin6_port = address.port.bigEndian
                address.ip.withBytes { source in
                    withUnsafeMutableBytes(of: &v6.sin6_addr) { $0.copyMemory(from: source) }
                }
                withUnsafeBytes(of: v6) { bytes.copyMemory(from: $0) }
            }
            return bytes.withMemoryRebound(to: sockaddr.self) {
                body(UnsafePointer($0.baseAddress!), socklen_t(length))
            }
        }
    }
}

/// Bound sockets of all forwards, opened before anything else so that a taken port is told at once.
struct PortListeners: Sendable {
    struct Listener: Sendable {
        var forward: PortForward
        var number: Int32
        /// The unix socket's file, to be removed at the end if it is still ours.
        var file: FileIdentity?
    }

    private(set) var all: [Listener] = []

    init(_ forwards: [PortForward], _ console: Console) throws {
        do {
            for forward in forwards { try open(forward, console) }
        } catch {
            closeAll()
            throw error
        }
    }

    private mutating func open(_ forward: PortForward, _ console: Console) throws {
        switch forward.local {
        case .socket(let path):
            let number: Int32
            do {
                number = try UnixService.listen(onPath: path).release()
            } catch {
                throw refused("unix://\(path)", error)
            }
            all.append(Listener(forward: forward, number: number, file: UnixService.file(path)))
            tell(forward, "unix://\(path)", console)
        case .port(let port, let address):
            for ip in address.map({ [$0] }) ?? [IPAddress(high: 0, low: 1), IPAddress(v4: 0x7f00_0001)] {
                let local = SocketAddress(ip, port: port)
                let name = "\(forward.network.rawValue)://\(local)"
                do {
                    let number = try LocalSocket.listen(forward.network, local)
                    all.append(Listener(forward: forward, number: number))
                } catch {
                    // IPv6 loopback is tried only: containers often have none.
                    if address == nil, !ip.isV4 { continue }
                    throw refused(name, error)
                }
                tell(forward, name, console)
            }
        }
    }

    private func refused(_ name: String, _ error: SystemError) -> CommandError {
        CommandError("cannot listen on \(name): \(String(cString: strerror(error.code)))")
    }

    private func tell(_ forward: PortForward, _ name: String, _ console: Console) {
        console.note("Forwarding '\(name)' locally to '\(forward.remoteName)' in the workspace")
    }

    /// Closes them; names of unix sockets disappear.
    func closeAll() {
        for listener in all {
            close(listener.number)
            if case .socket(let path) = listener.forward.local {
                UnixService.remove(path, ifStill: listener.file)
            }
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Mesh
internal import Synchronization

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

/// Accepts on all listeners in one thread. TCP connections are given to the engine; datagrams are moved here, one
/// flow per source address.
final class PortForwarder: Sendable {
    private let listeners: [PortListeners.Listener]
    private let link: AgentLink
    private let console: Console
    private let wakeUp: WakeUp
    private let isStopped = Mutex(false)
    /// Flows whose dial has ended, for the thread to take over.
    private let dialled = Mutex<[(key: FlowKey, descriptor: Int32)]>([])

    struct FlowKey: Hashable, Sendable {
        var listener: Int32
        /// Kernel form of the source address.
        var source: [UInt8]
    }

    init(_ listeners: PortListeners, _ link: AgentLink, _ console: Console) throws {
        self.listeners = listeners.all
        self.link = link
        self.console = console
        wakeUp = try WakeUp()
    }

    /// Runs until the task is cancelled. Closes all listeners.
    func run() async {
        await withTaskCancellationHandler {
            await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in
                do {
                    try DedicatedThread(name: "port-forward") {
                        self.loop()
                        continuation.resume()
                    }.detach()
                } catch {
                    console.fail("error: \(error)")
                    continuation.resume()
                }
            }
        } onCancel: {
            isStopped.withLock { $0 = true }
            wakeUp.signal()
        }
    }

    private func loop() {
        var flows = UDPFlows()
        while !isStopped.withLock({ $0 }) {
            var polls = [pollfd(fd: wakeUp.number, events: Int16(POLLIN), revents: 0)]
            polls += listeners.map { pollfd(fd: $0.number, events: Int16(POLLIN), revents: 0) }
            let open = flows.open
            polls += open.map { pollfd(fd: $0.descriptor, events: Int16(POLLIN), revents: 0) }
            guard poll(&polls, nfds_t(polls.count), 10_000) >= 0 || errno == EINTR else { break }
            if polls[0].revents != 0 { wakeUp.drain() }
            for (key, descriptor) in takeDialled() { flows.connect(key, descriptor) }
            for (index, listener) in listeners.enumerated() where polls[index + 1].revents != 0 {
                switch listener.forward.network {
                case .tcp: accept(listener)
                case .udp: receive(listener, &flows)
                }
            }
            for (index, flow) in open.enumerated() where polls[index + 1 + listeners.count].revents != 0 {
                flows.moveBack(flow.key)
            }
            flows.expire()
        }
        flows.closeAll()
        for listener in listeners { close(listener.number) }
    }

    private func takeDialled() -> [(key: FlowKey, descriptor: Int32)] {
        dialled.withLock { list in
            defer { list = [] }
            return list
        }
    }

    private func accept(_ listener: PortListeners.Listener) {
        while true {
            let number = Glibc.accept(listener.number, nil, nil)
            guard number >= 0 else { return }
            _ = fcntl(number, F_SETFD, FD_CLOEXEC)
            var on: Int32 = 1
            setsockopt(number, Int32(IPPROTO_TCP), TCP_NODELAY, &on, 4)
            let (link, console, port) = (link, console, listener.forward.remote)
            Task {
                do {
                    _ = try await link.stream(to: port, local: [number])
                } catch {
                    console.note("Failed to dial 'tcp://127.0.0.1:\(port)' in workspace: \(error)")
                }
            }
        }
    }

    private func receive(_ listener: PortListeners.Listener, _ flows: inout UDPFlows) {
        for _ in 0..<64 {
            guard let (source, datagram) = UDPFlows.receive(from: listener.number) else { return }
            let key = FlowKey(listener: listener.number, source: source)
            if flows.send(key, datagram) { dial(key, listener.forward.remote) }
        }
    }

    private func dial(_ key: FlowKey, _ port: UInt16) {
        let target = SocketAddress(link.address, port: port)
        Task {
            do {
                let descriptor = try await link.node.dialUDP(target).release()
                try Descriptor.setNonBlocking(descriptor)
                dialled.withLock { $0.append((key, descriptor)) }
            } catch {
                console.note("Failed to dial 'udp://127.0.0.1:\(port)' in workspace: \(error)")
                dialled.withLock { $0.append((key, -1)) }
            }
            wakeUp.signal()
        }
    }
}

/// UDP flows of all listeners by source address. Bounded: the oldest goes when there are too many.
struct UDPFlows {
    private struct Flow {
        /// -1 while being dialled.
        var descriptor: Int32 = -1
        var waiting: [[UInt8]] = []
        var lastUsed: UInt64
    }

    /// Flows at once, datagrams that wait for a dial, and idle time.
    private static let limit = 1_024
    private static let waitingLimit = 64
    private static let idleNanoseconds: UInt64 = 120_000_000_000

    private var flows: [PortForwarder.FlowKey: Flow] = [:]
    private static let bufferBytes = 65_536

    /// Flows that can be read.
    var open: [(key: PortForwarder.FlowKey, descriptor: Int32)] {
        flows.filter { $0.value.descriptor >= 0 }.map { ($0.key, $0.value.descriptor) }
    }

    /// One datagram with its source in the kernel's form.
    static func receive(from number: Int32) -> (source: [UInt8], datagram: [UInt8])? {
        var storage = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        var buffer = [UInt8](repeating: 0, count: bufferBytes)
        let count = withUnsafeMutableBytes(of: &storage) { bytes in
            bytes.withMemoryRebound(to: sockaddr.self) { address in
                recvfrom(number, &buffer, buffer.count, 0, address.baseAddress, &length)
            }
        }
        guard count >= 0 else { return nil }
        let source = withUnsafeBytes(of: storage) { Array($0.prefix(Int(length))) }
        return (source, Array(buffer[..<count]))
    }

    /// Sends a datagram on its flow. True when the flow is new and must be dialled.
    mutating func send(_ key: PortForwarder.FlowKey, _ datagram: [UInt8]) -> Bool {
        let now = Clock.monotonicNanoseconds()
        guard flows[key] != nil else {
            if flows.count >= Self.limit { removeOldest() }
            flows[key] = Flow(waiting: [datagram], lastUsed: now)
            return true
        }
        flows[key]?.lastUsed = now
        if let descriptor = flows[key]?.descriptor, descriptor >= 0 {
            _ = Glibc.send(descriptor, datagram, datagram.count, Int32(MSG_NOSIGNAL))
        } else if let count = flows[key]?.waiting.count, count < Self.waitingLimit {
            flows[key]?.waiting.append(datagram)
        }
        return false
    }

    /// The dial has ended; -1 for failed.
    mutating func connect(_ key: PortForwarder.FlowKey, _ descriptor: Int32) {
        guard descriptor >= 0, let waiting = flows[key]?.waiting else {
            if descriptor >= 0 { close(descriptor) }
            flows[key] = nil
            return
        }
        flows[key]?.descriptor = descriptor
        flows[key]?.waiting = []
        for datagram in waiting {
            _ = Glibc.send(descriptor, datagram, datagram.count, Int32(MSG_NOSIGNAL))
        }
    }

    /// Moves answers to the source.
    mutating func moveBack(_ key: PortForwarder.FlowKey) {
        guard let descriptor = flows[key]?.descriptor, descriptor >= 0 else { return }
        var buffer = [UInt8](repeating: 0, count: Self.bufferBytes)
        for _ in 0..<64 {
            let count = recv(descriptor, &buffer, buffer.count, 0)
            if count < 0, errno == EAGAIN || errno == EINTR { break }
            guard count > 0 else {
                close(descriptor)
                flows[key] = nil
                return
            }
            key.source.withUnsafeBytes { bytes in
                bytes.withMemoryRebound(to: sockaddr.self) { address in
                    _ = sendto(key.listener, buffer, count, 0, address.baseAddress, socklen_t(bytes.count))
                }
            }
        }
        flows[key]?.lastUsed = Clock.monotonicNanoseconds()
    }

    /// Ends flows without traffic.
    mutating func expire() {
        let now = Clock.monotonicNanoseconds()
        for (key, flow) in flows where flow.lastUsed + Self.idleNanoseconds < now { remove(key) }
    }

    mutating func closeAll() { flows.keys.forEach { remove($0) } }

    private mutating func removeOldest() {
        if let oldest = flows.min(by: { $0.value.lastUsed < $1.value.lastUsed }) { remove(oldest.key) }
    }

    private mutating func remove(_ key: PortForwarder.FlowKey) {
        if let descriptor = flows.removeValue(forKey: key)?.descriptor, descriptor >= 0 { close(descriptor) }
    }
}

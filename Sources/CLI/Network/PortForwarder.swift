// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Mesh
internal import Synchronization

/// Accepts on all listeners in one thread. Connections to ports are given to the engine, those to unix sockets go
/// through a `SocketTunnel`; datagrams are moved here, one flow per source address.
final class PortForwarder: Sendable {
    /// How long nothing is accepted once the process, or the machine, has no descriptors left.
    private static let pauseNanoseconds: UInt64 = 500_000_000

    private let listeners: PortListeners
    private let link: AgentLink
    private let console: Console
    private let tunnel: SocketTunnel
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
        self.listeners = listeners
        self.link = link
        self.console = console
        tunnel = try SocketTunnel(link, console)
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
        // While there are no descriptors left, connections wait in the kernel's queues.
        var pausedUntil: UInt64 = 0
        while !isStopped.withLock({ $0 }) {
            let now = Clock.monotonicNanoseconds()
            let isPaused = now < pausedUntil
            var polls = [pollfd(fd: wakeUp.number, events: Int16(POLLIN), revents: 0)]
            polls += listeners.all.map {
                let rests = isPaused && $0.forward.network == .tcp
                return pollfd(fd: rests ? -1 : $0.number, events: Int16(POLLIN), revents: 0)
            }
            let open = flows.open
            polls += open.map { pollfd(fd: $0.descriptor, events: Int16(POLLIN), revents: 0) }
            let patience = isPaused ? Int32(clamping: (pausedUntil - now) / 1_000_000 + 1) : 10_000
            guard poll(&polls, nfds_t(polls.count), patience) >= 0 || errno == EINTR else { break }
            if polls[0].revents != 0 { wakeUp.drain() }
            for (key, descriptor) in takeDialled() { flows.connect(key, descriptor) }
            for (index, listener) in listeners.all.enumerated() where polls[index + 1].revents != 0 {
                switch listener.forward.network {
                case .tcp:
                    if accept(listener) { continue }
                    if pausedUntil == 0 {
                        console.note("Too many connections: new ones wait until others end")
                    }
                    pausedUntil = Clock.monotonicNanoseconds() + Self.pauseNanoseconds
                case .udp: receive(listener, &flows)
                }
            }
            for (index, flow) in open.enumerated()
            where polls[index + 1 + listeners.all.count].revents != 0 {
                flows.moveBack(flow.key)
            }
            flows.expire()
        }
        flows.closeAll()
        tunnel.stop()
        listeners.closeAll()
    }

    private func takeDialled() -> [(key: FlowKey, descriptor: Int32)] {
        dialled.withLock { list in
            defer { list = [] }
            return list
        }
    }

    /// Takes what waits. False: there is no descriptor for the next one.
    private func accept(_ listener: PortListeners.Listener) -> Bool {
        while true {
            let number = Glibc.accept(listener.number, nil, nil)
            guard number >= 0 else {
                switch errno {
                case EINTR, ECONNABORTED: continue
                case EMFILE, ENFILE, ENOBUFS, ENOMEM: return false
                default: return true
                }
            }
            _ = fcntl(number, F_SETFD, FD_CLOEXEC)
            var on: Int32 = 1
            if case .port = listener.forward.local {
                setsockopt(number, Int32(IPPROTO_TCP), TCP_NODELAY, &on, 4)
            }
            switch listener.forward.remote {
            case .port(let port): carry(number, to: port, listener.forward.remoteName)
            case .socket(let path): tunnel.dial(number, to: path)
            }
        }
    }

    private func carry(_ number: Int32, to port: UInt16, _ name: String) {
        let (link, console) = (link, console)
        Task {
            do {
                let stream = try await link.stream(to: port, local: [number])
                // A plain stream that is reset is the service's affair.
                guard let reason = await stream.ended(), stream.isResuming else { return }
                console.note("The connection to '\(name)' in the workspace ended: \(reason)")
            } catch {
                console.note("Failed to dial '\(name)' in workspace: \(error)")
            }
        }
    }

    private func receive(_ listener: PortListeners.Listener, _ flows: inout UDPFlows) {
        for _ in 0..<64 {
            guard let (source, datagram) = UDPFlows.receive(from: listener.number) else { return }
            let key = FlowKey(listener: listener.number, source: source)
            guard flows.send(key, datagram), case .port(let port) = listener.forward.remote else { continue }
            dial(key, port)
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

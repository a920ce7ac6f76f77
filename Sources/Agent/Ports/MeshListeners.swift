// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO
internal import Logging
internal import Mesh
internal import Synchronization
internal import Tailnet

/// What the agent serves on the mesh: SSH on 1 and 22, terminals on 2, speed test on 3, HTTP on 4, resumable streams on
/// 8; every other port leads to the same port of the workspace. Whoever gets here was let in by WireGuard. agent.md §5.
struct MeshListeners: Sendable {
    /// Threads of speed tests and HTTP requests at once; more are reset.
    private static let threadLimit = 32

    let node: Node
    let ssh: SSHService
    let terminals: TerminalService
    let http: AgentHTTP
    let logger: Logger
    /// Peers that said goodbye.
    let departures: AsyncStream<NodePublicKey>
    private let threads = ThreadCount()

    init(
        node: Node, departures: AsyncStream<NodePublicKey>, ssh: SSHService, terminals: TerminalService,
        http: AgentHTTP, logger: Logger
    ) {
        self.node = node
        self.departures = departures
        self.ssh = ssh
        self.terminals = terminals
        self.http = http
        self.logger = logger
    }

    /// Listens until cancelled, or until the node is closed.
    func run() async {
        do {
            let ports = (
                one: try await node.listen(port: 1), ssh: try await node.listen(port: 22),
                terminals: try await node.listen(port: 2),
                speed: try await node.listen(port: 3), http: try await node.listen(port: 4),
                resume: try await node.listen(port: ResumingStream.port),
                any: try await node.listenAny(), flows: try await node.listenAnyUDP()
            )
            await withDiscardingTaskGroup { group in
                for streams in [ports.one, ports.ssh] {
                    group.addTask { await hand(streams) { ssh.serve($0, remoteAddress: $1) } }
                }
                group.addTask { await hand(ports.terminals) { terminals.serve($0, remoteAddress: $1) } }
                group.addTask {
                    await serveOnThreads(ports.speed, name: "speedtest") { socket, _ in
                        SpeedTest.serve(socket)
                    }
                }
                group.addTask {
                    await serveOnThreads(ports.http, name: "agent-http") { http.serve($0, from: $1) }
                }
                let streams = ResumeStreams(node: node, ssh: ssh, terminals: terminals) {
                    logger.info("\($0)")
                }
                group.addTask { await streams.run(ports.resume) }
                group.addTask { await streams.follow(departures) }
                group.addTask { await streams.keepWithinQuota() }
                group.addTask { await relay(ports.any) }
                group.addTask {
                    for await flow in ports.flows { relay(flow) }
                }
            }
        } catch {
            logger.error("cannot listen on the mesh", metadata: ["error": "\(error)"])
        }
    }

    /// To a service with threads of its own.
    private func hand(
        _ streams: AsyncStream<IncomingStream>,
        to serve: @Sendable (consuming OwnedDescriptor, String) -> Void
    ) async {
        for await stream in streams {
            do {
                serve(try stream.descriptor(), stream.remote.ip.description)
            } catch {
                logger.warning("stream lost", metadata: ["error": "\(error)"])
            }
        }
    }

    private func serveOnThreads(
        _ streams: AsyncStream<IncomingStream>, name: String,
        _ body: @escaping @Sendable (consuming OwnedDescriptor, IPAddress) -> Void
    ) async {
        for await stream in streams {
            guard threads.enter(limit: Self.threadLimit) else {
                stream.reject()
                continue
            }
            do {
                let peer = stream.remote.ip
                let number = try stream.descriptor().release()
                do {
                    try DedicatedThread(name: name) { [threads] in
                        body(OwnedDescriptor(taking: number), peer)
                        threads.leave()
                    }.detach()
                } catch {
                    OwnedDescriptor(taking: number).close()
                    throw error
                }
            } catch {
                threads.leave()
                logger.warning("stream lost", metadata: ["error": "\(error)"])
            }
        }
    }

    private func relay(_ streams: AsyncStream<IncomingStream>) async {
        await withDiscardingTaskGroup { group in
            for await stream in streams {
                group.addTask {
                    // Nobody listens: the peer gets a reset.
                    guard let socket = await LocalRelay.connect(port: stream.local.port) else {
                        return stream.reject()
                    }
                    do {
                        try stream.bridge(reading: socket)
                    } catch {
                        logger.warning("stream lost", metadata: ["error": "\(error)"])
                    }
                }
            }
        }
    }

    private func relay(_ flow: IncomingFlow) {
        guard let socket = LocalRelay.datagrams(port: flow.local.port) else { return flow.reject() }
        do {
            try flow.bridge(socket)
        } catch {
            logger.warning("flow lost", metadata: ["error": "\(error)"])
        }
    }
}

/// How many threads serve.
private final class ThreadCount: Sendable {
    private let count = Atomic<Int>(0)

    func enter(limit: Int) -> Bool {
        guard count.add(1, ordering: .relaxed).newValue <= limit else {
            leave()
            return false
        }
        return true
    }

    func leave() { count.subtract(1, ordering: .relaxed) }
}

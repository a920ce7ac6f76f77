// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Mesh
internal import Synchronization

/// Something that listens on a mesh port for tests and measurements.
struct MeshService: Hashable, Sendable {
    enum Kind: String, CaseIterable, Sendable {
        /// Checks what comes against the pattern, then answers one line of JSON: how much, and whether it was exact.
        case sink
        /// Reads a line with a number and sends so many bytes of the pattern.
        case source
        /// Sends back what comes.
        case echo
        /// Throws away what comes, inside the engine: nothing but the stack is measured.
        case discard
        /// Sends zeros until the peer has had enough, inside the engine.
        case zero
        /// Keeps connections and does nothing with them.
        case hold
        /// Sends datagrams back.
        case udpEcho = "udp-echo"
    }

    var kind: Kind
    var port: UInt16

    init(kind: String, port: UInt16) throws {
        guard let kind = Kind(rawValue: kind) else {
            let words = Kind.allCases.map(\.rawValue).joined(separator: ", ")
            throw CommandError("no service \"\(kind)\"; there are: \(words)")
        }
        guard port != 0 else { throw CommandError("a service needs a port") }
        self.kind = kind
        self.port = port
    }

    var json: JSON { .record(["kind": .string(kind.rawValue), "port": .int(port)]) }
}

/// The services that run on a node. Each stream has a thread of its own, except where the engine does all.
final class MeshServices: Sendable {
    /// Threads at once; further streams are refused.
    private static let threadLimit = 1_024

    private let node: Node
    private let running = Mutex<[MeshService: Task<Void, Never>]>([:])
    private let threads = Atomic(0)
    /// Descriptors of `hold`, closed with this object. Bounded by the node's limit of streams.
    private let held = Mutex<[Int32]>([])

    init(node: Node) { self.node = node }

    deinit { held.withLock { $0.forEach { OwnedDescriptor(taking: $0).close() } } }

    var list: [MeshService] { running.withLock { $0.keys.sorted { $0.port < $1.port } } }

    func start(_ service: MeshService) async throws {
        let task: Task<Void, Never>
        if service.kind == .udpEcho {
            let flows = try await node.listenUDP(port: service.port)
            task = Task { for await flow in flows { self.echo(flow) } }
        } else {
            let streams = try await node.listen(port: service.port)
            task = Task { for await stream in streams { self.serve(stream, service.kind) } }
        }
        running.withLock { $0[service] = task }
    }

    func stop(port: UInt16) {
        let found = running.withLock { running in
            running.keys.filter { $0.port == port }.compactMap { running.removeValue(forKey: $0) }
        }
        for task in found { task.cancel() }
    }

    private func serve(_ stream: IncomingStream, _ kind: MeshService.Kind) {
        do {
            switch kind {
            case .discard: try stream.bridge(reading: Self.open("/dev/null"), writing: Self.open("/dev/null"))
            case .zero: try stream.bridge(reading: Self.open("/dev/zero"), writing: Self.open("/dev/null"))
            case .hold:
                let number = try stream.descriptor().release()
                held.withLock { $0.append(number) }
            default:
                let number = try stream.descriptor().release()
                onThread(number) { socket in
                    switch kind {
                    case .sink: try Self.sink(socket)
                    case .source: try Self.source(socket)
                    default: try Self.echo(socket)
                    }
                }
            }
        } catch {
            stream.reject()
        }
    }

    private static func open(_ path: String) throws(SystemError) -> OwnedDescriptor {
        let number = Glibc.open(path, O_RDWR | O_CLOEXEC)
        guard number >= 0 else { throw SystemError(call: "open") }
        return OwnedDescriptor(taking: number)
    }

    /// A peer that goes away ends its thread; nobody has to hear of it.
    private func onThread(_ number: Int32, _ body: @escaping @Sendable (borrowing MeshSocket) throws -> Void)
    {
        guard threads.add(1, ordering: .relaxed).newValue <= Self.threadLimit else {
            threads.subtract(1, ordering: .relaxed)
            return OwnedDescriptor(taking: number).close()
        }
        let thread = try? DedicatedThread(name: "mesh-service") {
            if let socket = try? MeshSocket(OwnedDescriptor(taking: number)) { try? body(socket) }
            self.threads.subtract(1, ordering: .relaxed)
        }
        if let thread { thread.detach() } else { OwnedDescriptor(taking: number).close() }
    }

    private static func sink(_ socket: borrowing MeshSocket) throws {
        var checker = MeshChecker()
        while let bytes = try socket.read() { checker.take(bytes) }
        let report = JSON.record([
            "bytes": .int(checker.count), "exact": .bool(checker.firstWrong == nil),
            "first_wrong": checker.firstWrong.map { .int($0) } ?? .null,
        ])
        try socket.say(report.compact)
    }

    private static func source(_ socket: borrowing MeshSocket) throws {
        guard let count = Int(try socket.line()), count >= 0 else { return }
        try socket.writePattern(count)
        socket.finishWriting()
        while try socket.read() != nil {}
    }

    private static func echo(_ socket: borrowing MeshSocket) throws {
        while let bytes = try socket.read() { try socket.write(bytes) }
    }

    private func echo(_ flow: IncomingFlow) {
        guard let number = try? flow.descriptor().release() else { return }
        onThread(number) { socket in
            while let bytes = try socket.read() { try socket.write(bytes) }
        }
    }
}

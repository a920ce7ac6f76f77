// SPDX-License-Identifier: Apache-2.0

import Glibc
import LinuxIO
import Mesh
import Synchronization

/// The smallest relay that works: one thread per connection, plain DERP over socket pairs. Also the dialer that
/// nodes get.
final class NodeTestRelay: RelayDialer {
    private struct State {
        var clients: [NodePublicKey: Int32] = [:]
        var open: Set<Int32> = []
        var refuses = false
        var connects = 0
        var forwarded = 0
    }

    private let key: PrivateKey
    private let state = Mutex(State())

    init() {
        var generator = SystemRandomNumberGenerator()
        key = PrivateKey(using: &generator)
    }

    /// A map with this relay as region 1 and nothing else.
    static var map: DERPMap {
        let node = DERPMap.Node(name: "1a", regionID: 1, hostName: "127.0.0.1")
        var silent = node
        silent.stunPort = -1
        return DERPMap(regions: [1: DERPMap.Region(id: 1, code: "test", name: "Test", nodes: [silent])])
    }

    /// Nodes that are logged in.
    var clientCount: Int { state.withLock { $0.clients.count } }
    var connects: Int { state.withLock { $0.connects } }
    var forwarded: Int { state.withLock { $0.forwarded } }

    func connect(region: DERPMap.Region) async throws -> OwnedDescriptor {
        if state.withLock({ $0.refuses }) { throw SystemError(call: "connect", code: ECONNREFUSED) }
        let (mine, theirs) = try Descriptor.socketPair().release()
        state.withLock { state in
            state.connects += 1
            state.open.insert(mine)
        }
        let thread = try DedicatedThread(name: "test-relay") { [self] in serve(mine) }
        thread.detach()
        return OwnedDescriptor(taking: theirs)
    }

    func measureLatency(region: DERPMap.Region) async throws -> RelayLatency {
        if state.withLock({ $0.refuses }) { throw SystemError(call: "connect", code: ECONNREFUSED) }
        return RelayLatency(roundTrip: .milliseconds(3), isV4: true)
    }

    /// Cuts all connections; `refusing` also fails new ones.
    func cut(refusing: Bool) {
        let open = state.withLock { state in
            state.refuses = refusing
            return state.open
        }
        for number in open { _ = shutdown(number, Int32(SHUT_RDWR)) }
    }

    private func serve(_ number: Int32) {
        var generator = SystemRandomNumberGenerator()
        var random = SecureGenerator(seededBy: &generator)
        var session = DERPServerSession(serverKey: key)
        var owner: NodePublicKey?
        write(number, DERPServerSession.serverKeyFrame(key.nodePublicKey))
        var buffer: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 65_536)
        reading: while true {
            let count = read(number, &chunk, chunk.count)
            guard count > 0 else { break }
            buffer += chunk[..<count]
            var offset = 0
            var needed = 0
            do {
                while let input = try session.next(in: buffer.span.bytes, offset: &offset, needed: &needed) {
                    switch input {
                    case .login(let node, _):
                        owner = node
                        state.withLock { $0.clients[node] = number }
                        write(number, session.serverInfoFrame(random: &random))
                    case .send(let to, let payload):
                        forward(Array(buffer[payload]), from: owner, to: to)
                    case .ping(let token):
                        let bytes = (0..<8).map { UInt8(truncatingIfNeeded: token >> UInt64(56 - 8 * $0)) }
                        write(number, DERP.frame(.pong, bytes))
                    default: break
                    }
                }
            } catch {
                break reading
            }
            buffer.removeFirst(offset)
        }
        state.withLock { state in
            if let owner, state.clients[owner] == number { state.clients[owner] = nil }
            state.open.remove(number)
            _ = close(number)
        }
    }

    private func forward(_ payload: [UInt8], from: NodePublicKey?, to: NodePublicKey) {
        guard let from else { return }
        let frame = DERP.frame(.receivePacket, from.bytes, payload)
        // Under the lock, so that frames stay whole and the descriptor stays open.
        state.withLock { state in
            state.forwarded += 1
            if let number = state.clients[to] { writeFrame(number, frame) }
        }
    }

    private func write(_ number: Int32, _ frame: [UInt8]) {
        state.withLock { _ in writeFrame(number, frame) }
    }

    private func writeFrame(_ number: Int32, _ frame: [UInt8]) {
        var done = 0
        while done < frame.count {
            let count = frame.withUnsafeBytes {
                send(number, $0.baseAddress! + done, frame.count - done, Int32(MSG_NOSIGNAL))
            }
            guard count > 0 else { return }
            done += count
        }
    }
}

/// A dialer that takes its time, as one does whose relay is far or whose process starts late.
struct SlowDialer: RelayDialer {
    var relay: NodeTestRelay
    var delay: Duration

    func connect(region: DERPMap.Region) async throws -> OwnedDescriptor {
        try await Task.sleep(for: delay)
        return try await relay.connect(region: region)
    }

    func measureLatency(region: DERPMap.Region) async throws -> RelayLatency {
        try await relay.measureLatency(region: region)
    }
}

/// Two nodes in one process that know each other, by relay and by loopback UDP.
struct NodePair {
    let relay: NodeTestRelay
    let client: Node
    let server: Node
    static let clientAddress = IPAddress("fd7a:115c:a1e0::1")!
    static let serverAddress = IPAddress("fd7a:115c:a1e0::2")!
    static let clientID = MeshPeerID(low: 1)
    static let serverID = MeshPeerID(low: 2)

    /// Starts both and introduces them. `isDirectBlocked`: relay only. `serverLogin`: how late the server comes to its
    /// relay; then nobody waits for it. `serverKnows`: how late the server hears of the client.
    init(
        relay: NodeTestRelay = NodeTestRelay(), isDirectBlocked: Bool = false,
        binding: NodeConfiguration.Binding = .loopback,
        serverLogin: Duration = .zero, serverKnows: Duration = .zero,
        _ configure: (inout NodeConfiguration) -> Void = { _ in }
    ) async throws {
        self.relay = relay
        client = try Self.node(Self.clientAddress, relay, isDirectBlocked, binding, configure)
        let dialer = SlowDialer(relay: relay, delay: serverLogin)
        server = try Self.node(Self.serverAddress, relay, isDirectBlocked, binding) {
            if serverLogin > .zero { $0.relayDialer = dialer }
            configure(&$0)
        }
        try await introduce(logins: serverLogin > .zero ? 1 : 2, serverKnows: serverKnows)
    }

    private static func node(
        _ address: IPAddress, _ relay: NodeTestRelay, _ isDirectBlocked: Bool,
        _ binding: NodeConfiguration.Binding, _ configure: (inout NodeConfiguration) -> Void
    ) throws -> Node {
        var generator = SystemRandomNumberGenerator()
        var configuration = NodeConfiguration(
            privateKey: PrivateKey(using: &generator), discoKey: PrivateKey(using: &generator),
            addresses: [address])
        configuration.binding = binding
        configuration.relayDialer = relay
        configuration.derpMap = NodeTestRelay.map
        configuration.directBlocked = isDirectBlocked
        configure(&configuration)
        return try Node(configuration)
    }

    /// Hands each the other's published node, as a coordinator would.
    private func introduce(logins: Int, serverKnows: Duration) async throws {
        let clientNode = try await Self.published(client)
        let serverNode = try await Self.published(server)
        for _ in 0..<500 where relay.clientCount < logins { try await Task.sleep(for: .milliseconds(10)) }
        let known = Self.peer(Self.clientID, clientNode, Self.clientAddress)
        if serverKnows > .zero {
            let server = server
            Task {
                try await Task.sleep(for: serverKnows)
                server.updatePeer(known)
            }
        } else {
            // The side that starts comes last, as READY_FOR_HANDSHAKE sees to.
            server.updatePeer(known)
            _ = try await server.status()
        }
        client.updatePeer(Self.peer(Self.serverID, serverNode, Self.serverAddress))
    }

    static func published(_ node: Node) async throws -> OwnNode {
        for await own in node.ownNodeUpdates() where own.homeRegion != 0 { return own }
        throw NodeError.closed
    }

    static func peer(_ id: MeshPeerID, _ node: OwnNode, _ address: IPAddress) -> MeshPeer {
        MeshPeer(
            id: id, key: node.key, discoKey: node.discoKey, homeRegion: node.homeRegion, addresses: [address],
            allowedIPs: [IPPrefix(host: address)], endpoints: node.endpoints)
    }

    func close() async {
        await client.close()
        await server.close()
    }

    /// Waits until the client's path to the server is what `isWanted` says; false after `seconds`.
    func waitForPath(seconds: Int, _ isWanted: (PeerPath) -> Bool) async throws -> Bool {
        for _ in 0..<seconds * 50 {
            if let peer = try await client.status().peers.first, isWanted(peer.path) { return true }
            try await Task.sleep(for: .milliseconds(20))
        }
        return false
    }
}

/// Blocking reads and writes on threads of their own, so that tests do not block the cooperative pool.
enum Blocking {
    static func run<R: Sendable>(_ body: @escaping @Sendable () -> R) async -> R {
        await withCheckedContinuation { continuation in
            let thread = try? DedicatedThread(name: "test-blocking") {
                continuation.resume(returning: body())
            }
            precondition(thread != nil, "no thread")
            thread?.detach()
        }
    }

    /// Everything until end of file or error.
    static func readAll(_ number: Int32) -> [UInt8] {
        var result: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 65_536)
        while true {
            let count = read(number, &chunk, chunk.count)
            guard count > 0 else { return result }
            result += chunk[..<count]
        }
    }

    /// FNV-1a of everything until end of file, and how much it was.
    static func digest(_ number: Int32) -> (UInt64, Int) {
        var hash = Digest()
        var chunk = [UInt8](repeating: 0, count: 65_536)
        while true {
            let count = read(number, &chunk, chunk.count)
            guard count > 0 else { return (hash.value, hash.count) }
            hash.take(chunk[..<count])
        }
    }

    @discardableResult
    static func write(_ number: Int32, _ bytes: [UInt8]) -> Bool {
        bytes.withUnsafeBytes { (try? Descriptor.writeAll(number, $0)) != nil }
    }
}

/// A running checksum that notices any change of bytes or order.
struct Digest {
    var value: UInt64 = 0xcbf2_9ce4_8422_2325
    var count = 0

    mutating func take(_ bytes: some Collection<UInt8>) {
        for byte in bytes { value = (value ^ UInt64(byte)) &* 0x100_0000_01b3 }
        count += bytes.count
    }
}

// SPDX-License-Identifier: Apache-2.0

package import LinuxIO
internal import Synchronization

/// What other threads ask the engine to do. Descriptor numbers in a command are owned by it: whoever takes the
/// command must close them; tokens name the answer (`Replies`) or the stream.
enum Command: Sendable {
    case setPeers([MeshPeer])
    case updatePeer(MeshPeer)
    case removePeer(MeshPeerID)
    case setDERPMap(DERPMap)
    case setDirectBlocked(Bool)
    case linkChanged
    /// The router's whole answer to an HTTP request; nil when there was none.
    case gatewayAnswer(id: UInt64, [UInt8]?)
    /// Hook of tests: UDP neither leaves nor arrives, or only its small talk does.
    case dropUDP(UDPLoss)

    case dial(token: UInt64, to: SocketAddress, reading: Int32, writing: Int32)
    case openFlow(token: UInt64, to: SocketAddress, descriptor: Int32)
    case listen(listener: UInt64, port: UInt16?, isUDP: Bool)
    case unlisten(listener: UInt64)
    case attach(token: UInt64, reading: Int32, writing: Int32)
    case abort(token: UInt64)
    /// Nobody has room for this stream now: the peer should ask again.
    case postpone(token: UInt64)

    case ping(token: UInt64, MeshPeerID)
    case reach(token: UInt64, IPAddress, limit: Interval)
    case cancel(token: UInt64)
    case status(token: UInt64)
    case explain(token: UInt64, MeshPeerID)
    case recordings(token: UInt64)

    case relayConnected(region: Int, attempt: UInt64, descriptor: Int32)
    case relayFailed(region: Int, attempt: UInt64, reason: String)
    case latencies([Int: RelayLatency], forcedWebSocket: [Int: String])
    case stunServers([ResolvedServer])
    case stop

    /// Closes the descriptors of a command that nobody will carry out.
    func discard() {
        switch self {
        case .dial(_, _, let reading, let writing), .attach(_, let reading, let writing):
            if reading >= 0 { OwnedDescriptor(taking: reading).close() }
            if writing >= 0, writing != reading { OwnedDescriptor(taking: writing).close() }
        case .openFlow(_, _, let number), .relayConnected(_, _, let number):
            OwnedDescriptor(taking: number).close()
        default: break
        }
    }
}

/// What a test lets happen to UDP.
package enum UDPLoss: Hashable, Sendable {
    case none
    /// Packets inside the tunnel are lost; handshakes, discovery and STUN are not.
    case data
    /// The tunnel is lost, handshakes included; discovery and STUN are not.
    case tunnel
    case all

    /// Whether a WireGuard message of this type is lost.
    func drops(_ type: UInt32) -> Bool {
        switch self {
        case .none, .all: false
        case .data: type == WireGuard.MessageType.data
        case .tunnel: 1...4 ~= type
        }
    }
}

/// A STUN server whose name was looked up.
struct ResolvedServer: Hashable, Sendable {
    var region: Int
    var node: String
    var address: SocketAddress

    /// What the map itself says of a server, and what its name was found to be.
    static func all(of server: DERPMap.STUNServer, adding found: [KernelAddress] = []) -> [ResolvedServer] {
        server.sockets(adding: found.map { IPAddress($0) }).map {
            ResolvedServer(region: server.region, node: server.node, address: $0)
        }
    }
}

extension IPAddress {
    /// The address as the kernel gave it.
    package init(_ raw: KernelAddress) {
        self =
            raw.isV4
            ? IPAddress(v4: UInt32(truncatingIfNeeded: raw.low)) : IPAddress(high: raw.high, low: raw.low)
    }
}

extension SocketAddress {
    /// The address as the kernel gave it.
    package init(_ raw: KernelAddress) { self.init(IPAddress(raw), port: raw.port) }

    /// The address as the kernel takes it.
    var kernel: KernelAddress { KernelAddress(high: ip.high, low: ip.low, port: port, isV4: ip.isV4) }
}

/// Commands on their way to the engine. Any thread posts; the engine takes all at once.
final class CommandQueue: Sendable {
    private struct State {
        var commands: [Command] = []
        var isClosed = false
    }

    private let state = Mutex(State())
    /// Readable when commands wait.
    let wakeUp: WakeUp

    init() throws(SystemError) { wakeUp = try WakeUp() }

    /// Queues a command. False after `close`: then its descriptors are closed and nothing will happen.
    @discardableResult
    func post(_ command: Command) -> Bool {
        let (accepted, isFirst) = state.withLock { state in
            guard !state.isClosed else { return (false, false) }
            state.commands.append(command)
            return (true, state.commands.count == 1)
        }
        guard accepted else {
            command.discard()
            return false
        }
        if isFirst { wakeUp.signal() }
        return true
    }

    /// All commands so far, in order. Drains the wake-up first, so that none is forgotten.
    func takeAll() -> [Command] {
        wakeUp.drain()
        return state.withLock { state in
            let result = state.commands
            state.commands = []
            return result
        }
    }

    /// Refuses everything from now on and discards what still waits.
    func close() {
        let rest = state.withLock { state in
            state.isClosed = true
            let result = state.commands
            state.commands = []
            return result
        }
        for command in rest { command.discard() }
    }
}

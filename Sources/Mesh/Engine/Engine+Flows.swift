// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO

/// UDP between one own port and one address of a peer, moved to and from a descriptor that keeps the borders of
/// datagrams.
struct DatagramFlow {
    var token: UInt64
    var local: SocketAddress
    var remote: SocketAddress
    /// -1 until somebody takes the flow.
    var number: Int32 = -1
    var isSocket = true
    /// Empty datagrams pass; elsewhere they would look like the end.
    var keepsEmpty = false
    var lastUse: Instant
    /// Whether the local port belongs to this flow alone.
    var ownsPort: Bool
    /// Datagrams that came before the flow was taken; few, the rest is lost.
    var early: [[UInt8]] = []
}

/// All flows of a node, by slot, token and addresses.
struct DatagramFlows {
    private struct Key: Hashable {
        var local: SocketAddress
        var remote: SocketAddress
    }

    private(set) var slots: [DatagramFlow?] = []
    private var generations: [UInt32] = []
    private var free: [Int] = []
    private var byToken: [UInt64: Int] = [:]
    private var byAddress: [Key: Int] = [:]

    /// How many there are.
    var count: Int { byToken.count }

    /// The flow in `slot`, which must exist.
    subscript(slot: Int) -> DatagramFlow {
        get { slots[slot]! }
        _modify { yield &slots[slot]! }
    }

    /// The slot of a flow.
    func slot(token: UInt64) -> Int? { byToken[token] }
    /// The slot of a flow.
    func slot(_ local: SocketAddress, _ remote: SocketAddress) -> Int? {
        byAddress[Key(local: local, remote: remote)]
    }
    /// The slot that an event is about, unless it was left since.
    func slot(_ index: Int, generation: UInt32) -> Int? {
        guard index < slots.count, slots[index] != nil, generations[index] == generation else { return nil }
        return index
    }
    /// What distinguishes this use of the slot from earlier ones.
    func generation(_ slot: Int) -> UInt32 { generations[slot] }
    /// Of the peer that has most flows the one that was used least recently: nobody evicts the others'.
    var leastMissed: Int? {
        var counts: [IPAddress: Int] = [:]
        for case let flow? in slots { counts[flow.remote.ip, default: 0] += 1 }
        let most = counts.values.max()
        return slots.indices.filter { slots[$0].map { counts[$0.remote.ip] == most } ?? false }
            .min { slots[$0]!.lastUse < slots[$1]!.lastUse }
    }

    /// Takes a flow in.
    mutating func insert(_ flow: DatagramFlow) -> Int {
        let slot = free.popLast() ?? slots.count
        if slot == slots.count {
            slots.append(flow)
            generations.append(0)
        } else {
            slots[slot] = flow
        }
        byToken[flow.token] = slot
        byAddress[Key(local: flow.local, remote: flow.remote)] = slot
        return slot
    }

    /// Forgets the flow. Its descriptor must be closed.
    mutating func remove(_ slot: Int) {
        guard let flow = slots[slot] else { return }
        byToken[flow.token] = nil
        byAddress[Key(local: flow.local, remote: flow.remote)] = nil
        slots[slot] = nil
        generations[slot] = (generations[slot] &+ 1) & 0xff_ffff
        free.append(slot)
    }
}

extension Engine {
    private static let datagramsPerTurn = 64
    private static let earlyDatagrams = 16
    private static let sweepPeriod = Interval.seconds(10)

    /// A flow that this side begins.
    mutating func openFlow(token: UInt64, to address: SocketAddress, _ number: Int32) {
        func refuse(_ hub: NodeHub, _ error: NodeError) {
            OwnedDescriptor(taking: number).close()
            hub.notify(.reply(token: token, .failed(error)))
        }
        guard tun == nil else { return refuse(hub, .noStack) }
        guard let ip = stack.sourceAddress(for: address.ip), route(to: address.ip) != nil else {
            return refuse(hub, .noRoute(address.ip))
        }
        guard let port = freePort(ip, address) else { return refuse(hub, .tooMany("local ports")) }
        makeRoomForFlow()
        stack.bindUDP(port)
        let local = SocketAddress(ip, port: port)
        let slot = flows.insert(
            DatagramFlow(token: token, local: local, remote: address, lastUse: now, ownsPort: true))
        hub.notify(.reply(token: token, .connected(local: local)))
        attachFlow(slot, number)
    }

    private mutating func freePort(_ ip: IPAddress, _ remote: SocketAddress) -> UInt16? {
        for _ in 0..<256 {
            let port = UInt16.random(in: 49_152...65_535, using: &random)
            if udpListeners[port] == nil, flows.slot(SocketAddress(ip, port: port), remote) == nil {
                return port
            }
        }
        return nil
    }

    private mutating func makeRoomForFlow() {
        if flows.count >= limits.flows, let victim = flows.leastMissed {
            counters.refused += 1
            closeFlow(victim, .closed)
        }
        if flowSweepAt == .never { flowSweepAt = now + Self.sweepPeriod }
    }

    /// Gives a flow its descriptor.
    mutating func attachFlow(_ slot: Int, _ number: Int32) {
        guard flows[slot].number < 0, let kind = Descriptor.kind(number) else {
            return OwnedDescriptor(taking: number).close()
        }
        flows[slot].number = number
        flows[slot].isSocket = kind.isSocket
        flows[slot].keepsEmpty = kind == .udp
        do {
            try Descriptor.setNonBlocking(number)
            let source = EventSource.flow(slot, generation: flows.generation(slot))
            try epoll.add(number, [.read], token: source.token)
        } catch {
            return closeFlow(slot, .reset)
        }
        let early = flows[slot].early
        flows[slot].early = []
        for datagram in early where !datagram.isEmpty || kind == .udp {
            unsafe datagram.withUnsafeBytes { bytes in
                _ = unsafe Descriptor.write(number, bytes, isSocket: kind.isSocket)
            }
        }
    }

    /// The descriptor has datagrams for the peer.
    mutating func flowEvent(_ index: Int, _ generation: UInt32) {
        guard let slot = flows.slot(index, generation: generation) else { return }
        flows[slot].lastUse = now
        let (number, local, remote) = (flows[slot].number, flows[slot].local, flows[slot].remote)
        for _ in 0..<Self.datagramsPerTurn {
            switch unsafe Descriptor.read(number, into: scratch.bytes) {
            case .moved(let count):
                let bytes = unsafe UnsafeRawBufferPointer(rebasing: scratch.bytes[..<count])
                // Too long, or the queue is full: lost, as UDP may, and counted.
                _ = unsafe stack.sendUDP(from: local, to: remote, bytes)
            case .wouldBlock: return
            case .end where flows[slot].keepsEmpty:
                _ = unsafe stack.sendUDP(
                    from: local, to: remote, UnsafeRawBufferPointer(start: nil, count: 0))
            case .end: return closeFlow(slot, .finished)
            case .failed(let code):
                flowFailed(slot, SystemError(call: "read", code: code))
                return
            }
        }
    }

    /// The stack has datagrams from peers.
    mutating func receiveDatagrams() {
        while let header = unsafe stack.readDatagram(into: scratch.bytes) {
            let count = unsafe min(header.length, scratch.bytes.count)
            let slot = flows.slot(header.local, header.remote) ?? acceptFlow(header)
            guard let slot, count > 0 || flows[slot].keepsEmpty || flows[slot].number < 0 else { continue }
            flows[slot].lastUse = now
            let bytes = unsafe UnsafeRawBufferPointer(rebasing: scratch.bytes[..<count])
            let number = flows[slot].number
            if number >= 0 {
                let result = unsafe Descriptor.write(number, bytes, isSocket: flows[slot].isSocket)
                if case .failed(let code) = result {
                    flowFailed(slot, SystemError(call: "write", code: code))
                }
            } else if flows[slot].early.count < Self.earlyDatagrams {
                unsafe flows[slot].early.append(Array(bytes))
            }
        }
    }

    /// A connected UDP socket reports that nobody listened: the peer is told so, as by a kernel, and the next datagram
    /// may find somebody.
    private mutating func flowFailed(_ slot: Int, _ error: SystemError) {
        guard error.isPassing else { return closeFlow(slot, .reset) }
        guard error.isRefusal else { return }
        stack.refuseDatagram(to: flows[slot].local, from: flows[slot].remote, now: now)
    }

    /// A flow that a peer begins.
    private mutating func acceptFlow(_ header: DatagramHeader) -> Int? {
        guard let listener = udpListeners[header.local.port] ?? anyUDPListener else { return nil }
        makeRoomForFlow()
        let token = hub.replies.makeToken()
        let slot = flows.insert(
            DatagramFlow(
                token: token, local: header.local, remote: header.remote, lastUse: now, ownsPort: false))
        hub.notify(
            .accepted(
                listener: listener, token: token, local: header.local, remote: header.remote, isUDP: true))
        return slot
    }

    /// Ends flows without traffic.
    mutating func sweepFlows() {
        for slot in flows.slots.indices {
            if let flow = flows.slots[slot], now.since(flow.lastUse) > limits.flowIdle {
                closeFlow(slot, .closed)
            }
        }
        flowSweepAt = flows.count == 0 ? .never : now + Self.sweepPeriod
    }

    /// Closes the descriptor, tells the end, forgets the flow.
    mutating func closeFlow(_ slot: Int, _ end: StreamEnd) {
        let flow = flows[slot]
        if flow.number >= 0 {
            epoll.remove(flow.number)
            OwnedDescriptor(taking: flow.number).close()
        }
        flows.remove(slot)
        if flow.ownsPort, !flows.slots.contains(where: { $0?.local.port == flow.local.port }) {
            stack.unbindUDP(flow.local.port)
        }
        hub.notify(.ended(token: flow.token, end))
    }
}

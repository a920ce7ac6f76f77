// SPDX-License-Identifier: Apache-2.0

/// A TCP/IP end point in user space: IPv4, IPv6, ICMP echo, UDP, TCP and TSMP. No I/O, no clock, no randomness of
/// its own: packets and the time come in, packets and events go out.
///
/// Drive it like this: feed packets with `receive` (a whole burst, if there is one), take events with `nextEvent`
/// and read and write connections, then call `nextPacket` until nil, and sleep until `nextDeadline`, after which
/// `handleTimeout` is due. One thread owns a stack.
package struct Stack: ~Copyable, @unchecked Sendable {  // unique owner of the memory it points to
    var connections: UnsafeConnectionTable
    var flows: FlowTable
    var context: StackContext
    var hash: KeyedHash
    var generator: SeededGenerator
    var datagrams: PacketQueue
    var saidDatagrams = false
    var control: [StackEvent] = []
    var controlHead = 0
    var halfOpen = 0
    var halfOpenByPeer: [IPAddress: Int] = [:]
    /// What the next connection's port is counted from, by destination.
    var portCounters: [UInt64]
    var addresses: [IPAddress]
    var listening: Set<UInt16> = []
    var listensAny = false
    var asksFirst = false
    var udpPorts: Set<UInt16> = []
    var udpAny = false
    var repliesWindow = Instant(nanoseconds: 0)
    var repliesLeft = 0
    var packetTurn = true
    var expected = ExpectedFlow()
    /// Paths that are known to take less than the MTU.
    var pathMTUs: [IPAddress: Int] = [:]
    /// Names our echo requests.
    let echoIdentifier: UInt16

    /// A stack with these own addresses. `seed` must come from the system's random source, except in tests: it
    /// keys initial sequence numbers and ports. `mtu` is the largest packet made, at least 1,280 if IPv6 is used.
    package init(addresses: [IPAddress], mtu: Int = 1_280, limits: StackLimits = StackLimits(), seed: UInt64)
    {
        precondition(mtu >= 576 && mtu <= 65_535, "MTU out of range")
        generator = SeededGenerator(seed: seed)
        hash = KeyedHash(&generator)
        flows = FlowTable(key: KeyedHash(&generator))
        connections = UnsafeConnectionTable(limit: limits.connections)
        context = StackContext(limits: limits, mtu: mtu)
        datagrams = PacketQueue(limit: limits.datagramQueue)
        self.addresses = addresses
        let start = generator.next()
        portCounters = (0..<64).map { start &+ $0 &* 0x9e37_79b9_7f4a_7c15 }
        echoIdentifier = UInt16(truncatingIfNeeded: generator.next())
    }

    /// Counters since the start.
    package var counters: StackCounters { context.counters }

    /// Memory of an idle connection in bytes, besides two dozen in tables and timers.
    package static var connectionSize: Int { MemoryLayout<Connection>.stride }

    /// Connections of all states.
    package var connectionCount: Int { connections.used }

    /// Bytes of all buffers in use.
    package var bufferBytes: Int { context.pool.used }

    /// Replaces the own addresses. Connections of addresses that are gone live on but receive nothing.
    package mutating func setAddresses(_ addresses: [IPAddress]) {
        self.addresses = addresses
        expected.isValid = false
    }

    /// Largest packet made from now on; existing connections keep theirs.
    package mutating func setMTU(_ mtu: Int) {
        precondition(mtu >= 576 && mtu <= 65_535, "MTU out of range")
        context.mtu = mtu
        context.pool.setMTU(mtu)
    }

    /// Largest packet that the path to `destination` was found to carry, or nil when that is no longer known: new
    /// connections offer segments of this size, existing ones cut theirs to it at once, down or up (the upper
    /// layer's part of RFC 8899). Never below what IPv4 or IPv6 demand of a link, nor above the MTU.
    package mutating func setPathMTU(_ bytes: Int?, to destination: IPAddress) {
        if let bytes, pathMTUs[destination] != nil || pathMTUs.count < context.limits.pathMTUs {
            pathMTUs[destination] = bytes
        } else {
            pathMTUs[destination] = nil
        }
        let size = min(bytes ?? .max, context.mtu)
        for slot in 0..<UInt32(truncatingIfNeeded: connections.capacity)
        where connections[slot].remote.ip == destination && connections[slot].state != .closed {
            connections[slot].setPathMTU(size)
        }
    }

    /// The own address that packets to `destination` come from: the first of its family.
    package func sourceAddress(for destination: IPAddress) -> IPAddress? {
        addresses.first { $0.isV4 == destination.isV4 }
    }

    /// When `handleTimeout` is due next.
    package var nextDeadline: Instant { context.timers.first }

    /// Runs all timers that are due.
    package mutating func handleTimeout(_ now: Instant) {
        // Bounded by the number of connections: each is rescheduled into the future or not at all.
        var left = connections.capacity
        while left > 0, let slot = context.timers.popDue(now) {
            left -= 1
            connections[slot].handleTimeout(now, &context)
            settle(slot)
        }
    }

    /// Whether `nextPacket` may have something to say.
    package var hasOutput: Bool {
        !context.packets.isEmpty || !context.fresh.isEmpty || !context.backlog.isEmpty
    }

    /// Builds one packet of at most MTU bytes into `buffer` (which must have room for that), or returns nil when
    /// nothing is due. Connections take turns; those that were silent go first.
    package mutating func nextPacket(
        into buffer: UnsafeMutableRawBufferPointer, now: Instant
    ) -> OutgoingPacket? {
        guard let burst = unsafe nextBurst(into: buffer, layout: .plain, limit: 1, now: now) else {
            return nil
        }
        return OutgoingPacket(length: burst.lastLength, destination: burst.destination)
    }

    /// Builds up to `limit` packets of one connection into `buffer`, laid out as `layout` says, or returns nil when
    /// nothing is due or `buffer` has no room for one packet. A run of new data is cut into segments here and
    /// copied once, from the send buffer to where it will be sealed.
    package mutating func nextBurst(
        into buffer: UnsafeMutableRawBufferPointer, layout: BurstLayout, limit: Int, now: Instant
    ) -> OutgoingBurst? {
        guard let out = unsafe PacketWriter(buffer), out.capacity >= layout.stride(context.mtu), limit > 0
        else { return nil }
        packetTurn.toggle()
        if packetTurn, let packet = queuedPacket(out, layout) { return packet }
        while let slot = context.fresh.first ?? context.backlog.first {
            let isFresh = context.fresh.first != nil
            let wasParked = connections[slot].isParked
            if !isFresh { connections[slot].isParked = false }
            if connections[slot].deficit <= 0 || wasParked && !isFresh {
                connections[slot].deficit = Self.quantum
            }
            let burst = output(slot, out, layout, limit, now)
            takeTurn(slot, isFresh: isFresh, wasParked: wasParked, hadOutput: burst != nil)
            settle(slot)
            if let burst {
                context.counters.packetsSent += UInt64(burst.count)
                return burst
            }
        }
        return queuedPacket(out, layout)
    }

    /// Bytes a connection may send before the next one's turn: a dozen segments, so that a burst stays together,
    /// and at most 50 µs at 3 Gbit/s.
    private static let quantum = 16 << 10

    @inline(__always)
    private mutating func output(
        _ slot: UInt32, _ out: PacketWriter, _ layout: BurstLayout, _ limit: Int, _ now: Instant
    ) -> OutgoingBurst? {
        let destination = connections[slot].remote.ip
        let budget = connections[slot].deficit
        if limit > 1,
            let run = connections[slot].superSegment(
                into: out, layout, limit: limit, budget: budget, now, &context)
        {
            connections[slot].deficit -= run.payload
            return OutgoingBurst(
                count: run.count, length: run.length, lastLength: run.lastLength, destination: destination)
        }
        guard let place = unsafe PacketWriter(out.region(layout.head, out.capacity - layout.head)) else {
            return nil
        }
        let size = connections[slot].nextSegment(into: place, now, &context)
        guard size > 0 else { return nil }
        connections[slot].deficit -= size
        return OutgoingBurst(count: 1, length: size, lastLength: size, destination: destination)
    }

    /// Deficit round robin with new flows first, as FQ-CoDel (RFC 8290 §4.1): who runs out of bytes stands behind
    /// the others once, so that a bulk sender that pauses for acknowledgements does not pass as new each time.
    /// While it stands there it may come first again until its share of the round is used up: a keystroke does not
    /// wait for the round of a hundred others.
    @inline(__always)
    private mutating func takeTurn(_ slot: UInt32, isFresh: Bool, wasParked: Bool, hadOutput: Bool) {
        guard !hadOutput || connections[slot].deficit <= 0 else { return }
        if isFresh { context.fresh.popFirst() } else { context.backlog.popFirst() }
        let parks = !hadOutput && !context.backlog.isEmpty && (isFresh || !wasParked)
        connections[slot].isParked = parks
        if hadOutput || parks {
            context.backlog.append(slot)
        } else {
            connections[slot].deficit = 0
        }
    }

    private mutating func queuedPacket(_ out: PacketWriter, _ layout: BurstLayout) -> OutgoingBurst? {
        let place = unsafe out.region(layout.head, out.capacity - layout.head)
        guard let entry = unsafe context.packets.pop(into: place, &context.pool) else { return nil }
        context.counters.packetsSent += 1
        return OutgoingBurst(
            count: 1, length: entry.length, lastLength: entry.length, destination: entry.remote.ip)
    }

    /// After anything happened to a connection: its timers, and its end.
    @inline(__always)
    mutating func settle(_ slot: UInt32) {
        if connections[slot].state == .closed {
            bury(slot)
        } else {
            context.timers.schedule(slot, connections[slot].deadline)
        }
    }

    /// A closed connection leaves the table of flows at once, and its slot when its owner knows.
    mutating func bury(_ slot: UInt32) {
        if expected.slot == slot { expected.isValid = false }
        flows.remove(connections[slot].local, connections[slot].remote, slot: slot)
        context.timers.remove(slot)
        if connections[slot].isHalfOpen { leaveHalfOpen(slot) }
        guard connections[slot].isOrphan, !connections[slot].isFree else { return }
        connections[slot].isFree = true
        connections[slot].generation &+= 1
        connections.release(slot)
    }

    /// The slot that `id` names, if it still does.
    func slot(_ id: ConnectionID) -> UInt32? {
        guard Int(id.slot) < connections.capacity, connections[id.slot].generation == id.generation,
            !connections[id.slot].isOrphan, !connections[id.slot].isFree
        else { return nil }
        return id.slot
    }
}

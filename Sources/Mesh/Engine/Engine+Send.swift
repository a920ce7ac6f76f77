// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO

// From the machines to the sockets. Inner packets are written with head-room one behind the other, sealed together
// where they lie, and leave as runs that the kernel cuts.
extension Engine {
    /// Inner packets per turn: about 320 KB, a millisecond of work. Then the sockets are looked at again:
    /// acknowledgements, and whatever is urgent.
    private static let packetsPerTurn = 256

    /// Lets everything out that the machines have to say, and moves bytes of streams before.
    mutating func drain() {
        handleStackEvents()
        pumpStreams()
        handleStackEvents()
        handleMachineEvents()
        sendControl()
        hasMoreOutput = sendPackets()
        sendControl()
        flush()
        writeRelays()
        // A relay that takes nothing says when it does.
        if isRelayFull { hasMoreOutput = false }
    }

    // MARK: Inner packets

    /// Seals and routes what the stack (or the TUN device) has. True when more may be waiting.
    private mutating func sendPackets() -> Bool {
        let layout = BurstLayout(
            head: WireGuard.headerSize, tail: WireGuard.overhead - WireGuard.headerSize, alignment: 16,
            paddedLimit: configuration.mtuBytes)
        let room = layout.stride(configuration.mtuBytes)
        var current: WireGuard.PeerIndex?
        var destination: IPAddress?
        var budget = Self.packetsPerTurn
        while budget > 0, !isRelayFull {
            if burst.isFull(for: pendingBytes + room) || pendingCount == pendingLengths.count {
                sealPending(current)
                flushIfFull(room)
            }
            var offset = burst.used + pendingBytes
            let place = unsafe UnsafeMutableRawBufferPointer(rebasing: burst.memory[offset...])
            let limit = min(pendingLengths.count - pendingCount, budget)
            guard let packets = unsafe nextInnerPackets(into: place, layout, limit: limit) else {
                sealPending(current)
                return false
            }
            budget -= packets.count
            let extent = packets.extent(layout)
            if packets.destination != destination {
                let peer = device.peer(for: packets.destination)
                if peer != current {
                    // The new packets lie behind the pending ones. Sealing those does not move them, but what is
                    // not sent from the burst (relayed, staged) leaves a gap.
                    sealPending(current)
                    if offset != burst.used {
                        move(extent, from: offset, to: burst.used)
                        offset = burst.used
                    }
                    current = peer
                }
                destination = packets.destination
            }
            guard current != nil else {
                counters.unroutable += UInt64(packets.count)
                continue
            }
            for index in 0..<packets.count {
                pendingLengths[pendingCount + index] = packets.length(of: index)
            }
            pendingCount += packets.count
            pendingBytes += extent
        }
        sealPending(current)
        return true
    }

    private func move(_ length: Int, from source: Int, to target: Int) {
        unsafe (burst.memory.baseAddress! + target).copyMemory(
            from: burst.memory.baseAddress! + source, byteCount: length)
    }

    private mutating func nextInnerPackets(
        into place: UnsafeMutableRawBufferPointer, _ layout: BurstLayout, limit: Int
    ) -> OutgoingBurst? {
        guard tun != nil else {
            let packets = unsafe stack.nextBurst(into: place, layout: layout, limit: limit, now: now)
            if let packets, configuration.packetTap != nil { unsafe show(packets, place, layout) }
            return packets
        }
        let room = unsafe UnsafeMutableRawBufferPointer(
            rebasing: place[layout.head..<layout.head + configuration.mtuBytes])
        while true {
            guard let length = unsafe (try? tun?.read(into: room)) ?? nil, length > 0 else { return nil }
            if let destination = unsafe IPAddress(destinationOf: room, length: length) {
                return OutgoingBurst(count: 1, length: length, lastLength: length, destination: destination)
            }
            counters.unroutable += 1
        }
    }

    /// Shows what the stack sends to whoever wants to see it.
    @inline(never)
    private func show(
        _ packets: OutgoingBurst, _ place: UnsafeMutableRawBufferPointer, _ layout: BurstLayout
    ) {
        for index in 0..<packets.count {
            let start = index * layout.stride(packets.length) + layout.head
            let packet = unsafe UnsafeRawBufferPointer(
                rebasing: place[start..<start + packets.length(of: index)])
            unsafe configuration.packetTap?(packet.bytes)
        }
    }

    /// Seals the packets that lie behind `burst.used`, all for one peer, and routes them.
    private mutating func sealPending(_ peer: WireGuard.PeerIndex?) {
        guard pendingCount > 0, let peer else { return }
        let count = pendingCount
        let bytes = pendingBytes
        pendingCount = 0
        pendingBytes = 0
        let buffer = unsafe UnsafeMutableRawBufferPointer(
            rebasing: burst.memory[burst.used..<burst.used + bytes])
        let outcome = unsafe device.sealBurst(
            peer, in: buffer, payloadLengths: pendingLengths.span.extracting(0..<count), now: now)
        switch outcome {
        case .sealed: routePending(peer, count)
        case .needsHandshake: stagePending(peer, count)
        case .unknownPeer: counters.unroutable += UInt64(count)
        }
    }

    private mutating func routePending(_ peer: WireGuard.PeerIndex, _ count: Int) {
        guard let record = peers.record(peer) else { return }
        let route = route(of: record)
        let mtu = configuration.mtuBytes
        var offset = burst.used
        if let region = route.relay {
            defer { updateRelayPressure() }
            for index in 0..<count {
                let length = WireGuard.paddedLength(pendingLengths[index], mtu: mtu) + WireGuard.overhead
                let datagram = unsafe UnsafeRawBufferPointer(rebasing: burst.memory[offset..<offset + length])
                unsafe sendRelayed(datagram, region: region, to: record.peer.key)
                offset += length
            }
        }
        if let address = route.udp {
            lastDirectSend = now
            let destination = address.kernel
            for index in 0..<count {
                burst.append(
                    WireGuard.paddedLength(pendingLengths[index], mtu: mtu) + WireGuard.overhead,
                    to: destination)
            }
        } else if route.relay == nil {
            counters.unroutable += UInt64(count)
        }
    }

    /// Without a session the packets wait in the device, bounded, while it seeks one.
    private mutating func stagePending(_ peer: WireGuard.PeerIndex, _ count: Int) {
        var offset = burst.used
        for index in 0..<count {
            let start = offset + WireGuard.headerSize
            let packet = unsafe UnsafeRawBufferPointer(
                rebasing: burst.memory[start..<start + pendingLengths[index]])
            unsafe device.stage(peer, packet, now: now)
            offset +=
                WireGuard.paddedLength(pendingLengths[index], mtu: configuration.mtuBytes)
                + WireGuard.overhead
        }
    }

    /// Where packets to this peer go now.
    func staticRoute(of record: PeerRecord) -> Paths.Route {
        if let endpoint = peers.endpoint(record.index) { return Paths.Route(udp: endpoint) }
        return Paths.Route(relay: record.peer.homeRegion > 0 ? record.peer.homeRegion : nil)
    }

    mutating func route(of record: PeerRecord) -> Paths.Route {
        record.usesPaths ? paths.route(to: record.id, now: now) : staticRoute(of: record)
    }

    // MARK: Control messages

    /// Handshakes, keepalives, packets that waited for a handshake, discovery, STUN.
    private mutating func sendControl() {
        repeatHandshakes()
        while device.hasOutput {
            flushIfFull(device.outputSize)
            let place = unsafe UnsafeMutableRawBufferPointer(rebasing: burst.memory[burst.used...])
            let wall = Clock.wallTime()
            let time = WireGuard.WallTime(
                seconds: UInt64(max(0, wall.seconds)), nanoseconds: wall.nanoseconds)
            guard let output = unsafe device.nextOutput(into: place, now: now, wallTime: time) else { break }
            guard let record = peers.record(output.peer) else { continue }
            var route = route(of: record)
            if route.relay == nil, unsafe output.isHandshake(place, type: 2) {
                route.relay = responseRelay(output.peer)
            }
            if record.usesPaths, unsafe output.isHandshake(place, type: 1) {
                let message = unsafe UnsafeRawBufferPointer(rebasing: place[..<output.length])
                unsafe unanswered.note(message, record.id, output.peer, now: now)
            }
            if let region = route.relay {
                let datagram = unsafe UnsafeRawBufferPointer(rebasing: place[..<output.length])
                unsafe sendRelayed(
                    datagram, region: region, to: record.peer.key, isUrgent: !output.isData)
            }
            if let address = route.udp {
                burst.append(output.length, to: address.kernel)
            } else if route.relay == nil {
                counters.unroutable += 1
            }
        }
        relayedInitiations.removeAll(keepingCapacity: true)
        sendDiscovery()
    }

    private mutating func sendDiscovery() {
        while true {
            flushIfFull(Disco.maximumSealedBytes)
            let place = unsafe UnsafeMutableRawBufferPointer(rebasing: burst.memory[burst.used...])
            guard let output = unsafe paths.nextOutput(into: place) else { break }
            switch output {
            case .udp(let address, let length): burst.append(length, to: address.kernel)
            case .relay(let region, let key, let length):
                unsafe sendRelayed(
                    UnsafeRawBufferPointer(rebasing: place[..<length]), region: region, to: key,
                    isUrgent: true)
            }
        }
        while true {
            flushIfFull(STUN.requestBytes)
            let place = unsafe UnsafeMutableRawBufferPointer(rebasing: burst.memory[burst.used...])
            guard let address = unsafe discovery.nextOutput(into: place) else { break }
            burst.append(STUN.requestBytes, to: address.kernel)
        }
    }

    /// One small datagram by copying.
    mutating func sendSmall(_ bytes: UnsafeRawBufferPointer, to address: SocketAddress) {
        flushIfFull(bytes.count)
        unsafe UnsafeMutableRawBufferPointer(rebasing: burst.memory[burst.used...]).copyMemory(from: bytes)
        burst.append(bytes.count, to: address.kernel)
    }

    // MARK: Sockets

    private mutating func flushIfFull(_ bytes: Int) {
        if burst.isFull(for: bytes) { flush() }
    }

    /// Gives everything sealed to the kernel.
    mutating func flush() {
        guard !burst.isEmpty else { return }
        counters.sentBytes += UInt64(burst.used)
        if udpLoss == .all {
            counters.lostDatagrams += UInt64(burst.discard())
        } else {
            counters.lostDatagrams += UInt64(burst.flush(v4: &v4, v6: &v6))
            noteSendFailures()
        }
    }

    /// What the kernel refused concerns a path: no route, forbidden, or too big for what the route takes.
    private mutating func noteSendFailures() {
        for failure in (v4?.takeFailures() ?? []) + (v6?.takeFailures() ?? []) {
            counters.sendFailures += 1
            let address = SocketAddress(failure.destination)
            if failure.isTooBig, let peer = paths.peer(forUDP: address) {
                // Pings are smaller than data: they cannot tell.
                doubtData(peer, isCertain: true)
                paths.noteSendFailure(to: address, .tooBig, now: now)
            } else {
                paths.noteSendFailure(to: address, failure.isTooBig ? .tooBig : .unreachable, now: now)
            }
        }
    }
}

extension WireGuard.Output {
    /// Whether this datagram is a handshake's first (1) or second (2) message.
    fileprivate func isHandshake(_ bytes: UnsafeMutableRawBufferPointer, type: UInt8) -> Bool {
        guard !isData, length > 4 else { return false }
        return unsafe bytes[0] == type
    }
}

extension IPAddress {
    /// Destination of a raw IP packet; nil when it is none.
    init?(destinationOf packet: UnsafeMutableRawBufferPointer, length: Int) {
        switch unsafe packet[0] >> 4 {
        case 4 where length >= 20:
            self.init(v4: unsafe UInt32(bigEndian: packet.loadUnaligned(fromByteOffset: 16, as: UInt32.self)))
        case 6 where length >= 40:
            self.init(
                high: unsafe UInt64(bigEndian: packet.loadUnaligned(fromByteOffset: 24, as: UInt64.self)),
                low: unsafe UInt64(bigEndian: packet.loadUnaligned(fromByteOffset: 32, as: UInt64.self)))
        default: return nil
        }
    }
}

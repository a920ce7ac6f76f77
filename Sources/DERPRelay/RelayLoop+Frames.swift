// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Mesh

// What clients send, and where it goes. `derp.md` §6.
extension RelayLoop {
    /// Consecutive packets for one client, rewritten in place in the read buffer: they leave in one call when nothing
    /// waits for that client.
    private struct Run {
        var target: RelayClient
        var start: Int
        var end: Int
        var frames: UInt64
    }

    /// Bytes from which a run that is not at the end of a read is worth a call of its own.
    private static let directBytes = 16 << 10

    /// Handles the frames in the first `count` bytes of the buffer and keeps what is begun.
    func parse(_ client: RelayClient, count: Int) {
        var offset = 0
        var needed = 0
        var run: Run?
        do {
            let bytes = UnsafeRawBufferPointer(rebasing: buffer[..<count]).bytes
            while let input = try client.session.next(in: bytes, offset: &offset, needed: &needed) {
                if case .send(let destination, let payload) = input {
                    relay(client, to: ClientKey(destination), payload, &run)
                } else {
                    handle(client, input, bytes)
                }
                if client.isClosed { break }
            }
        } catch {
            if client.session.isOpen || client.key != nil {
                counters.protocolErrors += 1
            } else {
                counters.loginsRefused += 1
            }
            finish(&run)
            close(client)
            return
        }
        counters.bytesReceived += UInt64(offset)
        finish(&run)
        guard !client.isClosed else { return }
        if offset < count {
            setPartial(client, UnsafeRawBufferPointer(rebasing: buffer[offset..<count]))
        }
        if !client.isClosed, let key = client.key, key.active !== client || key.members.count > 1, offset > 0
        {
            key.noteSpeaker(client)
        }
    }

    private func handle(_ client: RelayClient, _ input: DERPServerSession.Input, _ bytes: RawSpan) {
        switch input {
        case .login(let key, let info):
            login(client, key, info)
        case .notePreferred(let isHome):
            notePreferred(client, isHome)
        case .ping(let number):
            counters.pingsReceived += 1
            // One pong waits at a time; a client that does not read gets no second one.
            guard client.control.isEmpty else { return }
            counters.pongsSent += 1
            let data = (0..<8).map { UInt8(truncatingIfNeeded: number >> (56 - 8 * UInt64($0))) }
            sendControl(DERP.frame(.pong, data), to: client)
        case .forward(let source, let destination, let payload):
            forward(from: ClientKey(source), to: ClientKey(destination), payload)
        case .watchConnections:
            watch(client)
        case .closePeer(let key):
            for member in keys[ClientKey(key)]?.members ?? [] where member !== client { close(member) }
        case .unknown:
            counters.unknownFrames += 1
        case .send:
            break
        }
    }

    // MARK: Packets

    private func relay(
        _ client: RelayClient, to destination: ClientKey, _ payload: Range<Int>, _ run: inout Run?
    ) {
        counters.packetsReceived += 1
        let isDisco = isDisco(payload)
        if isDisco { counters.discoReceived += 1 }
        guard let source = client.ownKey, let target = target(of: client, destination) else {
            drop(client, destination, isDisco: isDisco)
            return
        }
        // SendPacket and RecvPacket have the same length: only type and key differ.
        let start = payload.lowerBound - DERP.headerBytes - DERP.keyBytes
        buffer[start] = DERPFrameType.receivePacket.rawValue
        source.store(to: buffer.baseAddress! + start + DERP.headerBytes)
        if target.hasOutput || target.isBlocked {
            finish(&run)
            enqueue(start..<payload.upperBound, to: target, isDisco: isDisco)
            return
        }
        if run?.target === target, run?.end == start {
            run!.end = payload.upperBound
            run!.frames += 1
            return
        }
        finish(&run, isLast: false)
        // Finishing may have queued for this very client.
        if target.hasOutput || target.isBlocked || target.isClosed {
            if !target.isClosed { enqueue(start..<payload.upperBound, to: target, isDisco: isDisco) }
            return
        }
        run = Run(target: target, start: start, end: payload.upperBound, frames: 1)
    }

    /// The connection that gets packets for `destination`, and a note that `client` sent there.
    private func target(of client: RelayClient, _ destination: ClientKey) -> RelayClient? {
        if client.lastDestination == destination, let active = client.lastTarget?.active,
            active.number == client.lastTargetClient
        {
            return active
        }
        guard let key = keys[destination], let active = key.active else { return nil }
        client.lastDestination = destination
        client.lastTarget = key
        client.lastTargetClient = active.number
        if let own = client.key { noteSent(own, to: active) }
        return active
    }

    private func noteSent(_ key: KeyState, to client: RelayClient) {
        key.sentTo.insert(client.number)
        guard key.sentTo.count >= key.sentToPruneAt else { return }
        key.sentTo = key.sentTo.filter { clients[$0] != nil }
        key.sentToPruneAt = max(64, key.sentTo.count * 2)
    }

    private func isDisco(_ payload: Range<Int>) -> Bool {
        guard payload.count >= Disco.headerBytes, buffer[payload.lowerBound] == 0x54 else { return false }
        return Disco.looksLikeDisco(UnsafeRawBufferPointer(rebasing: buffer[payload]).bytes)
    }

    private func drop(_ client: RelayClient, _ destination: ClientKey, isDisco: Bool) {
        if isDisco { counters.droppedDisco += 1 }
        if keys[destination] != nil {
            counters.droppedDuplicate += 1
            return
        }
        counters.droppedUnknown += 1
        // Only discovery is worth an answer: it is how a sender learns that nobody is there.
        guard isDisco, client.mayTellNotHere(now) else { return }
        counters.peerGoneNotHere += 1
        let reason = DERPPeerGoneReason.notHere.rawValue
        sendControl(DERP.frame(.peerGone, destination.publicKey.bytes, [reason]), to: client)
    }

    /// Writes a run straight out of the read buffer; what the kernel does not take is queued.
    private func finish(_ run: inout Run?, isLast: Bool = true) {
        guard let ready = run else { return }
        run = nil
        let target = ready.target
        guard !target.isClosed else {
            counters.droppedGone += ready.frames
            return
        }
        var start = ready.start
        if isLast || ready.end - ready.start >= Self.directBytes, !target.hasOutput, !target.isBlocked {
            let count = Glibc.send(
                target.descriptor, buffer.baseAddress! + start, ready.end - start, Int32(MSG_NOSIGNAL))
            if count < 0, errno != EAGAIN, errno != EINTR, errno != ENOBUFS {
                counters.droppedGone += ready.frames
                close(target)
                return
            }
            let written = max(0, count)
            counters.bytesSent += UInt64(written)
            if start + written == ready.end {
                counters.packetsSent += ready.frames
                return
            }
            start = queueRest(of: ready, from: start + written)
            setBlocked(target, true)
            target.stalledSince = now
        }
        while start < ready.end {
            let end = start + frameLength(start)
            let payload = start + DERP.headerBytes + DERP.keyBytes..<end
            enqueue(start..<end, to: target, isDisco: isDisco(payload))
            start = end
        }
    }

    /// Skips the frames before `written`; the end of one that was begun becomes the target's rest. Returns where the
    /// first untouched frame starts.
    private func queueRest(of run: Run, from written: Int) -> Int {
        var start = run.start
        while start < written {
            let end = start + frameLength(start)
            if end > written { run.target.rest += buffer[written..<end] }
            counters.packetsSent += 1
            start = end
        }
        return start
    }

    private func frameLength(_ start: Int) -> Int {
        let length = UInt32(bigEndian: buffer.loadUnaligned(fromByteOffset: start + 1, as: UInt32.self))
        return DERP.headerBytes + Int(length)
    }

    /// Copies a whole frame into a client's queue; the oldest go when it is full.
    private func enqueue(_ frame: Range<Int>, to target: RelayClient, isDisco: Bool) {
        let destination = append(frame.count, to: target, isDisco: isDisco)
        destination.copyMemory(from: buffer.baseAddress! + frame.lowerBound, byteCount: frame.count)
    }

    private func append(_ length: Int, to target: RelayClient, isDisco: Bool) -> UnsafeMutableRawPointer {
        let byteLimit = queuedBytes > limits.totalQueueBytes ? limits.crowdedQueueBytes : limits.queueBytes
        let before = target.disco.bytes + target.other.bytes
        let destination: UnsafeMutableRawPointer
        if isDisco {
            while target.disco.frames >= limits.queuePackets
                || !target.disco.isEmpty && target.disco.bytes + length > byteLimit
            {
                target.disco.dropFirst()
                counters.droppedQueueHead += 1
                counters.droppedDisco += 1
            }
            destination = target.disco.append(length, milliseconds: milliseconds)
        } else {
            while target.other.frames >= limits.queuePackets
                || !target.other.isEmpty && target.other.bytes + length > byteLimit
            {
                target.other.dropFirst()
                counters.droppedQueueHead += 1
            }
            destination = target.other.append(length, milliseconds: milliseconds)
        }
        queuedBytes += target.disco.bytes + target.other.bytes - before
        markDirty(target, bytes: length)
        return destination
    }

    /// A packet from another relay: delivered here or dropped, never forwarded again.
    private func forward(from source: ClientKey, to destination: ClientKey, _ payload: Range<Int>) {
        counters.packetsForwardedIn += 1
        let isDisco = isDisco(payload)
        guard let target = keys[destination]?.active else {
            counters.droppedUnknownOnForward += 1
            if isDisco { counters.droppedDisco += 1 }
            return
        }
        let length = DERP.keyBytes + payload.count
        let memory = append(DERP.headerBytes + length, to: target, isDisco: isDisco)
        memory.storeBytes(of: DERPFrameType.receivePacket.rawValue, as: UInt8.self)
        memory.storeBytes(of: UInt32(length).bigEndian, toByteOffset: 1, as: UInt32.self)
        source.store(to: memory + DERP.headerBytes)
        guard !payload.isEmpty else { return }
        (memory + DERP.headerBytes + DERP.keyBytes).copyMemory(
            from: buffer.baseAddress! + payload.lowerBound, byteCount: payload.count)
    }

    // MARK: Presence

    private func login(_ client: RelayClient, _ publicKey: NodePublicKey, _ info: DERPClientInfo) {
        if !client.session.isMeshPeer, let admit = configuration.admit, !admit(publicKey) {
            counters.loginsRefused += 1
            close(client)
            return
        }
        client.canAckPings = info.canAckPings
        let key = ClientKey(publicKey)
        client.ownKey = key
        sendControl(client.session.serverInfoFrame(random: &random), to: client)
        let state: KeyState
        if let known = keys[key] {
            state = known
            if state.members.count == 1 { counters.duplicateKeys += 1 }
        } else {
            state = KeyState(key)
            keys[key] = state
        }
        client.key = state
        state.members.append(client)
        state.noteSpeaker(client)
        if state.members.count == 1 { tellWatchers(.peerPresent, key.publicKey.bytes) }
    }

    func unregister(_ client: RelayClient) {
        guard let state = client.key else { return }
        client.key = nil
        state.members.removeAll { $0 === client }
        state.speakers.removeAll { $0 === client }
        if state.active === client { state.active = state.speakers.last }
        guard state.members.isEmpty else {
            if state.members.count == 1 { counters.duplicateKeys -= 1 }
            return
        }
        keys[state.key] = nil
        state.active = nil
        let frame = DERP.frame(
            .peerGone, state.key.publicKey.bytes, [DERPPeerGoneReason.disconnected.rawValue])
        for number in state.sentTo.sorted() {
            guard let peer = clients[number] else { continue }
            counters.peerGoneDisconnected += 1
            sendControl(frame, to: peer)
        }
        for watcher in watchers where !state.sentTo.contains(watcher.number) {
            sendControl(frame, to: watcher)
        }
    }

    private func notePreferred(_ client: RelayClient, _ isHome: Bool) {
        guard client.isHome != isHome else { return }
        client.isHome = isHome
        counters.homeConnections += isHome ? 1 : -1
        // At the start it is no move.
        guard now - client.opened > 5_000_000_000 else { return }
        if isHome { counters.homeMovesIn += 1 } else { counters.homeMovesOut += 1 }
    }

    private func watch(_ client: RelayClient) {
        guard !client.isWatcher, let own = client.ownKey, own.publicKey != publicKey else { return }
        client.isWatcher = true
        watchers.append(client)
        for key in keys.keys.map(\.publicKey).sorted() {
            // All of them, however many: a mesh peer is trusted, and cannot do without.
            client.control += DERP.frame(.peerPresent, key.bytes)
        }
        markDirty(client, bytes: client.control.count)
    }

    private func tellWatchers(_ type: DERPFrameType, _ body: [UInt8]) {
        guard !watchers.isEmpty else { return }
        let frame = DERP.frame(type, body)
        for watcher in watchers { sendControl(frame, to: watcher) }
    }
}

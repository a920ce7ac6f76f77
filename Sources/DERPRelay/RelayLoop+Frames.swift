// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Mesh

// What clients send, and where it goes. `derp.md` §6.
extension RelayLoop {
    /// Consecutive packets for one client, rewritten in place in the read buffer: they leave in one call when nothing
    /// waits for that client.
    private struct Run {
        let target: RelayClient
        let source: UInt64
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
                if client.isClosed || client.pauses.contains(.admission) {
                    needed = 0
                    break
                }
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
            keepPartial(client, UnsafeRawBufferPointer(rebasing: buffer[offset..<count]), needed: needed)
        }
        if !client.isClosed, let key = client.key, key.active !== client || key.members.count > 1, offset > 0
        {
            activate(client, of: key)
        }
        pauseForDestination(client)
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
            guard !client.hasPong else { return }
            client.hasPong = true
            counters.pongsSent += 1
            sendControl(DERP.frame(.pong, Self.bytes(number)), to: client)
        case .forward(let source, let destination, let payload):
            forwardIn(from: ClientKey(source), to: ClientKey(destination), payload)
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
        guard let source = client.ownKey else { return }
        guard let target = target(of: client, destination, isDisco: isDisco) else {
            let frame = payload.lowerBound - DERP.headerBytes - DERP.keyBytes..<payload.upperBound
            if keys[destination] == nil, let link = link(to: destination) {
                forwardOut(client, source, to: link, frame, isDisco: isDisco)
            } else {
                drop(client, destination, isDisco: isDisco)
            }
            return
        }
        // SendPacket and RecvPacket have the same length: only type and key differ.
        let start = payload.lowerBound - DERP.headerBytes - DERP.keyBytes
        buffer[start] = DERPFrameType.receivePacket.rawValue
        source.store(to: buffer.baseAddress! + start + DERP.headerBytes)
        if target.hasOutput || target.isBlocked {
            finish(&run)
            enqueue(start..<payload.upperBound, to: target, isDisco: isDisco, source: client.number)
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
            if !target.isClosed {
                enqueue(start..<payload.upperBound, to: target, isDisco: isDisco, source: client.number)
            }
            return
        }
        run = Run(
            target: target, source: client.number, start: start, end: payload.upperBound, frames: 1)
    }

    /// The connection that gets packets for `destination`, and a note that `client` sent there.
    private func target(of client: RelayClient, _ destination: ClientKey, isDisco: Bool) -> RelayClient? {
        if client.lastDestination == destination, let active = client.lastTarget?.active,
            active.number == client.lastTargetClient
        {
            return active
        }
        if isDisco, client.lastDestination != nil, client.lastDestination != destination {
            client.discoElsewhereAt = now
        }
        guard let key = keys[destination], let active = key.active else { return nil }
        if let own = client.key { own.sentTo.insert(active.number) { clients[$0] != nil } }
        // Discovery goes to many and is too small to matter.
        guard !isDisco || client.lastDestination == nil else { return active }
        if client.lastDestination != nil, client.lastDestination != destination { client.switchedAt = now }
        client.lastDestination = destination
        client.lastTarget = key
        client.lastTargetClient = active.number
        return active
    }

    func isDisco(_ payload: Range<Int>) -> Bool {
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
            let count = send(target, UnsafeRawBufferPointer(rebasing: buffer[start..<ready.end]))
            if count < 0, !Self.isFull(errno) {
                counters.droppedWriteError += ready.frames
                close(target)
                return
            }
            let written = max(0, count)
            counters.bytesSent += UInt64(written)
            if start + written == ready.end {
                counters.packetsSent += ready.frames
                if !target.sealed.isEmpty { noteBlocked(target) }
                return
            }
            start = queueRest(of: ready, from: start + written)
            noteBlocked(target)
        }
        while start < ready.end {
            let end = start + frameLength(start)
            let payload = start + DERP.headerBytes + DERP.keyBytes..<end
            enqueue(start..<end, to: target, isDisco: isDisco(payload), source: ready.source)
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
    private func enqueue(_ frame: Range<Int>, to target: RelayClient, isDisco: Bool, source: UInt64) {
        let destination = append(frame.count, to: target, isDisco: isDisco, source: source)
        destination.copyMemory(from: buffer.baseAddress! + frame.lowerBound, byteCount: frame.count)
    }
}

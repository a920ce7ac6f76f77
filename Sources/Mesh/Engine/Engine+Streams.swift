// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO

// Moving bytes between descriptors and TCP connections. A stream is pumped when its descriptor becomes ready
// (edge-triggered: flags remember readiness until EAGAIN) or when the stack has news; what does not fit stays where
// it is, so that a slow reader closes the TCP window and a slow peer stops us from reading the descriptor.
extension Engine {
    /// Most bytes that one stream moves in each direction before others get their turn.
    private static let pumpBudget = 128 << 10
    /// Most bytes that bulk streams move in all before packets are sent and received.
    private static let turnBudget = 512 << 10
    /// Most bytes of one read.
    private static let readSize = 128 << 10

    // MARK: Begin

    mutating func dial(token: UInt64, to address: SocketAddress, reading: Int32, writing: Int32) {
        let refuse = { (hub: NodeHub, error: NodeError) in
            Command.dial(token: token, to: address, reading: reading, writing: writing).discard()
            hub.notify(.reply(token: token, .failed(error)))
        }
        guard tun == nil else { return refuse(hub, .noStack) }
        guard streams.count < limits.streams else {
            counters.refused += 1
            return refuse(hub, .tooMany("streams"))
        }
        guard route(to: address.ip) != nil else { return refuse(hub, .noRoute(address.ip)) }
        let connection: ConnectionID
        do {
            connection = try stack.connect(to: address, now: now)
        } catch {
            switch error {
            case .tableFull: return refuse(hub, .tooMany("connections"))
            case .portsExhausted: return refuse(hub, .tooMany("local ports"))
            case .noLocalAddress, .badAddress: return refuse(hub, .noRoute(address.ip))
            }
        }
        var stream = BridgedStream(
            token: token, phase: .dialing, connection: connection,
            local: stack.endpoints(connection)?.local ?? address, remote: address)
        stream.reading = reading
        stream.writing = writing
        _ = streams.insert(stream)
    }

    /// The stack says that our SYN was answered.
    mutating func streamConnected(_ connection: ConnectionID) {
        guard let slot = streams.slot(connection: connection), streams[slot].phase == .dialing else { return }
        let (token, local) = (streams[slot].token, streams[slot].local)
        let (reading, writing) = (streams[slot].reading, streams[slot].writing)
        streams[slot].reading = -1
        streams[slot].writing = -1
        hub.notify(.reply(token: token, .connected(local: local)))
        attach(slot, reading: reading, writing: writing)
    }

    /// The stack accepted a connection, or asks whether to: offer it to whoever listens. What was asked for comes
    /// here a second time when its handshake is complete.
    mutating func streamAccepted(_ connection: ConnectionID, _ local: SocketAddress, _ remote: SocketAddress)
    {
        if let slot = streams.slot(connection: connection) { return enqueue(slot) }
        let listener = tcpListeners[local.port] ?? anyTCPListener
        guard let listener, streams.count < limits.streams else {
            counters.refused += 1
            stack.abort(connection)
            return
        }
        let token = hub.replies.makeToken()
        let stream = BridgedStream(
            token: token, phase: .waiting, connection: connection, local: local, remote: remote)
        _ = streams.insert(stream)
        hub.notify(.accepted(listener: listener, token: token, local: local, remote: remote, isUDP: false))
    }

    /// Gives an accepted stream its descriptors.
    mutating func attach(token: UInt64, reading: Int32, writing: Int32) {
        if let slot = streams.slot(token: token), streams[slot].phase == .waiting {
            stack.accept(streams[slot].connection)
            attach(slot, reading: reading, writing: writing)
        } else if let slot = flows.slot(token: token) {
            attachFlow(slot, reading)
        } else {
            Command.attach(token: token, reading: reading, writing: writing).discard()
        }
    }

    private mutating func attach(_ slot: Int, reading: Int32, writing: Int32) {
        streams[slot].phase = .open
        streams[slot].reading = reading
        streams[slot].writing = writing
        guard let readKind = Descriptor.kind(reading), let writeKind = Descriptor.kind(writing) else {
            return finish(slot, .reset, abort: true)
        }
        streams[slot].readKind = readKind
        streams[slot].writeKind = writeKind
        streams[slot].wasReadBlocking = !Descriptor.isNonBlocking(reading)
        streams[slot].wasWriteBlocking = !Descriptor.isNonBlocking(writing)
        if readKind == .tcp { Descriptor.setNoDelay(reading) }
        let generation = streams.generation(slot)
        do {
            try Descriptor.setNonBlocking(reading)
            if reading == writing {
                let source = EventSource.streamBoth(slot, generation: generation)
                try epoll.add(reading, [.read, .write, .readHangUp, .edge], token: source.token)
            } else {
                try Descriptor.setNonBlocking(writing)
                streams[slot].isReadUnwatched = try watch(
                    reading, [.read, .readHangUp, .edge], .streamRead(slot, generation: generation))
                streams[slot].isWriteUnwatched = try watch(
                    writing, [.write, .edge], .streamWrite(slot, generation: generation))
            }
        } catch {
            return finish(slot, .reset, abort: true)
        }
        // Ready until a call says otherwise: bytes may have waited before epoll watched.
        streams[slot].canRead = true
        streams[slot].canWrite = true
        enqueue(slot)
    }

    /// Adds a descriptor to epoll; true when epoll refuses its kind (EPERM: files are always ready).
    private func watch(
        _ number: Int32, _ interest: Epoll.Interest, _ source: EventSource
    ) throws(SystemError) -> Bool {
        do {
            try epoll.add(number, interest, token: source.token)
            return false
        } catch {
            guard error.isNotPollable else { throw error }
            return true
        }
    }

    // MARK: Readiness

    mutating func streamEvent(_ slot: Int, _ interest: Epoll.Interest, reads: Bool, writes: Bool) {
        let isOver = !interest.isDisjoint(with: [.hangUp, .error])
        if reads, isOver || !interest.isDisjoint(with: [.read, .readHangUp]) { streams[slot].canRead = true }
        if writes, isOver || interest.contains(.write) { streams[slot].canWrite = true }
        // Of a socket: closed altogether by the local program. Of a pipe that we write: nobody reads it any more.
        // Of a pipe that we read: merely its end.
        if writes, interest.contains(reads ? .hangUp : .error) { streams[slot].isHungUp = true }
        enqueue(slot)
    }

    /// Puts a stream on the list of those to pump. Streams that moved much the last time come last, so that a
    /// keystroke never waits for bulk streams.
    mutating func enqueue(_ slot: Int) {
        guard !streams[slot].isQueued, streams[slot].phase == .open else { return }
        streams[slot].isQueued = true
        if streams[slot].isBulk { bulkStreams.append(slot) } else { readyStreams.append(slot) }
    }

    /// Pumps streams that have something to do, each once, until enough was moved for one turn. Those that come
    /// in meanwhile wait for the next.
    mutating func pumpStreams() {
        guard !readyStreams.isEmpty || !bulkStreams.isEmpty else { return }
        swap(&readyStreams, &pumpedStreams)
        for slot in pumpedStreams { pumpQueued(slot) }
        pumpedStreams.removeAll(keepingCapacity: true)
        guard !bulkStreams.isEmpty else { return }
        swap(&bulkStreams, &pumpedStreams)
        var left = Self.turnBudget
        var next = 0
        while next < pumpedStreams.count, left > 0 {
            left -= pumpQueued(pumpedStreams[next])
            next += 1
        }
        // The rest keeps its place before those that were queued again.
        if next < pumpedStreams.count {
            bulkStreams.insert(contentsOf: pumpedStreams[next...], at: 0)
        }
        pumpedStreams.removeAll(keepingCapacity: true)
    }

    /// Returns how many bytes were moved.
    @discardableResult
    private mutating func pumpQueued(_ slot: Int) -> Int {
        guard streams.slots[slot]?.isQueued == true else { return 0 }
        streams[slot].isQueued = false
        let before = movedBytes
        pump(slot)
        let moved = movedBytes - before
        if streams.slots[slot] != nil, !streams[slot].isQueued { streams[slot].isBulk = moved > 16 << 10 }
        return moved
    }

    private mutating func pump(_ slot: Int) {
        if !streams[slot].isWriteDone, streams[slot].canWrite, !pumpOut(slot) { return }
        if !streams[slot].isReadDone, streams[slot].canRead, !pumpIn(slot) { return }
        if streams[slot].isReadDone, streams[slot].isHungUp, !streams[slot].isWriteDone { handleOrphan(slot) }
    }

    /// Stack to descriptor. False when the stream is gone.
    private mutating func pumpOut(_ slot: Int) -> Bool {
        let connection = streams[slot].connection
        let (number, isSocket) = (streams[slot].writing, streams[slot].writeKind.isSocket)
        var budget = Self.pumpBudget
        while budget > 0 {
            var result: TransferResult?
            let moved = unsafe stack.read(connection, now: now) { bytes in
                let transfer = unsafe Descriptor.write(number, bytes, isSocket: isSocket)
                result = transfer
                if case .moved(let count) = transfer { return count }
                return 0
            }
            switch result {
            case .moved:
                budget -= moved
                movedBytes += moved
            case .wouldBlock:
                streams[slot].canWrite = false
                return true
            case .end, .failed: return breakOff(slot)
            case nil:
                if streams[slot].hasPeerFinished { finishWriting(slot) }
                return true
            }
        }
        streams[slot].isBulk = true
        enqueue(slot)
        return true
    }

    /// Descriptor to stack. False when the stream is gone.
    private mutating func pumpIn(_ slot: Int) -> Bool {
        let connection = streams[slot].connection
        let number = streams[slot].reading
        var budget = Self.pumpBudget
        while budget > 0 {
            var result: TransferResult?
            let moved = unsafe stack.write(connection, limit: min(budget, Self.readSize)) { room in
                let transfer = unsafe Descriptor.read(number, into: room)
                result = transfer
                if case .moved(let count) = transfer { return count }
                return 0
            }
            switch result {
            case .moved:
                budget -= moved
                movedBytes += moved
            case .wouldBlock where !streams[slot].isBroken:
                streams[slot].canRead = false
                return true
            case .end where !streams[slot].isBroken:
                streams[slot].isReadDone = true
                stack.shutdownWrite(connection)
                return true
            case .failed, .wouldBlock, .end:
                resetWhenSent(slot)
                return false
            case nil: return true  // no room: `writable` comes when there is some again
            }
        }
        streams[slot].isBulk = true
        enqueue(slot)
        return true
    }

    // MARK: End

    /// Nobody reads the descriptor any more: a reset, as a kernel answers data for a closed socket, once the local
    /// program's last words have arrived. False when the stream is gone.
    private mutating func breakOff(_ slot: Int) -> Bool {
        // The other side of a socket is gone, so what can be read from it has an end; that of a pipe may go on.
        let mayHaveMore = streams[slot].reading == streams[slot].writing && !streams[slot].isReadDone
        guard mayHaveMore else {
            resetWhenSent(slot)
            return false
        }
        streams[slot].isBroken = true
        streams[slot].isWriteDone = true
        streams[slot].canRead = true
        stack.discardInput(streams[slot].connection)
        return true
    }

    private mutating func resetWhenSent(_ slot: Int) {
        stack.abortWhenSent(streams[slot].connection)
        finish(slot, .reset, abort: false)
    }

    /// The peer's FIN reaches the descriptor.
    private mutating func finishWriting(_ slot: Int) {
        guard !streams[slot].isWriteDone else { return }
        streams[slot].isWriteDone = true
        if streams[slot].writeKind.isSocket {
            Descriptor.finishWriting(streams[slot].writing)
        }
        if streams[slot].writing != streams[slot].reading {
            let number = streams[slot].writing
            streams[slot].writing = -1
            close(number, restoreBlocking: streams[slot].wasWriteBlocking)
        }
    }

    /// The local program closed its end completely, while the peer may still send: nobody will read that. Bytes
    /// that wait mean a reset, as from a kernel; a quiet peer gets a minute to say FIN (the stack's orphan wait).
    private mutating func handleOrphan(_ slot: Int) {
        let connection = streams[slot].connection
        guard stack.readableCount(connection) == 0 else { return resetWhenSent(slot) }
        // Lets the stack deliver what was written; it gives up on a silent peer by its own limits.
        stack.close(connection, now: now)
        finish(slot, .finished, abort: false)
    }

    /// The stack says that the connection is over.
    mutating func streamClosed(_ connection: ConnectionID, _ reason: CloseReason) {
        guard let slot = streams.slot(connection: connection) else { return }
        let token = streams[slot].token
        if streams[slot].phase == .dialing {
            let error: NodeError
            switch reason {
            case .refused: error = .refused
            case .reset: error = .refused
            case .unreachable: error = .noRoute(streams[slot].remote.ip)
            case .timeout: error = .timedOut
            default: error = .closed
            }
            hub.notify(.reply(token: token, .failed(error)))
            return finish(slot, .closed, abort: false)
        }
        switch reason {
        case .done: finish(slot, .finished, abort: false)
        case .timeout: finish(slot, .timedOut, abort: false)
        default: finish(slot, .reset, abort: false)
        }
    }

    /// Closes the descriptors, tells the end, forgets the stream.
    mutating func finish(_ slot: Int, _ end: StreamEnd, abort: Bool) {
        if abort { stack.abort(streams[slot].connection) }
        if end == .reset, streams[slot].writeKind == .tcp, streams[slot].writing >= 0 {
            Descriptor.resetOnClose(streams[slot].writing)
        }
        let stream = streams[slot]
        close(stream.reading, restoreBlocking: stream.wasReadBlocking)
        if stream.writing != stream.reading {
            close(stream.writing, restoreBlocking: stream.wasWriteBlocking)
        }
        let token = streams[slot].token
        streams.remove(slot)
        hub.notify(.ended(token: token, end))
    }

    private func close(_ number: Int32, restoreBlocking: Bool) {
        guard number >= 0 else { return }
        epoll.remove(number)
        // Pipes and terminals share their flags with other programs.
        if restoreBlocking { try? Descriptor.setNonBlocking(number, false) }
        OwnedDescriptor(taking: number).close()
    }
}

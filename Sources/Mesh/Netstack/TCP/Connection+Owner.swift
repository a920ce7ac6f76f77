// SPDX-License-Identifier: Apache-2.0

// What the owner of a connection does with it: RFC 9293 §3.9.1, without blocking.
extension Connection {
    var statistics: ConnectionStatistics {
        ConnectionStatistics(
            roundTrip: Interval(nanoseconds: trip.smoothed), congestionWindow: cubic.window,
            sendWindow: sendWindow, inFlight: pipe, sendQueue: send.count, sendBuffer: sendTarget,
            receiveBuffer: receiveTarget, segmentSize: segmentSize)
    }

    /// Whether bytes may still be written.
    var isWritable: Bool {
        !finQueued && state != .closed
            && (state == .established || state == .closeWait || !state.isSynchronized)
    }

    /// How much the send buffer may hold now.
    @inline(__always) private func sendLimit(_ context: borrowing StackContext) -> Int {
        min(sendTarget, context.bufferShare)
    }

    /// Room for bytes in the send buffer.
    func writeRoom(_ context: borrowing StackContext) -> Int {
        isWritable ? max(0, sendLimit(context) - send.count) : 0
    }

    /// Enough room to be worth a wake-up: a quarter of the buffer.
    func hasWriteRoom(_ context: borrowing StackContext) -> Bool {
        writeRoom(context) >= sendLimit(context) / 4
    }

    /// Makes contiguous room of up to `wanted` bytes, at least one if there is any. Nil and a later `writable`
    /// event when there is none.
    mutating func reserve(_ wanted: Int, _ context: inout StackContext) -> UnsafeMutableRawBufferPointer? {
        let room = min(writeRoom(context), wanted)
        guard room > 0, makeRoom(room, &context) else {
            wantsWritable = isWritable
            return nil
        }
        let space = unsafe send.room
        return unsafe UnsafeMutableRawBufferPointer(rebasing: space.prefix(room))
    }

    /// False only while bytes wait for their acknowledgement, which brings `writable`: without any, nothing would.
    @inline(__always)
    private mutating func makeRoom(_ room: Int, _ context: inout StackContext) -> Bool {
        if send.ensure(send.count + room, &context.pool) || send.capacity > send.count { return true }
        return send.isEmpty && send.ensure(min(room, context.pool.guaranteed), &context.pool)
    }

    /// `length` bytes were put into what `reserve` gave.
    mutating func commit(_ length: Int, _ context: inout StackContext) {
        send.extend(length)
        // Nothing was there to be written: thousands of silent streams must not hold memory.
        if send.isEmpty { send.release(&context.pool) }
        if length > 0, state.isSynchronized { wantsOutput(&context) }
    }

    /// The owner found less room than it has bytes.
    mutating func noteShortWrite() { wantsWritable = isWritable }

    /// The owner has taken `length` bytes out of the receive buffer.
    mutating func consume(_ length: Int, _ now: Instant, _ context: inout StackContext) {
        receive.consume(length)
        grewByReading(length, now, &context)
        if receive.isEmpty, outOfOrder.isEmpty {
            receive.rewind()
            keepBuffersAWhile(now, &context)
        }
        if state == .closed {
            if receive.isEmpty { sayClosed(&context) }
        } else if finReceived {
            announceEnd(&context)
        } else if state.mayReceive {
            considerWindowUpdate(&context)
        }
    }

    /// Memory of an empty buffer waits for the next bytes, so that a busy connection works in the same warm memory,
    /// and goes back to the pool after a second of silence.
    @inline(__always)
    mutating func keepBuffersAWhile(_ now: Instant, _ context: inout StackContext) {
        guard state == .established || state == .closeWait, !isOrphan, keepaliveCount == 0 else {
            releaseEmptyBuffers(&context)
            return
        }
        lifeDeadline = min(lifeDeadline, now + Self.bufferLinger)
    }

    static let bufferLinger = Interval.seconds(1)

    /// Gives back the memory of empty buffers.
    mutating func releaseEmptyBuffers(_ context: inout StackContext) {
        if send.isEmpty { send.release(&context.pool) }
        if receive.isEmpty, outOfOrder.isEmpty { receive.release(&context.pool) }
    }

    /// RFC 9293 §3.8.6.2.2: the window is opened in large steps only.
    private mutating func considerWindowUpdate(_ context: inout StackContext) {
        let promised = advertisedEdge - receiveNext
        let offered = offeredWindow(context)
        let gain = offered - promised
        guard gain > 0 else { return }
        let most = receiveLimit(context)
        let enough =
            promised < 2 * receiveSegmentSize
            ? gain >= min(most / 2, 2 * receiveSegmentSize)
            : promised <= most / 2 && gain >= most / 4
        if enough { acknowledgeNow(&context) }
    }

    /// No more bytes will be written: FIN after those that were.
    mutating func shutdownWrite(_ context: inout StackContext) {
        guard !finQueued else { return }
        finQueued = true
        wantsWritable = false
        pending.remove(.writable)
        wantsOutput(&context)
    }

    /// The owner lets go. What was written is still delivered; input that nobody will read is answered by RST.
    mutating func close(_ now: Instant, _ context: inout StackContext) {
        isOrphan = true
        pending = []
        // A handshake that the owner asked for goes on: what was written and the FIN follow it.
        guard state.isSynchronized || state == .synReceived && !awaitsDecision, receive.isEmpty else {
            if state == .timeWait {
                receive.release(&context.pool)
                if lifeDeadline == .never { state = .closed }
            } else {
                abort(&context)
            }
            return
        }
        discardsInput = true
        if state == .finWait2 { lifeDeadline = now + context.limits.orphanWait }
        if state == .timeWait, lifeDeadline == .never { state = .closed }
        shutdownWrite(&context)
    }

    /// The owner wants no more bytes, those that wait included; what comes is acknowledged and forgotten.
    mutating func discardInput(_ context: inout StackContext) {
        discardsInput = true
        resetsWhenSent = true
        outOfOrder.removeAll()
        receive.release(&context.pool)
        pending.remove(.readable)
        if state == .closed, !saidClosed { sayClosed(&context) }
    }

    /// The owner lets go of a connection whose other side is gone: what was written still arrives, then a RST says
    /// that it was not all.
    mutating func abortWhenSent(_ context: inout StackContext) {
        isOrphan = true
        pending = []
        guard state.isSynchronized, state != .timeWait, !send.isEmpty else { return abort(&context) }
        if !finSent { finQueued = false }
        discardInput(&context)
    }
}

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
        !finQueued && (state == .established || state == .closeWait || !state.isSynchronized)
    }

    /// Room for bytes in the send buffer.
    var writeRoom: Int { isWritable ? max(0, sendTarget - send.count) : 0 }

    /// Enough room to be worth a wake-up: a quarter of the buffer.
    var hasWriteRoom: Bool { writeRoom >= sendTarget / 4 }

    /// Makes contiguous room of up to `wanted` bytes, at least one if there is any. Nil and a later `writable`
    /// event when there is none.
    mutating func reserve(_ wanted: Int, _ context: inout StackContext) -> UnsafeMutableRawBufferPointer? {
        let room = min(writeRoom, wanted)
        guard room > 0, send.ensure(send.count + room, &context.pool) || send.capacity > send.count else {
            wantsWritable = isWritable
            return nil
        }
        let space = unsafe send.room
        return unsafe UnsafeMutableRawBufferPointer(rebasing: space.prefix(room))
    }

    /// `length` bytes were put into what `reserve` gave.
    mutating func commit(_ length: Int, _ context: inout StackContext) {
        send.extend(length)
        if length > 0, state.isSynchronized { wantsOutput(&context) }
    }

    /// The owner found less room than it has bytes.
    mutating func noteShortWrite() { wantsWritable = isWritable }

    /// The owner has taken `length` bytes out of the receive buffer.
    mutating func consume(_ length: Int, _ now: Instant, _ context: inout StackContext) {
        receive.consume(length)
        if receive.isEmpty, outOfOrder.isEmpty { receive.release(&context.pool) }
        grewByReading(length, now, &context)
        if finReceived {
            announceEnd(&context)
        } else if state.mayReceive {
            considerWindowUpdate(&context)
        }
    }

    /// RFC 9293 §3.8.6.2.2: the window is opened in large steps only.
    private mutating func considerWindowUpdate(_ context: inout StackContext) {
        let promised = advertisedEdge - receiveNext
        let offered = offeredWindow(context)
        let gain = offered - promised
        guard gain > 0 else { return }
        let enough =
            promised < 2 * receiveSegmentSize
            ? gain >= min(receiveTarget / 2, 2 * receiveSegmentSize)
            : promised <= receiveTarget / 2 && gain >= receiveTarget / 4
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
        guard state.isSynchronized, receive.isEmpty else {
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
}

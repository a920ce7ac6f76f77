// SPDX-License-Identifier: Apache-2.0

// Bytes from and to the carrier.
extension ResumableStream {
    // MARK: Out

    /// What the carrier should take next, in two pieces so that stream bytes are not copied: `header` first. Both
    /// empty: nothing. Valid until the next mutating call; tell `sent` how much went.
    public mutating func nextOutgoing(
        now: UInt64
    ) -> (
        header: UnsafeRawBufferPointer, payload: UnsafeRawBufferPointer
    )? {
        guard isAttached else { return nil }
        prepare(now: now)
        guard !control.isEmpty || frameLeft > 0 else { return nil }
        let header = unsafe control.bytes(0, control.count)
        let payload = unsafe replay.bytes(Int(sendOffset - ackedOffset), frameLeft)
        return unsafe (header, payload)
    }

    /// Whether there is something for the carrier, as far as can be said without the time.
    public var wantsToSend: Bool {
        guard isAttached, !needsCarrier else { return isAttached }
        guard failure == nil else { return false }
        let owesEnd = hasLocalEnd && !isEndSent && sendOffset == ackedOffset + UInt64(replay.count)
        return due.ping || due.pong != nil || sendableCount > 0 || owesEnd
    }

    /// The carrier took the first `count` bytes of what was offered.
    public mutating func sent(_ count: Int, now: UInt64) {
        let fromControl = min(count, control.count)
        control.consume(fromControl)
        let payload = count - fromControl
        precondition(payload <= frameLeft)
        guard payload > 0 else { return }
        frameLeft -= payload
        sendOffset += UInt64(payload)
        sentOffset = max(sentOffset, sendOffset)
        if timers.owedSince == nil { timers.owedSince = now }
    }

    private var sendableCount: Int {
        guard failure == nil else { return 0 }
        let end = min(ackedOffset + UInt64(replay.count), peerLimit)
        return end > sendOffset ? Int(end - sendOffset) : 0
    }

    /// Turns what is due into bytes, when the last frame has left.
    private mutating func prepare(now: UInt64) {
        guard frameLeft == 0, control.isEmpty else { return }
        if let reason = due.reset {
            ResumeFrame(.reset, offset: reason).write(to: &control)
            due = Due()
            return
        }
        if due.acknowledgement {
            due.acknowledgement = false
            timers.acknowledgeAt = nil
            toldOffset = receivedMark
            toldLimit = max(
                toldLimit, receivedOffset - UInt64(delivery.count) + UInt64(limits.windowBytes))
            ResumeFrame(.acknowledgement, length: 8, offset: toldOffset).write(to: &control)
            control.append(toldLimit, 8)
        }
        if due.ping {
            due.ping = false
            ResumeFrame(.ping, offset: now).write(to: &control)
        }
        if let pong = due.pong {
            due.pong = nil
            ResumeFrame(.pong, offset: pong).write(to: &control)
        }
        let count = min(sendableCount, ResumeFrame.payloadLimit)
        if count > 0 {
            ResumeFrame(.data, length: count, offset: sendOffset).write(to: &control)
            frameLeft = count
        } else if hasLocalEnd, !isEndSent, failure == nil, sendOffset == ackedOffset + UInt64(replay.count) {
            ResumeFrame(.end, offset: sendOffset).write(to: &control)
            isEndSent = true
            if timers.owedSince == nil { timers.owedSince = now }
        }
    }

    // MARK: In

    /// Lets `read` put up to `capacity` bytes of the carrier into the machine, and handles them; returns its result.
    /// Throws when the peer breaks the rules, or gave the stream up: then it is over, whatever the carrier.
    public mutating func receive(
        upTo capacity: Int, now: UInt64, _ read: (UnsafeMutableRawBufferPointer) -> Int
    ) throws(ResumeError) -> Int {
        let count = unsafe read(inbound.space(capacity))
        guard count > 0 else { return count }
        precondition(count <= capacity)
        inbound.commit(count)
        timers.heardAt = now
        timers.pingAt = nil
        guard failure == nil else {
            // It is given up: what still comes is of no use, and the reset is yet to go out.
            inbound.consume(inbound.count)
            return count
        }
        while try handleNext(now: now) {}
        if receivedMark != toldOffset {
            if receivedMark - toldOffset >= UInt64(limits.acknowledgementBytes) || peerEnd != nil {
                due.acknowledgement = true
            } else if timers.acknowledgeAt == nil {
                timers.acknowledgeAt = now &+ limits.acknowledgementNanoseconds
            }
        }
        return count
    }

    /// False: more bytes are needed.
    private mutating func handleNext(now: UInt64) throws(ResumeError) -> Bool {
        if skipLeft > 0 {
            let count = min(skipLeft, inbound.count)
            inbound.consume(count)
            skipLeft -= count
            return skipLeft == 0
        }
        if payloadLeft > 0 { return takePayload() }
        guard inbound.count >= ResumeFrame.headerBytes else { return false }
        let frame = unsafe ResumeFrame(inbound.bytes(0, ResumeFrame.headerBytes))
        guard let kind = ResumeFrame.Kind(rawValue: frame.type) else {
            guard frame.length <= ResumeFrame.payloadLimit else { throw fail(Self.bad(frame)) }
            counters.unknownFrames += 1
            inbound.consume(ResumeFrame.headerBytes)
            skipLeft = frame.length
            return true
        }
        let payload = kind == .acknowledgement ? 8 : 0
        guard kind == .data ? 1...ResumeFrame.payloadLimit ~= frame.length : frame.length == payload else {
            throw fail(Self.bad(frame))
        }
        guard inbound.count >= ResumeFrame.headerBytes + payload else { return false }
        let value =
            payload == 0
            ? 0
            : unsafe UInt64(
                bigEndian: inbound.bytes(ResumeFrame.headerBytes, 8).loadUnaligned(as: UInt64.self))
        inbound.consume(ResumeFrame.headerBytes + payload)
        switch kind {
        case .data: try beginData(frame)
        case .acknowledgement: try acknowledge(frame.offset, limit: value, now: now)
        case .end: try end(at: frame.offset)
        case .reset: throw fail(.reset(frame.offset))
        case .ping: due.pong = frame.offset
        case .pong: break
        }
        return true
    }

    private static func bad(_ frame: ResumeFrame) -> ResumeError {
        .badFrame(type: frame.type, length: frame.length)
    }

    private mutating func beginData(_ frame: ResumeFrame) throws(ResumeError) {
        guard frame.offset <= receivedOffset else {
            throw fail(.gap(expected: receivedOffset, got: frame.offset))
        }
        let end = frame.offset + UInt64(frame.length)  // both are far below the limit just checked
        guard end <= toldLimit else { throw fail(.windowExceeded) }
        guard peerEnd == nil || end <= receivedOffset else { throw fail(.dataAfterEnd) }
        payloadOffset = frame.offset
        payloadLeft = frame.length
    }

    private mutating func takePayload() -> Bool {
        let count = min(payloadLeft, inbound.count)
        guard count > 0 else { return false }
        let known = receivedOffset - payloadOffset  // bytes of this frame that came before
        let skipped = Int(min(UInt64(count), known))
        unsafe delivery.append(inbound.bytes(skipped, count - skipped))
        counters.duplicateBytes += UInt64(skipped)
        receivedOffset += UInt64(count - skipped)
        payloadOffset += UInt64(count)
        payloadLeft -= count
        inbound.consume(count)
        return true
    }

    private mutating func acknowledge(_ mark: UInt64, limit: UInt64, now: UInt64) throws(ResumeError) {
        guard mark >= ackedMark, mark <= sendOffset + (isEndSent ? 1 : 0) else {
            throw fail(.badAcknowledgement(mark))
        }
        // The bytes of a frame that is half sent stay: its header has announced them.
        accept(mark: mark)
        guard limit >= peerLimit, limit - ackedOffset <= UInt64(Int.max / 4) else {
            throw fail(.badAcknowledgement(limit))
        }
        peerLimit = limit
        timers.owedSince = replay.isEmpty && (isEndAcked || !isEndSent) ? nil : now
    }

    private mutating func end(at offset: UInt64) throws(ResumeError) {
        guard offset == receivedOffset else { throw fail(.gap(expected: receivedOffset, got: offset)) }
        peerEnd = offset
        due.acknowledgement = true
    }

    // MARK: Time

    /// When `handleTimeout` is due; nil: never, as things are.
    public var nextDeadline: UInt64? {
        guard isAttached else { return nil }
        let silence =
            timers.pingAt.map { $0 &+ limits.patienceNanoseconds }
            ?? min(
                timers.heardAt &+ limits.idleNanoseconds,
                timers.owedSince.map { max($0, timers.heardAt) &+ limits.owedNanoseconds } ?? .max)
        return min(silence, timers.acknowledgeAt ?? .max)
    }

    /// Does what time demands. True: the carrier is dead, detach it and find another.
    public mutating func handleTimeout(now: UInt64) -> Bool {
        guard isAttached, let deadline = nextDeadline, now >= deadline else { return false }
        if let at = timers.acknowledgeAt, now >= at {
            timers.acknowledgeAt = nil
            due.acknowledgement = true
        }
        if let at = timers.pingAt { return now >= at &+ limits.patienceNanoseconds }
        let owed = timers.owedSince.map { max($0, timers.heardAt) &+ limits.owedNanoseconds } ?? .max
        if now >= min(owed, timers.heardAt &+ limits.idleNanoseconds) {
            timers.pingAt = now
            due.ping = true
        }
        return false
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Resume

/// The thread of a `ResumeLoop`: one `poll(2)` over the local side, the carrier and the mailbox.
final class ResumeBody {
    /// 256 KiB in one call: as much as a socket pair holds.
    private static let chunk = 256 * 1024

    private let owner: ResumeLoop
    private var stream: ResumableStream
    private var reading: OwnedDescriptor?
    private var writing: OwnedDescriptor?
    /// One descriptor for both directions.
    private let isSocket: Bool
    private var carrier: OwnedDescriptor?
    /// Client: what has come of the answer; nil when none is awaited.
    private var answer: [UInt8]?
    private var answerDeadline: UInt64 = 0
    private var detachedAt: UInt64
    private var hasAttached = false
    private var hasClosedWriting = false
    /// The local side takes no more now.
    private var isLocalFull = false
    private var isCarrierFull = false
    /// The local side takes nothing any more, or cannot be read: a reason for the peer, which is told when it has
    /// what came before.
    private var brokenReason: UInt64?
    /// Nothing more comes from the local side.
    private var hasReadAll = false
    /// The peer gave the stream up; what it had sent before goes to the local side until then.
    private var graceAfterReset: UInt64?
    private var id = ResumeID()
    private var token = StreamToken()
    private var end: ResumeLoop.End?

    init(_ owner: ResumeLoop, reading: consuming OwnedDescriptor, writing: consuming OwnedDescriptor?) {
        self.owner = owner
        stream = ResumableStream(limits: owner.limits)
        isSocket = writing == nil
        self.reading = consume reading
        self.writing = writing.take()
        detachedAt = Clock.monotonicNanoseconds()
        if case .agent(let id, let token) = owner.role { (self.id, self.token) = (id, token) }
    }

    /// The local descriptors, when nothing was done with them.
    func takeLocal() -> [Int32] {
        [reading.take()?.release(), writing.take()?.release()].compactMap { $0 }
    }

    private var writeNumber: Int32? { isSocket ? reading?.number : writing?.number }

    func run() -> ResumeLoop.End {
        ChildProcess.blockBrokenPipeSignal()
        while end == nil {
            takeMail()
            moveAll()
            checkEnd()
            if end != nil { break }
            wait()
        }
        return end ?? .abandoned
    }

    // MARK: Carriers

    private func takeMail() {
        if owner.isStopped, stream.failure == nil { stream.reset() }
        guard let (number, greeting) = owner.takeCarrier() else { return }
        let descriptor = OwnedDescriptor(taking: number)
        do {
            try Descriptor.setNonBlocking(number)
        } catch {
            return  // it is closed here, and the owner's next one will do
        }
        stream.detach()
        carrier = consume descriptor
        isCarrierFull = false
        if let greeting { return adopt(greeting) }
        guard case .client(let port) = owner.role else { return }
        var hello = ResumeGreeting(hasAttached ? .resume : .new)
        hello.port = port
        hello.id = id
        hello.token = token
        stream.fill(&hello)
        send(hello)
        answer = []
        answerDeadline = Clock.monotonicNanoseconds() + owner.patience.greeting
    }

    /// Agent: the client has said what it has on this carrier.
    private func adopt(_ greeting: ResumeGreeting) {
        var reply = ResumeGreeting(.accepted)
        reply.id = id
        reply.token = token
        stream.fill(&reply)
        send(reply)
        attach(greeting)
    }

    /// 80 bytes into a fresh socket: it takes them whole, or is broken, which the next read tells.
    private func send(_ greeting: ResumeGreeting) {
        guard let number = carrier?.number else { return }
        greeting.bytes.withUnsafeBytes { _ = Descriptor.write(number, $0, isSocket: true) }
    }

    private func attach(_ greeting: ResumeGreeting) {
        do {
            try stream.attach(
                received: greeting.received, limit: greeting.limit, now: Clock.monotonicNanoseconds())
            hasAttached = true
            owner.note(.init())
            owner.report(.attached)
        } catch {
            end = .failed(error)
        }
    }

    /// The carrier is of no use any more.
    private func drop() {
        let wasAttached = stream.isAttached
        stream.detach()
        carrier = nil
        answer = nil
        if wasAttached { detachedAt = Clock.monotonicNanoseconds() }
        checkEnd()
        guard end == nil else { return }
        if !hasAttached {
            end = .unanswered
        } else {
            owner.report(.detached)
        }
    }

    // MARK: Bytes

    private func moveAll() {
        if answer != nil { readAnswer() }
        guard answer == nil else { return moveLocal() }
        readCarrier()
        guard end == nil else { return }
        deliver()
        readLocal()
        writeCarrier()
        let now = Clock.monotonicNanoseconds()
        if stream.handleTimeout(now: now) { return drop() }
        if stream.wantsToSend { writeCarrier() }
    }

    /// Without a carrier the local side goes on too, until the buffers are full.
    private func moveLocal() {
        guard hasAttached, end == nil else { return }
        deliver()
        readLocal()
    }

    private func readAnswer() {
        guard let number = carrier?.number, let had = answer else { return }
        var buffer = [UInt8](repeating: 0, count: ResumeGreeting.size - had.count)
        let result = buffer.withUnsafeMutableBytes { Descriptor.read(number, into: $0) }
        switch result {
        case .moved(let count):
            let all = had + buffer[..<count]
            answer = all
            guard ResumeGreeting.canBeAnswer(all) else { return dropForeign() }
            guard all.count == ResumeGreeting.size else { return }
            answer = nil
            do {
                take(try ResumeGreeting(parsing: all, isAnswer: true))
            } catch {
                dropForeign()
            }
        case .wouldBlock: if Clock.monotonicNanoseconds() >= answerDeadline { drop() }
        case .end, .failed: drop()
        }
    }

    /// Whoever answered is no agent of ours. A stream that runs tries again: something stands between for a while.
    private func dropForeign() {
        if !hasAttached { end = .notResumable }
        drop()
    }

    private func take(_ greeting: ResumeGreeting) {
        switch greeting.kind {
        case .accepted:
            if !hasAttached {
                id = greeting.id
                token = greeting.token
                makeLocalNonBlocking()
            }
            attach(greeting)
        case .connectFailed: end = .refused
        case .unknownStream: end = stream.isDrained ? .finished : .forgotten
        case .busy:
            if !hasAttached { end = .busy }
            drop()
        case .new, .resume: dropForeign()
        }
    }

    /// Pipes and sockets only: other descriptors may be shared with programs that do not expect it.
    private func makeLocalNonBlocking() {
        for number in [reading?.number, writing?.number].compactMap({ $0 }) {
            switch Descriptor.kind(number) {
            case .other, nil: break
            default: do { try Descriptor.setNonBlocking(number) } catch { continue }
            }
        }
    }

    private func readCarrier() {
        guard stream.isAttached, let number = carrier?.number else { return }
        // What the local side does not take stays inside, bounded by the window.
        for _ in 0..<4 {
            var result = TransferResult.wouldBlock
            do {
                _ = try stream.receive(upTo: Self.chunk, now: Clock.monotonicNanoseconds()) { space in
                    result = Descriptor.read(number, into: space)
                    if case .moved(let count) = result { return count }
                    return 0
                }
            } catch {
                guard case .reset = error else { return end = .failed(error) }
                graceAfterReset = Clock.monotonicNanoseconds() &+ owner.patience.drained
                return deliver()
            }
            switch result {
            case .moved(let count):
                deliver()
                if count < Self.chunk / 2 { return }
            case .wouldBlock: return
            case .end, .failed: return drop()
            }
        }
    }

    private func deliver() {
        isLocalFull = false
        while brokenReason == nil, stream.deliverableCount > 0, let number = writeNumber {
            switch Descriptor.write(number, stream.deliverable, isSocket: isSocket) {
            case .moved(let count): stream.delivered(count)
            case .wouldBlock, .end:
                isLocalFull = true
                return
            case .failed: brokenReason = 1
            }
        }
        // Nobody takes it; but what the local side has said, or still says, is the peer's (an answer before a close).
        guard brokenReason == nil else { return stream.delivered(stream.deliverableCount) }
        guard stream.isPeerFinished, !hasClosedWriting else { return }
        hasClosedWriting = true
        if isSocket, let number = reading?.number { Descriptor.finishWriting(number) } else { writing = nil }
        owner.report(.peerFinished)
    }

    private func readLocal() {
        guard let number = reading?.number, hasAttached, !hasReadAll else { return }
        for _ in 0..<4 where stream.writableCount > 0 {
            var ready = pollfd(fd: number, events: Int16(POLLIN), revents: 0)
            guard poll(&ready, 1, 0) > 0 else { return }
            var result = TransferResult.wouldBlock
            _ = stream.write(upTo: Self.chunk) { space in
                result = Descriptor.read(number, into: space)
                if case .moved(let count) = result { return count }
                return 0
            }
            switch result {
            case .moved(let count):
                writeCarrier()
                if count < Self.chunk / 4 { return }
            case .wouldBlock: return
            case .end:
                hasReadAll = true
                return stream.finish()
            case .failed:
                hasReadAll = true
                brokenReason = brokenReason ?? 2
                return
            }
        }
    }

    private func writeCarrier() {
        guard let number = carrier?.number, stream.isAttached else { return }
        isCarrierFull = false
        while let (header, payload) = stream.nextOutgoing(now: Clock.monotonicNanoseconds()) {
            var pieces = [
                iovec(iov_base: UnsafeMutableRawPointer(mutating: header.baseAddress), iov_len: header.count),
                iovec(
                    iov_base: UnsafeMutableRawPointer(mutating: payload.baseAddress), iov_len: payload.count),
            ]
            let count = pieces.withUnsafeMutableBufferPointer { pieces in
                var message = msghdr()
                message.msg_iov = pieces.baseAddress
                message.msg_iovlen = pieces.count
                return sendmsg(number, &message, Int32(MSG_NOSIGNAL))
            }
            if count > 0 {
                stream.sent(count, now: Clock.monotonicNanoseconds())
            } else if count < 0, errno == EAGAIN {
                isCarrierFull = true
                return
            } else if errno != EINTR {
                return drop()
            }
        }
    }

    // MARK: Waiting

    private func checkEnd() {
        guard end == nil else { return }
        if stream.isComplete { return end = .finished }
        if let brokenReason, hasReadAll, stream.hasPeerAll { stream.reset(reason: brokenReason) }
        if let graceAfterReset {
            let isOver = stream.deliverableCount == 0 || Clock.monotonicNanoseconds() >= graceAfterReset
            if isOver { end = .reset }
            return
        }
        if stream.failure != nil, !stream.wantsToSend { return end = .reset }
        guard !stream.isAttached, answer == nil, hasAttached else { return }
        let limit = stream.isDrained ? owner.patience.drained : owner.patience.withoutCarrier
        if Clock.monotonicNanoseconds() >= detachedAt &+ limit { end = .abandoned }
    }

    private func wait() {
        if !stream.isAttached, hasAttached {
            owner.note(
                .init(
                    detachedAt: detachedAt,
                    heldBytes: stream.unacknowledgedCount + stream.deliverableCount))
        }
        let canRead = hasAttached && !hasReadAll && stream.writableCount > 0
        let wantsCarrierOut = stream.isAttached && (isCarrierFull || stream.wantsToSend)
        let carrierEvents = Int16(POLLIN) | (wantsCarrierOut ? Int16(POLLOUT) : 0)
        var polls = [
            pollfd(fd: owner.wakeUp.number, events: Int16(POLLIN), revents: 0),
            pollfd(fd: carrier?.number ?? -1, events: carrierEvents, revents: 0),
            pollfd(fd: canRead ? reading?.number ?? -1 : -1, events: Int16(POLLIN), revents: 0),
            pollfd(
                fd: isLocalFull ? writeNumber ?? -1 : -1, events: Int16(POLLOUT), revents: 0),
        ]
        let count = poll(&polls, nfds_t(polls.count), timeout())
        if polls[0].revents != 0 { owner.wakeUp.drain() }
        if count == 0 { stream.releaseSpareMemory() }
    }

    private func timeout() -> Int32 {
        var deadline = stream.nextDeadline ?? .max
        if answer != nil { deadline = min(deadline, answerDeadline) }
        deadline = min(deadline, graceAfterReset ?? .max)
        if !stream.isAttached, hasAttached {
            let limit = stream.isDrained ? owner.patience.drained : owner.patience.withoutCarrier
            deadline = min(deadline, detachedAt &+ limit)
        }
        return Clock.pollTimeout(until: deadline)
    }
}

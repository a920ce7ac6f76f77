// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Mesh

// What waits for clients, in which order it leaves, and what is dropped when too much waits. `derp.md` §6.1.
extension RelayLoop {
    /// Most that the queue of one sender puts into one write while others wait for the same client.
    private static let quantumBytes = 16 << 10
    /// Pieces of one write.
    private static let maximumVectors = 16

    /// Queues a frame of the relay itself.
    func sendControl(_ frame: [UInt8], to client: RelayClient) {
        // A client that reads nothing hears nothing more of what it could not use anyway.
        guard client.control.count < 64 << 10 else { return }
        client.control += frame
        markDirty(client, bytes: frame.count)
    }

    func markDirty(_ client: RelayClient, bytes: Int) {
        dirtyBytes += bytes
        guard !client.isDirty else { return }
        client.isDirty = true
        dirty.append(client)
    }

    func flushDirty() {
        dirtyBytes = 0
        while !dirty.isEmpty {
            let waiting = dirty
            dirty = []
            for client in waiting {
                client.isDirty = false
                if !client.isClosed, !client.isBlocked { flush(client) }
            }
        }
    }

    // MARK: Queueing

    /// Room for a frame in a client's queue; the oldest packets of who has most there go when it is full.
    func append(
        _ length: Int, to target: RelayClient, isDisco: Bool, source: UInt64
    ) -> UnsafeMutableRawPointer {
        let isFull = queuedBytes > limits.totalQueueBytes
        let byteLimit = isFull ? limits.crowdedQueueBytes : limits.queueBytes
        if isFull { cutAt = now }
        queuedBytes += length
        markDirty(target, bytes: length)
        if isDisco {
            while target.disco.frames >= limits.queuePackets
                || !target.disco.isEmpty && target.disco.bytes + length > byteLimit
            {
                queuedBytes -= target.disco.dropFirst()
                counters.droppedQueueHead += 1
                counters.droppedDisco += 1
            }
            return target.disco.append(length, milliseconds: milliseconds)
        }
        while target.bulkFrames >= limits.queuePackets
            || target.bulkFrames > 0 && target.bulkBytes + length > byteLimit
        {
            guard let longest = target.flows.max(by: { $0.queue.bytes < $1.queue.bytes }) else { break }
            dropFirst(of: longest, target)
            counters.droppedQueueHead += 1
        }
        target.bulkBytes += length
        target.bulkFrames += 1
        return target.flow(of: source).queue.append(length, milliseconds: milliseconds)
    }

    private func dropFirst(of flow: Flow, _ client: RelayClient) {
        let length = flow.queue.dropFirst()
        client.bulkBytes -= length
        client.bulkFrames -= 1
        queuedBytes -= length
    }

    /// Drops what waited too long to be of use.
    func dropLate(_ client: RelayClient) {
        let discoLimit = UInt32(clamping: limits.discoQueueNanoseconds / 1_000_000)
        while !client.disco.isEmpty, milliseconds &- client.disco.oldestMilliseconds > discoLimit {
            queuedBytes -= client.disco.dropFirst()
            counters.droppedLate += 1
            counters.droppedDisco += 1
        }
        let limit = UInt32(clamping: limits.queueNanoseconds / 1_000_000)
        for flow in client.flows {
            while !flow.queue.isEmpty, milliseconds &- flow.queue.oldestMilliseconds > limit {
                dropFirst(of: flow, client)
                counters.droppedLate += 1
            }
        }
    }

    // MARK: Writing

    /// Whether a send that failed so may be tried again: nothing is broken.
    static func isFull(_ code: Int32) -> Bool { code == EAGAIN || code == EINTR || code == ENOBUFS }

    /// Offers everything that waits to the kernel: the rest of a begun frame, own frames, discovery, then the
    /// senders in turn.
    func flush(_ client: RelayClient) {
        if !client.sealed.isEmpty, !flushSealed(client) { return }
        while client.hasPlainOutput {
            dropLate(client)
            guard client.hasPlainOutput else { break }
            let (written, offered) = writeOnce(client)
            guard written > 0 else {
                if written < 0 { return }
                setBlocked(client, true)
                if client.stalledSince == 0 { client.stalledSince = now }
                break
            }
            counters.bytesSent += UInt64(written)
            client.stalledSince = 0
            client.progressAt = now
            if written < offered {
                // The kernel has no room: asking again would only tell the same.
                setBlocked(client, true)
                client.stalledSince = now
                break
            }
        }
        if !client.hasOutput {
            setBlocked(client, false)
            client.stalledSince = 0
        }
        if client.bulkBytes <= limits.resumeBytes, !client.pausedSenders.isEmpty { resumeSenders(of: client) }
    }

    /// One call with what waits. Bytes written (0: the kernel takes none now; negative: the connection is gone, and
    /// closed), and bytes offered.
    private func writeOnce(_ client: RelayClient) -> (written: Int, offered: Int) {
        withUnsafeTemporaryAllocation(of: iovec.self, capacity: Self.maximumVectors) { vectors in
            var count = 0
            var offered = 0
            func add(_ bytes: UnsafeRawBufferPointer) {
                guard !bytes.isEmpty else { return }
                vectors[count] = iovec(
                    iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress), iov_len: bytes.count)
                count += 1
                offered += bytes.count
            }
            return client.rest.withUnsafeBytes { rest in
                client.control.withUnsafeBytes { control in
                    add(rest)
                    add(control)
                    add(client.disco.contents)
                    let first = client.flows.isEmpty ? 0 : client.turn % client.flows.count
                    let shares = client.flows.count > 1
                    for step in 0..<client.flows.count where count < Self.maximumVectors {
                        let flow = client.flows[(first + step) % client.flows.count]
                        add(shares ? flow.queue.prefix(Self.quantumBytes) : flow.queue.contents)
                    }
                    return send(client, UnsafeMutableBufferPointer(rebasing: vectors[..<count]))
                }
            }.orElse { [self] in
                if Self.isFull(errno) { return 0 }
                close(client)
                return -1
            }.then { [self] written in
                if written > 0 { consume(client, written) }
                // A cipher takes no more at once than it wants: only what is left of that says that the kernel is full.
                if client.cipher != nil { offered = written + (client.sealed.isEmpty ? 0 : 1) }
                return (written, offered)
            }
        }
    }

    /// Forgets what was written, in the order in which it was offered.
    private func consume(_ client: RelayClient, _ written: Int) {
        var left = written
        func take(_ bytes: inout [UInt8]) {
            let count = min(left, bytes.count)
            if count == bytes.count {
                bytes.removeAll(keepingCapacity: true)
            } else {
                bytes.removeFirst(count)
            }
            left -= count
        }
        if !client.rest.isEmpty { take(&client.rest) }
        if left > 0, !client.control.isEmpty { take(&client.control) }
        if client.control.isEmpty { client.hasPong = false }
        let present = milliseconds
        var waited = counters.averageQueueMilliseconds
        let note = { (arrival: UInt32) in waited += (Double(present &- arrival) - waited) * 0.1 }
        if left > 0, !client.disco.isEmpty {
            let (bytes, frames) = (client.disco.bytes, client.disco.frames)
            let taken = min(left, bytes)
            client.disco.consume(taken, rest: &client.rest, note)
            left -= taken
            queuedBytes -= bytes - client.disco.bytes
            counters.packetsSent += UInt64(frames - client.disco.frames)
        }
        if left > 0 { consumeFlows(client, left, note) }
        counters.averageQueueMilliseconds = waited
    }

    private func consumeFlows(_ client: RelayClient, _ written: Int, _ note: (UInt32) -> Void) {
        var left = written
        let count = client.flows.count
        let first = client.turn % max(1, count)
        var next = first
        for step in 0..<count where left > 0 {
            let flow = client.flows[(first + step) % count]
            let (bytes, frames) = (flow.queue.bytes, flow.queue.frames)
            let taken = min(left, count > 1 ? flow.queue.prefix(Self.quantumBytes).count : bytes)
            flow.queue.consume(taken, rest: &client.rest, note)
            left -= taken
            let gone = frames - flow.queue.frames
            client.bulkBytes -= bytes - flow.queue.bytes
            client.bulkFrames -= gone
            queuedBytes -= bytes - flow.queue.bytes
            counters.packetsSent += UInt64(gone)
            next = first + step + 1
        }
        client.turn = next % max(1, count)
        guard count > 1, client.flows.contains(where: { $0.queue.isEmpty }) else { return }
        let following = client.flows[client.turn]
        client.flows.removeAll { $0.queue.isEmpty }
        client.turn = client.flows.firstIndex { $0 === following } ?? 0
    }

    // MARK: Interest

    func setBlocked(_ client: RelayClient, _ isBlocked: Bool) {
        client.isBlocked = isBlocked
        updateInterest(client)
    }

    /// Tells epoll what matters of a client now.
    func updateInterest(_ client: RelayClient) {
        guard !client.isClosed else { return }
        var interest: Epoll.Interest = []
        if client.pauses.isEmpty { interest.insert(.read) }
        if client.isBlocked { interest.insert(.write) }
        guard interest != client.interest else { return }
        client.interest = interest
        do {
            try epoll.epoll.modify(client.descriptor, interest, token: client.number)
        } catch {
            close(client)
        }
    }
}

extension Int {
    /// Zero and more stay; a failed call's result is what `failure` makes of `errno`.
    fileprivate func orElse(_ failure: () -> Int) -> Int { self < 0 ? failure() : self }

    fileprivate func then<R>(_ next: (Int) -> R) -> R { next(self) }
}

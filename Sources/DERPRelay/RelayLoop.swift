// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import LinuxIO
internal import Mesh
internal import Synchronization

/// The relay's thread: owns every connection, the table of keys and the read buffer. Nothing else touches them.
final class RelayLoop {
    let configuration: Relay.Configuration
    let limits: Relay.Limits
    let publicKey: NodePublicKey
    private let mailbox: Relay.Mailbox
    private let epoll: EpollBox
    var random: SecureGenerator
    var counters = Relay.Counters()
    var clients: [UInt64: RelayClient] = [:]
    var keys: [ClientKey: KeyState] = [:]
    var watchers: [RelayClient] = []
    /// Who has output that was not offered to the kernel yet.
    var dirty: [RelayClient] = []
    var dirtyBytes = 0
    var queuedBytes = 0
    var partialBytes = 0
    var now: UInt64 = 0
    /// Room for the largest begun frame and one read behind it.
    let buffer: UnsafeMutableRawBufferPointer
    private var nextNumber: UInt64 = 1
    private var nextSweep: UInt64 = 0
    private var stopAt = UInt64.max

    init(
        _ configuration: Relay.Configuration, mailbox: Relay.Mailbox, epoll: EpollBox, random: SecureGenerator
    ) {
        self.configuration = configuration
        limits = configuration.limits
        publicKey = configuration.privateKey.nodePublicKey
        self.mailbox = mailbox
        self.epoll = epoll
        self.random = random
        buffer = .allocate(
            byteCount: DERP.headerBytes + DERP.maximumClientInfoBytes + limits.readBytes, alignment: 4096)
    }

    deinit { buffer.deallocate() }

    var milliseconds: UInt32 { UInt32(truncatingIfNeeded: now / 1_000_000) }

    /// Runs until told to stop; then every connection is closed.
    func run() {
        var ready: [(token: UInt64, events: Epoll.Interest)] = []
        now = Clock.monotonicNanoseconds()
        while now < stopAt {
            ready.removeAll(keepingCapacity: true)
            // Nothing to watch over: sleep until something comes.
            let wait: UInt64? =
                clients.isEmpty && stopAt == .max ? nil : max(1, min(nextSweep, stopAt) - min(now, nextSweep))
            do {
                try epoll.epoll.wait(timeoutNanoseconds: wait) { ready.append(($0, $1)) }
            } catch {
                break  // The set itself is broken (EBADF, EINVAL): our fault, nothing can be served any more.
            }
            now = Clock.monotonicNanoseconds()
            for (token, events) in ready {
                if token == 0 {
                    mailbox.wakeUp.drain()
                    handleCommands()
                } else if let client = clients[token] {
                    handle(client, events)
                }
                if dirtyBytes >= 64 << 10 { flushDirty() }
            }
            flushDirty()
            if now >= nextSweep { sweep() }
            publishCounters()
            if stopAt != .max, !clients.values.contains(where: \.hasOutput) { break }
        }
        finish()
    }

    private func finish() {
        mailbox.isStopped.store(true, ordering: .releasing)
        handleCommands()  // Closes what was adopted meanwhile.
        for client in clients.values { Glibc.close(client.descriptor) }
        clients = [:]
        keys = [:]
        watchers = []
        publishCounters()
    }

    private func publishCounters() {
        counters.connections = clients.count
        counters.clients = keys.count
        counters.watchers = watchers.count
        counters.queuedBytes = queuedBytes
        mailbox.counters.withLock { $0 = counters }
    }

    private func handleCommands() {
        let commands = mailbox.commands.withLock { commands in
            defer { commands = [] }
            return commands
        }
        for command in commands {
            switch command {
            case .adopt(let descriptor, let leftover): adopt(descriptor, leftover)
            case .drain(let until): drain(until)
            case .stop: stopAt = 0
            }
        }
    }

    // MARK: Connections

    private func adopt(_ descriptor: Int32, _ leftover: [UInt8]) {
        guard stopAt == .max, clients.count < limits.connections else {
            if stopAt == .max { counters.refusedForLimits += 1 }
            Glibc.close(descriptor)
            return
        }
        let number = nextNumber
        nextNumber += 1
        do {
            try Descriptor.setNonBlocking(descriptor)
            Descriptor.setNoDelay(descriptor)
            Descriptor.setUnsentLowWater(descriptor, bytes: limits.kernelUnsentBytes)
            try epoll.epoll.add(descriptor, .read, token: number)
        } catch {
            counters.protocolErrors += 1
            Glibc.close(descriptor)
            return
        }
        if clients.isEmpty { nextSweep = now + 1_000_000_000 }
        let session = DERPServerSession(serverKey: configuration.privateKey, meshKey: configuration.meshKey)
        let client = RelayClient(
            number: number, descriptor: descriptor, session: session, now: now,
            keepAliveAt: nextKeepAlive())
        clients[number] = client
        counters.accepts += 1
        sendControl(DERPServerSession.serverKeyFrame(publicKey), to: client)
        guard !leftover.isEmpty else { return }
        guard leftover.count <= buffer.count else {
            counters.protocolErrors += 1
            close(client)
            return
        }
        leftover.withUnsafeBytes { buffer.copyMemory(from: $0) }
        parse(client, count: leftover.count)
    }

    private func handle(_ client: RelayClient, _ events: Epoll.Interest) {
        if events.contains(.write) {
            client.isBlocked = false
            flush(client)
        }
        guard !client.isClosed else { return }
        if !events.isDisjoint(with: [.read, .hangUp, .error]) { read(client) }
    }

    private func read(_ client: RelayClient) {
        let kept = client.partial.count
        if kept > 0 { client.partial.withUnsafeBytes { buffer.copyMemory(from: $0) } }
        let count = recv(client.descriptor, buffer.baseAddress! + kept, limits.readBytes, 0)
        guard count > 0 else {
            if count < 0, errno == EAGAIN || errno == EINTR { return }
            close(client)
            return
        }
        setPartial(client, UnsafeRawBufferPointer(start: nil, count: 0))
        parse(client, count: kept + count)
    }

    /// Keeps a begun frame for the next read. Closes the client when all of them together would cost too much.
    func setPartial(_ client: RelayClient, _ bytes: UnsafeRawBufferPointer) {
        partialBytes += bytes.count - client.partial.count
        if bytes.isEmpty {
            if !client.partial.isEmpty { client.partial = [] }
            return
        }
        client.partial = Array(bytes)
        guard partialBytes > limits.partialBytes else { return }
        counters.refusedForLimits += 1
        close(client)
    }

    /// Forgets the connection, and its key when it was the last one.
    func close(_ client: RelayClient) {
        guard !client.isClosed else { return }
        client.isClosed = true
        epoll.epoll.remove(client.descriptor)
        Glibc.close(client.descriptor)
        clients[client.number] = nil
        queuedBytes -= client.disco.bytes + client.other.bytes
        counters.droppedGone += UInt64(client.disco.frames + client.other.frames)
        counters.droppedDisco += UInt64(client.disco.frames)
        setPartial(client, UnsafeRawBufferPointer(start: nil, count: 0))
        if client.isHome { counters.homeConnections -= 1 }
        client.lastTarget = nil
        if client.isWatcher { watchers.removeAll { $0 === client } }
        unregister(client)
    }

    // MARK: Time

    /// Once per second: logins, keep-alives, clients that take nothing, memory of idle queues.
    private func sweep() {
        nextSweep = now + 1_000_000_000
        for client in Array(clients.values) {
            if !client.session.isOpen {
                guard now - client.opened >= limits.loginNanoseconds else { continue }
                counters.loginTimeouts += 1
                close(client)
                continue
            }
            if client.stalledSince != 0, now - client.stalledSince >= limits.stallNanoseconds {
                counters.stalls += 1
                close(client)
                continue
            }
            if now >= client.keepAliveAt {
                client.keepAliveAt = nextKeepAlive()
                sendControl(DERP.frame(.keepAlive), to: client)
            }
            if !client.hasOutput {
                client.other.releaseIfEmpty()
                client.disco.releaseIfEmpty()
                if client.control.capacity > 0 { client.control = [] }
                if client.rest.capacity > 0 { client.rest = [] }
            }
        }
        flushDirty()
    }

    private func nextKeepAlive() -> UInt64 {
        now + limits.keepAliveNanoseconds + random.next() % (limits.keepAliveJitterNanoseconds + 1)
    }

    private func drain(_ until: UInt64) {
        stopAt = until
        for client in clients.values where client.session.isOpen {
            // Spread over two seconds, so that the next relay is not overrun.
            let reconnectIn = UInt32(random.next() % 2_000)
            let body = [reconnectIn, 5_000].flatMap { value in
                (0..<4).map { UInt8(truncatingIfNeeded: value >> (24 - 8 * UInt32($0))) }
            }
            sendControl(DERP.frame(.restarting, body), to: client)
        }
    }

    // MARK: Output

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

    private func flushDirty() {
        dirtyBytes = 0
        guard !dirty.isEmpty else { return }
        let waiting = dirty
        dirty.removeAll(keepingCapacity: true)
        for client in waiting {
            client.isDirty = false
            if !client.isClosed, !client.isBlocked { flush(client) }
        }
    }

    /// Offers everything that waits to the kernel: the rest of a begun frame, own frames, discovery, all else.
    func flush(_ client: RelayClient) {
        while client.hasOutput {
            dropLate(client)
            let written = writeOnce(client)
            guard written > 0 else {
                if written < 0 { return }
                setBlocked(client, true)
                if client.stalledSince == 0 { client.stalledSince = now }
                return
            }
            counters.bytesSent += UInt64(written)
            client.stalledSince = 0
            consume(client, written)
        }
        setBlocked(client, false)
        client.stalledSince = 0
    }

    /// Bytes written; 0: the kernel takes none now; negative: the connection is gone, and closed.
    private func writeOnce(_ client: RelayClient) -> Int {
        client.rest.withUnsafeBytes { rest in
            client.control.withUnsafeBytes { control in
                withUnsafeTemporaryAllocation(of: iovec.self, capacity: 4) { vectors in
                    var count = 0
                    for part in [rest, control, client.disco.contents, client.other.contents]
                    where !part.isEmpty {
                        vectors[count] = iovec(
                            iov_base: UnsafeMutableRawPointer(mutating: part.baseAddress), iov_len: part.count
                        )
                        count += 1
                    }
                    var message = msghdr()
                    message.msg_iov = vectors.baseAddress
                    message.msg_iovlen = count
                    return sendmsg(client.descriptor, &message, Int32(MSG_NOSIGNAL))
                }
            }
        }.clamped { [self] in
            if errno == EAGAIN || errno == EINTR || errno == ENOBUFS { return 0 }
            close(client)
            return -1
        }
    }

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
        let before = client.disco.bytes + client.other.bytes
        let frames = client.disco.frames + client.other.frames
        let present = milliseconds
        var waited = counters.averageQueueMilliseconds
        let note = { (arrival: UInt32) in waited += (Double(present &- arrival) - waited) * 0.1 }
        let disco = min(left, client.disco.bytes)
        if disco > 0 { client.disco.consume(disco, rest: &client.rest, note) }
        if left - disco > 0 { client.other.consume(left - disco, rest: &client.rest, note) }
        counters.averageQueueMilliseconds = waited
        counters.packetsSent += UInt64(frames - client.disco.frames - client.other.frames)
        queuedBytes += client.disco.bytes + client.other.bytes - before
    }

    private func dropLate(_ client: RelayClient) {
        let limit = UInt32(clamping: limits.queueNanoseconds / 1_000_000)
        let before = client.disco.bytes + client.other.bytes
        while !client.disco.isEmpty, milliseconds &- client.disco.oldestMilliseconds > limit {
            client.disco.dropFirst()
            counters.droppedLate += 1
            counters.droppedDisco += 1
        }
        while !client.other.isEmpty, milliseconds &- client.other.oldestMilliseconds > limit {
            client.other.dropFirst()
            counters.droppedLate += 1
        }
        queuedBytes += client.disco.bytes + client.other.bytes - before
    }

    func setBlocked(_ client: RelayClient, _ isBlocked: Bool) {
        guard client.isBlocked != isBlocked || isBlocked != client.isWaitingForWrite else { return }
        client.isBlocked = isBlocked
        guard isBlocked != client.isWaitingForWrite else { return }
        client.isWaitingForWrite = isBlocked
        do {
            try epoll.epoll.modify(
                client.descriptor, isBlocked ? [.read, .write] : .read, token: client.number)
        } catch {
            close(client)
        }
    }
}

extension Int {
    /// Zero and more stay; a failed call's result is what `failure` makes of `errno`.
    fileprivate func clamped(_ failure: () -> Int) -> Int { self < 0 ? failure() : self }
}

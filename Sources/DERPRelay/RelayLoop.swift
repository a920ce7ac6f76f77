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
    /// Secret of the mesh; empty: no other relay is known.
    var meshKey: String
    let mailbox: Relay.Mailbox
    let epoll: EpollBox
    var random: SecureGenerator
    var counters = Relay.Counters()
    var clients: [UInt64: RelayClient] = [:]
    var keys: [ClientKey: KeyState] = [:]
    /// Keys at other relays of the mesh.
    var remotes: [ClientKey: RemoteKey] = [:]
    var watchers: [RelayClient] = []
    /// Who has output that was not offered to the kernel yet.
    var dirty: [RelayClient] = []
    var dirtyBytes = 0
    var queuedBytes = 0
    /// Begun frames of clients, and of those among them that are not logged in.
    var partialBytes = 0
    var loginBytes = 0
    /// Connections by source address, while there is a limit.
    var sources: [String: Int] = [:]
    /// What is wrong with this relay, for its clients; empty: nothing.
    var problem = ""
    /// When a queue was cut short last because all of them together were too long, and whether clients know.
    var cutAt: UInt64 = 0
    var isCrowded = false
    /// Clients that may be paused; some are not any more.
    var paused: [RelayClient] = []
    /// When the first pause may end.
    var nextPauseEnd = UInt64.max
    var now: UInt64 = 0
    /// Room for the largest begun frame and one read behind it.
    let buffer: UnsafeMutableRawBufferPointer
    /// What was read of a connection with a cipher, or is to be sealed together for one; and what was sealed. Neither
    /// means anything between two calls.
    let scratch: UnsafeMutableRawBufferPointer
    var sealedOutput: [UInt8] = []
    private var nextNumber: UInt64 = 1
    private var nextSweep: UInt64 = 0
    private var stopAt = UInt64.max
    private var waitsForClients = false
    private var isDraining = false

    init(
        _ configuration: Relay.Configuration, mailbox: Relay.Mailbox, epoll: EpollBox, random: SecureGenerator
    ) {
        self.configuration = configuration
        limits = configuration.limits
        meshKey = configuration.meshKey
        publicKey = configuration.privateKey.nodePublicKey
        self.mailbox = mailbox
        self.epoll = epoll
        self.random = random
        buffer = .allocate(
            byteCount: DERP.headerBytes + DERP.maximumClientInfoBytes + limits.readBytes + Relay.cipherRoom,
            alignment: 4096)
        scratch = .allocate(byteCount: limits.readBytes, alignment: 4096)
    }

    deinit {
        buffer.deallocate()
        scratch.deallocate()
    }

    var milliseconds: UInt32 { UInt32(truncatingIfNeeded: now / 1_000_000) }

    /// Runs until told to stop; then every connection is closed.
    func run() {
        let events = EpollEvents()
        now = Clock.monotonicNanoseconds()
        while now < stopAt {
            let count: Int
            do {
                count = try epoll.epoll.wait(timeoutNanoseconds: waitingTime, into: events)
            } catch {
                break  // The set itself is broken (EBADF, EINVAL): our fault, nothing can be served any more.
            }
            now = Clock.monotonicNanoseconds()
            for index in 0..<count {
                let (token, interest) = events[index]
                if token == 0 {
                    mailbox.wakeUp.drain()
                    handleCommands()
                } else if let client = clients[token] {
                    handle(client, interest)
                }
                if dirtyBytes >= 64 << 10 { flushDirty() }
            }
            flushDirty()
            if now >= nextPauseEnd { endPauses() }
            if now >= nextSweep { sweep() }
            publishCounters()
            if isDrained { break }
        }
        finish()
    }

    /// Nil where there is nothing to watch over: sleep until something comes.
    private var waitingTime: UInt64? {
        if clients.isEmpty, stopAt == .max { return nil }
        let next = min(nextSweep, stopAt, nextPauseEnd)
        return next > now ? next - now : 0
    }

    /// Everything said, and everybody gone who was asked to go.
    private var isDrained: Bool {
        guard isDraining else { return false }
        if waitsForClients { return !clients.values.contains { $0.link == nil && !$0.session.isMeshPeer } }
        return !clients.values.contains(where: \.hasOutput)
    }

    private func finish() {
        mailbox.isStopped.store(true, ordering: .releasing)
        handleCommands()  // Closes what was adopted meanwhile.
        for client in clients.values {
            sayEnd(client)
            Glibc.close(client.descriptor)
            client.pausedSenders = []
            client.link?.ended(.stopped)
        }
        clients = [:]
        keys = [:]
        remotes = [:]
        watchers = []
        paused = []
        publishCounters()
    }

    private func publishCounters() {
        counters.connections = clients.count
        counters.clients = keys.count
        counters.remoteClients = remotes.count
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
            case .adopt(let descriptor, let leftover, let source, let cipher):
                if let client = take(descriptor, source, cipher) {
                    sendControl(DERPServerSession.serverKeyFrame(publicKey), to: client)
                    begin(client, leftover)
                }
            case .link(let descriptor, let leftover, let ended): link(descriptor, leftover, ended)
            case .admitted(let number, let isAdmitted): admitted(number, isAdmitted)
            case .health(let text): setProblem(text)
            case .meshKey(let key): meshKey = key
            case .drain(let until, let waits): drain(until, waits)
            case .stop: stopAt = 0
            }
        }
    }

    // MARK: Connections

    /// Makes a client of a connection; nil (and closed) when that cannot be.
    func take(_ descriptor: Int32, _ source: String, _ cipher: (any RelayCipher)? = nil) -> RelayClient? {
        guard stopAt == .max, clients.count < limits.connections, isWelcome(source) else {
            if stopAt == .max { counters.refusedForLimits += 1 }
            Glibc.close(descriptor)
            return nil
        }
        let number = nextNumber
        nextNumber += 1
        do {
            try Descriptor.setNonBlocking(descriptor)
            Descriptor.setNoDelay(descriptor)
            Descriptor.setUnsentLowWater(descriptor, bytes: limits.kernelUnsentBytes)
            // One that vanished without a word is known as soon as something waits for it.
            Descriptor.setPatience(
                descriptor, unacknowledgedMilliseconds: Int(clamping: limits.stallNanoseconds / 1_000_000),
                idleSeconds: limits.probeSeconds)
            try epoll.epoll.add(descriptor, .read, token: number)
        } catch {
            counters.protocolErrors += 1
            Glibc.close(descriptor)
            return nil
        }
        if clients.isEmpty { nextSweep = now + 1_000_000_000 }
        let session = DERPServerSession(serverKey: configuration.privateKey, meshKey: meshKey)
        let client = RelayClient(
            number: number, descriptor: descriptor, cipher: cipher, session: session, source: source,
            now: now,
            keepAliveAt: nextKeepAlive(), rateTokens: limits.burstBytes)
        clients[number] = client
        noteSource(client)
        counters.accepts += 1
        return client
    }

    /// Handles what came together with the upgrade.
    func begin(_ client: RelayClient, _ leftover: [UInt8]) {
        guard !leftover.isEmpty else { return }
        guard leftover.count <= buffer.count else {
            counters.protocolErrors += 1
            close(client)
            return
        }
        leftover.withUnsafeBytes { buffer.copyMemory(from: $0) }
        parseAny(client, count: leftover.count)
    }

    private func handle(_ client: RelayClient, _ events: Epoll.Interest) {
        if events.contains(.write) {
            client.isBlocked = false
            flush(client)
        }
        guard !client.isClosed else { return }
        let isOver = !events.isDisjoint(with: [.hangUp, .error])
        // What one that is gone had to say is read to its end, pause or not; then there is nothing to slow down.
        if isOver, !client.pauses.contains(.admission) { client.pauses = [] }
        if client.pauses.isEmpty {
            if isOver || events.contains(.read) { read(client) }
        } else if isOver {
            close(client)
        }
    }

    private func read(_ client: RelayClient) {
        let kept = client.partial.count
        guard let count = receive(client, at: kept) else { return }
        if kept > 0, kept + count < client.neededBytes {
            // Still no whole frame: what is kept stays where it is, or each small piece would move all of it.
            extendPartial(client, UnsafeRawBufferPointer(rebasing: buffer[kept..<kept + count]))
        } else {
            if kept > 0 { client.partial.withUnsafeBytes { buffer.copyMemory(from: $0) } }
            clearPartial(client)
            parseAny(client, count: kept + count)
        }
        if limits.bytesPerSecond > 0, !client.isClosed { takeTokens(client, count) }
        if let cipher = client.cipher, cipher.isOver { close(client) }
    }

    func parseAny(_ client: RelayClient, count: Int) {
        guard let link = client.link else { return parse(client, count: count) }
        link.heardAt = now
        parseLink(client, count: count)
    }

    /// Forgets the connection, and its key when it was the last one.
    func close(_ client: RelayClient) {
        guard !client.isClosed else { return }
        client.isClosed = true
        sayEnd(client)
        epoll.epoll.remove(client.descriptor)
        Glibc.close(client.descriptor)
        clients[client.number] = nil
        queuedBytes -= client.queuedBytes
        counters.droppedGone += UInt64(client.queuedFrames)
        counters.droppedDisco += UInt64(client.disco.frames)
        clearPartial(client)
        forgetSource(client)
        resumeSenders(of: client)
        if client.isHome { counters.homeConnections -= 1 }
        client.lastTarget = nil
        if client.isWatcher { watchers.removeAll { $0 === client } }
        unregister(client)
        if client.link != nil { closeLink(client) }
    }

    // MARK: Time

    /// Once per second: logins, keep-alives, clients that take nothing, memory of idle queues.
    private func sweep() {
        nextSweep = now + 1_000_000_000
        for client in Array(clients.values) {
            if !client.isOpen {
                guard now - client.opened >= limits.loginNanoseconds else { continue }
                counters.loginTimeouts += 1
                close(client)
                continue
            }
            if isStuck(client) {
                counters.stalls += 1
                close(client)
                continue
            }
            if isFrameLate(client) {
                counters.slowFrames += 1
                close(client)
                continue
            }
            if client.link == nil, now >= client.keepAliveAt {
                client.keepAliveAt = nextKeepAlive()
                sendControl(DERP.frame(.keepAlive), to: client)
            }
            if client.hasOutput { dropLate(client) } else { releaseMemory(client) }
        }
        watchLoad()
        flushDirty()
    }

    /// Whether a client takes nothing for too long, or another relay says nothing.
    private func isStuck(_ client: RelayClient) -> Bool {
        let limit = client.link == nil ? limits.stallNanoseconds : limits.linkStallNanoseconds
        if client.stalledSince != 0, now - client.stalledSince >= limit { return true }
        guard let link = client.link else { return false }
        return now - min(now, link.heardAt) >= limits.linkSilenceNanoseconds
    }

    private func releaseMemory(_ client: RelayClient) {
        client.disco.releaseIfEmpty()
        if client.flows.capacity > 0 { client.flows = [] }
        if client.control.capacity > 0 { client.control = [] }
        if client.rest.capacity > 0 { client.rest = [] }
        if client.pausedSenders.capacity > 0, client.pausedSenders.isEmpty { client.pausedSenders = [] }
    }

    private func nextKeepAlive() -> UInt64 {
        now + limits.keepAliveNanoseconds + random.next() % (limits.keepAliveJitterNanoseconds + 1)
    }

    private func drain(_ until: UInt64, _ waits: Bool) {
        stopAt = until
        isDraining = true
        waitsForClients = waits
        for client in clients.values where client.session.isOpen && !client.session.isMeshPeer {
            // Spread over two seconds at most, so that the next relay is not overrun.
            let spread = min(2_000, max(1, (until - min(until, now)) / 2_000_000))
            let body = [UInt32(random.next() % spread), 5_000].flatMap { value in
                (0..<4).map { UInt8(truncatingIfNeeded: value >> (24 - 8 * UInt32($0))) }
            }
            sendControl(DERP.frame(.restarting, body), to: client)
        }
        flushDirty()
    }
}

// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO

/// One relay region: its connection, or the wait for the next try. Home is kept for ever; others are opened by the
/// first packet and closed after a minute without one. `derp.md` §7.2.
final class RelayLink {
    enum State {
        case idle
        /// The dialer is at work.
        case dialing(attempt: UInt64)
        /// After a failure, until then.
        case waiting(until: Instant)
        case open
    }

    let region: Int
    var state = State.idle
    /// -1 unless open.
    var number: Int32 = -1
    var isSocket = true
    var generation: UInt32 = 0
    /// Takes packets from the moment that dialling starts: they wait in it, bounded, until the login is done.
    var client: DERPClient?
    var failures: UInt64 = 0
    var canRead = false
    var canWrite = false
    var hasNews = false
    var lastWrite: Instant
    /// When the connection last took bytes while some waited.
    var lastProgress: Instant
    /// A pong must come until then: the network changed and the connection may be dead.
    var pongDeadline = Instant.never
    /// The relay is about to stop: then it is left, and dialled again.
    var leaveAt = Instant.never

    init(region: Int, now: Instant) {
        self.region = region
        lastWrite = now
        lastProgress = now
    }

    var isOpen: Bool { if case .open = state { true } else { false } }

    var nextDeadline: Instant {
        switch state {
        case .idle, .dialing: .never
        case .waiting(let until): until
        case .open: min(client?.nextDeadline ?? .never, pongDeadline, leaveAt, lastWrite + Engine.relayIdle)
        }
    }
}

extension Engine {
    /// A connection that is not home is closed after this without a packet.
    static let relayIdle = Interval.seconds(60)
    private static let pongLimit = Interval.seconds(3)
    /// A relay may not make us wait longer than this before we leave it.
    private static let restartLimit = Interval.seconds(10)
    private static let hiddenPongLimit = Interval.seconds(1)
    /// A relay connection with more unsent bytes makes us stop fetching packets, if all traffic is relayed:
    /// inside the process nothing needs to be dropped. With direct traffic beside it the relay's packets are
    /// dropped instead, lest the slow path stop the fast one.
    private static let highWater = 256 << 10

    /// The link of a region of the map, made when there is none yet.
    private mutating func link(_ region: Int) -> RelayLink? {
        if let link = relays.first(where: { $0.region == region }) { return link }
        guard derpMap.regions[region]?.hasRelay == true, configuration.relayDialer != nil else { return nil }
        let link = RelayLink(region: region, now: now)
        relays.append(link)
        return link
    }

    /// Makes sure that a connection exists or is being made.
    mutating func openRelay(_ region: Int) {
        guard let link = link(region), case .idle = link.state else { return }
        dial(link)
    }

    private mutating func dial(_ link: RelayLink) {
        let attempt = hub.replies.makeToken()
        link.state = .dialing(attempt: attempt)
        var clientLimits = DERPClient.Limits()
        clientLimits.outputBytes = limits.relayBacklogBytes
        link.client = DERPClient(
            privateKey: configuration.privateKey, isPreferred: link.region == homeRegion.current,
            limits: clientLimits, random: SecureGenerator(seededBy: &random), now: now)
        hub.notify(.dialRelay(region: link.region, attempt: attempt))
    }

    mutating func relayConnected(_ region: Int, _ attempt: UInt64, _ number: Int32) {
        let index = relays.firstIndex { link in
            if case .dialing(attempt) = link.state { link.region == region } else { false }
        }
        guard let index else { return OwnedDescriptor(taking: number).close() }
        let link = relays[index]
        link.number = number
        link.isSocket = Descriptor.kind(number)?.isSocket ?? false
        link.generation = (link.generation &+ 1) & 0xff_ffff
        link.state = .open
        link.canWrite = true
        link.hasNews = true
        link.lastWrite = now
        link.lastProgress = now
        Descriptor.setNoDelay(number)
        Descriptor.setUnsentLowWater(number, bytes: 128 << 10)
        do {
            try Descriptor.setNonBlocking(number)
            let source = EventSource.relay(region, generation: link.generation)
            try epoll.add(number, [.read, .write, .readHangUp, .edge], token: source.token)
        } catch {
            return closeRelay(index, retry: true)
        }
        paths.relayConnected(region, now: now)
        readRelay(link)
    }

    mutating func relayFailed(_ region: Int, _ attempt: UInt64, _ reason: String) {
        let index = relays.firstIndex { link in
            if case .dialing(attempt) = link.state { link.region == region } else { false }
        }
        guard let index else { return }
        log("relay cannot be reached", [("region", "\(region)"), ("error", reason)])
        closeRelay(index, retry: true)
    }

    /// Ends a connection. `retry`: after min(n² · 10 ms, 5 s), jittered by half.
    mutating func closeRelay(_ index: Int, retry: Bool) {
        let link = relays[index]
        if case .dialing = link.state { hub.notify(.cancelRelay(region: link.region)) }
        let wasOpen = link.isOpen
        if link.number >= 0 {
            epoll.remove(link.number)
            OwnedDescriptor(taking: link.number).close()
            link.number = -1
        }
        link.client = nil
        link.pongDeadline = .never
        link.leaveAt = .never
        link.state = .idle
        if retry {
            if link.region == homeRegion.current { measureSoon(wasOpen: wasOpen) }
            link.failures = min(link.failures + 1, 1_000)
            let pause = min(link.failures * link.failures * 10, 5_000)
            let jittered = pause / 2 + random.next() % (pause + 1)
            link.state = .waiting(until: now + .milliseconds(jittered))
        }
        if wasOpen {
            paths.relayDisconnected(link.region, now: now)
            if retry { discovery.requestUpdate(now: now) }
        }
    }

    // MARK: Bytes

    mutating func relayEvent(_ region: Int, _ generation: UInt32, _ interest: Epoll.Interest) {
        guard let link = relays.first(where: { $0.region == region }), link.isOpen,
            link.generation == generation
        else { return }
        let isOver = !interest.isDisjoint(with: [.hangUp, .error])
        if isOver || interest.contains(.write) { link.canWrite = true }
        if isOver || !interest.isDisjoint(with: [.read, .readHangUp]) { readRelay(link) }
    }

    /// Goes on reading where the last turn stopped.
    mutating func readRelays() {
        guard unreadRelays > 0 else { return }
        unreadRelays = 0
        for link in relays where link.isOpen && link.canRead { readRelay(link) }
    }

    /// Most bytes of a relay per turn, about; then other things have their turn.
    private static let readBudget = 256 << 10

    /// Reads what waits and hands packets on where they lie. Sends nothing.
    private mutating func readRelay(_ link: RelayLink) {
        let number = link.number
        var budget = Self.readBudget
        link.canRead = true
        while link.isOpen {
            guard budget > 0 else {
                unreadRelays += 1
                return
            }
            var result = TransferResult.wouldBlock
            unsafe link.client?.withInputSpace { space in
                result = unsafe Descriptor.read(number, into: space)
                if case .moved(let count) = result { return count }
                return 0
            }
            switch result {
            case .moved(let count):
                budget -= count
                guard takeRelayEvents(link) else { return failRelay(link, "protocol error") }
            case .wouldBlock:
                link.canRead = false
                return
            case .end: return failRelay(link, "closed by the relay")
            case .failed(let code): return failRelay(link, SystemError(call: "read", code: code).description)
            }
        }
    }

    private mutating func failRelay(_ link: RelayLink, _ reason: String) {
        guard let index = relays.firstIndex(where: { $0 === link }) else { return }
        log("relay connection lost", [("region", "\(link.region)"), ("reason", reason)])
        closeRelay(index, retry: true)
    }

    /// False when the relay broke the protocol.
    private mutating func takeRelayEvents(_ link: RelayLink) -> Bool {
        do {
            while let event = try link.client?.nextEvent(now: now) {
                switch event {
                case .packet(let key, let range):
                    counters.relayReceived += 1
                    // The memory stays where it is until the next input: `withInputSpace`.
                    let bytes = unsafe link.client?.withPayload(range) { unsafe $0 }
                    let peer = paths.peer(forNode: key, throughRelay: link.region, now: now)
                    if let peer, !unanswered.isEmpty { unanswered.hurry(peer, now: now) }
                    if let bytes = unsafe bytes {
                        unsafe receiveDatagram(bytes, from: .relay(region: link.region, key))
                    }
                case .ready:
                    link.failures = 0
                    stack.repeatNow(now)
                    unanswered.hurryAll(now: now)
                case .peerGone(let key, _):
                    paths.relayPeerGone(link.region, node: key, now: now)
                case .pong: link.pongDeadline = .never
                case .health(let problem?):
                    log("relay reports a problem", [("region", "\(link.region)"), ("problem", problem)])
                case .restarting(let reconnectIn, _):
                    // Until then it still forwards.
                    link.leaveAt = now + min(reconnectIn, Self.restartLimit)
                case .health, .serverKey, .peerPresent, .keepAlive: break
                }
            }
            return true
        } catch {
            log("relay broke the protocol", [("region", "\(link.region)"), ("error", "\(error)")])
            return false
        }
    }

    /// Queues a packet for a relay; dropped and counted when that takes too much already.
    /// Urgent ones, discovery and handshakes, overtake what waits.
    mutating func sendRelayed(
        _ bytes: UnsafeRawBufferPointer, region: Int, to key: NodePublicKey, isUrgent: Bool = false
    ) {
        guard let link = link(region) else {
            counters.relayDropped += 1
            return
        }
        if case .idle = link.state { dial(link) }
        if unsafe link.client?.send(bytes.bytes, to: key, isUrgent: isUrgent, now: now) == true {
            counters.relaySent += 1
            link.hasNews = true
        } else {
            counters.relayDropped += 1
        }
    }

    /// Finds out whether packets should wait because a relay does not take them, and nothing goes directly.
    mutating func updateRelayPressure() {
        isRelayFull = false
        if now.since(lastDirectSend) < .seconds(1) { return }
        for link in relays where link.isOpen {
            if link.backlog > Self.highWater, now.since(link.lastProgress) < limits.relayBacklogTime {
                isRelayFull = true
            }
        }
    }

    /// Writes what waits for relays.
    mutating func writeRelays() {
        if relays.isEmpty {
            isRelayFull = false
            return
        }
        for link in relays where link.isOpen && link.canWrite && link.client?.hasOutput == true {
            writeRelay(link)
        }
        updateRelayPressure()
    }

    private mutating func writeRelay(_ link: RelayLink) {
        let (number, isSocket) = (link.number, link.isSocket)
        while link.client?.hasOutput == true {
            let result =
                link.client?.withOutput { output in
                    unsafe output.withUnsafeBytes { unsafe Descriptor.write(number, $0, isSocket: isSocket) }
                } ?? .wouldBlock
            switch result {
            case .moved(let count):
                link.client?.consumeOutput(count)
                link.lastWrite = now
                link.lastProgress = now
            case .wouldBlock, .end:
                link.canWrite = false
                return
            case .failed(let code): return failRelay(link, SystemError(call: "write", code: code).description)
            }
        }
    }

    // MARK: Time

    mutating func handleRelayTimeouts() {
        for index in relays.indices {
            let link = relays[index]
            guard now >= link.nextDeadline else { continue }
            switch link.state {
            case .waiting:
                link.state = .idle
                // Others come back with the next packet.
                if link.region == homeRegion.current { dial(link) }
            case .open:
                if now >= link.pongDeadline || now >= link.client?.nextDeadline ?? .never {
                    failRelay(link, "silent")
                } else if now >= link.leaveAt {
                    failRelay(link, "about to stop")
                } else if now >= link.lastWrite + Self.relayIdle {
                    if link.region == homeRegion.current {
                        link.lastWrite = now
                    } else {
                        closeRelay(index, retry: false)
                    }
                }
            case .idle, .dialing: break
            }
        }
    }

    /// The network changed. A connection from an address that this machine no longer has is dead and made anew at
    /// once, as is one that was being made; others have some time to prove that they live: three seconds, or one
    /// where the address cannot be seen because TLS or WebSocket lies in between and nothing was written lately.
    /// `path-selection.md` §8.
    mutating func checkRelays() {
        for index in relays.indices {
            let link = relays[index]
            switch link.state {
            case .open:
                let local = Descriptor.kind(link.number) == .tcp ? localAddress(link.number) : nil
                if let local, !local.isLoopback, !interfaceAddresses.contains(local) {
                    log(
                        "relay connection lost",
                        [("region", "\(link.region)"), ("reason", "its address is gone")])
                    closeRelay(index, retry: true)
                    link.state = .waiting(until: now)
                    continue
                }
                link.client?.ping(random.next())
                // The ping stands behind what was written just now, which a slow uplink takes its time for.
                let isQuick = local == nil && now.since(link.lastWrite) > Self.hiddenPongLimit
                link.pongDeadline = now + (isQuick ? Self.hiddenPongLimit : Self.pongLimit)
            case .dialing:
                closeRelay(index, retry: false)
                link.state = .waiting(until: now)
            case .waiting: link.state = .waiting(until: now)
            case .idle: break
            }
        }
    }

    func localAddress(_ number: Int32) -> IPAddress? {
        (try? StreamSocket.localAddress(number)).map { IPAddress($0).unmapped }
    }
}

extension RelayLink {
    /// Bytes that wait to be written.
    var backlog: Int { client?.outputCount ?? 0 }
}

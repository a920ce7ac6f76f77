// SPDX-License-Identifier: Apache-2.0

internal import LinuxIO

/// One node's thread: owns its sockets, relay connections, descriptors and machines, and runs each burst to
/// completion: datagrams are opened where the kernel put them, go through TCP, and what results is sealed where the
/// next send takes it. Nothing between the stages allocates, locks or queues per packet.
///
/// Receiving never sends through a relay: everything that has to leave is fetched from the machines in `drain`.
struct Engine: ~Copyable {
    let configuration: NodeConfiguration
    let limits: NodeConfiguration.Limits
    let queue: CommandQueue
    let hub: NodeHub
    let epoll: Epoll
    let events: EpollEvents
    var now: Instant
    var isRunning = true
    var random = SystemRandomNumberGenerator()

    // Sockets.
    var v4: UDPSocket?
    var v6: UDPSocket?
    var received = ReceiveBurst()
    /// The last messages received were large.
    var isBulkReceiving = false
    var burst = SendBurst()
    /// Lengths of the inner packets that lie behind `burst.used` and wait to be sealed together.
    var pendingLengths = InlineArray<64, Int>(repeating: 0)
    var pendingCount = 0
    var pendingBytes = 0
    var udpLoss = UDPLoss.none
    var tun: TUNDevice?
    let linkMonitor: LinkMonitor?
    let clockWatch: ClockWatch?
    let portMapSocket: SmallUDPSocket?
    var linkCheckAt = Instant.never
    /// Until then some path may be doubted until data comes over it.
    var dataDoubtUntil = Instant(nanoseconds: 0)
    var interfaceAddresses: [IPAddress] = []
    var routes = DefaultRoutes()
    /// Own addresses from which packets to the rest of the world leave.
    var routeSources: [IPAddress] = []
    /// `Clock.sleptNanoseconds` when it was last looked at.
    var slept = Clock.sleptNanoseconds()
    /// Whose packets came last within this burst.
    var heardFrom: WireGuard.PeerIndex?

    // Machines.
    var device: WireGuard.Device
    var stack: Stack
    var paths: Paths
    var discovery: EndpointDiscovery
    var homeRegion: HomeRegion
    var portMapper: PortMapper
    /// What discovery was told of the mapper.
    var offeredMapping: [SocketAddress] = []

    // Tables.
    var peers = PeerTable()
    var relays: [RelayLink] = []
    var derpMap: DERPMap
    var latencies: [String: Double] = [:]
    var forcedWebSocket: [Int: String] = [:]
    var measureAt = Instant.never
    var measuredAt = Instant(nanoseconds: 0)
    var resolveAt = Instant(nanoseconds: 0)
    var lastDirectSend = Instant(nanoseconds: 0)
    var streams = StreamTable()
    /// Streams to pump: those that move little, then those that moved much the last time.
    var readyStreams: [Int] = []
    var bulkStreams: [Int] = []
    var pumpedStreams: [Int] = []
    /// The machines have more to say than fitted into a turn.
    var hasMoreOutput = false
    /// Bytes moved between descriptors and the stack since the start.
    var movedBytes = 0
    var shortWaits = ShortWaits()
    /// A relay takes too little, and all traffic goes there.
    var isRelayFull = false
    /// Relay connections that were not read to the end.
    var unreadRelays = 0
    var flows = DatagramFlows()
    var flowSweepAt = Instant.never
    var tcpListeners: [UInt16: UInt64] = [:]
    var anyTCPListener: UInt64?
    var udpListeners: [UInt16: UInt64] = [:]
    var anyUDPListener: UInt64?
    var pings: [UInt64: UInt64] = [:]
    var reaches: [UInt64: Reach] = [:]
    var reachOfPing: [UInt64: UInt64] = [:]
    var departed = DepartedRecordings()
    var unanswered = UnansweredHandshakes()
    /// Regions through which initiations came that are not answered yet: at most one of each peer, for one turn.
    var relayedInitiations: [WireGuard.PeerIndex: Int] = [:]
    var published: OwnNode?
    var counters = NodeCounters()
    /// Counters of sockets that were closed.
    var retired = UDPSocket.Counters()
    /// Room for one datagram of any size: UDP flows and small messages.
    let scratch = ScratchMemory(byteCount: 65_536)

    /// Opens the sockets. Runs on the caller's thread; everything else on the engine's.
    init(configuration: NodeConfiguration, queue: CommandQueue, hub: NodeHub) throws(SystemError) {
        let epoll = try Epoll()
        var sockets = try EngineSockets(configuration)
        try sockets.watch(epoll, queue.wakeUp)

        self.configuration = configuration
        limits = configuration.limits
        self.queue = queue
        self.hub = hub
        self.epoll = epoll
        events = EpollEvents()
        now = Instant(nanoseconds: Clock.monotonicNanoseconds())
        v4 = sockets.v4.take()
        v6 = sockets.v6.take()
        tun = sockets.tun.take()
        linkMonitor = sockets.linkMonitor.take()
        clockWatch = sockets.clockWatch.take()
        portMapSocket = sockets.portMap.take()

        var generator = SystemRandomNumberGenerator()
        var wireGuardLimits = configuration.wireGuardLimits
        wireGuardLimits.peers = limits.peers
        device = WireGuard.Device(
            privateKey: configuration.privateKey, mtu: configuration.mtuBytes, limits: wireGuardLimits)
        var stackLimits = StackLimits()
        stackLimits.bufferMemory = limits.bufferMemory
        stackLimits.connections = limits.streams * 2
        stack = Stack(
            addresses: configuration.addresses, mtu: configuration.mtuBytes, limits: stackLimits,
            seed: generator.next())
        paths = Paths(
            nodeKey: configuration.privateKey.nodePublicKey, discoKey: configuration.discoKey,
            random: SecureGenerator(seededBy: &generator))
        discovery = EndpointDiscovery(random: SecureGenerator(seededBy: &generator))
        homeRegion = HomeRegion(random: SecureGenerator(seededBy: &generator))
        portMapper = PortMapper(random: SecureGenerator(seededBy: &generator))
        derpMap = configuration.derpMap
    }

    // MARK: The loop

    /// Runs until told to stop.
    mutating func run() {
        begin()
        var movedBefore = movedBytes
        while isRunning {
            let count = wait(movedBytes: movedBytes - movedBefore)
            movedBefore = movedBytes
            let before = now
            now = Instant(nanoseconds: Clock.monotonicNanoseconds())
            if now.since(before) > .seconds(1) { checkSleep() }
            heardFrom = nil
            for index in 0..<count {
                let event = events[index]
                handle(event.token, event.interest)
            }
            readRelays()
            handleTimeouts()
            drain()
        }
        end()
    }

    private mutating func begin() {
        stack.bindAnyUDP(false)
        noteListenPort()
        if configuration.directBlocked { setDirectBlocked(true) }
        updateLocalAddresses()
        routes = configuration.binding == .any ? DefaultRoutes.current() : routes
        updatePortMapper()
        setDERPMap(derpMap)
        discovery.setPeriodic(true, now: now)
        drain()
    }

    private mutating func handle(_ token: UInt64, _ interest: Epoll.Interest) {
        switch EventSource(token: token) {
        case .wakeUp: for command in queue.takeAll() { carryOut(command) }
        case .udp4: receiveUDP(isV4: true)
        case .udp6: receiveUDP(isV4: false)
        case .link:
            // Changes come in swarms: look once they have settled.
            if linkMonitor?.drain() == true, linkCheckAt == .never { linkCheckAt = now + Self.linkSettles }
        case .clock: if clockWatch?.drain() == true { checkSleep() }
        case .portMap: receivePortMapping()
        case .tun: break  // read in `drain`
        case .relay(let index, let generation): relayEvent(index, generation, interest)
        case .streamBoth(let index, let generation):
            if let slot = streams.slot(index, generation: generation) {
                streamEvent(slot, interest, reads: true, writes: true)
            }
        case .streamRead(let index, let generation):
            if let slot = streams.slot(index, generation: generation) {
                streamEvent(slot, interest, reads: true, writes: false)
            }
        case .streamWrite(let index, let generation):
            if let slot = streams.slot(index, generation: generation) {
                streamEvent(slot, interest, reads: false, writes: true)
            }
        case .flow(let index, let generation): flowEvent(index, generation)
        case nil: break
        }
    }

    // MARK: Time

    /// The minimum of all machines' deadlines.
    var nextDeadline: Instant {
        var result = min(device.nextDeadline, stack.nextDeadline, paths.nextDeadline, discovery.nextDeadline)
        result = min(result, linkCheckAt, measureAt, flowSweepAt)
        result = min(result, portMapper.nextDeadline, unanswered.deadline)
        for link in relays { result = min(result, link.nextDeadline) }
        for reach in reaches.values { result = min(result, reach.nextDeadline) }
        return result
    }

    private mutating func handleTimeouts() {
        if now >= device.nextDeadline { device.handleTimeout(now: now) }
        if now >= stack.nextDeadline { stack.handleTimeout(now) }
        if now >= paths.nextDeadline { paths.handleTimeout(now: now) }
        if now >= discovery.nextDeadline { discovery.handleTimeout(now: now) }
        if now >= linkCheckAt {
            linkCheckAt = .never
            checkLink()
        }
        if now >= portMapper.nextDeadline { portMapper.handleTimeout(now: now) }
        if now >= measureAt { measure() }
        if now >= flowSweepAt { sweepFlows() }
        handleRelayTimeouts()
        if !reaches.isEmpty { handleReaches() }
    }

    // MARK: Commands

    private mutating func carryOut(_ command: Command) {
        switch command {
        case .setPeers(let list): setPeers(list)
        case .updatePeer(let peer): updatePeer(peer)
        case .removePeer(let name): removePeer(name)
        case .setDERPMap(let map): setDERPMap(map)
        case .setDirectBlocked(let isBlocked): setDirectBlocked(isBlocked)
        case .linkChanged: linkChanged()
        case .dropUDP(let loss): udpLoss = loss
        case .gatewayAnswer(let id, let bytes): portMapper.receiveHTTP(id, bytes, now: now)
        case .dial(let token, let address, let reading, let writing):
            dial(token: token, to: address, reading: reading, writing: writing)
        case .openFlow(let token, let address, let number): openFlow(token: token, to: address, number)
        case .listen(let listener, let port, let isUDP): listen(listener, port: port, isUDP: isUDP)
        case .unlisten(let listener): unlisten(listener)
        case .attach(let token, let reading, let writing):
            attach(token: token, reading: reading, writing: writing)
        case .abort(let token): abort(token: token)
        case .postpone(let token): postpone(token: token)
        case .ping(let token, let name): ping(token: token, name)
        case .reach(let token, let address, let limit): reach(token: token, address, limit: limit)
        case .cancel(let token): cancel(token: token)
        case .status(let token): hub.notify(.reply(token: token, .status(status())))
        case .explain(let token, let name): explain(token: token, name)
        case .recordings(let token): hub.notify(.reply(token: token, .recordings(recordings())))
        case .relayConnected(let region, let attempt, let number): relayConnected(region, attempt, number)
        case .relayFailed(let region, let attempt, let reason): relayFailed(region, attempt, reason)
        case .latencies(let found, let reasons): takeLatencies(found, reasons)
        case .stunServers(let servers): setStunServers(servers)
        case .stop: isRunning = false
        }
    }

    private mutating func listen(_ listener: UInt64, port: UInt16?, isUDP: Bool) {
        guard tun == nil else { return hub.notify(.reply(token: listener, .failed(.noStack))) }
        let isTaken =
            isUDP
            ? port.map { udpListeners[$0] != nil } ?? (anyUDPListener != nil)
            : port.map { tcpListeners[$0] != nil } ?? (anyTCPListener != nil)
        guard !isTaken else { return hub.notify(.reply(token: listener, .failed(.portInUse(port ?? 0)))) }
        switch (port, isUDP) {
        case (let port?, false):
            tcpListeners[port] = listener
            stack.listen(port)
        case (nil, false):
            anyTCPListener = listener
            stack.listenAny(asking: true)
        case (let port?, true):
            udpListeners[port] = listener
            stack.bindUDP(port)
        case (nil, true):
            anyUDPListener = listener
            stack.bindAnyUDP()
        }
        hub.notify(.reply(token: listener, .done))
    }

    private mutating func unlisten(_ listener: UInt64) {
        for (port, known) in tcpListeners where known == listener {
            tcpListeners[port] = nil
            stack.unlisten(port)
        }
        for (port, known) in udpListeners where known == listener {
            udpListeners[port] = nil
            stack.unbindUDP(port)
        }
        if anyTCPListener == listener {
            anyTCPListener = nil
            stack.listenAny(false)
        }
        if anyUDPListener == listener {
            anyUDPListener = nil
            stack.bindAnyUDP(false)
        }
    }

    private mutating func abort(token: UInt64) {
        if let slot = streams.slot(token: token) {
            finish(slot, .reset, abort: true)
        } else if let slot = flows.slot(token: token) {
            closeFlow(slot, .closed)
        }
    }

    /// A SYN that was not answered yet is forgotten, so that the peer repeats it; anything else is refused.
    private mutating func postpone(token: UInt64) {
        counters.refused += 1
        if let slot = streams.slot(token: token), streams[slot].phase == .waiting,
            stack.forget(streams[slot].connection)
        {
            finish(slot, .closed, abort: false)
        } else {
            abort(token: token)
        }
    }

    private mutating func cancel(token: UInt64) {
        if let slot = streams.slot(token: token), streams[slot].phase == .dialing {
            finish(slot, .closed, abort: true)
        }
        forgetReach(token: token)
        hub.notify(.reply(token: token, .failed(.cancelled)))
    }

    // MARK: End

    private mutating func end() {
        for slot in streams.slots.indices where streams.slots[slot] != nil {
            finish(slot, .closed, abort: true)
        }
        for slot in flows.slots.indices where flows.slots[slot] != nil { closeFlow(slot, .closed) }
        // The resets that this made should still leave.
        drain()
        releasePortMapping()
        for index in relays.indices { closeRelay(index, retry: false) }
        hub.notify(.stopped)
    }
}
